"""A complete task in one file, registered from outside: it tags the opinions in a text.

Its outputs are not logits (N, K): every text has a label for each of its words.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy
import pandas
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
)

from finetune.data import corpus, sources
from finetune.evaluation import scoring
from finetune.models import configs, pretrained, tuning
from finetune.recipe import Recipe
from finetune.tasks import register, text
from finetune.tasks.base import Mistake, Task
from finetune.tasks.usage import Example
from finetune.training.job import Job
from tests.conftest import WORDS

TAGS = ["other", "good", "bad"]
IGNORED = -100


def tag(word: str) -> int:
    """The label of a word of ``WORDS``: three are good, three are bad."""
    place = WORDS.index(word)
    return 1 if place < 3 else 2 if place < 6 else 0


def encode(tokenizer: Any, frame: pandas.DataFrame) -> Dataset:
    """Texts -> token ids with a label for each word; special tokens have none."""
    ids = [tokenizer(cell)["input_ids"] for cell in frame["text"]]
    labels = [[IGNORED, *map(tag, cell.split()), IGNORED] for cell in frame["text"]]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(i) for i in ids]})


def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    total = functional.cross_entropy(
        outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum"
    )
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def of_words(logits: Any, labels: Any, split: str) -> Any:
    """Padded (N, T, K) and (N, T) -> N arrays (words, K) and N arrays (words,)."""
    words = [row != IGNORED for row in labels]
    logits, labels = (
        [row[chosen] for row, chosen in zip(part, words, strict=True)] for part in (logits, labels)
    )
    return logits, labels


def right(outputs: list[Any], labels: list[Any]) -> numpy.ndarray:
    """The share of each text's words that are tagged correctly: (N,)."""
    pairs = zip(outputs, labels, strict=True)
    return numpy.array([(logits.argmax(1) == truth).mean() for logits, truth in pairs])


def difference(ours: list[Any], theirs: list[Any], labels: list[Any]) -> dict[str, float]:
    apart = right(ours, labels) - right(theirs, labels)
    return scoring.bootstrap(lambda rows: float(apart[rows].mean()), len(labels))


class Tagging(Task):
    name = "toy-tagging"
    auto_model = AutoModelForTokenClassification
    auto_processor = AutoTokenizer

    def build(self, recipe: Recipe) -> Job:
        tuning.check(recipe)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, labelled=False)
        data.test["label"] = [[TAGS[tag(w)] for w in cell.split()] for cell in data.test["text"]]
        config = configs.load_config(recipe, checkpoint, {"id2label": dict(enumerate(TAGS))})
        tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        splits = {n: encode(tokenizer, getattr(data, n)) for n in ("train", "validation", "test")}
        constant = numpy.array([1.0, 0.0, 0.0])
        counts = [len(cell.split()) for cell in data.test["text"]]
        return Job(
            model=tuning.apply(model, recipe, checkpoint),
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=DataCollatorForTokenClassification(tokenizer),
            splits=splits,
            data=data,
            loss=loss,
            score=lambda outputs, labels, resamples: scoring.mean(
                "accuracy", right(outputs, labels), resamples
            ),
            headline="accuracy",
            baselines=lambda: {"always other": [numpy.tile(constant, (n, 1)) for n in counts]},
            answers=self.answers,
            difference=difference,
            collect=of_words,
        )

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
        return text.read_rows(given, file, recipe)

    def batches(
        self, rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        return text.batches(rows, processor, recipe, size)

    def forward(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
        logits = model(**inputs).logits.float().cpu().numpy()
        counts = inputs["attention_mask"].sum(1).tolist()
        return [row[1 : count - 1] for row, count in zip(logits, counts, strict=True)]

    def join(self, parts: list[list[Any]], rows: list[dict[str, Any]]) -> list[Any]:
        return [part for (part,) in parts]

    def answers(self, outputs: list[Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"prediction": [TAGS[k] for k in logits.argmax(1)]} for logits in outputs]

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        return Example("tag", ['"A great film."'])

    def limits(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return ["It knows a dozen words."]

    def mistakes(self, rows: pandas.DataFrame, data: Mapping[str, Any], most: int) -> list[Mistake]:
        shown = partial(map, str)
        pairs = zip(rows["id"], rows["text"], rows["label"], rows["prediction"], strict=True)
        return [
            Mistake(i, " ".join(shown(label)), " ".join(shown(found)), "", text=cell)
            for i, cell, label, found in pairs
            if list(label) != list(found)
        ][:most]


register(Tagging())
