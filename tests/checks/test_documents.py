"""What a language model learns of a document is shown, and documents without it are found."""

from pathlib import Path

import pandas
import pytest
from transformers import AutoTokenizer

from finetune import recipe
from finetune.checks import documents as checks
from finetune.checks.finding import Severity
from finetune.data import documents
from tests.conftest import make_writer


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("writer"))


def encoded(writer: Path, prompts: list[str]) -> tuple[pandas.DataFrame, list[documents.Document]]:
    ids = [f"train-{i}" for i in range(len(prompts))]
    frame = pandas.DataFrame({"id": ids, "prompt": prompts, "completion": ["Yes."] * len(prompts)})
    rows = documents.encode(frame, AutoTokenizer.from_pretrained(writer))
    return frame, [document for row in rows for document in row.documents]


def test_the_completion_is_shown_as_learned(writer: Path) -> None:
    _, (row,) = encoded(writer, ["Is it é? "])
    assert checks.shown(row, 100) == [("Is it é? ", False), ("Yes.", True)]
    assert checks.shown(row, 12) == [("Is it é? ", False), ("Ye", True)]
    # A byte-level token each: 10 of the prompt, 4 of the completion, and the end token.
    assert checks.learned_share([row], 100) == pytest.approx(5 / 15)
    assert checks.learned_share([row], 12) == pytest.approx(2 / 12)


def test_documents_whose_completion_is_cut_off_are_found(writer: Path, tiny_recipe: Path) -> None:
    frame, rows = encoded(writer, ["short ", "a very long prompt ", "short ", "another long one "])
    read = recipe.read(tiny_recipe, {"max_length": "12"})
    (found,) = checks.unlearned(frame, rows, read, pieces=False)
    assert (found.count, found.severity) == (2, Severity.WARNING)
    assert [row.row for row in found.examples] == ["train-1", "train-3"]
    assert checks.unlearned(frame, rows, read, pieces=True) == []
    enough = recipe.read(tiny_recipe, {"max_length": "60"})
    assert checks.unlearned(frame, rows, enough, pieces=False) == []
