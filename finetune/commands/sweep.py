"""``finetune sweep``."""

import argparse
import importlib.util
from pathlib import Path

from finetune.commands.base import Command
from finetune.errors import UserError
from finetune.recipe import command_line

DESCRIPTION = """\
Searches settings of a recipe with Optuna, one trial after the other. Trials are
scored on the validation rows and read no test row; the winner is trained with
several seeds and tested. The same command continues a sweep that was stopped,
and several of them share one.

  --search 'learning_rate=loguniform(1e-5,1e-3) num_train_epochs=[1,2,3]'
  --search space.yaml                           lines of `key: values`

Every other key of a recipe is a flag, as for `finetune train`.
"""


def _sweep(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("sweep needs optuna: pip install 'finetune-recipes[sweep]'")
    if options.trials < 1:
        raise UserError(f"--trials {options.trials} has to be at least 1")
    from finetune.commands import starting

    given = options.overrides.pop("output_dir", None)
    read = starting.read("sweep", options.recipe, options.overrides)
    folder = Path(given or f"runs/{read.name}-sweep").expanduser()

    from finetune.studies import seeds, sweep

    winners = seeds.parse(options.seeds)
    print(
        sweep.run(
            read,
            folder,
            options.search,
            options.trials,
            options.sampler_seed,
            options.pruner,
            options.storage,
            winners,
        )
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a recipe, or a file or folder of rows"
    )
    parser.add_argument(
        "--search", required=True, metavar="SPACE", help="the keys to search and their values"
    )
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="trials of the study in the end [20]"
    )
    parser.add_argument(
        "--seeds", default="3", metavar="N", help="seeds of the winner: how many, or a list [3]"
    )
    parser.add_argument(
        "--pruner",
        choices=["median", "hyperband", "none"],
        default="median",
        help="what ends a trial early whose evaluations fall behind [median]",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="where the study is, as Optuna takes it [SQLite, study.db]"
    )
    parser.add_argument(
        "--sampler_seed", type=int, default=0, metavar="N", help="seed of the search [0]"
    )
    command_line.add_recipe_keys(parser, in_help=False)


SWEEPING = Command(
    "sweep",
    "search settings of a recipe with Optuna",
    _add_arguments,
    _sweep,
    description=DESCRIPTION,
    usage="finetune sweep RECIPE --search SPACE [--trials N] [--seeds N] [--key value ...]",
    takes_recipe_keys=True,
)
