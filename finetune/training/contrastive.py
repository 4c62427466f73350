"""Contrastive tuning for few labels (Tunstall et al. 2022, SetFit).

- The embedding of a text is what the last layer of the classifier's head reads, so that the pooling
  is the model's own and the tuned model is a plain classifier.
- Each training row draws another row of its class and a row of another class, anew in every epoch.
  The embeddings' cosine similarity is to be 1 with the first and 0 with the second.
- The last layer gets no gradient. Before every evaluation and before the test a logistic regression
  is fitted to the embeddings of the training rows, and its weights become those of the layer.
"""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from finetune.data import row_random
from finetune.data.batching import within
from finetune.errors import UserError
from finetune.models import heads
from finetune.recipe import Recipe
from finetune.training.losses import Loss

Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
# Tokens of one forward pass that computes embeddings.
BUDGET = 8192
# Columns of a row that are not inputs of the model.
OTHERS = {"length", "truncated", "row", "epoch"}
# The bias of a class without a training row.
ABSENT = -30.0


class TripletCollator:
    """Training rows (B) -> a batch (3 B): the rows, rows of their classes, rows of other classes.

    Which rows follows from the seed, the epoch and the row alone. The only row of a class is paired
    with itself. Evaluation rows, which have no column ``row``, are collated as they are.
    """

    def __init__(self, collator: Collator, rows: Dataset, seed: int) -> None:
        self.collator, self.rows, self.seed = collator, rows, seed
        self.labels = numpy.asarray(rows["labels"][:])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "row" not in rows[0]:
            return self.collator([_inputs(row) for row in rows])
        partners = self.partners([row["row"] for row in rows], [row["epoch"] for row in rows])
        batch = self.collator([_inputs(row) for row in rows + self.rows.__getitems__(partners)])
        # One label for each training row, which counts it for the mean of the loss.
        return batch | {"labels": batch["labels"][: len(rows)]}

    def partners(self, rows: list[int], epochs: list[int]) -> list[int]:
        """Returns (2 B) row numbers: for each row one of its class, then one of another."""
        draws = row_random.noise(
            torch.tensor(rows), 2, torch.tensor(epochs), self.seed, training=True
        )
        same, different = [], []
        for row, (first, second) in zip(rows, draws.double().tolist(), strict=True):
            own = self.labels == self.labels[row]
            alike, others = numpy.flatnonzero(own), numpy.flatnonzero(~own)
            step = 1 + int(first * max(1, len(alike) - 1))
            same.append(int(alike[(numpy.searchsorted(alike, row) + step) % len(alike)]))
            different.append(int(others[int(second * len(others))]))
        return same + different


def _inputs(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OTHERS}


def contrastive_loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error of the cosine similarities, averaged over the rows of the optimizer step.

    Args:
        outputs: ``logits`` are the embeddings (3 B, H) of a ``TripletCollator``'s batch.
        labels: (B,), counted only.
    """
    row, same, different = outputs["logits"].float().chunk(3)
    total = (1 - functional.cosine_similarity(row, same)).square().sum()
    total = total + functional.cosine_similarity(row, different).square().sum()
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def parts(
    model: PreTrainedModel,
    splits: dict[str, Dataset],
    collator: Collator,
    recipe: Recipe,
    loss: Loss,
) -> dict[str, Any]:
    """Prepares a classifier and its training rows, and returns the parts of a ``Job`` that change.

    While the model trains, its logits are the embeddings.

    Args:
        splits: encoded rows; train gets columns ``row`` and ``epoch``.
        collator: for rows of the model's inputs and ``labels``.
        loss: of the logits, for evaluations.

    Raises:
        UserError: the rows have several labels or numbers, or all the same label.
    """
    where, train = recipe.where("tuning.method"), splits["train"]
    if recipe.data.problem_type != "single_label_classification":
        raise UserError(f"{where}: contrastive tuning needs one label a row; use full, or lora")
    if len(set(train["labels"])) < 2:
        raise UserError(f"{where}: contrastive tuning needs training rows of two classes")
    (layer,) = heads.output_layers(model)
    layer.requires_grad_(False)
    layer.register_forward_hook(lambda _, given, logits: given[0] if layer.training else logits)
    numbered = train.add_column("row", list(range(len(train))))
    splits["train"] = numbered.add_column("epoch", [0] * len(train))

    def either(outputs: ModelOutput, *labels: torch.Tensor, **items: Any) -> torch.Tensor:
        return (contrastive_loss if layer.training else loss)(outputs, *labels, **items)

    return {
        "collator": TripletCollator(collator, train, int(recipe.training.get("seed", 0))),
        "loss": either,
        "label_smoothing": 0.0,
        "before_evaluation": lambda: fit(model, layer, train, collator),
        # A row's tokens are not those of its step, which has its partners', too.
        "training": {"remove_unused_columns": False, "include_num_input_tokens_seen": "no"},
    }


def fit(model: PreTrainedModel, layer: nn.Linear, rows: Dataset, collator: Collator) -> None:
    """Sets the last layer's weights by a logistic regression on the rows' embeddings.

    Args:
        layer: the last layer; as long as it is in training mode, the model returns embeddings.
        rows: with the model's inputs, ``labels`` and ``length``.
    """
    from sklearn.linear_model import LogisticRegression

    was_training = model.training
    model.eval()
    layer.train()
    embeddings = numpy.empty((len(rows), layer.in_features), numpy.float32)
    with torch.no_grad():
        for chosen in within(rows["length"], BUDGET):
            batch = collator([_inputs(row) for row in rows.__getitems__(chosen.tolist())])
            inputs = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
            embeddings[chosen] = model(**inputs).logits.float().cpu().numpy()
    model.train(was_training)
    # The head of a decoder has no bias.
    model_of_head = LogisticRegression(max_iter=1000, fit_intercept=layer.bias is not None)
    fitted = model_of_head.fit(embeddings, numpy.asarray(rows["labels"][:]))
    weight, bias = (torch.from_numpy(each).float() for each in (fitted.coef_, fitted.intercept_))
    if len(fitted.classes_) == 2:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[fitted.classes_] = weight.to(layer.weight)
        if layer.bias is not None:
            layer.bias.fill_(ABSENT)
            layer.bias[fitted.classes_] = bias.to(layer.bias)
