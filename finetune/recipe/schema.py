"""What a recipe may say: sections, types, command-line overrides, the resolved dump."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml

from finetune.recipe.strict_yaml import Dumper


def key(default: Any, help: str, **kwargs: Any) -> Any:
    """A dataclass field with the help text that ``--help`` and error messages show."""
    metadata = {"help": help, **kwargs}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    checkpoint: str = key(
        "", "embedded:NAME, a hub id, a folder, a run, or new:TYPE for random weights"
    )
    revision: str | None = key(None, "branch, tag or commit of a hub checkpoint")
    config: dict[str, Any] = key(dict, "values that replace the checkpoint's own config.json")  # noqa: RUF009
    quantization: Literal["nf4", "int8"] | None = key(
        None, "hold the frozen base in 4 bits (nf4) or 8 (int8) under an adapter"
    )
    image_size: int | None = key(None, "side of the images in pixels; the checkpoint's own", low=8)
    max_length: int = key(512, "tokens a row may have, special tokens included", low=3)
    truncation: Literal["head", "tail", "head+tail"] = key(
        "head", "tokens of a long text that stay: head, tail, head+tail"
    )
    mask_share: float = key(
        0.15, "masked language models: share of tokens hidden", low=0.01, high=0.9
    )
    whole_words: bool = key(False, "masked language models: hide words whole, not their pieces")
    head_share: float = key(0.25, "head+tail: the head's share of the tokens kept", low=0, high=1)
    padding_free: bool = key(True, "compute no padding, where the logits stay the same without")


@dataclass
class Data:
    dataset: str | None = key(None, "embedded:NAME, a hub id, or a folder with train.csv, test.csv")
    dataset_config: str | None = key(None, "configuration of a hub dataset")
    dataset_revision: str | None = key(None, "branch, tag or commit of a hub dataset")
    train: str | None = key(None, "file or folder (CSV, JSON lines, Parquet), or a split's name")
    validation: str | None = key(None, "the same for validation; carved from train if absent")
    test: str | None = key(None, "the same for test; a holdout of train if absent")
    text: str = key("text", "column of the text")
    image: str = key("image", "column of the image: a path, or the file itself")
    text_pair: str | None = key(None, "column of the second text of a pair")
    messages: str = key("messages", "language models: column of chats, where the table has it")
    prompt: str = key("prompt", "language models: column of prompts, with completions beside it")
    completion: str = key("completion", "language models: column of what is learned")
    label: str = key("label", "column of the label")
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = key(
        "single_label_classification",
        "what a label is; multi_label_classification and regression are the others",
    )
    label_separator: str = key(",", "multi-label: what separates labels in a text cell")
    encoding: str = key("utf-8", "encoding of CSV and JSON lines files")
    holdout: float = key(0.2, "test rows taken from train: a count, or a share below 1", low=0)
    validation_size: float = key(0.1, "validation rows taken from train; 0 for none", low=0)
    split_seed: int = key(0, "seed of the rows taken, the same for every training seed", low=0)
    max_train_samples: int | None = key(None, "use so many training rows (stratified)", low=1)
    max_test_samples: int | None = key(None, "use so many test rows (stratified)", low=1)
    streaming: bool = key(
        False, "language models: leave the training rows on disk; for more than memory holds"
    )
    allow_overlap: bool = key(False, "go on when train and test share texts")


@dataclass
class Augmentation:
    """How images are changed, in training and for views of a test image; else not at all."""

    crop_area: float = key(
        1.0, "least share of the area that a random crop keeps", low=0.01, high=1
    )
    flip: float = key(0.0, "chance of a mirror image, left to right", low=0, high=1)
    rotate: float = key(0.0, "turn by up to so many degrees either way", low=0, high=180)
    translate: float = key(0.0, "shift by up to this share of the side", low=0, high=1)
    scale: float = key(0.0, "zoom by up to this share, in and out", low=0, high=0.9)
    shear: float = key(0.0, "slant by up to so many degrees either way", low=0, high=60)
    randaugment_ops: int = key(0, "RandAugment: operations an image", low=0, high=8)
    randaugment_magnitude: float = key(9.0, "RandAugment: their strength, of 10", low=0, high=10)
    erase: float = key(0.0, "chance that a rectangle is replaced by noise", low=0, high=1)
    mixup: float = key(0.0, "mixup's alpha: blend pairs of images and labels; 0 for none", low=0)
    cutmix: float = key(0.0, "CutMix's alpha: paste a rectangle of another; 0 for none", low=0)
    test_views: int = key(
        0, "answer by the mean over an image and so many changed views of it", low=0, high=100
    )


@dataclass
class Tuning:
    method: str = key("full", "full, head, bitfit, bottleneck, lora or any other of peft's")
    layer_decay: float = key(1.0, "each layer's learning rate over the next one's", low=0, high=1)
    ema_decay: float = key(
        0.0, "average the weights over steps, for example 0.999; 0 for none", low=0, high=0.99999
    )
    skip_non_finite: int = key(
        0, "leave out up to so many steps whose loss or gradient is not finite, then stop", low=0
    )
    cache_features: bool = key(True, "head: compute the trunk's features once, without its dropout")
    options: dict[str, Any] = key(dict, "the method's own settings, by peft's names", hidden=True)  # noqa: RUF009


@dataclass
class Reference:
    metric: str = key("", "the metric of the published number")
    value: float = key(0.0, "the published number")
    source: str = key("", "where it was published: paper, table, model, split")
    split: Literal["official", "holdout"] = key("official", "the split it was measured on")


@dataclass
class Measured:
    metric: str = key("", "the metric of the number measured with this recipe")
    value: float = key(0.0, "the number")
    source: str = key("", "where, when and on what it was measured")


@dataclass
class Recipe:
    """A whole recipe. ``training`` is ``transformers.TrainingArguments``, key for key."""

    task: str
    model: Model
    data: Data
    tuning: Tuning
    training: dict[str, Any]
    reference: Reference | None
    name: str
    origin: dict[str, str]
    augmentation: Augmentation = field(default_factory=Augmentation)
    # Further metrics: built-in names, paths of .py files, ids of the hub.
    metrics: list[str] = field(default_factory=list)
    # A note on the file, not a setting: a run has its own numbers.
    measured: Measured | None = field(default=None, compare=False)

    def dump(self) -> str:
        """The recipe as YAML that loads to the same recipe, without our defaults."""
        out: dict[str, Any] = {"name": self.name, "task": self.task}
        for section in SECTIONS:
            value = getattr(self, section)
            if value is not None and section != "measured":
                out[section] = {
                    f.name: getattr(value, f.name)
                    for f in fields(value)
                    if f.name != "options" and getattr(value, f.name) != _default(f)
                }
        if not out["augmentation"]:
            del out["augmentation"]
        out["tuning"] = {"method": self.tuning.method, **out["tuning"], **self.tuning.options}
        if self.metrics:
            out["metrics"] = self.metrics
        out["training"] = self.training
        order = ["name", "task", "model", "data", "augmentation", "tuning"]
        order += ["metrics", "training", "reference"]
        return yaml.dump({k: out[k] for k in order if k in out}, Dumper=Dumper, sort_keys=False)

    def where(self, dotted: str) -> str:
        """The file and line, or the flag, that gave a key its value."""
        return self.origin.get(dotted, self.name)


NOTES: dict[str, type] = {"reference": Reference, "measured": Measured}
SETTINGS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "augmentation": Augmentation,
    "tuning": Tuning,
}
SECTIONS: dict[str, type] = SETTINGS | NOTES
FLAGS = {f.name: section for section, cls in SETTINGS.items() for f in fields(cls)}


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default
