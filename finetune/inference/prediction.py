"""Predictions, generated text and merged adapters of finished runs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, logging

from finetune import recipe as recipes
from finetune import run_directory, tasks
from finetune.data import sources
from finetune.errors import UserError
from finetune.export import engine
from finetune.models import adapters, devices, pretrained
from finetune.recipe import Recipe
from finetune.recipe.methods import PLAIN_METHODS

BATCH = 32
# Config keys in which two adapters of one base may differ: labels, and what acts in training only.
OWN_KEYS = re.compile("label|problem_type|drop|pad_token|name_or_path|transformers_version")
_QUANTIZED = (
    "{run}: was trained on a base in {kind}; merged into full weights its predictions would "
    "differ, so serve it as an adapter"
)


def load(
    run: run_directory.Run, base: PreTrainedModel | None = None, base_folder: str | None = None
) -> tuple[Any, Any, Recipe]:
    """Returns the run's model in evaluation mode, its tokenizer or image processor, its recipe.

    Args:
        base: what ``shared_base`` returned for this run and others; its weights are not copied.
        base_folder: the base of an adapter, where it is not found by itself.

    Returns:
        For an export, its engine in place of the model: called like it, and it has no weights.

    Raises:
        UserError: the base checkpoint of an adapter cannot be found, or is not the one that the
            adapter was trained on; the runtime of an export is not installed.
    """
    model, processor, recipe = _load(run, base, base_folder)
    if isinstance(model, torch.nn.Module):
        tasks.find(recipe.task).prepare(model, recipe)
        model.eval()
    return model, processor, recipe


def whole(
    run: run_directory.Run, base_folder: str | None = None
) -> tuple[PreTrainedModel, Any, Recipe]:
    """Returns what ``load`` does, as a model of transformers: adapters are merged into it.

    An adapter that adds layers stays inside, as modules of the model.

    Raises:
        UserError: as ``load``, or the adapter adds tokens, or the base was quantized.
    """
    model, processor, recipe = _load(run, None, base_folder)
    method, kind = recipe.tuning.method, recipe.model.quantization
    if method not in PLAIN_METHODS:
        if kind:
            raise UserError(_QUANTIZED.format(run=run, kind=kind))
        model = adapters.merge(model, method, inside=True)
    return model.eval(), processor, recipe


def _load(run: run_directory.Run, base: PreTrainedModel | None, base_folder: str | None) -> Any:
    """Returns model, processor and recipe as they were saved."""
    _quiet()
    recipe = recipes.read(run.folder / run_directory.RECIPE)
    task = tasks.find(recipe.task)
    processor = task.auto_processor.from_pretrained(run.model)
    if isinstance(run, run_directory.Export):
        return engine.load(run.folder), processor, recipe
    if recipe.tuning.method in PLAIN_METHODS:
        model: torch.nn.Module = task.auto_model.from_pretrained(
            run.model, dtype=torch.float32, use_safetensors=True
        )
    else:
        if base is None:
            base = load_base(run, recipe, base_folder)
        else:
            config = AutoConfig.from_pretrained(run.model)
            base = pretrained.with_shared_base(base, task.auto_model, config)
        if (run.model / "generation_config.json").is_file():
            base.generation_config = GenerationConfig.from_pretrained(run.model)
        model = adapters.load_adapter(base, run.model)
    return model, processor, recipe


def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_base(
    run: run_directory.Run, recipe: Recipe, base_folder: str | None = None
) -> PreTrainedModel:
    """Returns the base of a run's adapter, without the adapter.

    Raises:
        UserError: it cannot be found, or its weights are not those that the run was trained on.
    """
    _quiet()
    checkpoint = sources.base(run.results()["checkpoint"], run.folder, base_folder)
    config = AutoConfig.from_pretrained(run.model)
    return pretrained.load(tasks.find(recipe.task).auto_model, checkpoint, config, recipe)


def shared_base(runs: list[run_directory.Run], base_folder: str | None = None) -> PreTrainedModel:
    """Returns the one base of several runs' adapters, loaded once.

    Raises:
        UserError: a run is not an adapter, or its base differs from the first run's, even if it
            has the same shape.
    """
    read = [recipes.read(run.folder / run_directory.RECIPE) for run in runs]
    configs = [AutoConfig.from_pretrained(run.model).to_dict() for run in runs]
    for run, recipe, config in zip(runs, read, configs, strict=True):
        method, kind = recipe.tuning.method, recipe.model.quantization
        if method in PLAIN_METHODS:
            raise UserError(f"{run}: {method} saves a whole model, not an adapter; name it alone")
        ours, first = run.base_digest(), runs[0].base_digest()
        if not ours or not first:
            raise UserError(f"{runs[0] if ours else run}: has no hash of its base; name it alone")
        if ours != first:
            raise UserError(
                f"{run}: its adapter is for another base ({recipe.model.checkpoint}, sha256 "
                f"{ours[:12]}) than that of {runs[0]} ({read[0].model.checkpoint}, {first[:12]})"
            )
        apart = [k for k in config if config[k] != configs[0].get(k) and not OWN_KEYS.search(k)]
        if apart or kind != read[0].model.quantization:
            keys = ", ".join(apart) or "quantization"
            raise UserError(f"{run}: its base has another config than that of {runs[0]}: {keys}")
    return load_base(runs[0], read[0], base_folder)


@torch.inference_mode()
def outputs(
    model: torch.nn.Module | engine.Engine,
    processor: Any,
    recipe: Recipe,
    rows: list[dict[str, Any]],
    forward: Callable[..., list[Any]] | None = None,
) -> Any:
    """Returns the model's outputs for N rows, in their order, as the task joins and decodes them.

    For classifiers these are logits (N, K).

    Args:
        forward: (model, inputs of a batch) -> an output for each entry, instead of the task's.
    """
    device, task = devices.current(), tasks.find(recipe.task)
    if isinstance(model, engine.Engine):
        # It takes its inputs on the CPU.
        device = torch.device("cpu")
    else:
        model = model.to(device)
    return task.outputs(model, processor, recipe, rows, BATCH, device, forward)


def read_rows(
    given: list[str],
    file: str | None,
    run: run_directory.Run,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows to predict, as the run's task reads them from the command line or a file.

    Args:
        columns: names of the file's columns in place of the recipe's, by the key of its data.

    Raises:
        UserError: there are no rows, they are of another kind, or the task predicts nothing.
    """
    recipe = recipes.read(run.folder / run_directory.RECIPE)
    if columns and "text_pair" in columns and not recipe.data.text_pair:
        raise UserError(f"{run}: labels single texts; leave --text_pair out")
    recipe = replace(recipe, data=replace(recipe.data, **(columns or {})))
    return tasks.find(recipe.task).read_rows(given, file, recipe)


def printed(rows: list[dict[str, Any]], run: run_directory.Run) -> list[dict[str, Any]]:
    """Returns what is printed of rows beside their predictions."""
    task = tasks.find(recipes.read(run.folder / run_directory.RECIPE).task)
    return [task.printed(row) for row in rows]


def predict(
    run: run_directory.Run,
    rows: list[dict[str, Any]],
    base: PreTrainedModel | None = None,
    base_folder: str | None = None,
) -> list[dict[str, Any]]:
    """Returns one dict a row with ``prediction`` and, for classes, ``probabilities`` by label.

    A row that is empty keeps its place; its prediction is None.

    Args:
        base, base_folder: as in ``load``.
    """
    return answer(*load(run, base, base_folder), run.results()["data"], rows)


def answer(
    model: torch.nn.Module,
    processor: Any,
    recipe: Recipe,
    data: Mapping[str, Any],
    rows: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns what ``predict`` does, with a model that is loaded already.

    Args:
        data: the data section of the run's results.json.
    """
    task = tasks.find(recipe.task)
    full = [row for row in rows if not task.is_empty(row)]
    found = task.answers(outputs(model, processor, recipe, full), data) if full else []
    answers = iter(found)
    return [{"prediction": None} if task.is_empty(row) else next(answers) for row in rows]


def generate(
    run: run_directory.Run,
    prompt: str,
    seed: int,
    max_new_tokens: int,
    greedy: bool,
    base_folder: str | None = None,
) -> None:
    """Prints what a run's language model generates from a prompt, as it is generated.

    Raises:
        UserError: the run's task generates nothing, or the prompt is empty.
    """
    recipe = recipes.read(run.folder / run_directory.RECIPE)
    task = tasks.find(recipe.task)
    if not task.generates:
        raise UserError(f"{run}: {task.name} generates no text; use `finetune predict`")
    if not prompt.strip():
        raise UserError("the prompt is empty; give a text to continue")
    if max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {max_new_tokens}: has to be at least 1")
    model, tokenizer, _ = load(run, base_folder=base_folder)
    options = {"seed": seed, "max_new_tokens": max_new_tokens, "do_sample": not greedy}
    task.generate(model.to(devices.current()), tokenizer, prompt, run.results()["data"], **options)


def merge(run: run_directory.Run, folder: Path, base_folder: str | None = None) -> None:
    """Merges a run's adapter into its base and saves a plain checkpoint.

    Raises:
        UserError: there is no adapter, it cannot be merged, or ``folder`` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name another --output")
    recipe = recipes.read(run.folder / run_directory.RECIPE)
    method, kind = recipe.tuning.method, recipe.model.quantization
    if method in PLAIN_METHODS:
        raise UserError(f"{run}: {method} saved a plain checkpoint already: {run.model}")
    if kind:
        raise UserError(_QUANTIZED.format(run=run, kind=kind))
    model, processor, _ = load(run, base_folder=base_folder)
    adapters.merge(model, method).save_pretrained(folder)
    processor.save_pretrained(folder)
    tasks.find(recipe.task).finish(recipe, folder)
    run_directory.apply_umask(folder)
