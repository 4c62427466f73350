"""The adapter methods on offer: peft's own, and bottleneck adapters.

Imports peft, which takes seconds; import this module only where an adapter is used.
"""

from dataclasses import dataclass, field
from typing import Literal

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from transformers.activations import ACT2FN

from finetune.recipe.methods import NOT_OFFERED

BOTTLENECK = "BOTTLENECK"


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
