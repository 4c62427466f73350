"""How this project trains: batches, averaged weights, learning rates, steps that are watched."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from finetune.errors import TrainingError, UserError
from finetune.models import parameters
from finetune.training import checkpoints, ema, losses
from finetune.training.resumable import ResumableTrainer
from finetune.training.sampling import StepSampler


class StepTrainer(ResumableTrainer):
    """The Trainer with batches that do not depend on the number of processes.

    Evaluation goes through the rows in the order given, each once, whatever the sampling strategy;
    layer-wise learning rates are the optimizer's parameter groups; nothing is pickled. What is
    evaluated, and the model in the end, is of averaged weights where ``ema_decay`` asks for them;
    a checkpoint has both. A step whose loss or gradient is not finite ends the training before
    the weights change, and so do validation's loss and the metric that chooses.

    Args:
        skip_non_finite: how many such steps are left out before the next one ends the training.
        name_rows: the training rows of these numbers, for a message.
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
        # Nothing comes before the first token, so no loss may be averaged over it. The Trainer
        # sees that of some models only.
        self._loss_shifts_labels = self.compute_loss_func is losses.next_token_loss
        self.layer_decay = layer_decay
        self.averages = ema.Averages(self.accelerator.unwrap_model(self.model), ema_decay)
        self.add_callback(self.averages)
        self.parts = {"averages": self.averages, **self.parts}
        self.may_skip, self.name_rows = skip_non_finite, name_rows
        self.counted = {"skipped": []}
        self.step_loss: torch.Tensor | None = None
        self.unread: tuple[int, torch.Tensor, torch.Tensor, Any] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        rows, args = train_dataset or self.train_dataset, self.args
        assert isinstance(rows, Dataset)
        if args.train_sampling_strategy not in {"random", "group_by_length"}:
            raise UserError(
                f"train_sampling_strategy {args.train_sampling_strategy!r} is not supported; "
                "random and group_by_length are"
            )
        self.sampler = StepSampler(
            rows=len(rows),
            lengths=self.lengths,
            grouped=args.train_sampling_strategy == "group_by_length",
            step_rows=self._train_batch_size * args.gradient_accumulation_steps * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            rank=args.process_index,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        return self.sampler

    def get_train_dataloader(self) -> DataLoader:
        # The Trainer drops all columns the model does not know before it asks for the sampler.
        assert isinstance(self.train_dataset, Dataset)
        self.lengths = self.train_dataset["length"][:]
        return super().get_train_dataloader()

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        return None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.layer_decay < 1 and self.optimizer is None:
            learner = model or self.model
            assert isinstance(learner, torch.nn.Module)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameters.parameter_groups(
                learner,
                set(self.get_decay_parameter_names(learner)),
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            self.optimizer = cls(groups, **options)
        return super().create_optimizer(model)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle of the arguments; recipe.yaml says the same and can be read by anyone.
            (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint))
        if self.averages.names:
            self.averages.restore(checkpoints.read(best, "averages"))

    # --- runs that do not lie ------------------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer does not reach a sampler below a skipped beginning and several processes.
        self.sampler.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.step_loss is None:
            self.loss_before = self._tr_loss.clone()
        with self._memory("train", self.args.gradient_accumulation_steps):
            loss = super().training_step(*args, **kwargs)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self._memory("eval", 0):
            return super().evaluation_loop(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self.step_loss = self.step_loss, None
        assert loss is not None
        bad = ~torch.isfinite(loss)
        # A scaler looks for gradients that overflowed and skips them by itself.
        if self.accelerator.scaler is None:
            bad = bad | ~torch.isfinite(torch.as_tensor(norm, device=bad.device))
        step = self.state.global_step + 1
        if self.args.device.type == "cpu" or self.args.world_size > 1 or self.may_skip:
            self._judge(step, bad, loss, norm)
        else:
            # To read the newest step's numbers would wait for the accelerator; the step before's
            # are there. What a step in between saves is looked at by itself.
            if self.unread:
                self._judge(*self.unread)
            self.unread = (step, bad, loss, norm)
        return norm

    def _judge(self, step: int, bad: torch.Tensor, loss: torch.Tensor, norm: Any) -> None:
        (found,) = self.agree(float(bad))
        if not found:
            return
        if len(self.counted["skipped"]) < self.may_skip:
            self.counted["skipped"].append(step)
            # No gradient, no step: an optimizer leaves out what has none.
            cast(torch.nn.Module, self.model).zero_grad(set_to_none=True)
            self._tr_loss.copy_(self.loss_before)
            self._globalstep_last_logged += 1
            return
        size = self.steps_in_epoch
        rows = self.sampler.rows_of((step - 1) // size, (step - 1) % size)
        what = f"loss is {float(loss):g} and its gradient's norm {float(norm):g}"
        raise TrainingError(
            f"step {step}: the {what}; its rows: {self.name_rows(rows)}. "
            f"{self.saver.saved or 'No checkpoint'} is what there is from before. Mend these rows, "
            "lower the learning rate, or leave out such steps with --skip_non_finite COUNT"
        )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.unread:
            self._judge(*self.unread)
        return super()._finalize_training(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averages.in_place():
            metrics = super().evaluate(*args, **kwargs)
        chosen = str(self.args.metric_for_best_model).removeprefix("eval_")
        for name in ("eval_loss", f"eval_{chosen}"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise TrainingError(
                    f"step {self.state.global_step}: {name} is {metrics[name]:g} on the validation "
                    f"rows; {self.saver.saved or 'no checkpoint'} is what there is from before"
                )
        return metrics

    @contextmanager
    def _memory(self, what: str, accumulation: int) -> Iterator[None]:
        """Turn an allocator's error into the batch size that would fit."""
        try:
            yield
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
            if not full or self.args.auto_find_batch_size:
                raise
            key = f"per_device_{what}_batch_size"
            size = vars(self.args)[key]
            # The least that divides it, so that a step has the same rows.
            parts = next(n for n in range(2, size + 2) if size % n == 0 or n > size)
            fits = f"--{key} {size // parts}"
            if accumulation:
                fits += f" --gradient_accumulation_steps {parts * accumulation} learns the same"
            if size == 1:
                fits = "one row is too much already; lower max_length or image_size"
            step = self.state.global_step + (what == "train")
            raise TrainingError(f"step {step}: out of memory with {key} {size}; {fits}") from None
