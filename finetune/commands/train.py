"""``finetune train`` and ``finetune resume``."""

import argparse
import math
import os
import sys
import time
from pathlib import Path

from finetune import recipe, run_directory
from finetune.commands.base import Command
from finetune.data import sources
from finetune.errors import UserError
from finetune.recipe import command_line
from finetune.training import launching

TRAIN = """\
Trains a recipe into a run directory, tests it once and prints the results.
Given a file or folder of data instead, it guesses the recipe: mine.csv, photos/

Every key of a recipe is a flag, which takes precedence over the file.
"""
TRAINING_KEYS = """\
Every field of transformers.TrainingArguments, by its own name:
  --learning_rate 3e-5 --num_train_epochs 3 --per_device_train_batch_size 16
  --bf16 true --seed 1 --output_dir runs/mine --report_to tensorboard
and --early_stopping_patience 2: evaluations without a better value, then stop
"""
RESUME = """\
Continues RUN from its newest intact checkpoint, with the recipe in RUN. The
result is the same, bit for bit, as that of a run that was never stopped. A run
without a checkpoint starts from the beginning; a finished one is left alone.

Recipe, data, base weights, versions and number of processes have to be those
of the run. Any key of a recipe can be given as a flag, as for `finetune train`;
a difference is an error unless --allow-changed names it.
"""


def check_options(options: argparse.Namespace) -> None:
    """Checks what ``start`` takes beside a recipe.

    Raises:
        UserError: two options contradict each other, or the minutes cannot be kept.
    """
    if options.overwrite and options.resume:
        raise UserError("--overwrite and --resume contradict each other; keep one")
    if options.allow_changed and not options.resume:
        raise UserError("--allow-changed is for a run to resume; add --resume")
    if options.minutes is not None:
        _check_minutes(options.minutes, options.resume)
        if options.find_label_errors:
            raise UserError("--minutes is for one training, --find_label_errors for five; keep one")
    if options.find_label_errors and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--find_label_errors is for one process; start it without a launcher")


def _train(options: argparse.Namespace) -> None:
    began = time.monotonic()
    check_options(options)
    from finetune.commands import starting

    given = dict(options.overrides)
    read = starting.read("train", options.recipe, options.overrides)
    if options.seeds is None and not options.learning_curve:
        start(read, options, began)
        return
    # Data that a flag names are no flag any more.
    named = [value for key, value in given.items() if key not in options.overrides]
    _study(read, options.recipe or named[0], options)


def _study(read: recipe.Recipe, place: str, options: argparse.Namespace) -> None:
    """Trains a recipe several times.

    Raises:
        UserError: an option contradicts that.
    """
    asked = "--seeds" if options.seeds is not None else "--learning_curve"
    for key in ("minutes", "allow_changed"):
        if getattr(options, key):
            flag = f"--{key.replace('_', '-')}"
            raise UserError(f"{flag} is for a single run; leave it out, or {asked}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{asked} starts its runs itself; start it without a launcher")
    if options.seeds is not None and "seed" in options.overrides:
        raise UserError("--seeds and --seed contradict each other; keep one")
    sources.checkpoint(read.model.checkpoint, read.model.revision)

    from finetune.studies import curve, seeds

    chosen = [int(read.training["seed"])] if options.seeds is None else seeds.parse(options.seeds)
    study = curve.train if options.learning_curve else seeds.train
    print(study(read, place, options.overrides, chosen, options.overwrite))


def start(read: recipe.Recipe, options: argparse.Namespace, began: float) -> None:
    """Trains a recipe, with the options of ``finetune train`` beside it.

    Args:
        began: when the command began, in seconds of ``time.monotonic``.
    """
    # Mistakes that can be found before torch takes seconds to load.
    launching.check_processes()
    sources.checkpoint(read.model.checkpoint, read.model.revision)

    from finetune import distillation, tasks
    from finetune.training import label_errors, runner

    resolved = recipe.resolve(read)
    build = distillation.builder(resolved)
    if options.find_label_errors:
        if not tasks.find(resolved.task).judges_labels:
            raise UserError(f"--find_label_errors: {resolved.task} has no labels of whole texts")
        label_errors.check(resolved)
    how = options.overwrite, options.resume, options.allow_changed
    if options.minutes is None:
        run = runner.train(resolved, build, *how)
    else:
        resolved, end = _within(resolved, options.minutes, began, options.overwrite)
        run = runner.train(resolved, build, *how, end=end)
    if run and options.find_label_errors:
        count = label_errors.find(resolved, build, run)
        print(f"finetune: {count}", file=sys.stderr)
    if run:
        finish(run, resolved)


def _check_minutes(minutes: float, resume: bool) -> None:
    """Checks the time of ``--minutes``.

    Raises:
        UserError: it is not positive, or the run is resumed or has several processes.
    """
    if not (minutes > 0 and math.isfinite(minutes)):
        raise UserError(f"--minutes {minutes:g} has to be above 0, for example --minutes 10")
    if resume:
        raise UserError("--minutes is for a new run; a resumed one trains the steps it began with")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--minutes is for one process; start it without a launcher")


def _within(
    read: recipe.Recipe, minutes: float, began: float, overwrite: bool
) -> tuple[recipe.Recipe, float]:
    """Returns what a recipe can train in some minutes, and when training has to end.

    Args:
        began: when the command began, in seconds of ``time.monotonic``.
    """
    from finetune.forecast import budget, measuring

    # An occupied directory is an error before the measurement.
    with run_directory.Run(read.training["output_dir"]).claim(read.dump(), overwrite):
        pass
    seconds = 60 * minutes
    print(f"finetune: measuring, to train within {minutes:g} minutes", file=sys.stderr)
    found = measuring.measure(read, min(measuring.SECONDS, budget.MEASURING * seconds))
    now = time.monotonic()
    choice = budget.choose(read, found, seconds - (now - began))
    most = found.steps / found.steps_in_epoch
    print(f"finetune: {choice.text(minutes, most)}", file=sys.stderr)
    return choice.recipe, now + choice.limit


def finish(run: run_directory.Run, read: recipe.Recipe) -> None:
    """Writes a finished run's card and report, uploads it if the recipe says so, prints a table.

    The run is complete without them: a report that fails is one line on stderr.
    """
    from finetune.report import files, tables

    try:
        files.write(run)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"finetune: {run}: complete, but its report failed ({reason}); "
            "`finetune report` writes it again",
            file=sys.stderr,
        )
    if read.training.get("push_to_hub"):
        from finetune.training import hub

        hub.push(read, run)
    print(tables.summary(run))


def _resume(options: argparse.Namespace) -> None:
    if options.run is None:
        raise UserError("resume needs a run directory, for example runs/imdb/minilm/seed-0")
    file = Path(options.run) / run_directory.RECIPE
    if not file.is_file():
        raise UserError(f"{options.run}: holds no run (no {run_directory.RECIPE})")
    if "output_dir" in options.overrides:
        raise UserError(f"--output_dir: resume continues in {options.run}; leave it out")
    options.recipe, options.overwrite, options.resume = str(file), False, True
    options.minutes = options.seeds = None
    options.learning_curve = options.find_label_errors = False
    options.overrides["output_dir"] = options.run
    _train(options)


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a recipe file (`finetune recipes` lists them), or data: a table, a folder of images "
        "or of texts; its task and columns are guessed and printed",
    )
    add_options(parser)
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="train with several seeds, how many or a list (0,7,42), and aggregate them; the same "
        "command continues",
    )
    parser.add_argument(
        "--learning_curve",
        action="store_true",
        help="train on six sizes of the training rows, and say what twice the rows would bring",
    )
    command_line.add_recipe_keys(parser)
    parser.add_argument_group("training", TRAINING_KEYS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options that ``start`` takes."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run that the directory holds"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run that the directory holds"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="measure this machine, and train as much of the recipe as can be trained, tested and "
        "reported within N minutes",
    )
    parser.add_argument(
        "--find_label_errors",
        action="store_true",
        help="also train on parts of the rows, and list the training rows whose label looks wrong "
        "to models that did not learn from them; with --resume for a finished run",
    )
    _add_allow_changed(parser)


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run directory")
    _add_allow_changed(parser)
    command_line.add_recipe_keys(parser, in_help=False)


def _add_allow_changed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although KEY differs: training.learning_rate or another key of the recipe, "
        "data, base, teacher, versions, processes; can be repeated",
    )


TRAINING = Command(
    "train",
    "train a recipe, or on data; `finetune train --help` lists every key",
    _add_train_arguments,
    _train,
    description=TRAIN,
    usage="finetune train RECIPE|DATA [--key value ...] [--overwrite | --resume]",
    takes_recipe_keys=True,
)
RESUMING = Command(
    "resume",
    "continue a stopped run",
    _add_resume_arguments,
    _resume,
    description=RESUME,
    usage="finetune resume RUN [--allow-changed KEY ...] [--key value ...]",
    takes_recipe_keys=True,
)
