"""Every recipe key as a command-line flag, for argparse.

- Keys of ``Model``, ``Data``, ``Augmentation`` and ``Tuning`` are declared from their dataclasses,
  with the same help text.
- The training keys are ``transformers.TrainingArguments``' and importing those takes seconds. So
  any other ``--name`` is accepted as a training key here, and checked when the recipe is resolved.
- Values stay text: ``recipe.read`` converts them as it does those of the file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from finetune.errors import UserError
from finetune.recipe import training_fields
from finetune.recipe.schema import SETTINGS

# Flags that take several files, as the shell makes them of a pattern.
FILES = {"--train", "--validation", "--test"}
BOOLEANS = {f.name for cls in SETTINGS.values() for f in fields(cls) if f.type is bool}
BOOLEANS |= training_fields.BOOLEANS
# The words that pydantic takes for a boolean, and null for none.
TRUTH = {"true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0", "null"}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError`` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Override(argparse.Action):
    """Stores the text of a recipe key in ``namespace.overrides``, and rejects a second value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self.dest in namespace.overrides:
            raise UserError(f"--{self.dest} is given twice; keep one")
        namespace.overrides[self.dest] = values


def new_namespace() -> argparse.Namespace:
    """Returns the namespace that a parser with recipe keys fills."""
    return argparse.Namespace(overrides={})


def add_recipe_keys(parser: argparse.ArgumentParser, in_help: bool = True) -> None:
    """Declares a flag for each key of a recipe, except the training keys."""
    top_level = {
        "task": "the recipe's task",
        "metrics": "further metrics: names such as matthews_correlation, or paths of .py files",
    }
    for name, text in top_level.items():
        shown = text if in_help else argparse.SUPPRESS
        parser.add_argument(f"--{name}", action=Override, default=argparse.SUPPRESS, help=shown)
    for section, cls in SETTINGS.items():
        group = parser.add_argument_group(section)
        hints = get_type_hints(cls)
        for f in fields(cls):
            if f.metadata.get("hidden"):
                continue
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if f.name in BOOLEANS else {}
            group.add_argument(
                f"--{f.name}",
                action=Override,
                default=argparse.SUPPRESS,
                metavar=_metavar(hints[f.name]),
                help=_help(f) if in_help else argparse.SUPPRESS,
                **bare,
            )


def _metavar(hint: Any) -> str:
    kinds = {hint, *get_args(hint)}
    names = {bool: "BOOL", int: "N", float: "X", dict[str, Any]: "{KEY: VALUE}"}
    return next((name for kind, name in names.items() if kind in kinds), "TEXT")


def _help(f: Field[Any]) -> str:
    """Returns the field's help with the default, if there is one to show."""
    shown = isinstance(f.default, str | int | float) and f.default != ""
    return f.metadata["help"].replace("%", "%%") + (f" [{f.default}]" if shown else "")


def accept_training_keys(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Declares a flag for each unknown ``--name`` in ``words``.

    Returns:
        The words, with two kinds of values joined to their flag, which argparse cannot assign
        without knowing it: one that starts with a minus (``--weight_decay -1e-4``), and "true" of
        a bare flag before a word that is no boolean (``--bf16 imdb/minilm``).
    """
    left, joined = list(words), []
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name != "--":
            declared = _declare(parser, name)
            is_boolean = name[2:].replace("-", "_") in BOOLEANS
            if left and not equals:
                if name in FILES:
                    left[0] = _joined(left)
                if left[0].startswith("-") and not left[0].startswith("--") and left[0] != "-h":
                    word += f"={left.pop(0)}"
                elif (is_boolean and left[0].lower() not in TRUTH) or (
                    declared and left[0].endswith((".yaml", ".yml"))
                ):
                    word += "=true"
        joined.append(word)
    return joined


def _joined(left: list[str]) -> str:
    """Returns the first word, with those that follow if they are files of the same kind.

    They are taken out of ``left``: ``data/a.csv data/b.csv`` of an unquoted pattern is one value.
    """
    suffix = Path(left[0]).suffix
    while suffix and len(left) > 1 and not left[1].startswith("-") and left[1].endswith(suffix):
        left[0] += "," + left.pop(1)
    return left[0]


def _declare(parser: argparse.ArgumentParser, name: str) -> bool:
    """Declares the flag of a training key; returns False if the parser has such a flag."""
    try:
        parser.add_argument(
            name,
            action=Override,
            nargs="?",
            const="true",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    except argparse.ArgumentError:
        return False
    return True


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Reads ``--key value``, ``--key=value`` and a bare ``--key`` (true) as texts by key.

    Raises:
        UserError: a word that belongs to no flag, a flag given twice, a missing value.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    add_recipe_keys(parser)
    accepted = accept_training_keys(parser, words)
    options, extra = parser.parse_known_args(accepted, new_namespace())
    if extra:
        raise UserError(f"{extra[0]!r} belongs to no flag; overrides are written --key value")
    return options.overrides
