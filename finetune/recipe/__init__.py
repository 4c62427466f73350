"""What a recipe may say: the schema, strict YAML, command-line overrides, resolved once.

Imports nothing of this project but errors; torch and transformers only inside functions.
"""

from finetune.recipe.checking import typed_as
from finetune.recipe.loading import differences, load, parse_flags, run_name
from finetune.recipe.schema import (
    FLAGS,
    NOTES,
    SECTIONS,
    SETTINGS,
    Augmentation,
    Data,
    Measured,
    Model,
    Recipe,
    Reference,
    Tuning,
)

__all__ = [
    "FLAGS",
    "NOTES",
    "SECTIONS",
    "SETTINGS",
    "Augmentation",
    "Data",
    "Measured",
    "Model",
    "Recipe",
    "Reference",
    "Tuning",
    "differences",
    "load",
    "parse_flags",
    "run_name",
    "typed_as",
]
