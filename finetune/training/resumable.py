"""A ``Trainer`` whose interrupted runs resume to the bit.

- A checkpoint is written between steps only. Beside weights, optimizer and schedule it has each
  process's random state, the loss since the last log, and the counters of callbacks.
- A signal ends the training after the current step, with a checkpoint.
- A signal during an evaluation stops it at the next batch. The checkpoint then has the step without
  its evaluation, and the resumed run evaluates first.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback

from finetune.training import checkpoints, processes, random_state
from finetune.training.checkpointing import CheckpointTrainer
from finetune.training.signals import Signals, exit_for_signal, ignore_first_signal


class EvaluationInterrupted(Exception):  # noqa: N818 - not an error
    """Raised to leave an evaluation because of a signal."""


class LoopEvents(TrainerCallback):
    """Reports the training loop's events to the trainer."""

    def __init__(self, trainer: "ResumableTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.at_epoch_end = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch()


class ResumableTrainer(CheckpointTrainer):
    """Ends a training on a signal, with a checkpoint, and resumes from one.

    Args:
        signals: receives the signals; ``deferred`` while this trains.
        kwargs: for ``CheckpointTrainer`` and ``Trainer``.
    """

    def __init__(self, *, signals: Signals, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.signals = signals
        self.agreed_signal = 0
        # The epoch's last step is done; its evaluation and save are next.
        self.at_epoch_end = False
        self.random_state: dict[str, Any] | None = None

    @property
    def signal(self) -> int:
        """The signal that all processes know of, or 0."""
        return self.signals.received if self.args.world_size == 1 else self.agreed_signal

    def reduce_max(self, *values: float) -> list[float]:
        """Returns the maximum of each value over all processes, and exchanges their signals."""
        received, *maxima = processes.maxima(self.signals.received, *values)
        self.agreed_signal = int(received)
        return maxima

    # --- the training loop ---------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Last in the list: a pending evaluation needs the other callbacks ready.
        self.pop_callback(LoopEvents)
        self.add_callback(LoopEvents(self))
        self.signals.deferred, self.started = True, time.monotonic()
        try:
            output = super().train(*args, **kwargs)
        except EvaluationInterrupted:
            # Only eval_on_start gets here: ``end_step`` handles all other evaluations.
            exit_for_signal(self.signal, "no step was made yet")
        finally:
            self.signals.deferred = False
            # Another process may resume the run as soon as this one exits.
            self.saver.wait()
            self.own_seconds += time.monotonic() - self.started
            self.started = None
        self.saver.finish()
        if self.signals.received:
            # It arrived while the best weights were loaded.
            exit_for_signal(self.signals.received, "trained; `finetune resume` goes on to test")
        return output

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        values = super().set_initial_training_values(*args, **kwargs)
        self.steps_in_epoch = values[1]
        return values

    def begin_training(self) -> None:
        """Restores a resumed run's position, and does the evaluation that was interrupted."""
        restored, self.restored = self.restored, None
        if restored is None:
            return
        self.state.compute_steps(self.args, self.state.max_steps)
        # The run directory may have been moved since.
        best = self.saver.folder / checkpoints.name(self.state.best_global_step or 0)
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        self.load_callback_counters()
        own = restored["own"]
        self.restore_running_loss(own["loss"], own["logged"])
        random_state.restore(own["random"], self.args.device)
        pending = restored["pending"]
        if pending is not None:
            self.control.should_evaluate, self.control.should_save = True, pending["save"]
            self.at_epoch_end = True
            self.finish_step()
        self.control.should_training_stop |= restored["stop"]
        self.random_state = random_state.capture(self.args.device)

    def restore_random_state(self) -> None:
        if self.random_state is not None:
            random_state.restore(self.random_state, self.args.device)

    def begin_epoch(self, epoch: int) -> bool:
        stopped = self.control.should_training_stop
        return not stopped and self.state.global_step < self.state.max_steps

    def end_epoch(self) -> None:
        """Called when an epoch's last step is done, before its evaluation and checkpoint."""
        self.at_epoch_end = True

    def end_step(self, finish: Callable[[], None]) -> None:
        control = self.control
        ends = control.should_training_stop or control.should_epoch_stop
        ends = ends or self.state.global_step % self.steps_in_epoch == 0
        if ends and not self.at_epoch_end:
            # The epoch's end comes next and does everything at once, so that no checkpoint has
            # the epoch's last step without the end of the epoch.
            wanted = control.should_evaluate, control.should_save
            control.should_evaluate = control.should_save = False
            finish()
            control.should_evaluate, control.should_save = wanted
            return
        save = control.should_save
        before = random_state.capture(self.args.device) if control.should_evaluate else None
        try:
            finish()
        except EvaluationInterrupted:
            # A resumed run that is interrupted in the same evaluation has its checkpoint already.
            if self.saver.last != checkpoints.name(self.state.global_step, evaluated=False):
                self.save_checkpoint({"save": save}, before)
        else:
            if self.signal and self.saver.last != checkpoints.name(self.state.global_step):
                self.save_checkpoint()
        if self.signal:
            self.saver.finish()
            # A launcher ends the main process soon after the first of the others has ended.
            processes.wait()
            step = self.state.global_step
            exit_for_signal(self.signal, f"step {step} is saved; `finetune resume` goes on there")

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_in_train:
            self.reduce_max()
            if self.signal:
                raise EvaluationInterrupted
        return super().prediction_step(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        return self._with_signals(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return self._with_signals(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self._with_signals(super().get_test_dataloader(test_dataset))

    def _with_signals(self, prepared: Any) -> DataLoader:
        """Lets the workers of a data loader survive a signal that ends the training."""
        if self.args.dataloader_num_workers:
            loader = prepared.base_dataloader
            loader.worker_init_fn = partial(ignore_first_signal, loader.worker_init_fn)
        return prepared

    # --- resuming ------------------------------------------------------------------------------

    def resume(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Trains from a checkpoint that was verified."""
        self.saver.set_last(checkpoint.folder.name, checkpoint.best)
        # The run did this when it started.
        self.args.eval_on_start = False
        self.train(resume_from_checkpoint=str(checkpoint.folder))
