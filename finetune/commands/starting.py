"""Reads the recipe that a command names, or guesses and prints one for data: ``train mine.csv``."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from finetune import recipe, run_directory
from finetune.data import corrections, guess, sources
from finetune.errors import UserError
from finetune.recipe import packaged

# What the name of a recipe ends with; a packaged one needs no ending.
RECIPES = {"", ".yaml", ".yml"}
# A network with random weights needs so many times the epochs of a pretrained one.
EPOCHS_FROM_SCRATCH = 4
# Characters of the data's path that are printed.
MOST_NAME = 24


def read(command: str, place: str | None, given: dict[str, str]) -> recipe.Recipe:
    """Reads the recipe that is named, or guesses one for the data that is.

    Corrections are named by file and lines, so that a run is the same when it is resumed.

    Args:
        command: ``train`` or another, for messages.
        place: a recipe, a file or a folder; None if a flag names the data.
        given: the flags by key.

    Raises:
        UserError: there is neither, or both a file and a flag name data.
    """
    found = _read(command, place, given)
    kept = corrections.pinned(found.data.add_feedback)
    return replace(found, data=replace(found.data, add_feedback=kept))


def _read(command: str, place: str | None, given: dict[str, str]) -> recipe.Recipe:
    if place is None:
        place = next((given.pop(key) for key in ("train", "dataset") if key in given), None)
        if place is None:
            raise UserError(
                f"{command} needs a recipe or a file, for example mine.csv; `finetune recipes` "
                "lists recipes"
            )
    elif Path(place).suffix in RECIPES and not Path(place).is_dir() and "*" not in place:
        return recipe.read(place, given)
    elif "train" in given or "dataset" in given:
        key = "train" if "train" in given else "dataset"
        raise UserError(
            f"{place} and --{key} {given[key]}: {command} takes one of them, or give a recipe"
        )
    if (Path(place) / run_directory.RECIPE).is_file():
        raise UserError(f"{place}: is a run, not data; `finetune resume {place}` continues it")
    return recipe_for(place, given)


def recipe_for(place: str, given: Mapping[str, str]) -> recipe.Recipe:
    """Guesses and prints the recipe for a file or folder of data.

    It is the packaged recipe of the task with the data's columns. If its checkpoint is on the hub
    and the hub cannot be reached, another recipe is taken whose checkpoint needs no hub.

    Args:
        given: the flags by key; they are not guessed.

    Raises:
        UserError: the data cannot be read, or two guesses are equally good.
    """
    key, table = guess.read(place, given)
    found = guess.of(table, given)
    name = recipe.variant(stem(place), given)
    guessed = found.data | found.settings
    guessed |= {"name": name, "task": found.task, "output_dir": f"runs/{name}"}
    start, given = packaged.start(found.task, found.data), {**given, key: place}
    read = recipe.read(start, given, guessed)
    model = f"{read.model.checkpoint}, as in {start}.yaml"
    if start in packaged.WITHOUT_HUB and "checkpoint" not in given:
        try:
            sources.checkpoint(read.model.checkpoint, read.model.revision)
        except sources.HubUnreachable:
            start = packaged.WITHOUT_HUB[start]
            if "num_train_epochs" in found.settings:
                many = EPOCHS_FROM_SCRATCH * int(found.settings["num_train_epochs"])
                guessed["num_train_epochs"] = str(many)
            read = recipe.read(start, given, guessed)
            model = f"{read.model.checkpoint}, random weights: the hub is not reachable"
    if os.environ.get("RANK", "0") == "0":
        _print(found, read, len(table.rows), model)
    return read


def stem(place: str) -> str:
    """Returns the name of a run on some data: that of its file or folder."""
    path = Path(place).expanduser()
    for part in (path.stem, path.resolve().stem, path.parent.resolve().name):
        name = re.sub(r"[^\w.-]+", "-", part).strip("-.")
        if name:
            return name
    return "data"


def _print(found: guess.Guess, read: recipe.Recipe, rows: int, model: str) -> None:
    epochs = read.training.get("num_train_epochs")
    much, flags = [f"{epochs} epoch{'s' * (epochs != 1)}"], ["--num_train_epochs"]
    if "max_steps" in read.training:
        much, flags = [f"{read.training['max_steps']} steps"], ["--max_steps"]
    if read.augmentation.flip:
        much.append("flipped at random")
        flags.append("--flip")
    if "image" not in found.data:
        much.append(f"at most {read.model.max_length} tokens")
        flags.append("--max_length")
    run = f"{read.training['output_dir']}; its {run_directory.RECIPE} repeats it without guessing"
    lines = [
        *found.reasons,
        guess.Reason("model", model, "--checkpoint"),
        guess.Reason("training", ", ".join(much), " ".join(flags)),
        guess.Reason("run", run),
    ]
    data = str(read.data.train or read.data.dataset)
    name = data if len(data) <= MOST_NAME else f"…{data[-MOST_NAME:]}"
    print(f"{name}: {rows:,} rows. The recipe is guessed; flags change it:", file=sys.stderr)
    for reason in lines:
        print(reason.line(), file=sys.stderr)
