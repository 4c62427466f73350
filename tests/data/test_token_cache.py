"""The cache of tokenized rows: which code is part of its key."""

import shutil
from pathlib import Path

import pytest

from finetune.data import token_cache


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package, which the cache takes for its own."""
    copy = tmp_path / "finetune"
    shutil.copytree(token_cache.PACKAGE, copy)
    monkeypatch.setattr(token_cache, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("data/documents.py", True),
        ("data/packing.py", True),
        ("tasks/causal_lm.py", True),
        ("tasks/text_classification.py", True),
        ("tasks/new/task.py", True),
        ("report/card.py", False),
        ("cli.py", False),
    ],
)
def test_code_that_encodes_rows_changes_the_key(package: Path, file: str, counts: bool) -> None:
    task = package / "tasks/causal_lm.py"
    before = token_cache._code(task)
    assert token_cache._code(task) == before
    (package / file).parent.mkdir(exist_ok=True)
    with (package / file).open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    assert (token_cache._code(task) != before) == counts


def test_a_task_from_outside_the_package_changes_the_key(package: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("one = 1\n", encoding="utf-8")
    before = token_cache._code(task)
    assert before != token_cache._code(package / "tasks/causal_lm.py")
    task.write_text("one = 2\n", encoding="utf-8")
    assert token_cache._code(task) != before


def test_the_package_is_the_whole_package() -> None:
    assert (token_cache.PACKAGE / "data/token_cache.py").is_file()
    assert (token_cache.PACKAGE / "tasks").is_dir()
