"""``finetune distil`` and ``finetune prune``: a run's recipe, for a smaller model."""

import argparse
import time
from dataclasses import replace

from finetune import recipe, run_directory
from finetune.commands import train
from finetune.commands.base import Command
from finetune.errors import UserError
from finetune.recipe import Tuning, command_line
from finetune.recipe.methods import learning_rate

DISTIL = """\
Trains a smaller model on the outputs of RUN's, and on RUN's rows. The student
starts from RUN's own layers, or from what --into names. RUN is a baseline in
its results: the same test rows, the difference and its interval.
"""
PRUNE = """\
Leaves out the layers, attention heads and feed-forward neurons of RUN's model
that matter least to its training rows, and fine-tunes what is left. RUN is a
baseline in its results. --label_weight 0.5 also learns from RUN's outputs.
"""
REST = """\
It is an ordinary run of RUN's recipe with these keys changed; any other can be
given as a flag, and `finetune train` trains the recipe.yaml in it again.
"""


def _smaller(options: argparse.Namespace, suffix: str, defaults: dict[str, str]) -> None:
    """Trains the recipe of a run for a smaller model.

    Args:
        suffix: of the new run's name.
        defaults: keys that no flag gives.
    """
    began, given = time.monotonic(), options.overrides
    train.check_options(options)
    run = run_directory.one(options.run)
    place = run.folder / run_directory.RECIPE
    trained = recipe.read(place)
    name = f"{trained.name}-{suffix}"
    seed = given.get("seed", trained.training["seed"])
    own = {"teacher": str(run), "checkpoint": str(run), "output_dir": f"runs/{name}/seed-{seed}"}
    # That of the run's own checkpoint.
    own["revision"] = "null"
    if trained.tuning.method != "full":
        own["learning_rate"] = str(learning_rate("full"))
    read = recipe.read(place, {**own, **defaults, **given}, {"name": name})
    if trained.tuning.method != "full" and "method" not in given:
        read = replace(read, tuning=Tuning())
    train.start(read, options, began)


def _distil(options: argparse.Namespace) -> None:
    if not {"layers", "checkpoint"} & set(options.overrides):
        raise UserError("distil needs the size of the student, for example --layers 2")
    _smaller(options, "distilled", {})


def _prune(options: argparse.Namespace) -> None:
    if not {"layers", "heads", "feed_forward"} & set(options.overrides):
        raise UserError("prune needs what to keep: --layers N, --heads N or --feed_forward N")
    _smaller(options, "pruned", {"label_weight": "1"})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    train.add_options(parser)
    command_line.add_recipe_keys(parser)


def _add_distil_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into",
        dest="checkpoint",
        action=command_line.Override,
        default=argparse.SUPPRESS,
        metavar="CHECKPOINT",
        help="what the student starts from, as --checkpoint [RUN]",
    )
    _add_arguments(parser)


DISTILLING = Command(
    "distil",
    "train a smaller model with a run as its teacher",
    _add_distil_arguments,
    _distil,
    description=DISTIL + REST,
    usage="finetune distil RUN --layers N [--into CHECKPOINT] [--key value ...]",
    takes_recipe_keys=True,
)
PRUNING = Command(
    "prune",
    "leave out parts of a run's model, and fine-tune the rest",
    _add_arguments,
    _prune,
    description=PRUNE + REST,
    usage="finetune prune RUN [--feed_forward N] [--heads N] [--layers N] [--key X]",
    takes_recipe_keys=True,
)
