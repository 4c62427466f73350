"""What classifiers of texts and images share: labelled configs, scores, answers."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, ViTConfig

from finetune.data import corpus, sources
from finetune.errors import refuse_unknown
from finetune.evaluation import extra_metrics, scoring
from finetune.evaluation.extra_metrics import ExtraMetric
from finetune.recipe import Recipe

# Said like a key of config.json, as from_pretrained takes it.
ATTENTION = "attn_implementation"


def labelled_config(
    recipe: Recipe, checkpoint: sources.Checkpoint, data: corpus.Corpus
) -> PreTrainedConfig:
    """The checkpoint's config with the data's labels and the recipe's own values.

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
    config = config_of(recipe, checkpoint, labels)
    if config.model_type == "vit_mae":
        # A masked autoencoder's encoder is a ViT, by the same names.
        known = {f.name for f in fields(ViTConfig)}
        shared = {k: v for k, v in config.to_dict().items() if k in known}
        config = ViTConfig(**shared | labels)
    return set_own(config, recipe)


def config_of(
    recipe: Recipe, checkpoint: sources.Checkpoint, values: dict[str, Any]
) -> PreTrainedConfig:
    """The checkpoint's config, or its type's own, with some values."""
    if checkpoint.is_new:
        kind = checkpoint.name.removeprefix("new:")
        if kind not in CONFIG_MAPPING:
            where = recipe.where("model.checkpoint")
            refuse_unknown(kind, list(CONFIG_MAPPING), f"{where}: model type")
        # None would do, but for the types with several classes (DeiT).
        return AutoConfig.for_model(kind, architectures=[], **values)
    return AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options, **values)


def set_own(config: PreTrainedConfig, recipe: Recipe) -> PreTrainedConfig:
    """The config with the recipe's own values.

    Raises:
        UserError: a value for a key that the config does not have.
    """
    known = [ATTENTION, *config.to_dict()]
    for name, value in recipe.model.config.items():
        if name not in known:
            where = recipe.where("model.config")
            refuse_unknown(name, known, f"{where}: {config.model_type} config key")
        # transformers keeps it under another name, and out of what it saves.
        setattr(config, "_attn_implementation" if name == ATTENTION else name, value)
    return config


def head_notes(checkpoint: sources.Checkpoint, data: corpus.Corpus) -> list[str]:
    """What becomes of the head that a checkpoint of a classifier brings; nothing for others."""
    if checkpoint.is_new:
        return []
    own: Any = AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options)
    if not any("Classification" in name for name in own.architectures or []):
        return []
    before, names = list(own.id2label.values()), data.label_names or ["value"]
    if len(before) != len(names):
        return [f"the checkpoint's head of {len(before)} gives way to a new one of {len(names)}"]
    return [] if before == names else ["the checkpoint's head goes on under other label names"]


def scorer(data: corpus.Corpus, extra: dict[str, ExtraMetric]) -> Callable[..., dict[str, Any]]:
    """(logits, labels, resamples) -> all scores of this corpus's problem."""

    def score(logits: numpy.ndarray, labels: numpy.ndarray, resamples: int) -> dict[str, Any]:
        kind = data.problem_type
        scores = scoring.score(kind, logits, labels, data.label_names, resamples)
        references = labels if kind == "regression" else labels.astype(int)
        scores["metrics"] |= extra_metrics.measure(
            extra, predictions(logits, kind), references, resamples
        )
        return scores

    return score


def predictions(logits: numpy.ndarray, problem_type: str) -> numpy.ndarray:
    """Logits (N, K) -> class indices (N,), 0/1 (N, K), or numbers (N,) for regression."""
    if problem_type == "single_label_classification":
        return logits.argmax(1)
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(int)
    return logits.reshape(len(logits))


def answers(logits: numpy.ndarray, problem_type: str, names: list[str]) -> list[dict[str, Any]]:
    """What a user reads for each of N rows: logits (N, K) -> prediction and probabilities."""
    values = scoring.probabilities(problem_type, logits)
    if problem_type == "regression":
        return [{"prediction": float(row[0])} for row in values]
    out = []
    for row in values:
        scores = {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}
        if problem_type == "single_label_classification":
            prediction: Any = names[int(row.argmax())]
        else:
            prediction = [name for name, p in zip(names, row, strict=True) if p > 0.5]
        out.append({"prediction": prediction, "probabilities": scores})
    return out
