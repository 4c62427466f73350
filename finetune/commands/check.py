"""``finetune check``."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from finetune.commands.base import Command
from finetune.errors import UserError
from finetune.recipe import command_line

CHECK = """\
Shows what is in the data, what is wrong with it, and what training would see of it,
without training: duplicates, wrong labels, leaks, rare classes, differences between
splits, truncation.

DATA is a recipe, or a file or folder of rows; its task and columns are those that
recipes/your-data has, unless flags say otherwise. Any key of a recipe is a flag.

Exit status: 0 nothing but notes, 1 warnings, 2 the data cannot be used as it is.
"""
RECIPES = (".yaml", ".yml")


def _check(options: argparse.Namespace) -> None:
    if options.data is None:
        raise UserError("check needs a recipe, or a file or folder of rows")
    name, keys = options.data, options.overrides

    from finetune import recipe
    from finetune.checks import check, rendering
    from finetune.report import tables

    if not name.endswith(RECIPES) and (Path(name).exists() or Path(name).suffix):
        name, keys = _start(Path(name), keys)
    checked = check.check(recipe.read(name, keys), name)
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


def _start(path: Path, keys: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Returns the recipe to check a file or folder with, and the keys that it gets.

    Raises:
        UserError: the file cannot be read, or the keys name other data.
    """
    from finetune.data import image_files, readers

    for key in ("train", "dataset"):
        if key in keys:
            raise UserError(f"--{key}: {path} is the data to check; leave one of the two out")
    images = path.is_dir() and not any(f.suffix in readers.SUFFIXES for f in path.iterdir())
    images = images and any(f.suffix.lower() in image_files.SUFFIXES for f in path.rglob("*"))
    task = keys.get("task", "image-classification" if images else "")
    columns = set() if images else set(readers.read_table(path, keys.get("encoding", "utf-8")).rows)
    chats = {keys.get("messages", "messages")}, {"prompt", "completion"}
    if task.startswith("image"):
        name = "images"
    elif task in {"", "text-generation"} and any(needed <= columns for needed in chats):
        name = "chat"
    else:
        name = "text-corpus" if task == "text-generation" else "text"
    return f"your-data/{name}", {**keys, "train": str(path)}


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
