"""Losses that stay right under accumulation, uneven last batches and several processes.

The models' own losses average over the micro-batch they see. The Trainer passes how many labels
the whole optimizer batch holds; dividing a sum by that number gives the same gradient however the
batch was cut up.
"""

from collections.abc import Callable

import torch
from torch.nn import functional
from transformers.utils.generic import ModelOutput

Loss = Callable[..., torch.Tensor]


def classification_loss(problem_type: str, label_smoothing: float = 0.0) -> Loss:
    """The loss of a head with K outputs, as the Trainer's ``compute_loss_func``.

    Cross-entropy (labels (B,) int, or (B, K) float where mixup blended classes), binary
    cross-entropy (labels (B, K) float) or squared error (labels (B,) float), averaged over all
    labels of the optimizer batch.
    """

    def loss(
        outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].float()
        if problem_type == "single_label_classification":
            total = functional.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=label_smoothing
            )
            if labels.ndim == 2:
                # The Trainer counts every entry of the labels as an item.
                total = total * labels.shape[1]
        elif problem_type == "multi_label_classification":
            target = labels * (1 - label_smoothing) + label_smoothing / 2
            total = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        else:
            total = functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


def next_token_loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each token given those before it, over all learned ones of the batch.

    Labels (B, T) int are the tokens themselves, or -100 where nothing is learned. What they say of
    position 0 is not looked at: nothing comes before it.
    """
    logits, target = _shifted(outputs["logits"], labels)
    total = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    return total / ((target != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def document_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, T, V) -> (B, 3): each row's loss in nats, its tokens that count, and ``labels[:, 0]``.

    Rows' logits are too many to keep; these are what perplexity and bits per byte are made of.
    """
    shifted, target = _shifted(logits, labels)
    nats = functional.cross_entropy(shifted.transpose(1, 2), target, reduction="none")
    return torch.stack([nats.sum(1), (target != -100).sum(1), labels[:, 0]], 1)


def hidden_token_loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of the hidden tokens: labels (B, T) int, -100 where nothing is hidden.

    Logits are those of all tokens (B, T, V), or of the M hidden ones alone (1, M, V).
    """
    hidden = labels != -100
    total = functional.cross_entropy(
        _of_hidden(outputs["logits"], hidden).float(), labels[hidden], reduction="sum"
    )
    return total / (hidden.sum() if num_items_in_batch is None else num_items_in_batch)


def hidden_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits as above -> (B, 3): a row's loss in nats, its hidden tokens, those guessed right."""
    hidden = labels != -100
    chosen = _of_hidden(logits, hidden)
    nats = torch.zeros(labels.shape, device=logits.device)
    right = torch.zeros_like(nats)
    nats[hidden] = functional.cross_entropy(chosen.float(), labels[hidden], reduction="none")
    right[hidden] = (chosen.argmax(-1) == labels[hidden]).float()
    return torch.stack([nats.sum(1), hidden.sum(1), right.sum(1)], 1)


def _of_hidden(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return logits[hidden] if logits.shape[:2] == hidden.shape else logits[0]


def _shifted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T - 1, V) and the tokens (B, T - 1) that follow them.

    Virtual tokens before the text have logits too; those are left out.
    """
    return logits[:, -labels.shape[1] : -1].float(), labels[:, 1:]
