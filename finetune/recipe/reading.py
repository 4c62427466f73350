"""Reads recipe files and applies command-line overrides, without importing torch."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from finetune.errors import UserError, refuse_unknown
from finetune.recipe import packaged, training_fields
from finetune.recipe.checking import typed
from finetune.recipe.command_line import parse_overrides
from finetune.recipe.methods import learning_rate
from finetune.recipe.schema import FLAGS, GUESSED, NOTES, SECTIONS, Recipe, Tuning, default_values
from finetune.recipe.strict_yaml import Block, Scalar, parse_yaml, place, plain

SEED = 0
# With ``auto`` in the file itself, a step has so many rows, times gradient_accumulation_steps.
BATCH, AUTO, AUTO_ROWS = "per_device_train_batch_size", "auto", 32


def _section(cls: type, tree: Any, what: str, name: str, origin: dict[str, str]) -> Any:
    if not isinstance(tree, dict):
        raise UserError(f"{place(tree, name)}: {what} has to be a mapping of keys")
    hints = get_type_hints(cls, include_extras=True)
    known = [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    for k, v in tree.items():
        where = place(v, name)
        origin[f"{what}.{k}"] = where
        if k not in known or k == "options":
            if cls is not Tuning:
                training_fields.refuse_former(k, where)
                refuse_unknown(k, known, f"{where}: {what} key")
            values.setdefault("options", {})[k] = plain(v, True)
            continue
        values[k] = typed(hints[k], plain(v, False), k, where)
    return cls(**values)


def _tree(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Parses a recipe file; with ``base``, it is what another recipe has, except for these keys.

    Args:
        above: the files that lead to this one by their ``base``.

    Raises:
        UserError: it is no such YAML, or its base is itself.
    """
    name = str(path)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}") from None
    given = tree.pop("base", None)
    if given is None:
        return tree
    where, named = place(given, name), plain(given, False)
    if not isinstance(named, str):
        raise UserError(f"{where}: base has to be a recipe, for example imdb/minilm")
    # Beside this file, or else as on the command line.
    beside = path.parent / named
    found = beside if beside.is_file() else packaged.find(named)
    above = (*above, path.resolve())
    if found.resolve() in above:
        raise UserError(f"{where}: base {named} leads back to {name}")
    base = _tree(found, above)
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            base[key].update(value)
        else:
            base[key] = value
    return base


def _override(
    tree: dict[str, Any], overrides: Mapping[str, str], guessed: Mapping[str, str]
) -> None:
    if "train" in overrides or "dataset" in overrides:
        # The recipe's columns, sizes and published numbers are those of its own data.
        tree["data"] = Block()
        for note in NOTES:
            tree.pop(note, None)
    for name, value in {**guessed, **overrides}.items():
        where = f"--{name}" if name in overrides else GUESSED
        if name == "task" or (name == "name" and where == GUESSED):
            tree[name] = Scalar(value, False, where)
            continue
        if name == BATCH and value == AUTO:
            # The rows of a step stay those of the recipe.
            continue
        if name == "metrics":
            tree["metrics"] = parse_yaml(f"x: {value}", where)["x"]
            tree["metrics"].where = where
            continue
        given = tree.get("tuning")
        ours = "tuning" if isinstance(given, dict) and name in given else "training"
        section = tree.setdefault(FLAGS.get(name, ours), Block())
        if not isinstance(section, dict):
            raise UserError(f"{where}: its section in the recipe is not a mapping of keys")
        if value[:1] in "[{" and value:
            section[name] = parse_yaml(f"x: {value}", where)["x"]
            section[name].where = where
        else:
            section[name] = Scalar(None if value == "null" else value, True, where)


def variant(name: str, overrides: Mapping[str, str]) -> str:
    """Returns the name of a run; one that learns from corrections stands beside the first."""
    suffixes = {"add_feedback": "-feedback", "corrections": "-corrected"}
    return name + "".join(suffix for key, suffix in suffixes.items() if key in overrides)


def _run_name(path: Path, overrides: Mapping[str, str]) -> str:
    """Returns the run's folder below ``runs/``: data folder and variant, or the user's own data."""
    own = overrides.get("train") or overrides.get("dataset")
    if own:
        # The first of several files; a pattern has the name of its folder.
        first = Path(own.strip("[] ").split(",")[0].replace(":", "-"))
        stem = first.parent.name if "*" in first.name else first.name.partition(".")[0]
        return f"{stem or first.stem or 'data'}/{path.stem}"
    inside = path.resolve().parts
    return f"{inside[-2]}/{path.stem}" if "recipes" in inside[:-2] else path.stem


def _training(tree: Any, name: str, origin: dict[str, str]) -> dict[str, Any]:
    """Returns the training section as written, and notes where each key stands."""
    if not isinstance(tree, dict):
        raise UserError(f"{place(tree, name)}: training has to be a mapping of keys")
    for k, v in tree.items():
        origin[f"training.{k}"] = where = place(v, name)
        if k.rpartition("_")[2] == "token":
            raise UserError(f"{where}: a token does not belong in a recipe; set HF_TOKEN")
    return {k: plain(v, True) for k, v in tree.items()}


def read(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, str] = (),
    guessed: Mapping[str, str] | None = None,
) -> Recipe:
    """Reads a recipe file, applies overrides and fills in the defaults.

    Does not import torch, so the types of the training keys and the method's options are not
    checked: ``load`` does that. Enough to list recipes, and for the recipe of a finished run.

    Args:
        overrides: words of a command line (``--seed``, ``1``), or texts by key.
        guessed: texts by key, for keys that no override gives. ``Recipe.dump`` writes them all.

    Raises:
        UserError: the file is missing or breaks a rule of ``parse_yaml``, a key is unknown, a
            value does not fit its declared type.
    """
    path = packaged.find(path)
    name = str(path)
    tree = _tree(path)
    given = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    _override(tree, given, guessed or {})

    known = ["name", "task", "metrics", "training", *SECTIONS]
    for k, v in tree.items():
        if k not in known:
            refuse_unknown(k, known, f"{place(v, name)}: key")
    task = plain(tree.get("task"), False)
    if not isinstance(task, str):
        raise UserError(f"{name}: needs a line `task: text-classification`")
    origin: dict[str, str] = {"task": place(tree["task"], name)}
    made: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        if section in NOTES and section not in tree:
            made[section] = None
            continue
        made[section] = _section(cls, tree.get(section, {}), section, name, origin)
    training = _training(tree.get("training", {}), name, origin)
    auto_batch = given.get(BATCH) == AUTO or training.get(BATCH) == AUTO
    if training.get(BATCH) == AUTO:
        training[BATCH] = AUTO_ROWS
    if not made["model"].checkpoint:
        raise UserError(f"{name}: model needs a checkpoint, for example `embedded:minilm`")
    if made["data"].dataset is None and made["data"].train is None:
        raise UserError(f"{name}: data needs a dataset, or a train file")
    metrics = tree.get("metrics", [])
    origin["metrics"] = place(metrics, name)
    made["metrics"] = typed(list[str], plain(metrics, False), "metrics", origin["metrics"])
    # The recipe.yaml in a run directory holds the name that the run had.
    own = variant(_run_name(path, given), given)
    called = plain(tree.get("name", Scalar(own, False, name)), False)
    if not isinstance(called, str):
        raise UserError(f"{place(tree['name'], name)}: name has to be a text")
    training.setdefault("learning_rate", learning_rate(made["tuning"].method))
    training.setdefault("seed", SEED)
    training.setdefault("output_dir", f"runs/{called}/seed-{training['seed']}")
    training["output_dir"] = str(Path(str(training["output_dir"])).expanduser())
    return Recipe(
        task=task, training=training, name=called, origin=origin, auto_batch=auto_batch, **made
    )


def differences(ours: str, theirs: str) -> dict[str, tuple[Any, Any]]:
    """Compares the YAML of two recipes; returns (ours, theirs) by ``section.key``.

    The run directory is ignored. None stands for a key that a recipe does not have; that is no
    difference to one that has its default.
    """
    flat = []
    for text in (ours, theirs):
        keys: dict[str, Any] = {}
        for section, value in yaml.safe_load(text).items():
            if isinstance(value, dict):
                keys |= {f"{section}.{k}": v for k, v in value.items()}
            else:
                keys[section] = value
        keys.pop("training.output_dir", None)
        flat.append(keys)
    a, b = flat
    defaults = default_values()
    every = {k: defaults.get(k) for k in (*a, *b)}
    return {k: (a.get(k), b.get(k)) for k, d in every.items() if a.get(k, d) != b.get(k, d)}
