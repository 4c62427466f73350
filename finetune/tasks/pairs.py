"""Encodes sources with their targets, and trains the tokenizer of a new model on them."""

from typing import TYPE_CHECKING, Any

import numpy
import pandas
from datasets import Dataset

from finetune.data import pair_tokenizer, sources, token_cache
from finetune.errors import UserError
from finetune.models import encoder_decoder, positions
from finetune.recipe import Recipe
from finetune.tasks import text

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus

# Columns that tell whether the source and the target were cut.
CUT = ["cut", "cut_target"]


def tokenizer_of(
    recipe: Recipe, checkpoint: sources.Checkpoint, config: Any, data: "Corpus"
) -> Any:
    """The checkpoint's tokenizer, or for a new model one trained on the training rows."""
    # An encoder that serves twice has its config inside.
    config = config.encoder if config.model_type == encoder_decoder.TWICE else config
    most, model = positions.most_tokens(config), recipe.model
    if model.max_target_length > most:
        raise UserError(
            f"{recipe.where('model.max_target_length')}: max_target_length "
            f"{model.max_target_length} is more than the model's {most}"
        )
    if not checkpoint.is_new:
        tokenizer = text.load_tokenizer(recipe, checkpoint, config)
        encoder_decoder.set_languages(tokenizer, recipe)
        return tokenizer
    text.check_max_length(recipe, most)
    given = [model.source_prefix, *data.train["source"].unique(), *data.train["label"]]
    where = recipe.where("model.token_pattern")
    tokenizer = pair_tokenizer.train(given, config.vocab_size, model.token_pattern, where)
    encoder_decoder.set_languages(tokenizer, recipe)
    config.vocab_size = len(tokenizer)
    tokenizer.model_max_length = model.max_length
    return tokenizer


def encoded(frame: pandas.DataFrame, tokenizer: Any, recipe: Recipe, start: int) -> Dataset:
    """Rows as token ids, through the token cache.

    Rows have ``input_ids``, ``attention_mask``, ``labels``, ``length`` (of both), and ``CUT``.
    Where a row has several targets, they are those of the first.
    """
    model, data = recipe.model, recipe.data

    def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [model.source_prefix + source for source in rows["source"]]
        made = text.encode({"text": texts}, tokenizer, model)
        labels, cut = _targets(rows["target"], tokenizer, model.max_target_length, start)
        lengths = zip(made["length"], labels, strict=True)
        return {
            "input_ids": [numpy.array(ids, numpy.int32) for ids in made["input_ids"]],
            "attention_mask": [numpy.array(mask, numpy.int8) for mask in made["attention_mask"]],
            "labels": [numpy.array(ids, numpy.int32) for ids in labels],
            "length": [length + len(ids) for length, ids in lengths],
            "cut": made["truncated"],
            "cut_target": cut,
        }

    first = [label if isinstance(label, str) else label[0] for label in frame["label"]]
    rows = frame[["id", "source"]].assign(target=first)
    if not len(rows):
        names = ("input_ids", "attention_mask", "labels", "length", *CUT)
        return Dataset.from_dict({name: [] for name in names})
    keys = (model.max_length, model.truncation, model.head_share, model.max_target_length)
    languages = (data.source_language, data.target_language)
    return token_cache.once(
        rows, "", tokenizer, encode, "pairs", *keys, model.source_prefix, *languages, start
    )


def _targets(
    cells: list[str], tokenizer: Any, most: int, start: int
) -> tuple[list[list[int]], list[bool]]:
    """Returns the tokens to predict, the end included, and whether each target was cut."""
    out, cut = [], []
    for cell, ids in zip(cells, tokenizer(text_target=cells)["input_ids"], strict=True):
        # BERT's [CLS], which the decoder starts with, is not predicted.
        skip = int(ids[:1] == [start])
        cut.append(len(ids) - skip > most)
        if cut[-1]:
            limit = most + skip
            ids = tokenizer(text_target=cell, truncation=True, max_length=limit)["input_ids"]
        out.append(ids[skip:])
    return out, cut


def describe_cut(splits: dict[str, Dataset], recipe: Recipe) -> list[str]:
    """Returns phrases that count the sources and targets that were cut, by split."""
    model, found = recipe.model, []
    limits = [
        ("sources", f"max_length {model.max_length}"),
        ("targets", f"max_target_length {model.max_target_length}"),
    ]
    for split, rows in splits.items():
        for column, (what, limit) in zip(CUT, limits, strict=True):
            if count := sum(rows[column]):
                # Texts are scored against whole targets.
                only = ", for the loss only" if split != "train" and what == "targets" else ""
                found.append(f"{count:,} of {len(rows):,} {split} {what} cut to {limit}{only}")
    return found
