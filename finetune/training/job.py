"""What a task hands to the runner."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy
import torch
from datasets import Dataset

from finetune.data.corpus import Corpus
from finetune.data.sources import Checkpoint
from finetune.evaluation.intervals import Metric
from finetune.evaluation.metrics import MetricSpec
from finetune.training.losses import Loss

# Rows that a message names; a step may have thousands.
SHOWN = 64


@dataclasses.dataclass
class Job:
    """A model, its data and how they are scored.

    ``splits`` has train, validation and test, encoded, each with columns ``labels``, ``length``
    and the model's inputs; test has a row as often in succession as it is looked at. ``score`` is
    (logits, labels, resamples) -> scoring's dict; ``answers`` turns logits (N, K) into N dicts
    with a ``prediction``; ``baselines`` gives the trivial answers' logits for the test split by
    name; ``training`` holds what the task needs of ``TrainingArguments`` where a recipe is silent;
    ``pictures`` draws PNG files for the report, by their captions; ``notes`` are said when
    training starts.

    ``difference`` is (logits, others', labels) -> by how much the headline differs, where it is
    not that of a classifier. ``reduce`` makes of a batch's logits, where those are too many to
    keep, what ``score`` reads instead: (logits (B, ...), labels (B, ...)) -> (B, K). With
    ``untuned`` the model as it starts is a baseline, and ``samples`` shows what it writes before
    and after: by what was given, what came. ``tokens`` counts those of an epoch, where the Trainer
    cannot. With ``blocks`` a training row is cut from the data's rows or packed of several.
    """

    model: torch.nn.Module
    checkpoint: Checkpoint
    processor: Any
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    splits: dict[str, Dataset]
    data: Corpus
    loss: Loss
    score: Callable[[numpy.ndarray, numpy.ndarray, int], dict[str, Any]]
    headline: str
    baselines: Callable[[], dict[str, numpy.ndarray]]
    answers: Callable[[numpy.ndarray], list[dict[str, Any]]]
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    pictures: Callable[[], dict[str, bytes]] = dict
    notes: list[str] = dataclasses.field(default_factory=list)
    difference: Callable[[numpy.ndarray, numpy.ndarray, numpy.ndarray], Metric] | None = None
    reduce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    untuned: bool = False
    samples: Callable[[], dict[str, str]] = dict
    tokens: int = 0
    blocks: bool = False
    # Further metrics that the recipe names and ``score`` measures, by name.
    extra_metrics: dict[str, MetricSpec] = dataclasses.field(default_factory=dict)

    def name_rows(self, rows: numpy.ndarray) -> str:
        """Training rows (R,) by the ids of their data, for a message."""
        if self.blocks:
            names = [f"block {row}" for row in rows]
        else:
            names = [str(name) for name in self.data.train["id"].iloc[rows]]
        more = len(names) - SHOWN
        return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
