"""Questions: how many have an answer, and which answers training cannot learn."""

from typing import Any

import numpy
import pandas

from finetune.checks.finding import Finding, Severity, example, some
from finetune.data import context_windows
from finetune.data.corpus import Corpus
from finetune.recipe import Recipe

# Questions that are divided into windows together.
TOGETHER = 500


def describe(frame: pandas.DataFrame) -> str:
    """Describes the answers of the training questions."""
    answered = frame["label"].map(bool)
    words = [len(label[0]["text"].split()) for label in frame["label"] if label]
    out = f"{100 * answered.mean():.1f} % of {len(frame):,} questions have one"
    return out + (f", of {numpy.median(words):.0f} words typically" if words else "")


def unlike(data: Corpus) -> list[Finding]:
    """Finds splits with questions without an answer where train has none."""
    if not data.train["label"].map(bool).all():
        return []
    found = []
    for name in ("validation", "test"):
        frame = getattr(data, name)
        without = [i for i, label in enumerate(frame["label"]) if not label]
        if without:
            what = f"{name} questions have no answer, and all training questions have one"
            advice = "Add training questions without an answer: nothing else teaches to give none."
            examples = some(example(frame, i) for i in without)
            found.append(Finding(Severity.WARNING, what, len(without), advice, examples))
    return found


def windows(frame: pandas.DataFrame, tokenizer: Any, recipe: Recipe) -> dict[str, list[Any]]:
    """Returns what training makes of some questions, see ``context_windows.labelled``.

    Columns are ``length``, and those that ``context_windows.unlearned`` takes.
    """
    names = ("length", "number", "whole", "cut", "labels")
    out: dict[str, list[Any]] = {name: [] for name in names}
    rows = frame.assign(answer=context_windows.spans(frame["label"]))
    for first in range(0, len(rows), TOGETHER):
        part = rows.iloc[first : first + TOGETHER].to_dict("list")
        made = context_windows.labelled(part, tokenizer, recipe.model)
        made["number"] = [first + number for number in made["number"]]
        for name, column in out.items():
            column += made[name]
    return out


def unlearned(
    frame: pandas.DataFrame, found: dict[str, list[Any]], recipe: Recipe
) -> list[Finding]:
    """Finds contexts of several windows, and what training cannot learn or predict."""
    several = numpy.flatnonzero(numpy.bincount(found["number"]) > 1)
    out = []
    if len(several):
        share = 100 * len(several) / len(frame)
        what = f"training questions ({share:.1f} %) have a context of several windows of "
        what += f"max_length {recipe.model.max_length}"
        advice = "Nothing to do: answers are looked for in all of them. More tokens take more time."
        out.append(Finding(Severity.NOTE, what, len(several), advice))
    for what, rows in context_windows.unlearned(found, recipe.model).items():
        if rows:
            advice = "Raise --max_length, --stride or --max_answer_length, or mend the rows."
            examples = some(example(frame, i) for i in rows)
            out.append(Finding(Severity.WARNING, what, len(rows), advice, examples))
    return out
