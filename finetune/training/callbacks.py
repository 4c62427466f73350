"""Callbacks: the progress bar, history.jsonl, early stopping and a time limit."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from finetune import run_directory


class Progress(ProgressCallback):
    """Shows a progress bar with the running loss, and one line for each evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", ncols=80
            )
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}")
        if "eval_loss" in logs:
            shown = [
                f"{name.removeprefix('eval_')} {logs[name]:.4f}"
                for name in ("eval_loss", f"eval_{self.headline}")
            ]
            self.training_bar.write(
                f"epoch {state.epoch:.2f}  validation: {'  '.join(shown)}", file=sys.stderr
            )

    headline = ""


class History(TrainerCallback):
    """Writes the logs to history.jsonl, without times, so that equal runs have equal files."""

    def __init__(self, run: run_directory.Run) -> None:
        self.run = run

    def state_dict(self) -> list[dict[str, Any]]:
        """Returns the lines so far."""
        return self.run.history()

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Drops the lines that a killed run logged after its checkpoint: they are logged again."""
        if PartialState().is_main_process:
            self.run.rewrite_history(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        timed = ("_runtime", "_per_second", "_time")
        if state.is_world_process_zero and logs and "train_loss" not in logs:
            kept = {k: v for k, v in logs.items() if not k.endswith(timed)}
            self.run.log({"step": state.global_step, **kept})


class EarlyStopping(EarlyStoppingCallback):
    """Ends the training after ``patience`` evaluations in a row without a better value.

    An evaluation in which the metric is undefined counts as one without. Checkpoints have the
    count, because it is the state of a callback that transformers exports.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(early_stopping_patience=patience)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        super().on_evaluate(args, state, control, {name: math.nan, **metrics}, **kwargs)
        stops = self.early_stopping_patience_counter >= self.early_stopping_patience
        if stops and state.global_step < state.max_steps and state.is_world_process_zero:
            print(
                f"finetune: stopped at step {state.global_step}: no better {name} in "
                f"{self.early_stopping_patience_counter} evaluations",
                file=sys.stderr,
            )


class TimeLimit(TrainerCallback):
    """Ends the training after the first step past a point in time, with an evaluation.

    Args:
        end: seconds of ``clock``.
    """

    def __init__(self, end: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.end, self.clock = end, clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.clock() < self.end or state.global_step >= state.max_steps:
            return
        control.should_training_stop = True
        control.should_evaluate |= args.eval_strategy != IntervalStrategy.NO
        control.should_save |= args.save_strategy not in {SaveStrategy.NO, SaveStrategy.BEST}
        if state.is_world_process_zero:
            print(
                f"finetune: stopped at step {state.global_step} of {state.max_steps}: the time "
                "for training is used up; a repetition of recipe.yaml trains all steps",
                file=sys.stderr,
            )
