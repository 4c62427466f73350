"""Model configs: the checkpoint's own, with a task's labels and the recipe's values."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, ViTConfig

from finetune.data import sources
from finetune.errors import refuse_unknown
from finetune.models import heads
from finetune.recipe import Recipe

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus

# A recipe names it like a key of config.json, as from_pretrained accepts it.
ATTENTION = "attn_implementation"
# What the model families call the dropout of attention probabilities.
ATTENTION_DROPOUT = ["attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"]


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
    """Returns the config with the values of ``attention_dropout`` and ``model.config``.

    Raises:
        UserError: a value for a key that the config does not have.
    """
    known = [ATTENTION, *config.to_dict()]
    if recipe.model.attention_dropout is not None:
        for name in attention_dropouts(config):
            setattr(config, name, recipe.model.attention_dropout)
    for name, value in recipe.model.config.items():
        if name not in known:
            where = recipe.where("model.config")
            refuse_unknown(name, known, f"{where}: {config.model_type} config key")
        # transformers stores it under another name and does not save it.
        setattr(config, "_attn_implementation" if name == ATTENTION else name, value)
    return config


def attention_dropouts(config: PreTrainedConfig) -> list[str]:
    """Returns the config's keys for the dropout of attention probabilities; none in T5."""
    return [name for name in ATTENTION_DROPOUT if name in config.to_dict()]


def added_tokens(config: PreTrainedConfig, checkpoint: sources.Checkpoint) -> range:
    """Returns the ids of the tokens that a config has more than the checkpoint's weights."""
    if not (checkpoint.folder / "config.json").is_file():
        return range(0)
    now, own = config.to_dict(), PreTrainedConfig.get_config_dict(checkpoint.folder)[0]
    if "vocab_size" not in now:
        return range(0)
    return range(own.get("vocab_size", now["vocab_size"]), now["vocab_size"])


def describe(recipe: Recipe, config: PreTrainedConfig, checkpoint: sources.Checkpoint) -> list[str]:
    """Says which of the recipe's values the model has no place for, and which tokens are new."""
    found = []
    if recipe.model.attention_dropout is not None and not attention_dropouts(config):
        found.append(f"{config.model_type} has no attention dropout of its own to set")
    if added := len(added_tokens(config, checkpoint)):
        found.append(f"{added} tokens of the tokenizer are new to the model, and learned")
    return found


def head_names(checkpoint: sources.Checkpoint) -> list[str] | None:
    """Returns the labels of a checkpoint that is a classifier already, in its head's order."""
    if checkpoint.is_new:
        return None
    own: Any = AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options)
    if not any("Classification" in name for name in own.architectures or []):
        return None
    return [str(name) for name in own.id2label.values()]


def describe_head(checkpoint: sources.Checkpoint, data: "Corpus") -> list[str]:
    """Says what happens to the head of a checkpoint that is a classifier already."""
    before, names = head_names(checkpoint), data.label_names or ["value"]
    if before is None or before == names:
        return []
    if len(before) != len(names):
        return [f"the checkpoint's head of {len(before)} is replaced by a new one of {len(names)}"]
    rows = heads.order(before, names)
    if rows is None:
        return ["the checkpoint's head is kept under new label names"]
    if rows == sorted(rows):
        return []
    return [f"the checkpoint's head is kept, its rows in the order {', '.join(names)}"[:300]]
