"""What the command line knows about a subcommand."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def add_base(parser: argparse.ArgumentParser) -> None:
    """Declares where the base of an adapter is."""
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="the base of an adapter, if it is not where it was when the run was trained",
    )


@dataclass(frozen=True)
class Command:
    """A subcommand of ``finetune``.

    Attributes:
        name: the word after ``finetune``.
        help: one line, lower case, for the list of commands.
        add_arguments: declares its arguments.
        run: called with the parsed arguments; raises ``UserError`` for a mistake of the user.
        description: what ``--help`` shows above the arguments, if that is more than ``help``.
        usage: what ``--help`` shows first, if argparse's is too long.
        takes_recipe_keys: any key of a recipe is a flag, and ``run`` finds it in ``overrides``.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    description: str = ""
    usage: str | None = None
    takes_recipe_keys: bool = False
