"""Finds recipe files: by path, or by name among the recipes installed with the package."""

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from finetune.errors import UserError

# The recipe that a run without one starts from, by its task.
STARTS = {
    "text-classification": "your-data/text",
    "token-classification": "your-data/entities",
    "image-classification": "your-data/images",
    "question-answering": "your-data/questions",
    "text-generation": "your-data/text-corpus",
    "fill-mask": "imdb/minilm-mlm",
    "text2text-generation": "your-data/translation",
    "masked-image-modeling": "mnist/vit-mae",
    "embedding": "your-data/search",
    "reranking": "your-data/reranking",
    "sentence-similarity": "your-data/similarity",
}
# The same for data with a column of this key.
STARTS_BY_COLUMN = {"messages": "your-data/chat", "prompt": "your-data/chat"}
# Recipes that replace one whose checkpoint is on the hub, if the hub cannot be reached.
WITHOUT_HUB = {"your-data/images": "your-data/images-from-scratch"}


def folder() -> Path:
    """Returns the folder of the packaged recipes; in a checkout, its ``recipes/``."""
    return Path(str(files("finetune") / "recipes")).resolve()


def start(task: str, columns: Collection[str]) -> str:
    """Returns the name of the recipe to start from.

    Args:
        columns: the keys of the data section that name columns.
    """
    return next((STARTS_BY_COLUMN[c] for c in columns if c in STARTS_BY_COLUMN), STARTS[task])


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
