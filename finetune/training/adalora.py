"""AdaLoRA (Zhang et al. 2023): the parts of it that run in the training loop."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from finetune.errors import UserError
from finetune.models.parameters import trainable

# The allocator's statistics in peft: importance, its running mean and its uncertainty.
STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankBudget(TrainerCallback):
    """Lowers AdaLoRA's ranks after each step; does nothing for other methods.

    - After the optimizer's step, peft's allocator updates the importance of each singular value
      from the gradients, and masks the least important ones.
    - The regularization of the factors towards orthogonality (Zhang et al. 2023, equation 4) is
      part of the model's loss in peft. Here its gradient is added once a step.
    """

    tuner: Any = None

    def __init__(self, model: nn.Module) -> None:
        if hasattr(getattr(model, "base_model", None), "rankallocator"):
            self.tuner = model.base_model
        self.rank_pattern: dict[str, Any] | None = None
        self.skipped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None:
            return
        config = self._config()
        config.total_step = min(config.total_step, state.max_steps)
        if config.tinit + config.tfinal >= config.total_step:
            raise UserError(
                f"adalora: tinit {config.tinit} and tfinal {config.tfinal} leave none of the "
                f"{config.total_step} steps to lower the rank; lower them, or train for longer"
            )

    def state_dict(self) -> dict[str, Any] | None:
        """Returns the allocator's statistics and the rank pattern; None for other methods."""
        if self.tuner is None:
            return None
        statistics = {name: vars(self._allocator())[name] for name in STATISTICS}
        return {"rank_pattern": self.rank_pattern, **statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets what ``state_dict`` returned."""
        self.rank_pattern = state["rank_pattern"]
        for name in STATISTICS:
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
        # A skipped step has no gradients, and must change nothing.
        self.skipped = all(p.grad is None for p, _ in factors)
        if self.skipped:
            return
        gaps = [
            torch.linalg.norm(c - torch.eye(len(c), out=torch.empty_like(c))) for _, c in factors
        ]
        weighted = self._config().orth_reg_weight * torch.stack(gaps).mean()
        parameters = [p for p, _ in factors]
        # Not backward(): DDP has reduced the gradients already, and its hooks must not run again.
        for p, gradient in zip(parameters, torch.autograd.grad(weighted, parameters), strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner is None or self.skipped:
            return
        config = self._config()
        config.rank_pattern = self.rank_pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        # With a rank pattern in the config, peft would save smaller matrices, which later steps
        # cannot continue from. Without it, masked singular values are saved as zeros.
        self.rank_pattern, config.rank_pattern = config.rank_pattern, None

    def _config(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]
