"""Checks the values of a recipe against declared types and ranges, with pydantic."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune.errors import UserError, nearest, refuse_unknown

# Types of other libraries, in the configs of peft's methods, are checked with isinstance.
CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def typed(hint: Any, value: Any, name: str, where: str) -> Any:
    """Returns ``value`` converted to the declared type ``hint``, whose range it has to be in.

    Raises:
        UserError: it is not of that type, not finite, or out of range.
    """
    adapter = TypeAdapter(hint, config=CONFIG)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    match first["type"]:
        case "finite_number":
            problem = f"{value} is not a finite number"
        case "greater_than_equal" | "less_than_equal":
            problem = f"{value} has to be {_bounds(adapter)}"
        case _:
            known = choices(hint) if isinstance(value, str) else []
            hint_at = nearest(str(value), known) if known else ""
            problem = f"{value!r} does not fit: {hint_at or first['msg']}"
    parts = value if isinstance(value, list) else str(value).split(",")
    if len(parts) > 1 and all(_fits(adapter, part) for part in parts):
        each = [str(part).strip() for part in parts]
        several = (
            f"finetune train RECIPE --seeds {','.join(each)}"
            if name == "seed"
            else f"for v in {' '.join(each)}; do finetune train RECIPE --{name} $v "
            "--output_dir runs/$v; done"
        )
        problem = f"a run has one value, not {len(parts)}; for several runs: {several}"
    raise UserError(f"{where}: {name}: {problem}")


def _fits(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def choices(hint: Any) -> list[str]:
    """Returns the texts that a type allows: a ``Literal``, or one among the types of a union."""
    own = get_args(hint)
    if get_origin(hint) is Literal:
        return [choice for choice in own if isinstance(choice, str)]
    return [choice for kind in own if get_args(kind) for choice in choices(kind)]


def _bounds(adapter: TypeAdapter[Any]) -> str:
    """Returns the range of a number, for example "from 0 to 1"."""
    schema = adapter.json_schema()
    number = schema["anyOf"][0] if "anyOf" in schema else schema
    if "maximum" not in number:
        return f"at least {number['minimum']:g}"
    return f"from {number['minimum']:g} to {number['maximum']:g}"


def typed_as(
    cls: type,
    values: dict[str, Any],
    what: str,
    where: dict[str, str],
    ranges: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns ``values`` checked against the annotated fields of another library's dataclass.

    Args:
        what: names the section in messages, and its keys in ``where``.
        where: the place of each value, by ``section.key``.
        ranges: pydantic's ``Field(ge=...)`` by key, for what the class itself does not check.
        flags: names of other sections that an unknown key from the command line may have meant.

    Raises:
        UserError: an unknown key, with the nearest known one, or a value of another type.
    """
    hints, ranges = get_type_hints(cls), ranges or {}
    known = [f.name for f in fields(cls) if f.init]
    out = {}
    for name, value in values.items():
        place = where.get(f"{what}.{name}", what)
        if name not in known:
            more = list(flags or ()) if place.startswith("--") else []
            refuse_unknown(name, [*known, *more], f"{place}: {what} key")
        hint = Annotated[hints[name], ranges[name]] if name in ranges else hints[name]
        out[name] = typed(hint, value, name, place)
    return out
