"""`finetune check` of sources with targets: what is cut, missing targets, languages."""

from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from finetune.data import pair_tokenizer
from tests.checks.test_check import shown as printed
from tests.conftest import WORDS

RECIPE = """\
task: text2text-generation
model: {{checkpoint: "{checkpoint}", max_length: 32, max_target_length: 8}}
data: {{train: rows.tsv, holdout: 20, validation_size: 10{more}}}
"""


@pytest.fixture
def shown(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Writes the rows and returns what `finetune check` prints of them, on one line."""
    letters = pair_tokenizer.train(["abcdefghijklmnopqrstuvwxyz 0123456789"], 100, ".", "")
    letters.save_pretrained("letters")
    size: Any = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(letters), **size)
    T5ForConditionalGeneration(config).save_pretrained("letters")

    def of(rows: list[tuple[str, str]], more: str = "") -> str:
        Path("rows.tsv").write_text("\n".join(map("\t".join, [("source", "target"), *rows])))
        Path("pairs.yaml").write_text(RECIPE.format(checkpoint="letters", more=more))
        _, out, _ = printed(capsys, "pairs.yaml")
        return " ".join(out.split())

    return of


def rows(count: int) -> list[tuple[str, str]]:
    return [(f"{i:04d} {WORDS[i % 12]} {WORDS[i // 12 % 12]}", f"t{i}") for i in range(count)]


def test_targets_that_are_cut_or_occur_again_and_again(shown: Any) -> None:
    out = shown([*rows(150), *((f"long {i}", f"x{i}yz" * 4) for i in range(6))])
    assert "targets 1 words in a typical one, the longest 1" in out
    assert "are longer than max_target_length 8 and cut" in out
    assert "would keep 99 % whole" in out
    assert "have the same target" not in out
    out = shown([*rows(150), *((f"missing {i}", "n a") for i in range(60))])
    assert "have the same target" in out
    assert "longer than max_target_length" not in out


def test_near_duplicates_have_no_wrong_targets(shown: Any) -> None:
    text = "the plot was a mess and nobody in the cast seemed to know why the film was made"
    out = shown([*rows(150), *((f"{text} {i}", f"u{i}") for i in range(30))])
    assert "nearly the same as" in out
    assert "different labels" not in out


def test_a_language_that_the_tokenizer_has_not_is_an_error(shown: Any) -> None:
    out = shown(rows(150), ', target_language: "fr"')
    assert "error" in out
    assert "target_language" in out
