"""The project's ``Trainer``: batches, layer-wise learning rates, EMA, and checks of every step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from finetune.errors import TrainingError, UserError
from finetune.models import parameters
from finetune.training import checkpoints, losses
from finetune.training.ema import EMA
from finetune.training.resumable import ResumableTrainer
from finetune.training.sampling import StepSampler


class StepTrainer(ResumableTrainer):
    """Trains with batches that do not depend on the number of processes.

    - A step has the same rows for any number of processes and accumulation steps.
    - Evaluation reads the rows in the given order, each once.
    - Layer-wise learning rates are the optimizer's parameter groups.
    - With ``ema_decay``, evaluations and the final model use the EMA; checkpoints have both.
    - A step with a loss or gradient that is not finite ends the training before the weights change.
      So does a validation loss, or a metric that chooses the best model, that is not finite.
    - Batches may have columns that only scoring reads: every name in ``label_names`` other than
      ``labels``. Training batches may lack them.

    Args:
        skip_non_finite: number of steps that are not finite to skip, before one ends the training.
        name_rows: describes training rows, given by number, for an error message.
    """

    def __init__(
        self,
        *,
        layer_decay: float,
        ema_decay: float,
        skip_non_finite: int = 0,
        name_rows: Callable[[numpy.ndarray], str] = str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # The Trainer knows of some models only that their first token has no loss.
        self.count_first_label(self.compute_loss_func is not losses.next_token_loss)
        self.layer_decay = layer_decay
        self.ema = EMA(self.accelerator.unwrap_model(self.model), ema_decay)
        self.add_callback(self.ema)
        self.stateful = {"ema": self.ema, **self.stateful}
        # Steps of each epoch that are trained; all unless set.
        self.only_steps: list[int] | None = None
        self.skip_limit, self.name_rows = skip_non_finite, name_rows
        self.counters = {"skipped": []}
        self.step_loss: torch.Tensor | None = None
        # The arguments of a ``_check_step`` that waits for the accelerator.
        self.unchecked: tuple[int, torch.Tensor, torch.Tensor, Any] | None = None

    def training_sampler(self) -> Sampler[Any]:
        rows, args = self.train_dataset, self.args
        assert isinstance(rows, Dataset)
        if args.train_sampling_strategy not in {"random", "group_by_length"}:
            raise UserError(
                f"train_sampling_strategy {args.train_sampling_strategy!r} is not supported; "
                "use random or group_by_length"
            )
        self.sampler = StepSampler(
            rows=len(rows),
            lengths=rows["length"][:],
            grouped=args.train_sampling_strategy == "group_by_length",
            step_rows=self.device_batch_size * args.gradient_accumulation_steps * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            rank=args.process_index,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            only=self.only_steps,
        )
        return self.sampler

    def begin_epoch(self, epoch: int) -> bool:
        # The Trainer's own set_epoch does not reach the sampler when it skips batches, or with
        # several processes.
        self.sampler.epoch = epoch
        return super().begin_epoch(epoch)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.layer_decay < 1 and self.optimizer is None:
            module = model or self.model
            assert isinstance(module, torch.nn.Module)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameters.parameter_groups(
                module,
                set(self.get_decay_parameter_names(module)),
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            self.optimizer = cls(groups, **options)
        return super().create_optimizer(model)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        scoring_only = set(self.label_names) - {"labels"}
        inputs = {name: value for name, value in inputs.items() if name not in scoring_only}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            # A pickle of the arguments; recipe.yaml has the same values and is readable.
            (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink()

    def load_best_weights(self) -> None:
        super().load_best_weights()
        best = Path(str(self.state.best_model_checkpoint))
        if self.ema.names:
            self.ema.load_state_dict(checkpoints.read(best, "ema"))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.ema.in_place():
            metrics = super().evaluate(*args, **kwargs)
        chosen = str(self.args.metric_for_best_model).removeprefix("eval_")
        for name in ("eval_loss", f"eval_{chosen}"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise TrainingError(
                    f"step {self.state.global_step}: {name} is {metrics[name]:g} on the validation "
                    f"rows; {self._last_checkpoint()}"
                )
        return metrics

    # --- steps that are not finite -------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.step_loss is None:
            self.loss_before_step = self.running_loss.clone()
        with self._explain_out_of_memory("train", self.args.gradient_accumulation_steps):
            loss = super().training_step(*args, **kwargs)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    def check_gradients(self, norm: Any) -> None:
        loss, self.step_loss = self.step_loss, None
        assert loss is not None
        bad = ~torch.isfinite(loss)
        # A gradient scaler finds gradients that overflowed and skips them by itself.
        if self.accelerator.scaler is None:
            bad = bad | ~torch.isfinite(torch.as_tensor(norm, device=bad.device))
        step = self.state.global_step + 1
        if self.args.device.type == "cpu" or self.args.world_size > 1 or self.skip_limit:
            self._check_step(step, bad, loss, norm)
        else:
            # Reading this step's values would wait for the accelerator, so it checks the previous
            # step's. A checkpoint saved in between is checked when it is written.
            if self.unchecked:
                self._check_step(*self.unchecked)
            self.unchecked = (step, bad, loss, norm)

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.unchecked:
            self._check_step(*self.unchecked)
            self.unchecked = None

    def _check_step(self, step: int, bad: torch.Tensor, loss: torch.Tensor, norm: Any) -> None:
        """Skips a step that is not finite, or ends the training.

        Raises:
            TrainingError: no more steps may be skipped.
        """
        (any_bad,) = self.reduce_max(float(bad))
        if not any_bad:
            return
        if len(self.counters["skipped"]) < self.skip_limit:
            self.counters["skipped"].append(step)
            # The optimizer does not update weights without a gradient.
            cast(torch.nn.Module, self.model).zero_grad(set_to_none=True)
            self.discard_step_loss(self.loss_before_step)
            return
        size = self.steps_in_epoch
        rows = self.sampler.rows_of((step - 1) // size, (step - 1) % size)
        raise TrainingError(
            f"step {step}: the loss is {float(loss):g} and its gradient's norm {float(norm):g}; "
            f"its rows: {self.name_rows(rows)}. Correct these rows, lower the learning rate, or "
            f"skip such steps with --skip_non_finite COUNT; {self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        last = self.saver.last
        return f"the last checkpoint is {last}" if last else "there is no checkpoint"

    # --- memory --------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self._explain_out_of_memory("eval", 0):
            return super().evaluation_loop(*args, **kwargs)

    @contextmanager
    def _explain_out_of_memory(self, split: str, accumulation: int) -> Iterator[None]:
        """Turns an allocator's error into one that names a batch size that may fit."""
        try:
            yield
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
            if not full or self.args.auto_find_batch_size:
                raise
            key = f"per_device_{split}_batch_size"
            size = vars(self.args)[key]
            # The smallest divisor, so that a step keeps its rows.
            divisor = next(n for n in range(2, size + 2) if size % n == 0 or n > size)
            advice = f"use --{key} {size // divisor}"
            if accumulation:
                steps = divisor * accumulation
                advice += f" --gradient_accumulation_steps {steps}, which trains the same"
            if size == 1:
                advice = "a single row does not fit; lower max_length or image_size"
            step = self.state.global_step + (split == "train")
            raise TrainingError(f"step {step}: out of memory with {key} {size}; {advice}") from None
