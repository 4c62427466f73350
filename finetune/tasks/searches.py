"""What tasks that rank passages for queries share: rows, answers, mistakes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy

from finetune.data import retrieval
from finetune.errors import UserError
from finetune.evaluation import metrics, ranking
from finetune.models import tuning
from finetune.recipe import Recipe
from finetune.tasks import text
from finetune.tasks.base import Mistake, Row, Task

if TYPE_CHECKING:
    import pandas

    from finetune.data.corpus import Corpus

PACKAGES = ("sentence_transformers", "bm25s")
SPLITS = ("train", "validation", "test")


class Search(Task):
    """A task whose rows are queries; a search of a ``corpus`` ranks its passages for each."""

    not_exported = "its test searches with a whole model; sentence-transformers exports the folder"

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        """Returns queries, each with the passages to search where the recipe names a ``corpus``."""
        single = replace(recipe.data, text=recipe.data.query, text_pair=None)
        rows = text.read_rows(given, file, replace(recipe, data=single))
        found: list[Row] = [{"query": row["text"]} for row in rows]
        if recipe.data.corpus:
            passages = list(retrieval.read_corpus(recipe.data.corpus, recipe.data).values())
            found = [row | {"corpus": passages} for row in found]
        return found

    def printed(self, row: Row) -> Row:
        return {name: cell for name, cell in row.items() if name != "corpus"}

    def limits(self, recipe: Recipe, results: Row) -> list[str]:
        return [
            f"It reads {recipe.model.max_length} tokens at most ({recipe.model.truncation} kept; "
            "sentence-transformers keeps the head).",
            "A passage counts as wrong unless the data names it for the query, although it may "
            "answer it, too.",
        ]

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """The queries whose relevant passages come last."""
        placed = []
        for row in rows.to_dict("records"):
            listed, right = [each["passage"] for each in row["prediction"]], set(row["label"])
            place = next((i for i, each in enumerate(listed) if each in right), len(listed))
            if place:
                placed.append((place, row, listed))
        placed.sort(key=lambda each: -each[0])
        return [
            Mistake(
                id=str(row["id"]),
                label=text.shorten(" | ".join(row["label"])),
                prediction=text.shorten(listed[0]),
                confidence=f"place {place + 1}"
                if place < len(listed)
                else f"not among {len(listed)}",
                text=row["query"],
            )
            for place, row, listed in placed[:most]
        ]


def check(recipe: Recipe, task: str) -> None:
    """Checks what does not need the data.

    Raises:
        UserError: a package is missing, or a key is for other tasks.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{recipe.name}: {', '.join(missing)} is not installed: "
            "pip install 'finetune-recipes[search]'"
        )
    tuning.check(recipe)
    text.refuse_augmentation(recipe)
    metrics.refuse_extra(recipe, task)


def candidates(data: "Corpus", recipe: Recipe) -> tuple[list[str], dict[str, numpy.ndarray]]:
    """Returns the passages to search, and by split the numbers of each query's own, sets (N,)."""
    frames = {name: getattr(data, name) for name in SPLITS}
    passages = retrieval.candidates(frames.values(), recipe.data)
    number = {passage: i for i, passage in enumerate(passages)}
    return passages, {
        name: ranking.as_rows({number[passage] for passage in row} for row in frame["label"])
        for name, frame in frames.items()
    }


def negatives(data: "Corpus", passages: list[str]) -> list[list[int]]:
    """Returns the numbers of the negatives that each training query is given."""
    number = {passage: i for i, passage in enumerate(passages)}
    return [[number[each] for each in json.loads(cell)] for cell in data.train["negatives"]]


def found(ranked: ranking.Ranked, passages: list[str]) -> list[Row]:
    """Returns the first passages of a ranking with their scores."""
    pairs = list(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True))
    return [
        {"passage": passages[item], "score": round(score, 6)}
        for item, score in pairs[: ranking.FIRST]
    ]


def answers(ranked: Iterable[ranking.Ranked], passages: list[str]) -> list[Row]:
    """Returns the answers of a test: the first passages of each query."""
    return [{"prediction": found(each, passages)} for each in ranked]
