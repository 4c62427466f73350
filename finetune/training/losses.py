"""Losses that do not depend on how a step is divided into micro-batches and processes.

- Models average their loss over one micro-batch, which weights uneven micro-batches wrongly.
- The losses here are sums, divided by the number of labels in the whole optimizer step, which the
  Trainer passes as ``num_items_in_batch``. The gradient is the same for every division.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from finetune.recipe import Recipe

Loss = Callable[..., torch.Tensor]
# Columns of a student's training rows, of which the trainer makes a ``Taught``.
TEACHER_LOGITS, TEACHER_STATES = "teacher_logits", "teacher_states"


def smoothing(recipe: Recipe) -> float:
    """Returns the share of each label that the recipe spreads over all classes or tokens."""
    return float(recipe.training.get("label_smoothing_factor", 0.0))


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of a head with K outputs.

    Averaged over all labels of the optimizer step:

    - single label: cross-entropy; labels (B,) int, or (B, K) float after mixup. With weights it is
      the weighted mean, as torch's: the sum of the rows' weights takes the place of their number.
    - multiple labels: binary cross-entropy; labels (B, K) float. A class's weight is that of its
      positives, torch's ``pos_weight``.
    - otherwise: squared error; labels (B,) float.

    Attributes:
        weights: of the K classes.
        focal_gamma: multiplies a row's loss by (1 - p)^gamma, p the probability of its label (Lin
            et al. 2017, equation 4); not with soft labels.
    """

    problem_type: str
    label_smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    focal_gamma: float | None = None

    def row_weights(self, labels: numpy.ndarray) -> numpy.ndarray | None:
        """Returns what each row (N,) counts in the mean; None where all count the same."""
        if self.weights is None or self.problem_type != "single_label_classification":
            return None
        return numpy.asarray(self.weights)[labels]

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        logits = outputs["logits"].float()
        weights = None if self.weights is None else logits.new_tensor(self.weights)
        count: torch.Tensor | float = labels.numel()
        if self.problem_type == "single_label_classification":
            entropy = partial(functional.cross_entropy, reduction="none")
            each = entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
            if weights is not None:
                count = weights[labels].sum()
            if self.focal_gamma is not None:
                each = each * self._focus(entropy(logits, labels), self.focal_gamma)
            if labels.ndim == 2:
                # The Trainer counts K items for each row.
                each = each * labels.shape[1]
        elif self.problem_type == "multi_label_classification":
            target = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            entropy = partial(functional.binary_cross_entropy_with_logits, reduction="none")
            each = entropy(logits, target, pos_weight=weights)
            if self.focal_gamma is not None:
                each = each * self._focus(entropy(logits, target), self.focal_gamma)
        else:
            each = functional.mse_loss(logits.squeeze(-1), labels, reduction="none")
        return each.sum() / (count if num_items_in_batch is None else num_items_in_batch)

    @staticmethod
    def _focus(losses: torch.Tensor, gamma: float) -> torch.Tensor:
        """Returns the factor of each loss, minus the log of the label's probability."""
        # A power below 1 has no finite derivative at 0.
        return (-torch.expm1(-losses)).clamp(min=1e-6) ** gamma


@dataclass(frozen=True)
class Taught:
    """What a batch of training rows is taught: its labels, and a teacher's outputs for it.

    Attributes:
        labels: as the loss of the labels takes them.
        logits: (B, K).
        states: (B, L, H), the first token's hidden state after each layer of the student; or None.
    """

    labels: torch.Tensor
    logits: torch.Tensor
    states: torch.Tensor | None = None


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a student: that of the labels, and the distance from its teacher's outputs.

    - Logits, both divided by the temperature T: T^2 KL(teacher, student) (Hinton et al. 2015), over
      classes, or over yes and no of each label; for a regression the squared difference.
    - Hidden states of the first token: squared difference of their directions, the mean over the
      layers (Sun et al. 2019, Patient Knowledge Distillation, equation 7).

    Averaged like the loss of the labels. Rows that have no teacher's outputs, those that choose a
    checkpoint, have that loss alone.
    """

    labels: Loss
    problem_type: str
    label_weight: float
    temperature: float
    hidden_weight: float

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor | Taught,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if isinstance(labels, torch.Tensor):
            return self.labels(outputs, labels, num_items_in_batch)
        own = labels.labels
        count = own.numel() if num_items_in_batch is None else num_items_in_batch
        loss = self.label_weight * self.labels(outputs, own, num_items_in_batch)
        loss = loss + (1 - self.label_weight) * self._of_logits(outputs, labels.logits) / count
        if labels.states is None:
            return loss
        # (B, L, H), without the embeddings' output.
        ours = torch.stack([each[:, 0] for each in outputs["hidden_states"][1:]], 1).float()
        ours, theirs = (functional.normalize(each, dim=-1) for each in (ours, labels.states))
        distance = (ours - theirs).square().sum(-1).mean(1)
        rows = count * len(own) / own.numel()
        return loss + self.hidden_weight * distance.sum() / rows

    def _of_logits(self, outputs: ModelOutput, theirs: torch.Tensor) -> torch.Tensor:
        """Returns the sum over the rows of the distance from the teacher's logits (B, K)."""
        ours, t = outputs["logits"].float(), self.temperature
        if self.problem_type == "regression":
            return functional.mse_loss(ours, theirs, reduction="sum")
        if self.problem_type == "multi_label_classification":
            ours, theirs = (torch.stack([each, -each], -1) for each in (ours, theirs))
            ours, theirs = (functional.logsigmoid(each / t) for each in (ours, theirs))
        else:
            ours, theirs = (functional.log_softmax(each / t, -1) for each in (ours, theirs))
        return t * t * functional.kl_div(ours, theirs, reduction="sum", log_target=True)


@dataclass(frozen=True)
class NextTokenLoss:
    """The causal LM loss: cross-entropy of each token given the tokens before it.

    Labels (B, T) int are the tokens, or -100 for tokens without loss. ``labels[:, 0]`` is not used:
    no token comes before it. Averaged over all tokens with loss of the optimizer step.
    """

    label_smoothing: float = 0.0

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        logits, target = _shifted(outputs["logits"], labels)
        total = functional.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / (
            (target != -100).sum() if num_items_in_batch is None else num_items_in_batch
        )


def document_sums(
    logits: torch.Tensor, labels: torch.Tensor, byte_counts: torch.Tensor
) -> torch.Tensor:
    """Reduces logits (B, T, V) to (B, 3): each row's loss in nats, its tokens, and its bytes.

    Perplexity and bits per byte need no more, and all logits would not fit into memory.

    Args:
        byte_counts: (B,), the length in bytes of the text that has a loss.
    """
    shifted, target = _shifted(logits, labels)
    nats = functional.cross_entropy(shifted.transpose(1, 2), target, reduction="none")
    return torch.stack([nats.sum(1), (target != -100).sum(1), byte_counts], 1)


@dataclass(frozen=True)
class MaskedTokenLoss:
    """Cross-entropy of tokens at their own positions: masked, classified, or written by a decoder.

    Labels (B, T) int are the tokens or the classes of tokens, or -100 for all others. Logits are
    those of all tokens (B, T, V), or of the M labelled tokens only (1, M, V).
    """

    label_smoothing: float = 0.0

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        masked = labels != -100
        total = functional.cross_entropy(
            _of_masked(outputs["logits"], masked).float(),
            labels[masked],
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / (masked.sum() if num_items_in_batch is None else num_items_in_batch)


def answer_loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of extractive question answering: cross-entropy of an answer's first and last token.

    Labels (B, 2) int are their places. Averaged over both and all windows of the optimizer step.
    """
    first, last = (outputs[name].float() for name in ("start_logits", "end_logits"))
    total = functional.cross_entropy(first, labels[:, 0], reduction="sum")
    total = total + functional.cross_entropy(last, labels[:, 1], reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def masked_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Reduces logits to (B, 3): each row's loss in nats, its masked and its correct tokens."""
    masked = labels != -100
    of_masked = _of_masked(logits, masked)
    nats = torch.zeros(labels.shape, device=logits.device)
    correct = torch.zeros_like(nats)
    nats[masked] = functional.cross_entropy(of_masked.float(), labels[masked], reduction="none")
    correct[masked] = (of_masked.argmax(-1) == labels[masked]).float()
    return torch.stack([nats.sum(1), masked.sum(1), correct.sum(1)], 1)


def _of_masked(logits: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    return logits[masked] if logits.shape[:2] == masked.shape else logits[0]


def _shifted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits (B, T - 1, V) and the tokens (B, T - 1) that they predict.

    Leaves out the logits of virtual tokens before the text.
    """
    return logits[:, -labels.shape[1] : -1].float(), labels[:, 1:]
