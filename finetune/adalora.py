"""What AdaLoRA (Zhang et al. 2023) needs of the training loop beside its adapter."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from finetune.errors import Refusal
from finetune.tuning import learning


class RankBudget(TrainerCallback):
    """What AdaLoRA has to hear every step: gradients to weigh its directions by, and the step.

    Nothing happens for other methods. The orthogonality of its factors (Zhang et al. 2023,
    equation 4) is the model's own loss in peft, and here a gradient of its own, once a step.
    """

    tuner: Any = None

    def __init__(self, model: nn.Module) -> None:
        if hasattr(getattr(model, "base_model", None), "rankallocator"):
            self.tuner = model.base_model
        self.kept: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        config = self._config()
        config.total_step = min(config.total_step, state.max_steps)
        if config.tinit + config.tfinal >= config.total_step:
            raise Refusal(
                f"adalora: tinit {config.tinit} and tfinal {config.tfinal} leave none of the "
                f"{config.total_step} steps to lower the rank in"
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        factors = [
            (p, p @ p.T if "lora_A" in n else p.T @ p)
            for n, p in learning(self.tuner.model)
            if "lora_A" in n or "lora_B" in n
        ]
        gaps = [
            torch.linalg.norm(c - torch.eye(len(c), out=torch.empty_like(c))) for _, c in factors
        ]
        weighted = self._config().orth_reg_weight * torch.stack(gaps).mean()
        learners = [p for p, _ in factors]
        # Not backward(): the processes' gradients are one already, and their hooks must not run.
        for p, gradient in zip(learners, torch.autograd.grad(weighted, learners), strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        config = self._config()
        config.rank_pattern = self.kept
        self.tuner.update_and_allocate(state.global_step + 1)
        # With a pattern peft saves smaller matrices, which no later step can go on from; without,
        # the directions that were dropped are saved as the zeros they are.
        self.kept, config.rank_pattern = config.rank_pattern, None

    def _config(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]
