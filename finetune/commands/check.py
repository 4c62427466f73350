"""``finetune check``."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from finetune.commands.base import Command
from finetune.recipe import command_line

CHECK = """\
Shows what is in the data, what is wrong with it, and what training would see of it,
without training: duplicates, wrong labels, leaks, rare classes, differences between
splits, truncation.

DATA is a recipe, or a file or folder of rows, whose task and columns are guessed as
for `finetune train`. Any key of a recipe is a flag.

Exit status: 0 nothing but notes, 1 warnings, 2 the data cannot be used as it is.
"""


def _check(options: argparse.Namespace) -> None:
    from finetune.checks import check, rendering
    from finetune.commands import starting
    from finetune.report import tables

    read = starting.read("check", options.data, options.overrides)
    checked = check.check(read, options.data or read.name)
    console = Console(width=tables.WIDTH, highlight=False)
    if console.color_system and sys.stdout.isatty():
        console.print(*rendering.table(checked, colour=True), sep="\n")
    else:
        print(tables.as_text(*rendering.table(checked)))
    if options.html:
        rendering.write(checked, Path(options.html))
        print(options.html)
    if checked.severity:
        sys.exit(int(checked.severity))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="a recipe, or a file or folder of rows"
    )
    parser.add_argument("--html", metavar="FILE", help="write what was found as a page, too")
    command_line.add_recipe_keys(parser)


CHECKING = Command(
    "check",
    "show what is in the data and what is wrong with it",
    _add_arguments,
    _check,
    description=CHECK,
    usage="finetune check DATA [--html FILE] [--key value ...]",
    takes_recipe_keys=True,
)
