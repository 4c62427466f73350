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
