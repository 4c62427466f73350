"""The cache of tokenized rows: which code is part of its key."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
from transformers import AutoTokenizer

from finetune.data import streaming, token_cache
from finetune.recipe import Data
from tests.conftest import make_writer


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


def test_blanks_at_the_beginning_of_a_text_change_its_tokens(workdir: Path) -> None:
    # Indented code is another text, though an equal one for finding duplicates.
    digests = []
    for indent in ("", "    "):
        rows = [json.dumps({"text": f"{indent}print({i})"}) for i in range(40)]
        (workdir / "code.jsonl").write_text("\n".join(rows), encoding="utf-8")
        data = Data(train="code.jsonl", holdout=2, validation_size=0)
        digests.append(streaming.load(data).train_digest)
    assert digests[0] != digests[1]
    twice = [json.dumps({"text": text}) for text in ("a", " a", *"bcdefgh")]
    (workdir / "code.jsonl").write_text("\n".join(twice), encoding="utf-8")
    assert streaming.load(data).report["duplicates_in_train"] == 1


@pytest.mark.parametrize("library", ["transformers", "jinja2", "tokenizers"])
def test_what_writes_a_chat_is_part_of_the_key(
    workdir: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_writer(workdir / "writer"))
    rows, calls = pandas.DataFrame({"id": ["a"], "text": ["b"]}), []

    def function(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        calls.append(1)
        return {"length": [len(text) for text in columns["text"]]}

    token_cache.once(rows, "", tokenizer, function)
    token_cache.once(rows, "", tokenizer, function)
    assert len(calls) == 1
    known = token_cache.version
    monkeypatch.setattr(token_cache, "version", lambda n: "0" if n == library else known(n))
    token_cache.once(rows, "", tokenizer, function)
    assert len(calls) == 2
