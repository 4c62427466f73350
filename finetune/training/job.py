"""What a task hands to the runner."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from datasets import Dataset

from finetune.data.sources import Checkpoint
from finetune.evaluation import extra_metrics
from finetune.evaluation.extra_metrics import ExtraMetric
from finetune.evaluation.intervals import Metric
from finetune.training.losses import Loss

if TYPE_CHECKING:
    import pandas

    from finetune.data.corpus import Corpus

# Rows that a message names; a step may have thousands.
SHOWN = 64


def as_predicted(outputs: Any, labels: Any, split: str) -> tuple[Any, Any]:
    """Returns outputs and labels as the Trainer's prediction loop gathered them."""
    return outputs, labels


def nothing(outputs: Any, labels: Any) -> dict[str, Any]:
    """Returns no further sections of results.json."""
    return {}


@dataclasses.dataclass
class Job:
    """A model, its data, and how its outputs are scored.

    ``outputs`` below are of any shape that the task likes (arrays or tuples of arrays with rows on
    the first axis, or lists); the runner only passes them from ``collect`` to the others.

    Attributes:
        splits: train, validation and test, encoded, each with a column ``length``, the model's
            inputs, and the columns that the Trainer passes to the loss as labels. For a collator
            that draws random numbers also ``epoch``, 0, which training rows get set.
        loss: the Trainer's ``compute_loss_func``.
        score: (outputs, labels, resamples) -> ``metrics`` and further sections of results.json.
        headline: the metric that chooses the checkpoint and that tables show first.
        baselines: returns the outputs of trivial answers for the test split, by name.
        answers: (outputs, the data section of results.json) -> one dict a row with ``prediction``.
        reduce: (logits, labels) of a batch -> the smaller output that is kept of it, where logits
            are too large to keep.
        collect: (outputs, labels, split) of all rows in the split's order -> outputs and labels of
            the data's rows: averages views, joins windows, decodes.
        difference: (outputs, others' outputs, labels) -> the difference in the headline metric.
        extra_metrics: further metrics that the recipe names, by name.
        for_metrics: (outputs, labels) -> predictions and references for ``extra_metrics``.
        encode: encodes further labelled rows, with the columns of the data's, as those of
            ``splits``; None where rows cannot be added.
        before_evaluation: sets weights that training leaves alone; called before each evaluation
            and the test.
        training: ``TrainingArguments`` that the task needs where a recipe does not set them.
        images: draws PNG files for the report, by caption.
        notes: printed when training starts.
        untuned: whether the model before training is a baseline.
        samples: what the model generates, by prompt, before and after training.
        generate: (split, places (N,) of rows in it) -> None: generates for them as ``collect``
            does, but as many tokens as their targets have, as a trained model will; for forecasts.
        tokens: tokens of an epoch, where the Trainer cannot count them.
        label_smoothing: how much the loss smooths labels; 0 where it cannot.
        rescale: (model, outputs, labels of the validation rows) -> None: changes the chosen model
            before the test, so that its probabilities are calibrated.
        details: (outputs, labels of the test rows) -> further sections of results.json.
        balanced: whether an epoch has equally many rows of each class.
        calibrates: whether ``collect`` of the validation rows sets what predictions need. They are
            then read once more before the test, with the chosen weights.
        finish: the task's ``finish``, where the model's folder needs further files.
        blocks: whether a training row is cut from the data's rows or packed from several.
        teacher: what identifies the weights of the model that this one is taught by.
    """

    model: torch.nn.Module
    checkpoint: Checkpoint
    processor: Any
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    splits: dict[str, Dataset]
    data: "Corpus"
    loss: Loss
    score: Callable[[Any, Any, int], dict[str, Any]]
    headline: str
    baselines: Callable[[], dict[str, Any]]
    answers: Callable[[Any, Mapping[str, Any]], list[dict[str, Any]]]
    difference: Callable[[Any, Any, Any], Metric]
    reduce: Callable[..., Any] | None = None
    collect: Callable[[Any, Any, str], tuple[Any, Any]] = as_predicted
    before_evaluation: Callable[[], None] | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: Callable[[], dict[str, bytes]] = dict
    notes: list[str] = dataclasses.field(default_factory=list)
    untuned: bool = False
    samples: Callable[[], dict[str, str]] = dict
    generate: Callable[[str, numpy.ndarray], None] | None = None
    tokens: int = 0
    blocks: bool = False
    rescale: Callable[[torch.nn.Module, Any, Any], None] | None = None
    details: Callable[[Any, Any], dict[str, Any]] = nothing
    balanced: bool = False
    teacher: str | None = None
    calibrates: bool = False
    label_smoothing: float = 0.0
    extra_metrics: dict[str, ExtraMetric] = dataclasses.field(default_factory=dict)
    for_metrics: Callable[[Any, Any], tuple[numpy.ndarray, numpy.ndarray]] | None = None
    encode: Callable[["pandas.DataFrame"], Dataset] | None = None
    finish: Callable[[Path], None] | None = None

    def all_scores(self, outputs: Any, labels: Any, resamples: int) -> dict[str, Any]:
        """Returns ``score`` with the recipe's further metrics."""

        def pair() -> tuple[numpy.ndarray, numpy.ndarray]:
            assert self.for_metrics is not None
            return self.for_metrics(outputs, labels)

        scores = self.score(outputs, labels, resamples)
        return extra_metrics.add(scores, self.extra_metrics, pair, resamples)

    def name_rows(self, rows: numpy.ndarray) -> str:
        """Returns training rows (R,) by the ids of their data, for a message."""
        if self.blocks:
            names = [f"block {row}" for row in rows]
        else:
            names = [str(name) for name in self.data.train["id"].iloc[rows]]
        more = len(names) - SHOWN
        return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
