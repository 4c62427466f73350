"""What AdaLoRA (Zhang et al. 2023) needs of the training loop beside its adapter."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from finetune.errors import UserError
from finetune.models.parameters import trainable

# What peft's allocator remembers of the steps: importance, its mean and its deviation.
WEIGHED = ("ipt", "exp_avg_ipt", "exp_avg_unc")


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
        self.skips = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        config = self._config()
        config.total_step = min(config.total_step, state.max_steps)
        if config.tinit + config.tfinal >= config.total_step:
            raise UserError(
                f"adalora: tinit {config.tinit} and tfinal {config.tfinal} leave none of the "
                f"{config.total_step} steps to lower the rank in"
            )

    def state(self) -> dict[str, Any] | None:
        """How much each direction mattered so far, for a checkpoint; None for other methods."""
        if self.tuner is None:
            return None
        return {"kept": self.kept, **{name: vars(self._allocator())[name] for name in WEIGHED}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` told."""
        self.kept = state["kept"]
        for name in WEIGHED:
            device = next(self.tuner.parameters()).device
            vars(self._allocator())[name] = {n: t.to(device) for n, t in state[name].items()}

    def _allocator(self) -> Any:
        return self.tuner.rankallocator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        factors = [
            (p, p @ p.T if "lora_A" in n else p.T @ p)
            for n, p in trainable(self.tuner.model)
            if "lora_A" in n or "lora_B" in n
        ]
        # A step that is skipped has no gradients, and is to change nothing.
        self.skips = all(p.grad is None for p, _ in factors)
        if self.skips:
            return
        gaps = [
            torch.linalg.norm(c - torch.eye(len(c), out=torch.empty_like(c))) for _, c in factors
        ]
        weighted = self._config().orth_reg_weight * torch.stack(gaps).mean()
        learners = [p for p, _ in factors]
        # Not backward(): the processes' gradients are one already, and their hooks must not run.
        for p, gradient in zip(learners, torch.autograd.grad(weighted, learners), strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None or self.skips:
            return
        config = self._config()
        config.rank_pattern = self.kept
        self.tuner.update_and_allocate(state.global_step + 1)
        # With a pattern peft saves smaller matrices, which no later step can go on from; without,
        # the directions that were dropped are saved as the zeros they are.
        self.kept, config.rank_pattern = config.rank_pattern, None

    def _config(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]
