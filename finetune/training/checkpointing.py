"""A ``Trainer`` that writes and reads this project's checkpoints. Their files:

- ``model``: weights that learn, and buffers. Of a model that is split over processes, the folders
  ``weights`` and ``optimizer_state`` instead (see ``sharding``).
- ``optimizer``, ``scheduler``, ``scaler``: their state dicts; a scaler with fp16 only.
- One file for each ``Stateful`` object, such as the EMA.
- ``position``: each process's random state and running loss, counters, and an evaluation that was
  interrupted.
- ``trainer_state.json``: transformers' own record of steps and metrics.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers.trainer_callback import ExportableState

from finetune.errors import TrainingError, UserError
from finetune.models import parameters
from finetune.training import checkpoints, processes, random_state, sharding
from finetune.training.hooks import HookedTrainer
from finetune.training.saver import Saver


class Stateful(Protocol):
    """An object with state that a checkpoint has to save, such as the EMA."""

    def state_dict(self) -> Any:
        """Returns a tree that ``checkpoints.write`` can save, or None if there is no state."""

    def load_state_dict(self, state: Any) -> None:
        """Sets what ``state_dict`` returned."""


class CheckpointTrainer(HookedTrainer):
    """Saves checkpoints with all that the next step depends on, and loads them.

    Args:
        run: identifies the run in a checkpoint's manifest.
        stateful: objects whose state is saved, by the name of their file in the checkpoint.
        changed_keys: recipe keys whose values differ from the checkpoint's, by the user's wish.
    """

    def __init__(
        self,
        *,
        run: dict[str, Any],
        stateful: dict[str, Stateful],
        changed_keys: list[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.is_sharded:
            sharding.choose_layers(self.accelerator, cast(torch.nn.Module, self.model))
        # Saver rotates checkpoints before a save; the Trainer would do it by name, and after.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.saver = Saver(Path(str(self.args.output_dir)), limit, run)
        self.stateful, self.changed_keys = stateful, changed_keys
        # JSON values that subclasses count.
        self.counters: dict[str, Any] = {}
        # The position of a checkpoint that was loaded, until ``begin_training`` has restored it.
        self.restored: dict[str, Any] | None = None
        # Training time of earlier processes, and of this one until ``started``.
        self.earlier_seconds, self.own_seconds = 0.0, 0.0
        self.started: float | None = None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        sharding.enable_on_cpu(self.accelerator)
        self.is_fsdp_enabled = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_fsdp_enabled:
            # Of the model that is saved at the end.
            cast(Any, self.accelerator.state.fsdp_plugin).set_state_dict_type("FULL_STATE_DICT")

    @property
    def is_sharded(self) -> bool:
        """Whether the model is split over processes."""
        return self.is_fsdp_enabled

    @property
    def train_seconds(self) -> float:
        """Training time of the run so far, including the processes it was resumed from."""
        current = 0.0 if self.started is None else time.monotonic() - self.started
        return self.earlier_seconds + self.own_seconds + current

    # --- saving --------------------------------------------------------------------------------

    def save_checkpoint(
        self, pending: dict[str, Any] | None = None, random: dict[str, Any] | None = None
    ) -> None:
        """Saves the step that was just made.

        Args:
            pending: set if the step's evaluation was interrupted: whether to ``save`` after it.
            random: the random state to resume with; the present one if None.

        Raises:
            TrainingError: the disk is full, or a weight is not finite; older checkpoints are kept.
        """
        # The main process may have been completing the checkpoint before.
        processes.wait()
        self.store_flos()
        final = checkpoints.name(self.state.global_step, evaluated=pending is None)
        own = {
            "random": random or random_state.capture(self.args.device),
            "loss": self.running_loss.cpu(),
            "logged": self.last_logged_step,
        }
        position = {
            # accelerate cannot gather on XLA, not even from one process.
            "processes": [own] if self.args.world_size == 1 else gather_object([own]),
            "pending": pending,
            # Whether a callback stopped the training; false if it just made its last step.
            "stop": self.control.should_training_stop
            and self.state.global_step < self.state.max_steps,
            "seconds": self.train_seconds,
            "counters": self.counters,
        }
        failure, staged = None, None
        with ExitStack() as saving:
            if self.is_world_process_zero():
                try:
                    self.saver.finish()
                    staged = saving.enter_context(self.write_files(final, position))
                except (OSError, SafetensorError) as error:
                    failure = self.saver.failure(final, error)
                except TrainingError as error:
                    failure = str(error)
            if self.is_sharded:
                self._write_parts(final, staged, failure)
        processes.wait()
        failure, self.state.best_model_checkpoint = broadcast_object_list(
            [failure, self.state.best_model_checkpoint]
        )
        if failure:
            raise TrainingError(failure)
        if not self.is_world_process_zero():
            self.saver.set_last(final, None)

    @contextmanager
    def write_files(self, final: str, position: dict[str, Any]) -> Iterator[Path]:
        """Writes the files of the checkpoint ``final``; the main process only.

        Yields:
            The staged folder, into which all processes write the parts of a split model.
        """
        step, best = self.state.global_step, self.state.best_global_step
        if best and (best == step or (self.saver.folder / checkpoints.name(best)).is_dir()):
            self.state.best_model_checkpoint = str(self.saver.folder / checkpoints.name(best))
        else:
            best = None
        weights = parameters.trained_state(self.accelerator.unwrap_model(self.model))
        scaler = self.accelerator.scaler
        self.state.stateful_callbacks = cast(Any, self._callback_counters())
        with self.saver.save(step, final, best, expected_bytes(weights)) as staged:
            optimizer = cast(Any, self.optimizer).state_dict()
            if self.is_sharded:
                optimizer.pop("state")
            else:
                if name := parameters.not_finite(weights):
                    raise TrainingError(self._not_finite(final, name))
                checkpoints.write(staged, "model", weights)
            checkpoints.write(staged, "optimizer", optimizer)
            checkpoints.write(staged, "scheduler", cast(Any, self.lr_scheduler).state_dict())
            if scaler is not None:
                checkpoints.write(staged, "scaler", scaler.state_dict())
            for name, owner in self.stateful.items():
                state = owner.state_dict()
                if state is not None:
                    checkpoints.write(staged, name, state)
            checkpoints.write(staged, "position", position)
            self.state.save_to_json(str(staged / "trainer_state.json"))
            yield staged

    def _write_parts(self, final: str, staged: Path | None, failure: str | None) -> None:
        """Writes the parts of a split model into the main process's folder; in all processes.

        Raises:
            TrainingError: in all processes, if one of them or the main process failed.
        """
        model = self.accelerator.unwrap_model(self.model)
        if name := sharding.not_finite(model):
            failure = self._not_finite(final, name)
        failure = next(filter(None, gather_object([failure])), None)
        (folder,) = broadcast_object_list([str(staged)])
        if failure is None:
            try:
                sharding.save(Path(folder), model, cast(Any, self.optimizer))
            except sharding.CheckpointException as error:
                # All processes have it, with the reasons of those that failed.
                reason = next(iter(error.failures.values()))[0]
                failure = self.saver.failure(
                    final, reason if isinstance(reason, OSError) else str(reason)
                )
        if failure:
            raise TrainingError(failure)

    def _not_finite(self, final: str, name: str) -> str:
        return self.saver.failure(final, f"{name} has values that are not finite")

    def check_disk(self, count: int) -> str | None:
        """Returns an error message if ``count`` checkpoints do not fit on the disk."""
        weights = parameters.trained_state(self.accelerator.unwrap_model(self.model))
        return self.saver.shortage(count, expected_bytes(weights))

    def _callback_counters(self) -> dict[str, Any]:
        """Returns the state of callbacks such as early stopping, by their class name."""
        return {
            type(callback).__name__: callback.state()
            for callback in self.callback_handler.callbacks
            if isinstance(callback, ExportableState)
        }

    def tidy(self) -> None:
        """Deletes the checkpoints of a finished run that ``save_total_limit`` does not keep."""
        best = self.state.best_global_step if self.state.best_model_checkpoint else None
        if self.is_world_process_zero():
            self.saver.rotate({checkpoints.name(best) if best else self.saver.last}, 0)

    # --- loading -------------------------------------------------------------------------------

    def load_best_weights(self) -> None:
        self.saver.finish()
        # The main process has sealed the checkpoint now; the others read it, too.
        processes.wait()
        best = Path(str(self.state.best_model_checkpoint))
        try:
            checkpoints.verify(best)
        except checkpoints.InvalidCheckpoint as why:
            raise TrainingError(
                f"{best}: the best weights are lost: {why}; `finetune resume` trains them again "
                "from an older checkpoint, --overwrite from the beginning"
            ) from None
        self.load_weights(best)

    def load_weights(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        try:
            if self.is_sharded:
                sharding.load_weights(folder, model)
            else:
                parameters.load_trained_state(model, checkpoints.read(folder, "model"))
        except ValueError as error:
            raise UserError(f"{folder}: is of another model: {error}") from None

    def load_training_state(self, folder: Path) -> None:
        optimizer, schedule = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        own_groups = [dict(group) for group in optimizer.param_groups]
        saved = checkpoints.read(folder, "optimizer")
        if self.is_sharded:
            model = self.accelerator.unwrap_model(self.model)
            saved["state"] = sharding.read_optimizer(folder, model, optimizer)
        optimizer.load_state_dict(saved)
        saved_schedule = checkpoints.read(folder, "scheduler")
        if any(key.startswith(("training.", "tuning.")) for key in self.changed_keys):
            self._apply_changes(own_groups, saved_schedule["last_epoch"])
        else:
            schedule.load_state_dict(saved_schedule)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.read(folder, "scaler"))
        for name, owner in self.stateful.items():
            if (folder / f"{name}.json").is_file() or (folder / f"{name}.safetensors").is_file():
                owner.load_state_dict(checkpoints.read(folder, name))
        position = checkpoints.read(folder, "position")
        processes, rank = position["processes"], self.args.process_index
        self.restored = position | {"own": processes[rank % len(processes)]}
        self.counters = position["counters"]
        self.earlier_seconds = position["seconds"]
        self.own_seconds, self.started = 0.0, time.monotonic()

    def _apply_changes(self, own_groups: list[dict[str, Any]], step: int) -> None:
        """Keeps the recipe's learning rates and weight decays instead of the checkpoint's."""
        schedule: Any = self.lr_scheduler
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            raise UserError(
                f"lr_scheduler_type {self.args.lr_scheduler_type} cannot resume with another recipe"
            )
        schedule.last_epoch = step
        rates = [
            base * factor(step)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        groups = cast(Any, self.optimizer).param_groups
        for group, own, rate in zip(groups, own_groups, rates, strict=True):
            group.update({k: v for k, v in own.items() if k != "params"} | {"lr": rate})
        schedule._last_lr = rates

    def load_callback_counters(self) -> None:
        """Sets what ``_callback_counters`` saved."""
        counters = cast(dict[str, Any], self.state.stateful_callbacks)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                saved = counters.get(type(callback).__name__, {})
                vars(callback).update(saved.get("attributes", {}))


def expected_bytes(weights: dict[str, torch.Tensor]) -> int:
    """Returns the bytes of a checkpoint of these weights."""
    # The optimizers in use keep two values for each weight that learns.
    return 3 * sum(t.nbytes for t in weights.values())
