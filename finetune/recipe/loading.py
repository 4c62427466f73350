"""Reads recipe files and applies command-line overrides."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from finetune.errors import UserError, refuse_unknown
from finetune.recipe import packaged
from finetune.recipe.checking import typed
from finetune.recipe.schema import FLAGS, NOTES, SECTIONS, Recipe, Tuning
from finetune.recipe.strict_yaml import Block, Scalar, parse_yaml, place, plain


def _section(cls: type, tree: Any, what: str, name: str, origin: dict[str, str]) -> Any:
    if not isinstance(tree, dict):
        raise UserError(f"{place(tree, name)}: {what} has to be a mapping of keys")
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    values: dict[str, Any] = {}
    for k, v in tree.items():
        where = place(v, name)
        origin[f"{what}.{k}"] = where
        if k not in known or k == "options":
            if cls is not Tuning:
                refuse_unknown(k, list(known), f"{where}: {what} key")
            values.setdefault("options", {})[k] = plain(v, True)
            continue
        bounds = {b: known[k].metadata[b] for b in ("low", "high") if b in known[k].metadata}
        values[k] = typed(hints[k], plain(v, False), k, where, **bounds)
    return cls(**values)


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """``--key value``, ``--key=value`` and a bare ``--key`` (true) as a dict.

    Raises:
        UserError: a word that belongs to no flag, or a flag given twice.
    """
    out: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} stands alone; overrides are written --key value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        name = name.replace("-", "_")
        if name in out:
            raise UserError(f"--{name} is given twice; keep one")
        out[name] = value
    return out


def _override(tree: dict[str, Any], flags: dict[str, str]) -> None:
    if "train" in flags or "dataset" in flags:
        # The recipe's columns, sizes and numbers belong to the recipe's own data.
        tree["data"] = Block()
        for note in NOTES:
            tree.pop(note, None)
    for name, value in flags.items():
        where = f"--{name}"
        if name == "task":
            tree["task"] = Scalar(value, False, where)
            continue
        given = tree.get("tuning")
        ours = "tuning" if isinstance(given, dict) and name in given else "training"
        section = tree.setdefault(FLAGS.get(name, ours), Block())
        if not isinstance(section, dict):
            raise UserError(f"{where}: its section in the recipe is not a mapping of keys")
        if value[:1] in "[{" and value:
            section[name] = parse_yaml(f"x: {value}", where)["x"]
        else:
            section[name] = Scalar(None if value == "null" else value, True, where)


def run_name(path: Path, flags: dict[str, str]) -> str:
    """The run's folder below ``runs/``: dataset folder and variant, or the user's own data."""
    own = flags.get("train") or flags.get("dataset")
    if own:
        return f"{Path(own.replace(':', '-')).stem}/{path.stem}"
    inside = path.resolve().parts
    return f"{inside[-2]}/{path.stem}" if "recipes" in inside[:-2] else path.stem


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and lay command-line overrides over it.

    ``training`` is checked against ``TrainingArguments`` by the runner, because that needs torch.

    Raises:
        UserError: the file is missing or breaks a rule of ``parse_yaml``, a key is unknown, a
            value does not fit its declared type.
    """
    path = packaged.find(path)
    name = str(path)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}") from None
    flags = parse_flags(overrides)
    _override(tree, flags)

    known = ["name", "task", "training", *SECTIONS]
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
    training = tree.get("training", {})
    if not isinstance(training, dict):
        raise UserError(f"{place(training, name)}: training has to be a mapping of keys")
    for k, v in training.items():
        origin[f"training.{k}"] = place(v, name)
        if k.rpartition("_")[2] == "token":
            raise UserError(
                f"{origin[f'training.{k}']}: a token does not belong in a recipe; set HF_TOKEN"
            )
    training = {k: plain(v, True) for k, v in training.items()}
    if not made["model"].checkpoint:
        raise UserError(f"{name}: model needs a checkpoint, for example `embedded:minilm`")
    if made["data"].dataset is None and made["data"].train is None:
        raise UserError(f"{name}: data needs a dataset, or a train file")
    # A run's own recipe.yaml says the name that the run had.
    called = plain(tree.get("name", Scalar(run_name(path, flags), False, name)), False)
    if not isinstance(called, str):
        raise UserError(f"{place(tree['name'], name)}: name has to be a text")
    return Recipe(task=task, training=training, name=called, origin=origin, **made)


def differences(ours: str, theirs: str) -> dict[str, tuple[Any, Any]]:
    """Where two recipes' YAML say different things: (ours, theirs) by ``section.key``.

    Where the run lies does not count; None is what a recipe does not say.
    """
    flat = []
    for text in (ours, theirs):
        said: dict[str, Any] = {}
        for section, value in yaml.safe_load(text).items():
            if isinstance(value, dict):
                said |= {f"{section}.{k}": v for k, v in value.items()}
            else:
                said[section] = value
        said.pop("training.output_dir", None)
        flat.append(said)
    a, b = flat
    keys = dict.fromkeys([*a, *b])
    return {k: (a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k)}
