"""A ``Trainer`` that saves whole checkpoints and goes on from them as if nothing had happened."""

import random
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from finetune.errors import TrainingError, UserError
from finetune.models import parameters
from finetune.training import checkpoints
from finetune.training.saver import Saver
from finetune.training.signals import Signals, leave, outlive_one


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal came during an evaluation, which is left at its next batch."""


class EpochEnd(TrainerCallback):
    """Knows whether the epoch's last step is over and only its end is left to do."""

    here = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.here = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.here = True


class ResumableTrainer(Trainer):
    """Saves between steps only, everything that the next step depends on.

    Beside the Trainer's own state that is the random numbers' of every process, the loss since the
    last log, callbacks' counters, and whatever ``parts`` keep. A signal in ``signals`` ends the
    training after the step, with a checkpoint; one that comes during an evaluation leaves it, and
    the resumed run evaluates anew.

    Args:
        run: what the run is of, for the manifest.
        parts: by the name of their file, what has ``state() -> tree | None`` and ``restore(tree)``.
        changed: the keys that a resumed run has other values for, because the user insists.
    """

    def __init__(
        self,
        *,
        signals: Signals,
        run: dict[str, Any],
        parts: dict[str, Any],
        changed: list[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # What is deleted when is decided there, before a save; the Trainer's own way is to delete
        # by name, and after.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.saver = Saver(Path(str(self.args.output_dir)), limit, run)
        self.signals, self.parts, self.changed = signals, parts, changed
        self.epoch_end = EpochEnd()
        self.add_callback(self.epoch_end)
        self.asked = 0
        self.resumed: dict[str, Any] = {}
        self.random: dict[str, Any] | None = None
        # What a subclass counts, as JSON can say it.
        self.counted: dict[str, Any] = {}
        self.seconds_before, self.began = 0.0, time.monotonic()
        # Of those before, what other processes trained for that this one goes on from.
        self.seconds_elsewhere = 0.0

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model; how its parts are saved is accelerate's."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def signal(self) -> int:
        """The signal that all processes know of, or 0."""
        return self.signals.received if self.args.world_size == 1 else self.asked

    def agree(self, *mine: float) -> list[float]:
        """The largest of each number over all processes, which learn of each other's signals."""
        if self.args.world_size == 1:
            return list(mine)
        said = torch.tensor([self.signals.received, *mine], device=self.args.device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        self.asked, *ours = said.tolist()
        self.asked = int(self.asked)
        return ours

    @property
    def seconds(self) -> float:
        """How long the run has trained, over all the processes that took their turn at it."""
        return self.seconds_before + time.monotonic() - self.began

    # --- the loop ------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.signals.patient, self.began = True, time.monotonic()
        try:
            done = super().train(*args, **kwargs)
        finally:
            self.signals.patient = False
            # Whoever resumes the run may do so as soon as this process lets go of it.
            self.saver.wait()
            self.seconds_before, self.began = self.seconds, time.monotonic()
        if self.signals.received:
            # It came while the best weights were loaded.
            leave(self.signals.received, "trained; `finetune resume` goes on to test")
        return done

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        where = super()._init_training_state(*args, **kwargs)
        max_steps, self.steps_in_epoch, _, resumed, _ = args
        if resumed:
            self.state.compute_steps(self.args, max_steps)
            # The run may have been moved since.
            best = self.saver.folder / checkpoints.name(self.state.best_global_step or 0)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return where

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._catch_up()
        stopped = self.control.should_training_stop
        if not stopped and self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._catch_up()
        self.saver.settle()
        return super()._finalize_training(*args, **kwargs)

    def _catch_up(self) -> None:
        """Bring a resumed training to where the checkpoint's was: once, before its first step."""
        resumed, self.resumed = self.resumed, {}
        if not resumed:
            return
        mine = resumed["mine"]
        self._tr_loss = mine["loss"].to(self.args.device)
        self._globalstep_last_logged = mine["logged"]
        # The average loss that the Trainer tells in the end is of the steps it made itself.
        self._total_loss_scalar = -float(self._tr_loss)
        restore_random(mine["random"], self.args.device)
        left = resumed["left"]
        if left is not None:
            self.control.should_evaluate, self.control.should_save = True, left["save"]
            self.epoch_end.here = True
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, 0, None, time.time()
            )
        self.control.should_training_stop |= resumed["stop"]
        self.random = random_state(self.args.device)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.random is not None:
            restore_random(self.random, self.args.device)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False
    ) -> dict[str, float]:
        if not skip_scheduler:
            return super()._evaluate(trial, ignore_keys_for_eval)
        # Of eval_on_start, which a resumed run did when it started.
        if self.state.global_step:
            return {}
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, True)
        except Interrupted:
            leave(self.signal, "no step was made yet")
            raise

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        # What is to be loaded in the end has to be there then, however seldom the recipe saves.
        best = super()._determine_best_metric(*args, **kwargs)
        self.control.should_save |= best and self.args.load_best_model_at_end
        return best

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        ends = control.should_training_stop or control.should_epoch_stop
        ends = ends or self.state.global_step % self.steps_in_epoch == 0
        if ends and not self.epoch_end.here:
            # The epoch's end comes next, and what it and the step ask for is done there at once:
            # no checkpoint stands between a step and an end of its epoch that is still to come.
            wanted = control.should_evaluate, control.should_save
            control.should_evaluate = control.should_save = False
            super()._maybe_log_save_evaluate(*args, **kwargs)
            control.should_evaluate, control.should_save = wanted
            return
        save = control.should_save
        before = random_state(self.args.device) if control.should_evaluate else None
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except Interrupted:
            # Interrupted again by the time it is resumed, it is where its checkpoint was.
            if self.saver.saved != checkpoints.name(self.state.global_step, evaluated=False):
                self._write({"save": save}, before)
        else:
            if self.signal and self.saver.saved != checkpoints.name(self.state.global_step):
                self._write(None)
        if self.signal:
            self.saver.settle()
            step = self.state.global_step
            leave(self.signal, f"step {step} is saved; `finetune resume` goes on there")

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_in_train:
            self.agree()
            if self.signal:
                raise Interrupted
        return super().prediction_step(*args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        prepared: Any = super()._get_dataloader(*args, **kwargs)
        if self.args.dataloader_num_workers:
            loader = prepared.base_dataloader
            loader.worker_init_fn = partial(outlive_one, loader.worker_init_fn)
        return prepared

    # --- saving --------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._write(None)

    def _write(self, left: dict[str, Any] | None, before: dict[str, Any] | None = None) -> None:
        """Save the step that was just made.

        Args:
            left: what is still to do for this step, if its evaluation was interrupted.
            before: the random numbers' state to go on from, if it is not the present one.

        Raises:
            TrainingError: the disk is full, or a weight is not finite; older checkpoints are kept.
        """
        self.store_flos()
        final = checkpoints.name(self.state.global_step, evaluated=left is None)
        mine = {
            "random": before or random_state(self.args.device),
            "loss": self._tr_loss.cpu(),
            "logged": self._globalstep_last_logged,
        }
        position = {
            # accelerate gathers none on XLA, not even of one process.
            "processes": [mine] if self.args.world_size == 1 else gather_object([mine]),
            "left": left,
            # Whether some callback has had enough; not that the last step was made.
            "stop": self.control.should_training_stop
            and self.state.global_step < self.state.max_steps,
            "seconds": self.seconds,
            "counted": self.counted,
        }
        failure = None
        if self.is_world_process_zero():
            try:
                self.saver.settle()
                self._write_whole(final, position)
            except (OSError, SafetensorError) as error:
                failure = self.saver.unwritten(final, error)
            except TrainingError as error:
                failure = str(error)
        failure, self.state.best_model_checkpoint = broadcast_object_list(
            [failure, self.state.best_model_checkpoint]
        )
        if failure:
            raise TrainingError(failure)
        if not self.is_world_process_zero():
            self.saver.note(final, None)

    def _write_whole(self, final: str, position: dict[str, Any]) -> None:
        step, best = self.state.global_step, self.state.best_global_step
        if best and (best == step or (self.saver.folder / checkpoints.name(best)).is_dir()):
            self.state.best_model_checkpoint = str(self.saver.folder / checkpoints.name(best))
        else:
            best = None
        weights = parameters.trained_state(self.accelerator.unwrap_model(self.model))
        for name, weight in weights.items():
            # Where a value is not finite neither is the sum, which asks for no mask of all values.
            suspect = weight.is_floating_point() and not bool(torch.isfinite(weight.sum()))
            if suspect and not bool(torch.isfinite(weight).all()):
                raise TrainingError(
                    self.saver.unwritten(final, f"{name} has values that are not finite")
                )
        scaler = self.accelerator.scaler
        self.state.stateful_callbacks = cast(Any, self._counters())
        with self.saver.save(step, final, best, _expected_bytes(weights)) as staged:
            checkpoints.write(staged, "model", weights)
            checkpoints.write(staged, "optimizer", cast(Any, self.optimizer).state_dict())
            checkpoints.write(staged, "scheduler", cast(Any, self.lr_scheduler).state_dict())
            if scaler is not None:
                checkpoints.write(staged, "scaler", scaler.state_dict())
            for name, part in self.parts.items():
                said = part.state()
                if said is not None:
                    checkpoints.write(staged, name, said)
            checkpoints.write(staged, "position", position)
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def check_disk(self, count: int) -> str | None:
        """What is wrong if so many checkpoints do not fit on the disk; None if they do."""
        weights = parameters.trained_state(self.accelerator.unwrap_model(self.model))
        return self.saver.shortage(count, _expected_bytes(weights))

    def _counters(self) -> dict[str, Any]:
        """What callbacks count, early stopping's patience for one, by the callback's type."""
        return {
            type(callback).__name__: callback.state()
            for callback in self.callback_handler.callbacks
            if isinstance(callback, ExportableState)
        }

    def tidy(self) -> None:
        """Delete the checkpoints of a finished run that ``save_total_limit`` does not keep."""
        best = self.state.best_global_step if self.state.best_model_checkpoint else None
        if self.is_world_process_zero():
            self.saver.clear({checkpoints.name(best) if best else self.saver.saved}, 0)

    # --- going on ------------------------------------------------------------------------------

    def resume(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Train from a checkpoint that was verified."""
        self.saver.note(checkpoint.folder.name, checkpoint.best)
        self.train(resume_from_checkpoint=str(checkpoint.folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        try:
            checkpoints.verify(best)
        except checkpoints.Damaged as why:
            raise TrainingError(
                f"{best}: the best weights are lost: {why}; `finetune resume` makes them again "
                "from an older checkpoint, --overwrite from the beginning"
            ) from None
        self._load_weights(best)

    def _load_weights(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        try:
            parameters.load_trained_state(model, checkpoints.read(folder, "model"))
        except ValueError as error:
            raise UserError(f"{folder}: is of another model: {error}") from None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, optimizer, schedule = Path(checkpoint), cast(Any, self.optimizer), self.lr_scheduler
        own = [dict(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(checkpoints.read(folder, "optimizer"))
        said = checkpoints.read(folder, "scheduler")
        if any(key.startswith(("training.", "tuning.")) for key in self.changed):
            self._apply_changes(optimizer, own, said["last_epoch"])
        else:
            cast(Any, schedule).load_state_dict(said)
        for name, part in self.parts.items():
            if (folder / f"{name}.json").is_file() or (folder / f"{name}.safetensors").is_file():
                part.restore(checkpoints.read(folder, name))
        position = checkpoints.read(folder, "position")
        everyone, rank = position["processes"], self.args.process_index
        self.resumed = position | {"mine": everyone[rank % len(everyone)]}
        self.counted = position["counted"]
        self.seconds_before, self.began = position["seconds"], time.monotonic()
        self.seconds_elsewhere = self.seconds_before

    def _apply_changes(self, optimizer: Any, own: list[dict[str, Any]], step: int) -> None:
        """Let the recipe's learning rates and decays act, not those of the checkpoint."""
        schedule: Any = self.lr_scheduler
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            raise UserError(
                f"lr_scheduler_type {self.args.lr_scheduler_type} cannot go on with another recipe"
            )
        schedule.last_epoch = step
        rates = [
            base * factor(step)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, said, rate in zip(optimizer.param_groups, own, rates, strict=True):
            group.update({k: v for k, v in said.items() if k != "params"} | {"lr": rate})
        schedule._last_lr = rates

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.read(Path(checkpoint), "scaler"))

    def _load_callback_state(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                counters = cast(dict[str, Any], self.state.stateful_callbacks)
                said = counters.get(type(callback).__name__, {})
                vars(callback).update(said.get("attributes", {}))


def _expected_bytes(weights: dict[str, torch.Tensor]) -> int:
    # The optimizers in use keep two numbers for each that learns.
    return 3 * sum(t.nbytes for t in weights.values())


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the random numbers of Python, numpy, torch and an accelerator stand."""
    state = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if device.type == "xla":
        import torch_xla.core.xla_model as xm  # pyright: ignore[reportMissingImports]

        state["device"] = xm.get_rng_state()
    elif device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def restore_random(state: dict[str, Any], device: torch.device) -> None:
    """Set what ``random_state`` told."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "xla":
        import torch_xla.core.xla_model as xm  # pyright: ignore[reportMissingImports]

        xm.set_rng_state(state["device"])
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
