"""What a recipe can contain: its sections, their types and ranges, and the resolved dump.

The help text of a key is written here once; ``--help`` and error messages show it.
It is one file because the keys are one list.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from finetune.recipe.strict_yaml import Dumper

# The place of values that nobody wrote.
GUESSED = "guessed"


def key(default: Any, help: str, hidden: bool = False) -> Any:
    """Returns a dataclass field with its help text; hidden ones are not written by name."""
    metadata = {"help": help, "hidden": hidden}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Model:
    checkpoint: str = key(
        "", "embedded:NAME, a hub id, a folder, a run, or new:TYPE for random weights"
    )
    revision: str | None = key(None, "branch, tag or commit of a hub checkpoint")
    config: dict[str, Any] = key(dict, "values that replace the checkpoint's own config.json")  # noqa: RUF009
    attention_dropout: Annotated[float | None, Field(ge=0, lt=1)] = key(
        None, "dropout of attention probabilities, if not the checkpoint's own"
    )
    quantization: Literal["nf4", "int8"] | None = key(
        None, "hold the frozen base model in 4 bits (nf4) or 8 bits (int8) under an adapter"
    )
    image_size: Annotated[int | None, Field(ge=8)] = key(
        None, "side of the images in pixels, if not the checkpoint's own"
    )
    max_length: Annotated[int, Field(ge=3)] = key(512, "tokens per row, special tokens included")
    truncation: Literal["head", "tail", "head+tail"] = key(
        "head", "which tokens of a long text are kept: head, tail, head+tail"
    )
    mask_share: Annotated[float, Field(ge=0.01, le=0.9)] = key(
        0.15, "masked language models: share of tokens to mask"
    )
    whole_words: bool = key(False, "masked language models: mask whole words")
    head_share: Annotated[float, Field(ge=0, le=1)] = key(
        0.25, "truncation head+tail: share of the kept tokens from the head"
    )
    layers: Annotated[int | None, Field(ge=1)] = key(
        None, "keep so many of the checkpoint's layers, evenly spaced"
    )
    heads: Annotated[int | None, Field(ge=1)] = key(
        None, "keep so many attention heads in every layer, the most important for training rows"
    )
    feed_forward: Annotated[int | None, Field(ge=1)] = key(
        None, "keep so many feed-forward neurons in every layer, by the same importance"
    )
    stride: Annotated[int | None, Field(ge=1)] = key(
        None, "tokens that windows of a long context share; default: a quarter of max_length"
    )
    max_answer_length: Annotated[int, Field(ge=1)] = key(
        30, "question answering: tokens that a predicted answer has at most"
    )
    max_target_length: Annotated[int, Field(ge=2)] = key(
        128, "encoder-decoders: tokens per target, special tokens included; also generated at most"
    )
    source_prefix: str = key("", "encoder-decoders: text before every source: 'summarize: '")
    generation: dict[str, Any] = key(  # noqa: RUF009
        dict, "encoder-decoders: values that replace the checkpoint's own generation_config.json"
    )
    token_pattern: str | None = key(
        None,
        "new encoder-decoders: a regular expression of a token; default: byte pairs are learned",
    )
    padding_free: bool = key(
        True, "do not compute padding tokens, for models whose logits stay the same"
    )


@dataclass(frozen=True)
class Data:
    dataset: str | None = key(
        None, "embedded:NAME, a hub id, or a folder with train.csv and test.csv"
    )
    dataset_config: str | None = key(None, "configuration of a hub dataset")
    dataset_revision: str | None = key(None, "branch, tag or commit of a hub dataset")
    train: list[str] | str | None = key(  # noqa: RUF009
        None, "files (a list, a,b or a pattern with *), a folder, or a split such as train[:50%]"
    )
    validation: list[str] | str | None = key(  # noqa: RUF009
        None, "the same for validation; default: taken from train"
    )
    test: list[str] | str | None = key(  # noqa: RUF009
        None, "the same for test; default: a holdout of train"
    )
    add_feedback: list[str] | str | None = key(  # noqa: RUF009
        None, "runs (a list, or a,b) whose corrections, made while they were served, join train"
    )
    corrections: list[str] | str | None = key(  # noqa: RUF009
        None, "files of training rows with corrected labels, such as a run's label_errors.csv"
    )
    text: str = key("text", "column of the text")
    image: str = key("image", "column of the image: a path, or the file's bytes")
    image_folder: str | None = key(
        None, "tables: folder of the images, if not that of the table; suffixes may be missing"
    )
    label_levels: Annotated[int | None, Field(ge=1)] = key(
        None, "class folders: how many levels of folders make a label, 2 for animal/cat"
    )
    text_pair: str | None = key(None, "column of the second text of a pair")
    messages: str = key("messages", "causal LMs: column of chats")
    prompt: str = key("prompt", "causal LMs: column of prompts, used with completion")
    completion: str = key("completion", "causal LMs: column of the completions to learn")
    source: str = key(
        "source", "encoder-decoders: column of the text to read, or a part of it: translation.en"
    )
    target: str = key("target", "encoder-decoders: column of the text to write")
    source_language: str | None = key(
        None, "multilingual encoder-decoders: the tokenizer's code of the source's language"
    )
    target_language: str | None = key(None, "the same for the target")
    turns: Literal["together", "each"] = key(
        "together", "chats: learn all answers of a chat in one row, or each in a row of its own"
    )
    date: str = key("2024-07-26", "chats: what a template prints that prints the current date")
    question: str = key("question", "question answering: column of the question")
    context: str = key("context", "question answering: column of the text that has the answer")
    answers: str = key(
        "answers", "question answering: column of the answers, as in SQuAD or as texts"
    )
    answer_start: str = key(
        "answer_start", "question answering: column of the character at which an answer starts"
    )
    query: str = key("query", "search: column of the query")
    passage: str = key(
        "passage", "search: column of the relevant passage, a list of them, or ids of the corpus"
    )
    negative: str | None = key(
        None, "search: column of passages that look relevant and are not, as passage"
    )
    corpus: str | None = key(
        None, "search: a file of passages to search, whose ids the rows then have as passages"
    )
    mined_negatives: Annotated[int, Field(ge=0)] = key(
        0, "search: passages for each training query that the model wrongly ranks high at first"
    )
    label: list[str] | str = key(  # noqa: RUF009
        "label", "column of the label; multi-label: also a list of columns of 0 and 1"
    )
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = key(
        "single_label_classification",
        "single_label_classification, multi_label_classification or regression",
    )
    label_separator: str = key(",", "multi-label: separator of the labels in a text cell")
    label_names: list[str] | None = key(  # noqa: RUF009
        None, "names of the classes, by the number or the place in a 0/1 list that a label is"
    )
    label_case: Literal["keep", "fold"] = key(
        "keep", "fold: labels that differ only in case or outer blanks are one class"
    )
    broken_tags: Literal["mend", "reject"] = key(
        "mend", "token classification: mend tags that break their scheme, or reject the row"
    )
    decimal: Literal[".", ","] = key(".", "regression: the decimal mark of labels")
    encoding: str | None = key(None, "encoding of text files; default: detected")
    delimiter: str | None = key(
        None, "delimiter of CSV files: a character, or tab; default: detected"
    )
    header: Literal["first", "none"] = key(
        "first", "none: the first line of a table is a row, and columns are named 1, 2, ..."
    )
    sample_by: Literal["line", "paragraph", "document"] | None = key(
        None, "plain text files: what a row is; default: line, in a folder document"
    )
    max_rejected: Annotated[float | None, Field(ge=0)] = key(
        None, "unusable rows to leave out at most: a count, or a share; default: 1 % or 20 rows"
    )
    holdout: Annotated[float, Field(ge=0)] = key(
        0.2, "test rows taken from train: a count, or a share below 1"
    )
    validation_size: Annotated[float, Field(ge=0)] = key(
        0.1, "validation rows taken from train: a count, or a share; 0 for none"
    )
    split_seed: Annotated[int, Field(ge=0)] = key(
        0, "seed of the holdout and validation rows, independent of the training seed"
    )
    sample_seed: Annotated[int | None, Field(ge=0)] = key(
        None, "seed of the rows that max_train_samples uses; default: split_seed"
    )
    max_train_samples: Annotated[int | None, Field(ge=1)] = key(
        None, "number of training rows to use (stratified)"
    )
    max_test_samples: Annotated[int | None, Field(ge=1)] = key(
        None, "number of test rows to use (stratified)"
    )
    streaming: bool = key(
        False, "causal LMs: read training rows from disk, for data that exceeds memory"
    )
    allow_overlap: bool = key(False, "accept texts that are in both train and test")
    untested: bool = key(
        False, "leave the test split unread and score the validation rows, as trials of a sweep do"
    )


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training texts or images, and to views of a test image; none by default."""

    word_dropout: Annotated[float, Field(ge=0, le=0.9)] = key(
        0.0, "texts: probability that a word is left out"
    )
    synonyms: Annotated[float, Field(ge=0, le=1)] = key(
        0.0, "English texts: probability that a word becomes a synonym of WordNet"
    )
    crop_area: Annotated[float, Field(ge=0.01, le=1)] = key(
        1.0, "random crop: smallest share of the image's area"
    )
    flip: Annotated[float, Field(ge=0, le=1)] = key(0.0, "probability of a horizontal flip")
    rotate: Annotated[float, Field(ge=0, le=180)] = key(0.0, "rotation: largest angle in degrees")
    translate: Annotated[float, Field(ge=0, le=1)] = key(
        0.0, "translation: largest share of the image's side"
    )
    scale: Annotated[float, Field(ge=0, le=0.9)] = key(0.0, "zoom in or out: largest share")
    shear: Annotated[float, Field(ge=0, le=60)] = key(0.0, "shear: largest angle in degrees")
    randaugment_ops: Annotated[int, Field(ge=0, le=8)] = key(0, "RandAugment: operations per image")
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = key(
        9.0, "RandAugment: magnitude, from 0 to 10"
    )
    erase: Annotated[float, Field(ge=0, le=1)] = key(
        0.0, "random erasing: probability that a rectangle becomes noise"
    )
    mixup: Annotated[float, Field(ge=0)] = key(
        0.0, "mixup: alpha of the blend of two images and labels; 0 for none"
    )
    cutmix: Annotated[float, Field(ge=0)] = key(
        0.0, "CutMix: alpha of the pasted rectangle's area; 0 for none"
    )
    test_views: Annotated[int, Field(ge=0, le=100)] = key(
        0, "test-time augmentation: number of changed views averaged with the image"
    )


@dataclass(frozen=True)
class Classes:
    """How a classifier weights, decides and calibrates its classes; nothing special by default."""

    class_weights: dict[str, float] | Literal["balanced"] | None = key(  # noqa: RUF009
        None, "weights of the classes in the loss: balanced, or {name: weight}, 1 for other names"
    )
    loss: Literal["cross_entropy", "focal"] = key(
        "cross_entropy", "focal: rows that are predicted well count less (Lin et al. 2017)"
    )
    focal_gamma: Annotated[float, Field(ge=0)] = key(
        2.0, "loss focal: the power of 1 minus the label's probability"
    )
    sampler: Literal["shuffled", "balanced"] = key(
        "shuffled", "balanced: an epoch has as many rows, but as many of each class; rows repeat"
    )
    threshold: Literal["f1", "cost"] | None = key(
        None, "several labels, or two classes: choose thresholds on the validation rows by this"
    )
    missed_cost: Annotated[float, Field(gt=0)] = key(
        1.0, "threshold cost: the cost of a missed row of a class; a false alarm costs 1"
    )
    calibrate: bool = key(
        False, "fit a temperature on the validation rows, and put it into the head's weights"
    )
    abstain: Annotated[float | None, Field(gt=0, lt=1)] = key(
        None, "mark predictions whose probability is lower; the report shows what that costs"
    )


@dataclass(frozen=True)
class Distillation:
    """A finished run whose model is a teacher and a baseline; none by default."""

    teacher: str | None = key(None, "a run directory; its model is a baseline, and taught from")
    label_weight: Annotated[float, Field(ge=0, le=1)] = key(
        0.5, "share of the loss that is for the labels; the rest is for the teacher's logits"
    )
    temperature: Annotated[float, Field(gt=0)] = key(
        2.0, "what the logits of teacher and student are divided by before they are compared"
    )
    hidden_weight: Annotated[float, Field(ge=0)] = key(
        0.0, "weight of the distance between the hidden states of the first token, layer by layer"
    )
    unlabelled: str | None = key(
        None, "a file of further training texts, whose labels are the teacher's predictions"
    )


@dataclass(frozen=True)
class Tuning:
    method: str = key(
        "full", "full, head, bitfit, contrastive, bottleneck, lora or another method of peft"
    )
    layer_decay: Annotated[float, Field(ge=0, le=1)] = key(
        1.0, "layer-wise learning rate decay: each layer's rate relative to the next one's"
    )
    ema_decay: Annotated[float, Field(ge=0, le=0.99999)] = key(
        0.0, "decay of an EMA of the weights, for example 0.999; 0 for none"
    )
    skip_non_finite: Annotated[int, Field(ge=0)] = key(
        0, "number of steps with a non-finite loss or gradient to skip before stopping"
    )
    cache_features: bool = key(
        True, "method head: compute the encoder's features once, without its dropout"
    )
    options: dict[str, Any] = key(dict, "the method's own settings, by peft's names", hidden=True)  # noqa: RUF009


@dataclass(frozen=True)
class Reference:
    metric: str = key("", "the metric of the published number")
    value: float = key(0.0, "the published number")
    source: str = key("", "where it was published: paper, table, model, split")
    split: Literal["official", "holdout"] = key("official", "the split it was measured on")


@dataclass(frozen=True)
class Measured:
    metric: str = key("", "the metric of the number measured with this recipe")
    value: float = key(0.0, "the number")
    source: str = key("", "where, when and on what it was measured")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. ``training`` holds keys of ``transformers.TrainingArguments``.

    Frozen; its dicts are not to be changed either. ``origin`` is the place of each value, by
    ``section.key``: a file and line, or a flag.
    """

    task: str
    model: Model
    data: Data
    tuning: Tuning
    training: dict[str, Any]
    reference: Reference | None
    name: str
    origin: dict[str, str]
    augmentation: Augmentation = field(default_factory=Augmentation)
    classes: Classes = field(default_factory=Classes)
    distillation: Distillation = field(default_factory=Distillation)
    # Further metrics: built-in names, paths of .py files, ids of the hub.
    metrics: list[str] = field(default_factory=list)
    # A note in the file, not a setting: a run has its own numbers.
    measured: Measured | None = field(default=None, compare=False)
    # Whether the runner chooses micro-batches; ``training`` then has the rows of a step.
    auto_batch: bool = field(default=False, compare=False)

    def dump(self) -> str:
        """Returns YAML that loads to the same recipe.

        Without keys at their default, except those that were guessed.
        """
        out: dict[str, Any] = {"name": self.name, "task": self.task}
        for section in SECTIONS:
            value = getattr(self, section)
            if value is not None and section != "measured":
                out[section] = {
                    f.name: getattr(value, f.name)
                    for f in fields(value)
                    if f.name != "options"
                    and (
                        getattr(value, f.name) != _default(f)
                        or self.origin.get(f"{section}.{f.name}") == GUESSED
                    )
                }
        for section in ("augmentation", "classes", "distillation"):
            if not out[section]:
                del out[section]
        out["tuning"] = {"method": self.tuning.method, **out["tuning"], **self.tuning.options}
        if self.metrics:
            out["metrics"] = self.metrics
        out["training"] = self.training
        order = ["name", "task", "model", "data", "augmentation", "classes", "distillation"]
        order += ["tuning", "metrics", "training", "reference"]
        return yaml.dump({k: out[k] for k in order if k in out}, Dumper=Dumper, sort_keys=False)

    def where(self, dotted: str) -> str:
        """Returns the file and line, or the flag, that gave a key its value."""
        return self.origin.get(dotted, self.name)


NOTES: dict[str, type] = {"reference": Reference, "measured": Measured}
SETTINGS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "augmentation": Augmentation,
    "classes": Classes,
    "distillation": Distillation,
    "tuning": Tuning,
}
SECTIONS: dict[str, type] = SETTINGS | NOTES
FLAGS = {f.name: section for section, cls in SETTINGS.items() for f in fields(cls)}


def default_values() -> dict[str, Any]:
    """Returns the default of every key of the settings, by ``section.key``."""
    return {
        f"{section}.{f.name}": _default(f) for section, cls in SETTINGS.items() for f in fields(cls)
    }


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default
