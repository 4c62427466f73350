"""Text classification: one label, several labels or a number for a text or a pair of texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.import_utils import is_torch_xla_available

from finetune.data import corpus, readers, sources, token_cache
from finetune.data.batching import within
from finetune.errors import UserError
from finetune.evaluation import baselines, extra_metrics, metrics
from finetune.models import positions, pretrained, tuning
from finetune.models.speed import cached_features, padding_free
from finetune.recipe import Augmentation, Model, Recipe
from finetune.tasks.classification import ATTENTION, answers, head_notes, labelled_config, scorer
from finetune.training.job import Job
from finetune.training.losses import classification_loss

AUTO_MODEL = AutoModelForSequenceClassification
AUTO_PROCESSOR = AutoTokenizer
# Rows that are encoded at once to be answered: enough to find others of like length.
WINDOW = 1024
# What evaluation holds at once: so many rows, or fewer whose tokens would be more than that.
EVAL_ROWS, EVAL_TOKENS = 64, 32_768


def kept(length: int, budget: int, truncation: str, head_share: float) -> list[int]:
    """Which of ``length`` tokens stay when only ``budget`` may: their positions, in order.

    ``head+tail`` keeps the first ``head_share`` of the budget and fills up from the end (Sun et
    al. 2019, section 5.3.1, with 128 of 510 tokens from the head).
    """
    if length <= budget:
        return list(range(length))
    head = {"head": budget, "tail": 0, "head+tail": round(budget * head_share)}[truncation]
    return [*range(head), *range(length - (budget - head), length)]


def encode(
    rows: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, model: Model
) -> dict[str, list[Any]]:
    """Texts (B) -> model inputs: lists of at most ``max_length`` ids a row, and their lengths.

    A pair gives up tokens of its longer text first. Special tokens always stay, so every
    truncation works for every tokenizer. ``truncated`` says which rows lost tokens.
    """
    encoded = tokenizer(rows["text"], rows.get("text_pair"), truncation=False, verbose=False)
    names = [name for name in encoded if name in tokenizer.model_input_names]
    out: dict[str, list[Any]] = {name: [] for name in names}
    out |= {"length": [], "truncated": []}
    for i, ids in enumerate(encoded["input_ids"]):
        keep: list[int] | slice = slice(None)
        if len(ids) > model.max_length:
            part = encoded.sequence_ids(i)
            first = [p for p, s in enumerate(part) if s == 0]
            second = [p for p, s in enumerate(part) if s == 1]
            budget = model.max_length - (len(ids) - len(first) - len(second))
            # The shorter text keeps all it has up to half, the longer one gets the rest.
            share = max(budget - len(second), min(len(first), budget - budget // 2))
            a = kept(len(first), min(share, budget), model.truncation, model.head_share)
            b = kept(len(second), budget - len(a), model.truncation, model.head_share)
            chosen = {first[p] for p in a} | {second[p] for p in b}
            keep = [p for p, s in enumerate(part) if s is None or p in chosen]
        for name in names:
            row = encoded[name][i]
            out[name].append(row[keep] if isinstance(keep, slice) else [row[p] for p in keep])
        out["length"].append(len(out["input_ids"][-1]))
        out["truncated"].append(len(ids) > model.max_length)
    return out


def build(recipe: Recipe) -> Job:
    """The recipe's data, tokenizer and model, ready for the runner.

    Raises:
        UserError: the data, the checkpoint and the recipe do not fit each other.
    """
    tuning.check(recipe)
    if recipe.augmentation != Augmentation():
        raise UserError(f"{recipe.name}: augmentation changes images; leave it out for texts")
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    data = corpus.load(recipe.data)
    extra = extra_metrics.load(
        recipe.metrics, data.problem_type, len(data.label_names), recipe.where("metrics")
    )
    config = labelled_config(recipe, checkpoint, data)
    tokenizer = tokenizer_of(recipe, checkpoint, config)

    def compact(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        encoded = encode(rows, tokenizer, recipe.model)
        # What stays on disk as Python's integers would take up twice to eight times the room.
        kinds = {name: "int32" if name == "input_ids" else "int8" for name in encoded}
        return {
            name: [numpy.array(cell, kinds[name]) for cell in cells]
            if name in tokenizer.model_input_names
            else cells
            for name, cells in encoded.items()
        }

    def dataset(frame: pandas.DataFrame) -> Dataset:
        texts = frame.drop(columns="label")
        model = recipe.model
        cut = (model.max_length, model.truncation, model.head_share)
        rows = token_cache.once(texts, "", tokenizer, compact, "classes", *cut)
        return rows.add_column("labels", frame["label"].tolist())

    splits = {name: dataset(getattr(data, name)) for name in ("train", "test")}
    # Tokenizers fail on no text at all.
    none = Dataset.from_dict({name: [] for name in splits["train"].column_names})
    splits["validation"] = dataset(data.validation) if len(data.validation) else none
    share = float(numpy.mean(splits["train"]["truncated"]))
    data.report["share_truncated"] = share
    if share == 1.0:
        print(f"warning: every training text is longer than max_length {recipe.model.max_length}")

    model = pretrained.load(AUTO_MODEL, checkpoint, config, recipe)
    model = tuning.apply(model, recipe, checkpoint)
    padded = "the recipe says so"
    if named := recipe.model.config.get(ATTENTION):
        padded = f"the recipe asks for {named} attention"
    elif recipe.model.padding_free:
        padded = padding_free.enable(model, recipe.training)
    notes = head_notes(checkpoint, data)
    notes.append(f"batches padded: {padded}" if padded else "batches without padding")
    # XLA compiles a step anew for every shape that it meets.
    padding = "max_length" if is_torch_xla_available() else True
    collator: Any = DataCollatorWithPadding(tokenizer, padding)
    if recipe.tuning.method == "head" and recipe.tuning.cache_features:
        assert isinstance(model, PreTrainedModel)
        uncached = cached_features.replace(model, splits, collator, recipe.training)
        if uncached:
            notes.append(f"the trunk runs every epoch: {uncached}")
        else:
            collator = cached_features.collate
            notes.append("the trunk's features computed once, without its dropout")
    smoothing = float(recipe.training.get("label_smoothing_factor", 0.0))
    longest = max([1, *splits["validation"]["length"], *splits["test"]["length"]])
    if padding == "max_length":
        longest = recipe.model.max_length
    at_once = max(1, min(EVAL_ROWS, EVAL_TOKENS // longest))
    return Job(
        model=model,
        checkpoint=checkpoint,
        processor=tokenizer,
        collator=collator,
        splits=splits,
        data=data,
        loss=classification_loss(data.problem_type, smoothing),
        score=scorer(data, extra),
        headline=metrics.HEADLINE[data.problem_type],
        extra_metrics={name: each.spec for name, each in extra.items()},
        baselines=lambda: baselines.for_texts(data),
        answers=lambda logits: answers(logits, data.problem_type, data.label_names),
        training={"per_device_eval_batch_size": at_once},
        notes=notes,
    )


def tokenizer_of(
    recipe: Recipe, checkpoint: sources.Checkpoint, config: PreTrainedConfig
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer with a padding token, held to ``max_length``.

    Raises:
        UserError: there is none, it is another model's, or ``max_length`` is more than it allows.
    """
    names = {"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"}
    names |= {"sentencepiece.bpe.model"}
    if not checkpoint.gguf and not any((checkpoint.folder / name).is_file() for name in names):
        raise UserError(f"{checkpoint.name}: has no tokenizer; a made-up one would learn nothing")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{checkpoint.name}: its tokenizer has {len(tokenizer)} tokens, its model only "
            f"{config.vocab_size}; they do not belong together"
        )
    # What the tokenizer was told and what the positions allow; some say neither.
    most = min(tokenizer.model_max_length, positions.most_tokens(config))
    if recipe.model.max_length > most:
        where = recipe.where("model.max_length")
        raise UserError(
            f"{where}: max_length {recipe.model.max_length} is more than the model's {most}"
        )
    tokenizer.model_max_length = recipe.model.max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def read_rows(texts: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows to label: ``text``, and ``text_pair`` for pairs.

    Args:
        texts: given one by one.
        file: a table with the recipe's text columns, instead of ``texts``.

    Raises:
        UserError: no rows, or a column is missing.
    """
    data = recipe.data
    names = {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})
    if file:
        cells = readers.read_columns(Path(file), list(names.values()), data.encoding)
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    lines = [line for line in texts if line.strip()]
    if not lines:
        raise UserError("there is no text to label")
    if data.text_pair:
        raise UserError(f"{recipe.name}: labels pairs of texts; give them with --file")
    return [{"text": line} for line in lines]


def batches(
    rows: list[dict[str, Any]], tokenizer: Any, recipe: Recipe, size: int
) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
    """Row numbers and model inputs of batches, the longest of ``WINDOW`` rows first.

    No batch holds more tokens, padding included, than ``size`` rows of ``max_length`` do, so what
    an answer takes in memory does not grow with the rows.
    """
    names = [name for name in rows[0] if name.startswith("text")]
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        columns = {name: [row[name] for row in window] for name in names}
        encoded = encode(columns, tokenizer, recipe.model)
        inputs = [name for name in encoded if name not in {"length", "truncated"}]
        for chosen in within(encoded["length"], size * recipe.model.max_length):
            yield (
                start + chosen,
                tokenizer.pad(
                    {name: [encoded[name][i] for i in chosen] for name in inputs},
                    return_tensors="pt",
                ),
            )
