"""Recipes that are another recipe with some keys changed."""

from pathlib import Path

import pytest

from finetune import recipe
from finetune.errors import UserError

BASE = """\
task: text-classification
model: {checkpoint: "embedded:minilm", max_length: 64}
data: {dataset: "embedded:rotten_tomatoes"}
tuning: {method: lora, r: 8}
training: {learning_rate: 1.0e-3, num_train_epochs: 3}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_beside_base_replace_those_of_the_base(workdir: Path) -> None:
    write(workdir / "a" / "base.yaml", BASE)
    middle = "base: base.yaml\ntuning: {r: 16}\ntraining: {num_train_epochs: 1}\n"
    write(workdir / "a" / "middle.yaml", middle)
    best = write(workdir / "a" / "best.yaml", "base: middle.yaml\ntraining: {learning_rate: 2e-3}")
    read = recipe.load(best)
    assert read.tuning.options == {"r": 16}
    assert read.training["num_train_epochs"] == 1
    assert read.training["learning_rate"] == 2e-3
    assert read.model.max_length == 64
    assert read.where("training.learning_rate").endswith("best.yaml:2")
    assert read.where("tuning.r").endswith("middle.yaml:2")


def test_base_is_found_among_the_packaged_recipes(workdir: Path) -> None:
    path = write(workdir / "mine.yaml", "base: imdb/minilm\ntraining: {seed: 3}\n")
    read = recipe.read(path)
    assert read.data.dataset == "embedded:imdb"
    assert read.training["seed"] == 3


def test_a_circle_of_bases_is_an_error(workdir: Path) -> None:
    write(workdir / "a.yaml", "base: b.yaml\n")
    write(workdir / "b.yaml", "base: a.yaml\n")
    with pytest.raises(UserError, match=r"^b\.yaml:1: base a\.yaml leads back to b\.yaml$"):
        recipe.read("a.yaml")


def test_a_base_that_does_not_exist_is_an_error(workdir: Path) -> None:
    write(workdir / "a.yaml", "base: nowhere\n")
    with pytest.raises(UserError, match=r"^nowhere: no such recipe"):
        recipe.read("a.yaml")
