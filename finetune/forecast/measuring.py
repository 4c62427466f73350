"""Measures a few steps of a run on this machine and forecasts its time, memory and disk.

- The run's own job and trainer are built: rows, tokens, model, precision and batches are the same.
- Steps at the 10th, 50th, 95th and 100th percentile of tokens are timed in turn, each round with
  other steps. In a run, too, nearly every step has a new number of tokens, for which kernels are
  prepared and memory is kept, and the longest come after others have left the memory in pieces.
- Time is linear in a step's tokens, by least squares; the forecast is the sum over all steps.
- Validation and test are timed on rows of every length.

Nothing is written beside the caches of tokens and features, which the run then finds.
"""

import copy
import dataclasses
import math
import sys
import tempfile
import time
from typing import Any, cast

import numpy
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from finetune import distillation, run_directory
from finetune.evaluation.intervals import Metric
from finetune.forecast.counting import Counts, StepCounter
from finetune.models import parameters
from finetune.models.speed import cpu
from finetune.recipe import Recipe
from finetune.training import checkpointing, processes, run_results, runner
from finetune.training.arguments import training_arguments
from finetune.training.job import Job
from finetune.training.signals import Signals
from finetune.training.trainer import StepTrainer

PERCENTILES = (10, 50, 95, 100)
# Each percentile is timed so often, unless the seconds are used up after once.
ROUNDS, SECONDS = 5, 60.0
# Rows of an evaluation that is timed, and those for which a model generates, which takes longer.
EVALUATED, GENERATED = 256, 128
# What the measuring run does without.
SHORT: dict[str, Any] = {
    "eval_strategy": IntervalStrategy.NO,
    "save_strategy": SaveStrategy.NO,
    "load_best_model_at_end": False,
    "report_to": [],
    "logging_strategy": IntervalStrategy.NO,
    "logging_first_step": False,
    "max_steps": 2 + ROUNDS * len(PERCENTILES),
}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run will take on this machine.

    Attributes:
        train_seconds: training with its evaluations, as ``cost.train_seconds`` of results.json.
        preparation_seconds: reading, tokenizing and loading, as they took now.
        test_seconds: the model's outputs for the test rows.
        evaluation_seconds: of one evaluation of the validation rows.
        step_seconds: mean over all steps.
        steps, evaluations: how many there will be.
        steps_in_epoch: steps of one epoch.
        rows: training rows of the data.
        lengths: (R,) tokens of each training row, for texts that ``max_length`` cuts; otherwise
            empty.
        measured: steps that were timed.
        tokens: real tokens of all steps; rows where a row has no tokens.
        peak_memory_bytes: of this process, or of the GPU.
        disk_bytes: of the run directory while it trains: the model and up to three checkpoints.
        counts: operations and bytes of a step, for other hardware.
    """

    name: str
    device: str
    train_seconds: Metric
    preparation_seconds: float
    test_seconds: float
    evaluation_seconds: float
    step_seconds: float
    steps: int
    evaluations: int
    measured: int
    tokens: int
    peak_memory_bytes: int
    disk_bytes: int
    counts: Counts
    steps_in_epoch: int = 1
    rows: int = 0
    lengths: numpy.ndarray = dataclasses.field(default_factory=lambda: numpy.zeros(0, int))


class _Timer(TrainerCallback):
    """Times steps; the first two are for memory and for counting."""

    def __init__(self, counter: StepCounter, most: float) -> None:
        self.counter, self.most, self.seconds = counter, most, []
        self.last = self.began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counter.begin(state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counter.end_micro_batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counter.end(state.global_step - 1)
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if state.global_step > 2:
            self.seconds.append(now - self.last)
        self.last = now
        every = len(self.seconds) and len(self.seconds) % len(PERCENTILES) == 0
        control.should_training_stop |= bool(every and now - self.began > self.most)


def measure(recipe: Recipe, seconds: float = SECONDS) -> Forecast:
    """Builds a recipe's job, runs some of its steps and forecasts the whole run.

    Args:
        recipe: resolved, as ``recipe.load`` returns it.
        seconds: after which no further round of steps is timed.

    Raises:
        UserError: a mistake in the recipe or its data.
        TrainingError: a step failed, for example for want of memory.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.perf_counter()
    transformers.set_seed(recipe.training["seed"])
    job = distillation.builder(recipe)(recipe)
    prepared = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder, Signals() as signals:
        run = run_directory.Run(folder)
        planned = training_arguments(recipe, run, job)
        processes.use_one_gpu(planned)
        if planned.device.type == "cpu" and not planned.torch_compile:
            cpu.prepare(job.model)
        if recipe.auto_batch:
            recipe, chosen = runner.fit(recipe, job, run, planned, signals)
            print(f"finetune: {chosen}", file=sys.stderr)
        args = copy.copy(planned)
        vars(args).update(SHORT)
        identity = run_results.identity(recipe, job, args.world_size)
        training = {k: v for k, v in recipe.training.items() if k != "early_stopping_patience"}
        short = dataclasses.replace(recipe, training=training)
        trainer = runner.new_trainer(short, job, run, args, signals, identity, [], quiet=True)
        return _measure(recipe, job, trainer, planned, prepared, seconds)


def _measure(
    recipe: Recipe,
    job: Job,
    trainer: StepTrainer,
    planned: TrainingArguments,
    prepared: float,
    seconds: float,
) -> Forecast:
    trainer.training_sampler()
    tokens = numpy.array(trainer.sampler.tokens_of(0))
    chosen = _chosen(tokens)
    trainer.only_steps = chosen
    counter = StepCounter(job.model)
    timer = _Timer(counter, seconds)
    trainer.add_callback(timer)
    trainer.train()
    steps = planned.max_steps
    if steps <= 0:
        steps = math.ceil(planned.num_train_epochs * len(tokens))
    timed = tokens[chosen[2 : 2 + len(timer.seconds)]]
    training = _total(timed, numpy.array(timer.seconds), tokens, steps)
    evaluation = _evaluation_seconds(trainer, job, "validation")
    test = _evaluation_seconds(trainer, job, "test") * (1 + job.untuned)
    count = _evaluations(planned, steps, len(tokens))
    for key in ("value", "low", "high"):
        training[key] += count * evaluation
    weights = parameters.trained_state(job.model)
    model_bytes = sum(tensor.nbytes for tensor in weights.values())
    lengths = numpy.array(job.splits["train"]["length"][:])
    # Packed rows have all of their data's tokens at any length; images have no tokens.
    is_cut = not job.blocks and lengths.max() > 1
    return Forecast(
        name=recipe.name,
        device=run_results.device(trainer.args, trainer.accelerator),
        train_seconds=training,
        preparation_seconds=prepared,
        test_seconds=test,
        evaluation_seconds=evaluation,
        step_seconds=(training["value"] - count * evaluation) / steps,
        steps=steps,
        evaluations=count,
        measured=len(timer.seconds),
        tokens=round(float(tokens.mean()) * steps),
        peak_memory_bytes=run_results.peak_memory_bytes(),
        disk_bytes=model_bytes + 3 * checkpointing.expected_bytes(weights),
        counts=counter.counts(int(tokens[chosen[1]])),
        steps_in_epoch=len(tokens),
        rows=len(job.data.train),
        lengths=lengths if is_cut else lengths[:0],
    )


def _chosen(tokens: numpy.ndarray) -> list[int]:
    """Returns the steps to run: the longest, the median, then some near each percentile in turn."""
    order = numpy.argsort(tokens, kind="stable")
    last = len(order) - 1
    first = [round(p / 100 * max(last - ROUNDS + 1, 0)) for p in PERCENTILES]
    places = [min(place + turn, last) for turn in range(ROUNDS) for place in first]
    return [int(order[place]) for place in (last, last // 2, *places)]


def _total(
    timed: numpy.ndarray, seconds: numpy.ndarray, tokens: numpy.ndarray, steps: int
) -> Metric:
    """Returns the seconds of all steps with their 95 % interval.

    Args:
        timed: (M,) tokens of the timed steps.
        seconds: (M,) what they took.
        tokens: of each step of an epoch.
        steps: of the run.
    """
    from scipy.stats import t

    ones = numpy.ones(len(timed))
    varies = numpy.ptp(timed) > 0.05 * timed.mean()
    design = numpy.stack([ones, timed], 1) if varies else ones[:, None]
    one = numpy.array([1.0, tokens.mean()]) if varies else numpy.ones(1)
    inverse = numpy.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ seconds
    left = len(timed) - design.shape[1]
    variance = ((seconds - design @ weights) ** 2).sum() / left
    value = float(one @ weights) * steps
    spread = math.sqrt(variance * (steps**2 * (one @ inverse @ one) + steps))
    margin = float(t.ppf(0.975, left)) * spread
    return {"value": value, "low": value - margin, "high": value + margin, "n": len(timed)}


def _evaluation_seconds(trainer: StepTrainer, job: Job, split: str) -> float:
    """Returns the seconds that the model takes for a split, from rows of every length.

    The longest batch is predicted before that, for its memory. Where texts are scored, which the
    model generates, that counts, too.
    """
    rows, order = runner.by_length(job.splits[split])
    if not len(rows):
        return 0.0
    metrics, trainer.compute_metrics = trainer.compute_metrics, None
    longest = range(min(len(rows), trainer.args.eval_batch_size))
    trainer.predict(cast(Any, rows.select(longest)))
    some = rows.select(numpy.linspace(0, len(rows) - 1, min(len(rows), EVALUATED)).astype(int))
    started = time.perf_counter()
    trainer.predict(cast(Any, some))
    seconds = time.perf_counter() - started
    trainer.compute_metrics = metrics
    seconds *= sum(rows["length"]) / sum(some["length"])
    if job.generate:
        some = order[numpy.linspace(0, len(rows) - 1, min(len(rows), GENERATED)).astype(int)]
        started = time.perf_counter()
        job.generate(split, some)
        seconds += (time.perf_counter() - started) * len(rows) / len(some)
    return seconds


def _evaluations(planned: TrainingArguments, steps: int, steps_in_epoch: int) -> int:
    """Returns how often the run evaluates the validation rows."""
    if planned.eval_strategy == "no":
        return 0
    if planned.eval_strategy == "steps":
        each = planned.eval_steps or 1
        # A share of the steps below 1.
        return steps // max(1, math.ceil(each * steps) if each < 1 else int(each))
    return math.ceil(steps / steps_in_epoch)
