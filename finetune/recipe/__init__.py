"""Recipes: what one can contain, strict YAML, command-line flags, resolving.

``load`` gives a resolved, frozen recipe; ``read`` a light one without importing torch.
Imports nothing of this project but errors; torch, transformers and peft only inside functions.
"""

from finetune.recipe.checking import typed_as
from finetune.recipe.reading import differences, read, variant
from finetune.recipe.resolving import load, resolve
from finetune.recipe.schema import (
    FLAGS,
    NOTES,
    SECTIONS,
    SETTINGS,
    Augmentation,
    Classes,
    Data,
    Distillation,
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
    "Classes",
    "Data",
    "Distillation",
    "Measured",
    "Model",
    "Recipe",
    "Reference",
    "Tuning",
    "differences",
    "load",
    "read",
    "resolve",
    "typed_as",
    "variant",
]
