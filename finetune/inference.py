"""A finished run answers: its own model, tokenizer, truncation and label names."""

import re
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    logging,
)

from finetune import ledger, sources, tuning
from finetune import recipe as recipes
from finetune.errors import Refusal
from finetune.recipe import Recipe
from finetune.tasks import text_classification

BATCH = 32


# Config keys that two adapters on one base may differ in: labels, and what acts in training only.
OWN_KEYS = re.compile("label|problem_type|drop|pad_token|name_or_path|transformers_version")


def load(
    run: ledger.Run, base: PreTrainedModel | None = None
) -> tuple[torch.nn.Module, Any, Recipe]:
    """The run's model in evaluation mode, its tokenizer and its recipe.

    Args:
        base: what ``shared_base`` gave for this run and others; its weights are not copied.

    Raises:
        Refusal: the base checkpoint of an adapter is not to be had, or is not the one that the
            adapter was trained on.
    """
    logging.set_verbosity_error()
    recipe = recipes.load(run.folder / ledger.RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    if recipe.tuning.method in tuning.PLAIN_METHODS:
        model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(
            run.model, dtype=torch.float32, use_safetensors=True
        )
        return model.eval(), tokenizer, recipe
    if base is None:
        base = load_base(run, recipe)
    else:
        config = AutoConfig.from_pretrained(run.model)
        base = tuning.with_trunk_of(base, AutoModelForSequenceClassification, config)
    return tuning.load_adapter(base, run.model).eval(), tokenizer, recipe


def load_base(run: ledger.Run, recipe: Recipe) -> PreTrainedModel:
    """The base of a run's adapter, without the adapter.

    Raises:
        Refusal: it is not to be had, or its weights are not those that the run was trained on.
    """
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    expected, found = run.base_digest(), checkpoint.digest()
    if expected != found:
        raise Refusal(
            f"{run}: its adapter was trained on other weights of {checkpoint.name} "
            f"(sha256 {expected[:12]}) than are there now ({found[:12]})"
        )
    config = AutoConfig.from_pretrained(run.model)
    return tuning.base(AutoModelForSequenceClassification, checkpoint, config, recipe)


def shared_base(runs: list[ledger.Run]) -> PreTrainedModel:
    """The one base of several runs' adapters, loaded once.

    Raises:
        Refusal: a run is no adapter, or its base is another than the first's, be it of the same
            shape.
    """
    read = [recipes.load(run.folder / ledger.RECIPE) for run in runs]
    configs = [AutoConfig.from_pretrained(run.model).to_dict() for run in runs]
    for run, recipe, config in zip(runs, read, configs, strict=True):
        method, kind = recipe.tuning.method, recipe.model.quantization
        if method in tuning.PLAIN_METHODS:
            raise Refusal(f"{run}: {method} leaves a whole model, not an adapter; ask it alone")
        if run.base_digest() != runs[0].base_digest():
            raise Refusal(
                f"{run}: its adapter is for another base ({recipe.model.checkpoint}, sha256 "
                f"{run.base_digest()[:12]}) than that of {runs[0]} ({read[0].model.checkpoint}, "
                f"{runs[0].base_digest()[:12]})"
            )
        apart = [k for k in config if config[k] != configs[0].get(k) and not OWN_KEYS.search(k)]
        if apart or kind != read[0].model.quantization:
            said = ", ".join(apart) or "quantization"
            raise Refusal(f"{run}: has its base set up otherwise than {runs[0]}: {said}")
    return load_base(runs[0], read[0])


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
        texts: given one by one.
        file: a table with the recipe's text columns, instead of ``texts``.

    Raises:
        Refusal: no rows, or a column is missing.
    """
    data = recipes.load(run.folder / ledger.RECIPE).data
    names = {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})
    if file:
        table = sources.read_table(Path(file), data.encoding)
        for name in names.values():
            if name not in table.rows.columns:
                raise Refusal(f"{file}: no column {name!r}; it has {', '.join(table.rows.columns)}")
        cells = {key: [str(v) for v in table.rows[name]] for key, name in names.items()}
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    lines = [line for line in texts if line.strip()]
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
    recipe = recipes.load(run.folder / ledger.RECIPE)
    method, kind = recipe.tuning.method, recipe.model.quantization
    if method in tuning.PLAIN_METHODS:
        raise Refusal(f"{run}: {method} leaves a plain checkpoint already: {run.model}")
    if kind:
        raise Refusal(
            f"{run}: was trained over a base in {kind}; folded into full weights it would "
            "answer otherwise, so serve it as an adapter"
        )
    model, tokenizer, _ = load(run)
    tuning.fold(model, method).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def predict(
    run: ledger.Run, rows: list[dict[str, str]], base: PreTrainedModel | None = None
) -> list[dict[str, Any]]:
    """One dict a row with ``prediction`` and, for classes, ``probabilities`` by label name.

    Args:
        base: as in ``load``.
    """
    model, tokenizer, recipe = load(run, base)
    names = run.results()["data"]["label_names"]
    return text_classification.answers(
        logits(model, tokenizer, recipe, rows), recipe.data.problem_type, names
    )
