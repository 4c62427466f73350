"""The collator of training texts that change in every epoch, and a sheet of how they do."""

from collections.abc import Callable
from typing import Any

import pandas
import torch
from datasets import Dataset

from finetune.data import text_augmentation
from finetune.recipe import Recipe
from finetune.tasks import text

# What a job needs of TrainingArguments: the collator reads columns that the model does not know,
# and tokens are counted before a text changes.
TRAINING = {"remove_unused_columns": False, "include_num_input_tokens_seen": "no"}
# Columns of a row that are not inputs of the model.
OTHERS = {"length", "truncated", "row", "epoch"}
SHEET_ROWS, SHEET_EPOCHS = 6, 3


class Collator:
    """Rows -> a batch, as ``plain`` makes it; training rows are changed and encoded anew.

    Evaluation rows, which have no column ``row``, stay as they are.

    Args:
        plain: for rows of the model's inputs and ``labels``.
        train: the training rows, with their texts.
    """

    def __init__(
        self,
        plain: Callable[[list[dict[str, Any]]], Any],
        train: pandas.DataFrame,
        tokenizer: Any,
        recipe: Recipe,
    ) -> None:
        self.plain, self.tokenizer, self.model = plain, tokenizer, recipe.model
        self.changes, self.seed = recipe.augmentation, int(recipe.training.get("seed", 0))
        names = [name for name in ("text", "text_pair") if name in train]
        self.texts = {name: train[name].tolist() for name in names}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "row" in rows[0]:
            changed = [self.changed(row["row"], row["epoch"]) for row in rows]
            texts = {name: [each[name] for each in changed] for name in self.texts}
            encoded = text.encode(texts, self.tokenizer, self.model)
            rows = [
                {name: cells[i] for name, cells in encoded.items()} | {"labels": row["labels"]}
                for i, row in enumerate(rows)
            ]
        return self.plain([{k: v for k, v in row.items() if k not in OTHERS} for row in rows])

    def changed(self, row: int, epoch: int) -> dict[str, str]:
        """Returns the texts of a training row in an epoch."""
        return {
            name: text_augmentation.augment(cells[row], row, epoch, self.seed, self.changes, part)
            for part, (name, cells) in enumerate(self.texts.items())
        }

    def sheet(self) -> list[dict[str, Any]]:
        """Returns some training texts, and how the first epochs change them."""
        count = len(next(iter(self.texts.values())))
        sheet = []
        for row in range(0, count, max(1, count // SHEET_ROWS))[:SHEET_ROWS]:
            given = "\n".join(cells[row] for cells in self.texts.values())
            epochs = ["\n".join(self.changed(row, e).values()) for e in range(SHEET_EPOCHS)]
            sheet.append({"text": text.shorten(given), "epochs": list(map(text.shorten, epochs))})
        return sheet


def numbered(rows: Dataset) -> Dataset:
    """Returns training rows with the columns that their random numbers follow from."""
    return rows.add_column("row", list(range(len(rows)))).add_column("epoch", [0] * len(rows))
