"""What tasks that train an encoder of embeddings share: the model, its folder, encoded texts."""

from pathlib import Path
from typing import Any

import pandas
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from finetune.data import sources, token_cache
from finetune.errors import UserError
from finetune.models import configs, embeddings, pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import searches, text
from finetune.tasks.base import Task

# Columns of an encoded text that are not the model's.
CUT = ("length", "truncated")


class Encoder(Task):
    """A task whose model gives embeddings, and whose folder is one of sentence-transformers."""

    auto_model = embeddings.AutoModelForEmbeddings
    auto_processor = AutoTokenizer
    hub_tag = "sentence-similarity"

    def finish(self, recipe: Recipe, folder: Path) -> None:
        # An adapter gets them when it is merged.
        if not (folder / "adapter_config.json").is_file():
            config = AutoConfig.from_pretrained(folder)
            embeddings.save_modules(config, recipe.model.max_length, folder)

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})


def check(recipe: Recipe, task: str) -> None:
    """Checks what does not need the data.

    Raises:
        UserError: a package is missing, or a method or batch does not fit.
    """
    searches.check(recipe, task)
    method, where = recipe.tuning.method, recipe.where("tuning.method")
    if method == "head" or tuning.is_prompt(method):
        reason = "has no head to train" if method == "head" else f"gets no tokens by {method}"
        raise UserError(f"{where}: an encoder of embeddings {reason}; take lora, or full")
    if recipe.auto_batch or recipe.training.get("gradient_accumulation_steps", 1) > 1:
        raise UserError(
            f"{recipe.where('training.gradient_accumulation_steps')}: the rows of a batch are "
            "compared with each other, so it cannot be divided; set per_device_train_batch_size, "
            "and activation_checkpointing: true if memory is short"
        )


def load(recipe: Recipe, checkpoint: sources.Checkpoint) -> tuple[Any, Any, list[str]]:
    """Returns the model that the recipe trains, its tokenizer, and notes about them."""
    config = configs.override(configs.load_config(recipe, checkpoint, {}), recipe)
    config = embeddings.complete(config, checkpoint)
    tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
    model = pretrained.load(embeddings.AutoModelForEmbeddings, checkpoint, config, recipe)
    model = tuning.apply(model, recipe, checkpoint)
    batching = text.skip_padding(model, recipe)
    return model, tokenizer, [*configs.describe(recipe, config, checkpoint), batching]


def encoded(given: list[str], tokenizer: Any, recipe: Recipe) -> tuple[Dataset, list[int], str]:
    """Returns texts (N) as model inputs, their lengths, and a note if some are cut."""
    model = recipe.model
    keys = (model.max_length, model.truncation, model.head_share)

    def encode(part: dict[str, list[str]]) -> dict[str, list[Any]]:
        return text.encode(part, tokenizer, model)

    rows = pandas.DataFrame({"id": "", "text": given}, dtype=object)
    found = token_cache.once(rows, "", tokenizer, encode, "embeddings", *keys)
    cut = sum(found["truncated"])
    note = f"{cut:,} of {len(given):,} texts cut to max_length {model.max_length}" if cut else ""
    return found.remove_columns(list(CUT)), found["length"][:], note
