"""An exponential moving average of the weights that learn, beside the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from finetune.models.parameters import trainable


class Averages(TrainerCallback):
    """The averages of a model's weights: followed every step, and the model's own in the end.

    After t updates the decay is min(``decay``, (1 + t) / (10 + t)), as TensorFlow's
    ``ExponentialMovingAverage`` has it: a short run does not average over its random start. Only
    weights that learn are averaged; what the model counts by itself (batch norm) stays its own.

    Args:
        decay: share of the average that a step keeps; 0 averages nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.names = [name for name, _ in trainable(model)] if decay else []
        self.kept = AveragedModel(self._weights())

    def _weights(self) -> nn.ParameterList:
        weights = dict(self.model.named_parameters())
        return nn.ParameterList([weights[name] for name in self.names])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.names:
            return
        count = int(self.kept.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count))
        self.kept.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.kept.update_parameters(self._weights())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By now the best epoch's averages are back, if there was a choice.
        self._exchange()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model answer with the averages for a while; its weights come back to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for ours, theirs in zip(self.kept.module.parameters(), self._weights(), strict=True):
            before = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(before)

    def state(self) -> dict[str, torch.Tensor] | None:
        """The averages for a checkpoint; None without any."""
        return self.kept.state_dict() if self.names else None

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what ``state`` told."""
        self.kept.load_state_dict(state)
