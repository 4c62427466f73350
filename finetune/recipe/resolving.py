"""Resolves a recipe: checks everything that needs torch, transformers or peft to be known.

- The training section is type-checked against ``transformers.TrainingArguments``.
- Options of the method that came from the command line are moved to ``tuning.options``.
- The method and its options are checked against peft's config class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from finetune.errors import UserError, refuse_unknown
from finetune.recipe import training_fields
from finetune.recipe.checking import typed, typed_as
from finetune.recipe.methods import NOT_OFFERED, PLAIN_METHODS
from finetune.recipe.reading import read
from finetune.recipe.schema import FLAGS, Recipe, Tuning

# TrainingArguments accepts other values, with which nothing would be learned.
RANGES = {
    **dict.fromkeys(["learning_rate", "weight_decay", "warmup_steps"], Field(ge=0)),
    **dict.fromkeys(
        [
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
        ],
        Field(ge=1),
    ),
    "label_smoothing_factor": Field(ge=0, le=1),
}


def load(path: str | Path, overrides: Sequence[str] | Mapping[str, str] = ()) -> Recipe:
    """Reads and resolves a recipe: the very one that the command line trains.

    Raises:
        UserError: what ``read`` and ``resolve`` reject.
    """
    return resolve(read(path, overrides))


def resolve(recipe: Recipe) -> Recipe:
    """Returns the recipe with typed training keys and the method's options sorted out.

    A resolved recipe's ``dump`` loads to the same recipe again.

    Raises:
        UserError: an unknown training key, method or option, with the nearest known one; a value
            of another type or out of range; a training key that is refused; fp16 without a GPU;
            Liger kernels that are not installed.
    """
    from transformers import TrainingArguments

    config = _config_class(recipe)
    options = {f.name for f in fields(config)} if config else set()
    options -= {f.name for f in fields(TrainingArguments)}
    claimed = {
        name: value
        for name, value in recipe.training.items()
        if name in options and recipe.where(f"training.{name}").startswith("--")
    }
    origin = recipe.origin | {f"tuning.{name}": f"--{name}" for name in claimed}
    own = recipe.tuning.options | claimed
    if config:
        from finetune.recipe.adapters import method_options

        method_options(config, own, origin)
    given = {k: v for k, v in recipe.training.items() if k not in claimed}
    for name in given:
        training_fields.refuse_former(name, origin.get(f"training.{name}", recipe.name))
    ours = {
        name: typed(hint, given.pop(name), name, recipe.where(f"training.{name}"))
        for name, hint in training_fields.OWN.items()
        if name in given
    }
    flags = {**FLAGS, **training_fields.OWN, **dict.fromkeys(options, "tuning")}
    given = training_fields.renamed(given, origin)
    origin |= {
        f"training.{new}": origin[f"training.{old}"]
        for old, new in training_fields.RENAMED.items()
        if f"training.{old}" in origin
    }
    training_fields.check(given, origin)
    training = typed_as(TrainingArguments, given, "training", origin, RANGES, flags) | ours
    resolved = replace(
        recipe, training=training, tuning=replace(recipe.tuning, options=own), origin=origin
    )
    _check_training(resolved)
    return resolved


def _config_class(recipe: Recipe) -> Any:
    """Returns peft's config class of the recipe's method, None for a method without an adapter."""
    method, where = recipe.tuning.method, recipe.where("tuning.method")
    if method in NOT_OFFERED:
        raise UserError(f"{where}: tuning method {method!r} is not offered: {NOT_OFFERED[method]}")
    if method in PLAIN_METHODS:
        known = [f.name for f in fields(Tuning) if not f.metadata.get("hidden")]
        for option in recipe.tuning.options:
            refuse_unknown(option, known, f"{recipe.where(f'tuning.{option}')}: tuning key")
        return None

    from finetune.recipe.adapters import adapter_methods

    methods = adapter_methods()
    if method not in methods:
        refuse_unknown(method, [*PLAIN_METHODS, *methods], f"{where}: tuning method")
    return methods[method]


def _check_training(recipe: Recipe) -> None:
    """Checks rules of the training section that are not about a single type or range."""
    import torch
    from transformers.utils.import_utils import is_liger_kernel_available

    given = recipe.training
    if given.get("num_train_epochs", 1) <= 0 and given.get("max_steps", -1) <= 0:
        where = recipe.where("training.num_train_epochs")
        raise UserError(f"{where}: num_train_epochs has to be above 0")
    if given.get("max_steps") == 0:
        where = recipe.where("training.max_steps")
        raise UserError(f"{where}: max_steps 0 trains num_train_epochs; leave it out, or raise it")
    if given.get("fp16") and not torch.cuda.is_available():
        raise UserError(f"{recipe.where('training.fp16')}: fp16 needs a GPU; use bf16, or nothing")
    if given.get("use_liger_kernel") and not is_liger_kernel_available():
        where = recipe.where("training.use_liger_kernel")
        raise UserError(f"{where}: use_liger_kernel needs `pip install liger-kernel`, and a GPU")
