"""The Trainer, with public hooks where transformers has only private methods.

``HookedTrainer`` is the only class that overrides private methods of ``transformers.Trainer`` or
uses its private attributes. Each override calls one public method, which ``ResumableTrainer`` and
``StepTrainer`` implement. ``private_api.py`` lists every override with its reason.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import Trainer


class HookedTrainer(Trainer):
    """A ``Trainer`` whose private steps can be replaced by overriding public methods."""

    # --- hooks for subclasses ------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> bool:
        """Called before an epoch (counted from 0); returns whether it has steps left to train."""
        raise NotImplementedError

    def end_step(self, finish: Callable[[], None]) -> None:
        """Called after each step and each epoch; ``finish`` logs, evaluates and saves."""
        raise NotImplementedError

    def check_gradients(self, norm: Any) -> None:
        """Called with the norm of a step's gradients, before the optimizer uses them."""
        raise NotImplementedError

    def step_tokens(self) -> int:
        """Returns the tokens of the current step, over all processes and without padding."""
        raise NotImplementedError

    def training_sampler(self) -> Sampler[Any]:
        """Returns the sampler of the training rows."""
        raise NotImplementedError

    def save_checkpoint(self) -> None:
        """Saves a checkpoint of the current step."""
        raise NotImplementedError

    def load_weights(self, folder: Path) -> None:
        """Loads a checkpoint's weights into the model."""
        raise NotImplementedError

    def load_training_state(self, folder: Path) -> None:
        """Loads everything else of a checkpoint: optimizer, schedule, gradient scaler, counters."""
        raise NotImplementedError

    def load_best_weights(self) -> None:
        """Loads the best checkpoint's weights at the end of training."""
        raise NotImplementedError

    def restore_random_state(self) -> None:
        """Called when a resumed epoch has skipped the batches that were already trained."""
        raise NotImplementedError

    # --- the Trainer's private state -----------------------------------------------------------

    @property
    def running_loss(self) -> torch.Tensor:
        """Sum of the steps' losses since the last log: a scalar on the device."""
        return self._tr_loss

    @property
    def last_logged_step(self) -> int:
        return self._globalstep_last_logged

    def restore_running_loss(self, loss: torch.Tensor, last_logged_step: int) -> None:
        """Sets the running loss of a checkpoint."""
        self._tr_loss = loss.to(self.args.device)
        self._globalstep_last_logged = last_logged_step
        # The Trainer divides its total loss by the number of steps of this process only.
        self._total_loss_scalar = -float(self._tr_loss)

    def discard_step_loss(self, before: torch.Tensor) -> None:
        """Takes a skipped step out of the running loss, which was ``before`` until then."""
        self._tr_loss.copy_(before)
        self._globalstep_last_logged += 1

    def count_first_label(self, counts: bool) -> None:
        """Sets whether ``labels[:, 0]`` is among the items that a loss is averaged over."""
        self._loss_shifts_labels = not counts

    @property
    def device_batch_size(self) -> int:
        """Training rows of one micro-batch on one process."""
        return self._train_batch_size

    def finish_step(self) -> None:
        """Evaluates and saves as ``control`` asks, for a step that an earlier process made."""
        self._maybe_log_save_evaluate(
            self._tr_loss, None, self.model_wrapped, None, 0, None, time.time()
        )

    # --- overrides of private methods ----------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.begin_epoch(kwargs["epoch"]):
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        finish = super()._maybe_log_save_evaluate
        self.end_step(lambda: finish(*args, **kwargs))

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        # A best model that is loaded at the end has to be saved, however seldom the recipe saves.
        is_best = super()._determine_best_metric(*args, **kwargs)
        self.control.should_save |= is_best and self.args.load_best_model_at_end
        return is_best

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.check_gradients(norm)
        return norm

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        # Padding is of batches as they are made, so it is counted in them. Tokens are known; the
        # Trainer would wait for the accelerator in every micro-batch to count them.
        counted = self.args.include_num_input_tokens_seen
        if counted == "all":
            super()._track_num_input_tokens(inputs)
        # The last micro-batch of a step makes the processes share their gradients.
        elif counted != "no" and "input_ids" in inputs and self.accelerator.sync_gradients:
            self.state.num_input_tokens_seen += self.step_tokens()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return self.training_sampler()

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        # Rows in the given order: the Trainer would apply train_sampling_strategy here, too.
        return None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_training_state(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.restore_random_state()

    def _load_best_model(self) -> None:
        self.load_best_weights()
