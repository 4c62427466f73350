"""Tokens are counted as training counts them, and what does not fit is found."""

from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest
from transformers import AutoTokenizer

from finetune import recipe
from finetune.checks import tokens
from finetune.checks.finding import Severity
from finetune.data import sources
from finetune.errors import UserError
from finetune.tasks import text
from tests.conftest import sentences


@pytest.fixture
def frame() -> pandas.DataFrame:
    texts = [text for text, _ in sentences(40)]
    return pandas.DataFrame({"id": [f"train-{i}" for i in range(40)], "text": texts})


@pytest.mark.parametrize("pair", [False, True])
def test_lengths_are_those_of_training(
    tiny_recipe: Path, tiny_bert: Path, frame: pandas.DataFrame, pair: bool
) -> None:
    if pair:
        frame = frame.assign(text_pair=frame["text"][::-1].to_list())
    checkpoint = sources.checkpoint(str(tiny_bert))
    found = tokens.count(frame, tokens.tokenizer(checkpoint))
    model = replace(recipe.read(tiny_recipe).model, max_length=64)
    columns = {name: frame[name].to_list() for name in frame if name != "id"}
    encoded = text.encode(columns, AutoTokenizer.from_pretrained(tiny_bert), model)
    assert found.lengths.tolist() == encoded["length"]


def test_a_checkpoint_without_a_tokenizer_is_one_line(tmp_path: Path, tiny_bert: Path) -> None:
    checkpoint = sources.checkpoint(str(tiny_bert))
    with pytest.raises(UserError, match="has no fast tokenizer"):
        tokens.tokenizer(replace(checkpoint, folder=tmp_path))


def test_unknown_tokens_are_counted(tiny_bert: Path, frame: pandas.DataFrame) -> None:
    tokenizer = tokens.tokenizer(sources.checkpoint(str(tiny_bert)))
    assert tokens.unknown(frame, tokens.count(frame, tokenizer)) == []
    frame.loc[3, "text"] = "the фильм was плохой"
    (found,) = tokens.unknown(frame, tokens.count(frame, tokenizer))
    assert found.count == 1
    assert found.examples[0].row == "train-3"
    assert found.examples[0].note == "2 of 6 unknown"


LENGTHS = numpy.array([10] * 90 + [40] * 10)


def longer(tiny_recipe: Path, limit: int, most: int | None, pieces: bool = False) -> list:
    read = recipe.read(tiny_recipe, {"max_length": str(limit)})
    rows = pandas.DataFrame({"id": [f"train-{i}" for i in range(100)], "text": ["a film"] * 100})
    return tokens.longer(rows, LENGTHS, read, most, pieces)


def test_rows_that_fit_are_no_finding(tiny_recipe: Path) -> None:
    assert longer(tiny_recipe, 40, 64) == []


def test_rows_that_are_cut_are_counted_with_a_length_that_would_do(tiny_recipe: Path) -> None:
    (some,) = longer(tiny_recipe, 20, 64)
    (every,) = longer(tiny_recipe, 8, 64)
    assert (some.count, some.severity) == (10, Severity.NOTE)
    # 900 of the short rows' tokens, and 200 of the long rows' 400.
    assert some.what.endswith("longer than max_length 20 and cut: 85 % of all tokens are kept")
    assert some.advice.startswith("--max_length 40 would keep 95 %")
    assert [row.row for row in some.examples] == ["train-90", "train-91", "train-92"]
    assert (every.count, every.severity) == (100, Severity.WARNING)


def test_no_more_tokens_are_advised_than_the_model_has_positions(tiny_recipe: Path) -> None:
    (found,) = longer(tiny_recipe, 20, 30)
    assert found.advice.startswith("--max_length 30, the most the model has positions for")
    (error, _) = longer(tiny_recipe, 20, 15)
    assert error.severity == Severity.ERROR


def test_rows_that_continue_in_another_are_a_note(tiny_recipe: Path) -> None:
    (found,) = longer(tiny_recipe, 8, 64, pieces=True)
    assert (found.count, found.severity) == (100, Severity.NOTE)


def test_positions_are_read_from_the_checkpoint(tiny_bert: Path) -> None:
    assert tokens.room(sources.checkpoint(str(tiny_bert))) == 64


def test_the_plan_counts_steps(tiny_recipe: Path) -> None:
    keys = {"gradient_accumulation_steps": "2"}
    assert tokens.plan(recipe.read(tiny_recipe, keys), 100, 900) == (
        "100 rows, 900 tokens, 4 steps of 32; 8 steps in 2 epochs"
    )
    stopped = recipe.read(tiny_recipe, {"max_steps": "7"})
    assert tokens.plan(stopped, 112, None).endswith("7 steps of 16; 7 steps in 1 epoch")
    wrong = recipe.read(tiny_recipe, {"per_device_train_batch_size": "many"})
    with pytest.raises(UserError, match=r"--per_device_train_batch_size: .*'many' does not fit"):
        tokens.plan(wrong, 100, 900)
