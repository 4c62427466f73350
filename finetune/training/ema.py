"""An exponential moving average (EMA) of the trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from finetune.models.parameters import trainable


class EMA(TrainerCallback):
    """Updates the EMA after every step, and puts it into the model at the end of training.

    - After t updates the decay is min(``decay``, (1 + t) / (10 + t)), as in TensorFlow's
      ``ExponentialMovingAverage``, so that short runs do not average over their random start.
    - Only trainable weights are averaged. Buffers such as batch norm's statistics are not.

    Args:
        decay: share of the average that each update keeps; 0 turns the EMA off.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.names = [name for name, _ in trainable(model)] if decay else []
        self.averaged = AveragedModel(self._weights())

    def _weights(self) -> nn.ParameterList:
        weights = dict(self.model.named_parameters())
        return nn.ParameterList([weights[name] for name in self.names])

    def _placed_weights(self) -> nn.ParameterList:
        """Returns the model's weights, after moving the averages to their device.

        The Trainer may move the model after this object was made.
        """
        weights = self._weights()
        if self.names:
            self.averaged.module.to(weights[0].device)
        return weights

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.names:
            return
        count = int(self.averaged.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count))
        self.averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.averaged.update_parameters(self._placed_weights())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By now the EMA is the best checkpoint's, if the best one is loaded at the end.
        self._swap()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swaps the EMA into the model for a while; its weights come back bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        weights = self._placed_weights()
        for average, weight in zip(self.averaged.module.parameters(), weights, strict=True):
            previous = weight.clone()
            weight.copy_(average)
            average.copy_(previous)

    def state_dict(self) -> dict[str, torch.Tensor] | None:
        """Returns the averages and the number of updates; None if the EMA is off."""
        return self.averaged.state_dict() if self.names else None

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Sets what ``state_dict`` returned."""
        self.averaged.load_state_dict(state)
