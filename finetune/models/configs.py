"""Model configs: the checkpoint's own, with a task's labels and the recipe's values."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, ViTConfig

from finetune.data import sources
from finetune.errors import refuse_unknown
from finetune.recipe import Recipe

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus

# A recipe names it like a key of config.json, as from_pretrained accepts it.
ATTENTION = "attn_implementation"


def labelled_config(
    recipe: Recipe, checkpoint: sources.Checkpoint, data: "Corpus"
) -> PreTrainedConfig:
    """Returns the checkpoint's config with the data's labels and the recipe's values.

    Raises:
        UserError: a value for a key that the config does not have.
    """
    names = data.label_names or ["value"]
    labels: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": data.problem_type,
    }
    config = load_config(recipe, checkpoint, labels)
    if config.model_type == "vit_mae":
        # A masked autoencoder's encoder is a ViT with the same parameter names.
        known = {f.name for f in fields(ViTConfig)}
        shared = {k: v for k, v in config.to_dict().items() if k in known}
        config = ViTConfig(**shared | labels)
    return override(config, recipe)


def load_config(
    recipe: Recipe, checkpoint: sources.Checkpoint, values: dict[str, Any]
) -> PreTrainedConfig:
    """Returns the checkpoint's config, or the default one of its type, with some values."""
    if checkpoint.is_new:
        kind = checkpoint.name.removeprefix("new:")
        if kind not in CONFIG_MAPPING:
            where = recipe.where("model.checkpoint")
            refuse_unknown(kind, list(CONFIG_MAPPING), f"{where}: model type")
        # Without architectures=[] this fails for types with several classes (DeiT).
        return AutoConfig.for_model(kind, architectures=[], **values)
    return AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options, **values)


def override(config: PreTrainedConfig, recipe: Recipe) -> PreTrainedConfig:
    """Returns the config with the values of the recipe's ``model.config``.

    Raises:
        UserError: a value for a key that the config does not have.
    """
    known = [ATTENTION, *config.to_dict()]
    for name, value in recipe.model.config.items():
        if name not in known:
            where = recipe.where("model.config")
            refuse_unknown(name, known, f"{where}: {config.model_type} config key")
        # transformers stores it under another name and does not save it.
        setattr(config, "_attn_implementation" if name == ATTENTION else name, value)
    return config


def describe_head(checkpoint: sources.Checkpoint, data: "Corpus") -> list[str]:
    """Says what happens to the head of a checkpoint that is a classifier already."""
    if checkpoint.is_new:
        return []
    own: Any = AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options)
    if not any("Classification" in name for name in own.architectures or []):
        return []
    before, names = list(own.id2label.values()), data.label_names or ["value"]
    if len(before) != len(names):
        return [f"the checkpoint's head of {len(before)} is replaced by a new one of {len(names)}"]
    return [] if before == names else ["the checkpoint's head is kept under new label names"]
