"""The search space of a sweep: keys of the recipe with the values that they may have.

Each is one of

- ``learning_rate=loguniform(1e-5, 1e-3)`` and ``attention_dropout=uniform(0, 0.2)``: whole numbers
  where the recipe's key is one;
- ``r=[4, 8, 16]``: one of these.

Every value is read as the recipe's own key would be, so that a mistake is found before a trial.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import recipe
from finetune.errors import UserError
from finetune.recipe import FLAGS, Recipe
from finetune.recipe.strict_yaml import parse_yaml, plain

if TYPE_CHECKING:
    import optuna

PART = re.compile(r"\s*([\w-]+)=(\[[^\]]*\]|\w+\([^)]*\))(?=\s|$)")
RANGE = re.compile(r"(loguniform|uniform)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")
FORMS = "key=loguniform(low, high), key=uniform(low, high) or key=[a, b, c]"
# Trials are compared on the same rows, by the same metric.
FIXED = {"task", "metrics", "name", "seed", "output_dir", "metric_for_best_model", "eval_strategy"}
FIXED |= {"greater_is_better", "load_best_model_at_end", "full_determinism", "push_to_hub"}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, drawn evenly or by their logarithm."""

    low: float
    high: float
    log: bool

    def suggest(self, trial: "optuna.Trial", key: str) -> Any:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def has(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of some texts, numbers or booleans."""

    values: tuple[Any, ...]

    def suggest(self, trial: "optuna.Trial", key: str) -> Any:
        return trial.suggest_categorical(key, self.values)

    def has(self, value: Any) -> bool:
        return value in self.values


Space = dict[str, Range | Choice]


def parse(given: str) -> dict[str, str | list[str]]:
    """Reads ``--search``: a line of ``key=values``, or a YAML file of ``key: values``.

    Returns:
        By key, the text of a range or the texts of a list.

    Raises:
        UserError: it is neither, or names a key twice.
    """
    if Path(given).suffix in {".yaml", ".yml"}:
        if not Path(given).is_file():
            raise UserError(f"--search {given}: no such file")
        tree = parse_yaml(Path(given).read_text(encoding="utf-8"), given)
        return {key: plain(value, False) for key, value in tree.items()}
    found: dict[str, str | list[str]] = {}
    at = 0
    while at < len(given.rstrip()):
        part = PART.match(given, at)
        if part is None:
            raise UserError(f"--search: {given[at:].strip()!r} has to be {FORMS}")
        key, values = part[1].replace("-", "_"), part[2]
        if key in found:
            raise UserError(f"--search: {key} is given twice; keep one")
        if values.startswith("["):
            values = plain(parse_yaml(f"x: {values}", "--search")["x"], False)
        found[key] = values
        at = part.end()
    if not found:
        raise UserError(f"--search names no key; write {FORMS}")
    return found


def typed(given: Mapping[str, str | list[str]], base: str) -> Space:
    """Checks a search space against the recipe's own keys, and types it by them.

    Args:
        base: the file of the recipe that trials change.

    Raises:
        UserError: an unknown key, a value that the recipe would reject, an empty range, or a key
            that decides what trials are compared on.
    """
    space: Space = {}
    for key, values in given.items():
        if key in FIXED or FLAGS.get(key) == "data":
            raise UserError(
                f"--search: {key} cannot be searched: trials are compared on the same rows, by the "
                "same metric"
            )
        if isinstance(values, list):
            read = [_value(base, key, value) for value in values]
            if not read or not all(isinstance(v, str | int | float | None) for v in read):
                raise UserError(f"--search: {key}: a list has texts, numbers or booleans")
            space[key] = Choice(tuple(read))
            continue
        parts = RANGE.fullmatch(str(values).strip())
        if parts is None:
            raise UserError(f"--search: {key}: {values} has to be {FORMS}")
        low, high = (_value(base, key, text) for text in (parts[2], parts[3]))
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
        if not numbers:
            raise UserError(f"--search: {key} is no number; write {key}=[a, b, c]")
        if low >= high or (parts[1] == "loguniform" and low <= 0):
            raise UserError(f"--search: {key}: {values} is empty, or its logarithm does not exist")
        space[key] = Range(low, high, parts[1] == "loguniform")
    return space


def _value(base: str, key: str, text: Any) -> Any:
    """Returns a text as the recipe's key has it."""
    if not isinstance(text, str | None):
        raise UserError(f"--search: {key}: a list has texts, numbers or booleans")
    return value_of(recipe.load(base, {key: "null" if text is None else text}), key)


def value_of(read: Recipe, key: str) -> Any:
    """Returns what a resolved recipe has for a key; the default where it says nothing.

    None where the default is the library's own affair.
    """
    if key in FLAGS:
        return getattr(getattr(read, FLAGS[key]), key)
    if key in read.tuning.options:
        from finetune.recipe.adapters import adapter_methods, method_options

        config = adapter_methods()[read.tuning.method]
        return method_options(config, {key: read.tuning.options[key]}, {})[key]
    if key in read.training:
        value = read.training[key]
        return value.value if isinstance(value, Enum) else value
    from transformers import TrainingArguments

    defaults = {f.name: f.default for f in fields(TrainingArguments)}
    found = defaults.get(key)
    found = found.value if isinstance(found, Enum) else found
    return found if isinstance(found, str | int | float) else None


def as_flag(value: Any) -> str:
    """Returns a value as the text of a flag."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)
