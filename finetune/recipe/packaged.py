"""Finds recipe files: by path, or by name among the recipes installed with the package."""

from importlib.resources import files
from pathlib import Path

from finetune.errors import UserError


def folder() -> Path:
    """Returns the folder of the packaged recipes; in a checkout, its ``recipes/``."""
    return Path(str(files("finetune") / "recipes")).resolve()


def find(name: str | Path) -> Path:
    """Returns the recipe file for a path or a name such as ``imdb/minilm``.

    An existing file wins. Otherwise the packaged recipe of that name is taken, where ``.yaml`` at
    the end and ``recipes/`` at the start may be left out.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    within = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    for found in (folder() / within, folder() / f"{within}.yaml"):
        if found.suffix == ".yaml" and found.is_file():
            return found
    raise UserError(f"{path}: no such recipe; `finetune recipes` lists what there is")
