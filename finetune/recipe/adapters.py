"""The adapter methods on offer: peft's own, and bottleneck adapters.

Imports peft, which takes seconds; import this module only where an adapter is used.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from transformers.activations import ACT2FN

from finetune.errors import UserError
from finetune.recipe.checking import choices, typed_as
from finetune.recipe.methods import INITS_NOT_OFFERED, NOT_OFFERED

BOTTLENECK = "BOTTLENECK"
# Names of modules or numbers with commas between them, and no regular expression.
NAMES = re.compile(r"(?!all-linear$)[\w.-]+(\s*,\s*[\w.-]+)*")


@dataclass
class BottleneckConfig(PeftConfig):
    """Placement and width of bottleneck adapters (Houlsby et al. 2019).

    ``houlsby``: after the attention and after the feed-forward block; ``pfeiffer``: after the
    feed-forward block only (Pfeiffer et al. 2021); ``parallel``: parallel to the feed-forward
    block, from its input to its output (He et al. 2022).

    Raises:
        ValueError: ``reduction_factor`` is below 1, or the activation is unknown.
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    reduction_factor: float = 16
    activation: str = "gelu"
    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK  # pyright: ignore[reportAttributeAccessIssue]
        if self.reduction_factor < 1:
            raise ValueError(f"reduction_factor has to be at least 1, not {self.reduction_factor}")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation {self.activation!r} is none of transformers'")


PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig  # pyright: ignore


def adapter_methods() -> dict[str, type]:
    """Returns the config class of every adapter method on offer, by its lower-case name."""
    # The keys are an enumeration of strings, and our own string.
    names = {str.lower(key): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: cls for name, cls in sorted(names.items()) if name not in NOT_OFFERED}


def method_options(cls: type, values: dict[str, Any], where: dict[str, str]) -> dict[str, Any]:
    """Returns a method's options checked against its config class.

    - Where the class takes a list, module names may be a text with commas: ``q_proj,v_proj``. Any
      other text is what it is for peft: a regular expression, or ``all-linear``.
    - A value like ``pissa_niter_4`` is one of the choice ``pissa_niter_[number of iters]``.

    Args:
        where: the place of each value, by ``tuning.key``.

    Raises:
        UserError: an unknown option, a value of another type, an initialization that is not
            offered.
    """
    hints = get_type_hints(cls)
    checked, numbered = {}, {}
    for name, value in values.items():
        hint = hints.get(name)
        if isinstance(value, str) and any(_is_number_of(value, c) for c in choices(hint)):
            numbered[name] = value
            continue
        if isinstance(value, str) and _takes_list(hint) and NAMES.fullmatch(value):
            value = re.split(r"\s*,\s*", value)
        checked[name] = value
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init in INITS_NOT_OFFERED:
        place = where.get("tuning.init_lora_weights", "tuning")
        raise UserError(
            f"{place}: init_lora_weights {init!r} is not offered: {INITS_NOT_OFFERED[init]}"
        )
    return typed_as(cls, checked, "tuning", where) | numbered


def _takes_list(hint: Any) -> bool:
    return any(get_origin(kind) is list for kind in (hint, *get_args(hint)))


def _is_number_of(value: str, choice: str) -> bool:
    """Returns whether a value is a choice with its placeholder, ``[...]``, as a number."""
    start, bracket, _ = choice.partition("[")
    return bool(bracket) and re.fullmatch(re.escape(start) + r"[1-9]\d*", value) is not None
