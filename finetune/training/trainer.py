"""The project's ``Trainer``: batches, layer-wise learning rates, EMA, and checks of every step."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import Sampler

from finetune.errors import TrainingError, UserError
from finetune.evaluation.metrics import spec
from finetune.models import parameters
from finetune.training import checkpoints, losses, random_state
from finetune.training.ema import EMA
from finetune.training.resumable import ResumableTrainer
from finetune.training.sampling import EpochRows, MicroBatch, StepSampler

# A gradient scaler halves its scale, 65,536 at first, when gradients overflow. Below this they
# overflow without being scaled up, which no further halving mends.
LOWEST_SCALE = 1.0


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
        before_evaluation: called before every evaluation and prediction.
        balanced: whether an epoch has equally many rows of each class, the column ``labels``.
    """

    def __init__(
        self,
        *,
        layer_decay: float,
        ema_decay: float,
        skip_non_finite: int = 0,
        name_rows: Callable[[numpy.ndarray], str] = str,
        before_evaluation: Callable[[], None] | None = None,
        balanced: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # The Trainer knows of some models only that their first token has no loss.
        self.count_first_label(not isinstance(self.compute_loss_func, losses.NextTokenLoss))
        self.layer_decay = layer_decay
        self.ema = EMA(self.accelerator.unwrap_model(self.model), ema_decay)
        self.add_callback(self.ema)
        self.stateful = {"ema": self.ema, **self.stateful}
        # Steps of each epoch that are trained; all unless set.
        self.only_steps: list[int] | None = None
        self.skip_limit, self.name_rows = skip_non_finite, name_rows
        self.before_evaluation, self.balanced = before_evaluation, balanced
        # What each training row counts in the mean of the loss, and their sum in each step.
        self.row_weights: numpy.ndarray | None = None
        self.weight_of_steps: list[float] = []
        self.counters = {"skipped": []}
        self.step_loss: torch.Tensor | None = None

    def training_sampler(self) -> Sampler[Any]:
        rows, args = self.train_dataset, self.args
        rows = rows.rows if isinstance(rows, EpochRows) else rows
        assert isinstance(rows, Dataset)
        loss = self.compute_loss_func
        if isinstance(loss, losses.ClassificationLoss) and loss.weights is not None:
            self.row_weights = loss.row_weights(numpy.asarray(rows["labels"][:]))
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
            classes=numpy.asarray(rows["labels"][:]) if self.balanced else None,
        )
        return self.sampler

    def begin_epoch(self, epoch: int) -> bool:
        # The Trainer's own set_epoch does not reach the sampler when it skips batches, or with
        # several processes.
        self.sampler.epoch = epoch
        self.tokens_of_steps = self.sampler.tokens_of(epoch)
        if self.row_weights is not None:
            self.weight_of_steps = self.sampler.sums_of(epoch, self.row_weights)
        return super().begin_epoch(epoch)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        try:
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
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(f"optim {self.args.to_dict()['optim']}: {_line(error)}") from None

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().create_scheduler(*args, **kwargs)
        except (TypeError, ValueError) as error:
            name = self.args.to_dict()["lr_scheduler_type"]
            raise UserError(f"lr_scheduler_type {name}: {_line(error)}") from None

    def step_tokens(self) -> int:
        return self.tokens_of_steps[self.state.global_step % self.steps_in_epoch]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        scoring_only = set(self.label_names) - {"labels"}
        inputs = {name: value for name, value in inputs.items() if name not in scoring_only}
        if losses.TEACHER_LOGITS in inputs:
            logits = inputs.pop(losses.TEACHER_LOGITS)
            states = inputs.pop(losses.TEACHER_STATES, None)
            inputs["labels"] = losses.Taught(inputs["labels"], logits, states)
            inputs["output_hidden_states"] = states is not None
        if self.row_weights is not None and "num_items_in_batch" in kwargs:
            # The Trainer counts rows. An evaluation's batch is averaged by itself.
            step = self.state.global_step % self.steps_in_epoch
            kwargs["num_items_in_batch"] = self.weight_of_steps[step] if model.training else None
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
        if f"eval_{chosen}" not in metrics:
            self._count_as_worst(chosen, metrics)
        return metrics

    def _count_as_worst(self, chosen: str, metrics: dict[str, float]) -> None:
        """Adds a NaN, which is never better, for the metric that chooses the best checkpoint.

        Raises:
            TrainingError: the task does not measure the metric.
        """
        step = self.state.global_step
        if not spec(chosen).can_be_undefined:
            known = ", ".join(name for name in metrics if name.startswith("eval_"))
            raise TrainingError(
                f"step {step}: metric_for_best_model {chosen} is not measured; it can be {known}"
            )
        metrics[f"eval_{chosen}"] = math.nan
        if self.is_world_process_zero():
            print(
                f"finetune: step {step}: {chosen} is undefined on the validation rows (are all "
                "predictions the same?) and counts as the worst",
                file=sys.stderr,
            )

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
        finite = torch.isfinite(loss)
        scaler = self.accelerator.scaler
        # A gradient scaler skips a step whose gradients overflowed, and lowers its scale.
        if scaler is None or scaler.get_scale() < LOWEST_SCALE:
            finite = finite & torch.isfinite(torch.as_tensor(norm, device=finite.device))
        # Waits for the accelerator, once a step: the optimizer must not use what is not finite.
        self._check_step(self.state.global_step + 1, not finite, loss, norm)

    def _check_step(self, step: int, bad: bool, loss: torch.Tensor, norm: Any) -> None:
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

    # --- weights without a gradient ------------------------------------------------------------

    def allow_unused_weights(self) -> str | None:
        """Lets several processes train a model some of whose weights get no gradient.

        Each step waits for the gradients of all weights, unless it first looks for those that will
        not come, which costs time.

        Returns:
            A line about these weights; None if there are none, or for a single process.
        """
        handler = self.accelerator.ddp_handler
        if self.args.world_size == 1 or self.is_sharded or handler is None:
            return None
        if handler.find_unused_parameters:
            return None
        unused = self.unused_weights()
        if not unused:
            return None
        handler.find_unused_parameters = True
        return (
            f"{len(unused)} weights get no gradient, for example {unused[0]}; every step looks for "
            "them, which takes time"
        )

    def unused_weights(self) -> list[str]:
        """Returns the names of weights that should learn, but get no gradient from two rows."""
        with self.trial() as run:
            run(list(range(min(2, len(cast(Any, self.train_dataset))))))
            weights = list(cast(torch.nn.Module, self.model).named_parameters())
            return [name for name, each in weights if each.requires_grad and each.grad is None]

    @contextmanager
    def trial(self) -> Iterator[Callable[[list[int]], None]]:
        """Yields a function that runs a forward and backward pass on training rows, by number.

        The model, its buffers and the random state are the same afterwards.
        """
        model, device = cast(torch.nn.Module, self.model), self.args.device
        loader: Any = self.get_train_dataloader()
        before, was_training = random_state.capture(device), model.training
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

        def run(rows: list[int]) -> None:
            batch = loader.collate_fn(loader.dataset.__getitems__(MicroBatch(rows)))
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, cast(Any, send_to_device(batch, device)))
            loss.backward()

        model.train()
        try:
            yield run
        finally:
            model.zero_grad(set_to_none=True)
            model.train(was_training)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            random_state.restore(before, device)

    # --- memory --------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self._explain_out_of_memory("eval", 0):
            if self.before_evaluation:
                self.before_evaluation()
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
