"""Checks values of recipes against declared types."""

import math
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune.errors import UserError, nearest, refuse_unknown


def typed(
    hint: Any, value: Any, name: str, where: str, low: float = -math.inf, high: float = math.inf
) -> Any:
    """``value`` as the declared type ``hint``, within ``low`` and ``high``.

    Raises:
        UserError: it is not of that type, not finite, or out of range.
    """
    try:
        out = TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        choices = getattr(hint, "__args__", ())
        if choices and all(isinstance(c, str) for c in choices):
            problem = nearest(str(value), list(choices))
        raise UserError(f"{where}: {name}: {value!r} does not fit: {problem}") from None
    if isinstance(out, float | int) and not isinstance(out, bool):
        if not math.isfinite(out):
            raise UserError(f"{where}: {name}: {value} is not a finite number")
        if not low <= out <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{where}: {name}: {value} has to be {bounds}")
    return out


def typed_as(cls: type, values: dict[str, Any], what: str, where: dict[str, str]) -> dict[str, Any]:
    """``values`` checked against the annotated fields of a dataclass of another library.

    Args:
        what: names the section in messages, and its keys in ``where``.

    Raises:
        UserError: an unknown key, with the nearest known one, or a value of another type.
    """
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls) if f.init]
    out = {}
    for name, value in values.items():
        place = where.get(f"{what}.{name}", what)
        if name not in known:
            refuse_unknown(name, known, f"{place}: {what} key")
        out[name] = typed(hints[name], value, name, place)
    return out
