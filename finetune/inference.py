"""A finished run answers: its own model, tokenizer, truncation and label names."""

import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, logging

from finetune import ledger, sources, tuning
from finetune import recipe as recipes
from finetune.errors import Refusal
from finetune.recipe import Recipe
from finetune.tasks import text_classification

BATCH = 32


def load(run: ledger.Run) -> tuple[torch.nn.Module, Any, Recipe]:
    """The run's model in evaluation mode, its tokenizer and its recipe.

    Raises:
        Refusal: the base checkpoint of an adapter is not to be had.
    """
    logging.set_verbosity_error()
    recipe = recipes.load(run.folder / ledger.RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    adapter = recipe.tuning.method not in tuning.PLAIN_METHODS
    folder = run.model
    if adapter:
        folder = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision).folder
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(run.model),
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=adapter,
    )
    if adapter:
        model = tuning.load_adapter(model, run.model)
    return model.eval(), tokenizer, recipe


@torch.inference_mode()
def logits(
    model: torch.nn.Module, tokenizer: Any, recipe: Recipe, rows: list[dict[str, str]]
) -> numpy.ndarray:
    """Texts (N) -> logits (N, K), in the rows' order; batches go longest first."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name.startswith("text")}
    encoded = text_classification.encode(columns, tokenizer, recipe.model)
    inputs = [name for name in encoded if name not in {"length", "truncated"}]
    order = numpy.argsort([-n for n in encoded["length"]], kind="stable")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    parts = []
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer.pad(
            {name: [encoded[name][i] for i in chosen] for name in inputs}, return_tensors="pt"
        )
        parts.append(model(**batch.to(device)).logits.float().cpu().numpy())
    return numpy.concatenate(parts)[numpy.argsort(order, kind="stable")]


def read_rows(texts: list[str], file: str | None, run: ledger.Run) -> list[dict[str, str]]:
    """Rows to label, with columns text and text_pair as the run's recipe names them.

    Args:
        texts: given on the command line.
        file: a table with the recipe's text columns, or ``-`` for one text a line on stdin.

    Raises:
        Refusal: no rows, or a column is missing.
    """
    data = recipes.load(run.folder / ledger.RECIPE).data
    names = {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})
    if file and file != "-":
        table = sources.read_table(Path(file), data.encoding)
        for name in names.values():
            if name not in table.rows.columns:
                raise Refusal(f"{file}: no column {name!r}; it has {', '.join(table.rows.columns)}")
        cells = {key: [str(v) for v in table.rows[name]] for key, name in names.items()}
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    lines = [line.rstrip("\n") for line in sys.stdin] if file else texts
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise Refusal("there is no text to label")
    if data.text_pair:
        raise Refusal(f"{run}: labels pairs of texts; give them with --file")
    return [{"text": line} for line in lines]


def merge(run: ledger.Run, folder: Path) -> None:
    """Write a run's adapter, folded into its base, as a plain checkpoint.

    Raises:
        Refusal: there is no adapter, it cannot be folded, or ``folder`` holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Refusal(f"{folder}: holds files already; name another --output")
    model, tokenizer, recipe = load(run)
    method = recipe.tuning.method
    if method in tuning.PLAIN_METHODS:
        raise Refusal(f"{run}: {method} leaves a plain checkpoint already: {run.model}")
    tuning.fold(model, method).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def predict(run: ledger.Run, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One dict a row with ``prediction`` and, for classes, ``probabilities`` by label name."""
    model, tokenizer, recipe = load(run)
    names = run.results()["data"]["label_names"]
    return text_classification.answers(
        logits(model, tokenizer, recipe, rows), recipe.data.problem_type, names
    )
