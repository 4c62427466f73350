"""Embeddings of texts with scores: the cosine of two texts ranks pairs as their scores do.

- Training compares the pairs of a step with each other (``training.in_batch``).
- The score is Spearman's correlation of the cosines and the scores. The cosine of TF-IDF vectors
  and the encoder before training are baselines.
- The saved folder is one of sentence-transformers, and of ``AutoModel``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy
import torch
from datasets import Dataset

from finetune.data import sources
from finetune.data.texts import TEXTS
from finetune.errors import UserError
from finetune.evaluation import intervals, metrics, statistics
from finetune.recipe import Recipe
from finetune.tasks import encoders, text, usage
from finetune.tasks.base import Row
from finetune.training import in_batch
from finetune.training.job import Job

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus

NAME = "sentence-similarity"
TFIDF, SPEARMAN = "cosine of TF-IDF", "spearman"
SPLITS = ("train", "validation", "test")


class SentenceSimilarity(encoders.Encoder):
    """BERT and its relatives as encoders whose cosines follow scores."""

    name = NAME
    not_exported = "it reads two texts one by one; sentence-transformers exports the folder"

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without it.
        from finetune.data import corpus

        encoders.check(recipe, self.name)
        if not recipe.data.text_pair:
            where = recipe.where("data.text_pair")
            raise UserError(f"{where}: {NAME} compares two texts; name the column of the second")
        data = corpus.load(replace(recipe.data, problem_type="regression"), TEXTS)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        model, tokenizer, notes = encoders.load(recipe, checkpoint)
        given = [t for name in SPLITS for part in _texts(getattr(data, name)) for t in part]
        texts, lengths, cut = encoders.encoded(given, tokenizer, recipe)
        if cut:
            data.report["notes"].append(cut)
        splits, start = {}, 0
        for name in SPLITS:
            labels = getattr(data, name)["label"].tolist()
            splits[name] = _rows(start, labels, lengths)
            start += 2 * len(labels)
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=in_batch.PairCollator(
                partial(tokenizer.pad, padding=text.padding(), return_tensors="pt"), texts
            ),
            splits=splits,
            data=data,
            loss=in_batch.ScoreLoss(model),
            score=_score,
            headline=metrics.HEADLINE[NAME],
            baselines=lambda: {TFIDF: _tfidf(data)},
            answers=self.answers,
            difference=_difference,
            reduce=in_batch.cosines,
            training={
                "label_names": ["labels"],
                "remove_unused_columns": False,
                # The loss depends on how many pairs are compared.
                "per_device_eval_batch_size": recipe.training.get("per_device_train_batch_size", 8),
            },
            untuned=not checkpoint.is_new,
            notes=notes,
            finish=partial(self.finish, recipe),
        )

    # --- prediction ------------------------------------------------------------------------------

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        return text.read_rows(given, file, recipe)

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"text": str, "text_pair": str}

    def batches(
        self, rows: list[Row], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        """Yields batches of single texts, so that each row occurs twice."""
        single = [{"text": row[part]} for row in rows for part in ("text", "text_pair")]
        for numbers, batch in text.batches(single, processor, recipe, size):
            yield numbers // 2, batch

    def join(self, parts: list[list[Any]], rows: list[Row]) -> numpy.ndarray:
        """Returns the cosines (N, 1) of the embeddings of the two texts of each row."""
        return numpy.array([[float(first @ second)] for first, second in parts])

    def answers(self, outputs: numpy.ndarray, data: Mapping[str, Any]) -> list[Row]:
        return [{"prediction": round(float(cosine), 6)} for (cosine,) in outputs]

    # --- model card ------------------------------------------------------------------------------

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        example = (
            'first = model.encode(["A cat sits."])\n'
            'second = model.encode(["A cat is sitting.", "Dogs bark."])\n'
            "print(model.similarity(first, second))"
        )
        return usage.searching("SentenceTransformer", example, results, folder)

    def limits(self, recipe: Recipe, results: Row) -> list[str]:
        return ["Cosines are in the order of the scores, but not on their scale."]


TASK = SentenceSimilarity()


def _texts(frame: Any) -> list[list[str]]:
    """Returns the two texts of each row."""
    return [[a, b] for a, b in zip(frame["text"], frame["text_pair"], strict=True)]


def _rows(start: int, labels: list[float], lengths: list[int]) -> Dataset:
    """Returns a split's rows, which name their texts by numbers from ``start`` on, two a row."""
    first = range(start, start + 2 * len(labels), 2)
    return Dataset.from_dict(
        {
            "first": list(first),
            "second": [i + 1 for i in first],
            "length": [lengths[i] + lengths[i + 1] for i in first],
            "labels": [[float(label)] for label in labels],
        }
    )


def _tfidf(data: "Corpus") -> numpy.ndarray:
    """Returns the cosines (N, 1) of the TF-IDF vectors of the test rows' texts."""
    from finetune.evaluation import baselines

    train = [t for row in _texts(data.train) for t in row]
    words = baselines.word_features(len(train)).fit(train)
    first, second = (words.transform(data.test[part]) for part in ("text", "text_pair"))
    return numpy.asarray(first.multiply(second).sum(1))


def _correlation(cosines: numpy.ndarray, labels: numpy.ndarray, name: str) -> intervals.Statistic:
    """Returns a correlation as a statistic of row indices: 0 where all cosines are the same."""
    pair = labels.reshape(-1), cosines.reshape(-1)
    return statistics.correlation(*pair, ranked=name == SPEARMAN, undefined=0.0)


def _score(cosines: numpy.ndarray, labels: numpy.ndarray, resamples: int) -> dict[str, Any]:
    return {
        "metrics": {
            name: intervals.bootstrap(_correlation(cosines, labels, name), len(labels), resamples)
            for name in metrics.MEASURED[NAME]
        }
    }


def _difference(
    ours: numpy.ndarray, theirs: numpy.ndarray, labels: numpy.ndarray
) -> intervals.Metric:
    """Returns by how much Spearman's correlation of ``ours`` exceeds that of ``theirs``."""
    a, b = (_correlation(each, labels, SPEARMAN) for each in (ours, theirs))
    return intervals.difference(a, b, len(labels))
