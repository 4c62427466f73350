"""Corpora that are written for a test and loaded as a recipe's data are."""

import csv
import random
from pathlib import Path
from typing import Any

from finetune.data import corpus
from finetune.data.corpus import Corpus
from finetune.recipe import Data
from tests.conftest import WORDS

Rows = list[tuple[str, str]]


def reviews(count: int, seed: int = 0, length: int = 20) -> Rows:
    """Texts of random words with a label that five words of one kind decide."""
    draw = random.Random(seed)
    out = []
    for i in range(count):
        label = ("negative", "positive")[i % 2]
        opinions = WORDS[:3] if label == "positive" else WORDS[3:6]
        rest = [f"word{draw.randrange(300)}" for _ in range(length - 5)]
        words = [*draw.choices(opinions, k=5), *rest]
        draw.shuffle(words)
        out.append((" ".join(words), label))
    return out


def write(path: Path, rows: Rows, header: tuple[str, ...] = ("text", "label")) -> Path:
    """A CSV file of rows of any length."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def load(folder: Path, train: Rows, test: Rows | None = None, **keys: Any) -> Corpus:
    """The corpus of some training rows, and of test rows where they are given."""
    own = {"test": str(write(folder / "test.csv", test))} if test else {"holdout": 0.25}
    file = str(write(folder / "train.csv", train))
    data = Data(train=file, validation_size=0, allow_overlap=True, **own, **keys)
    return corpus.load(data)
