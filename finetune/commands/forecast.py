"""``finetune forecast``."""

import argparse

from finetune import recipe
from finetune.commands.base import Command
from finetune.data import sources
from finetune.recipe import command_line

DESCRIPTION = """\
Says what a recipe will take before it is trained: time, memory and disk. On
this machine some steps are run and measured; other cards go by formula.

Every key of a recipe is a flag, as for `finetune train`.
"""


def _forecast(options: argparse.Namespace) -> None:
    read = recipe.read(options.recipe, options.overrides)
    sources.checkpoint(read.model.checkpoint, read.model.revision)

    from finetune.forecast import hardware, measuring, rendering

    cards = [hardware.card(name) for name in options.gpu]
    resolved = recipe.resolve(read)
    found = measuring.measure(resolved)
    half = bool(resolved.training.get("bf16") or resolved.training.get("fp16"))
    print(rendering.text(found, [hardware.estimate(found, card, half) for card in cards]))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME",
        help="also estimate by formula: t4, l4, a10, a100, h100, …; can be repeated",
    )
    command_line.add_recipe_keys(parser, in_help=False)


FORECASTING = Command(
    "forecast",
    "say what a recipe will take: time, memory, disk",
    _add_arguments,
    _forecast,
    description=DESCRIPTION,
    usage="finetune forecast RECIPE [--gpu NAME ...] [--key value ...]",
    takes_recipe_keys=True,
)
