"""A finished run answers: its own model, tokenizer, truncation and label names."""

import re
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import AutoConfig, PreTrainedModel, TextStreamer, logging

from finetune import recipe as recipes
from finetune import run_directory, tasks
from finetune.data import sources
from finetune.errors import UserError
from finetune.models import pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import classification

BATCH = 32
# The tasks whose runs answer with labels, and the one whose runs write.
LABELLING, WRITING = {"text-classification", "image-classification"}, "text-generation"


# Config keys that two adapters on one base may differ in: labels, and what acts in training only.
OWN_KEYS = re.compile("label|problem_type|drop|pad_token|name_or_path|transformers_version")


def load(
    run: run_directory.Run, base: PreTrainedModel | None = None
) -> tuple[torch.nn.Module, Any, Recipe]:
    """The run's model in evaluation mode, its tokenizer or image processor, and its recipe.

    Args:
        base: what ``shared_base`` gave for this run and others; its weights are not copied.

    Raises:
        UserError: the base checkpoint of an adapter is not to be had, or is not the one that the
            adapter was trained on.
    """
    _quiet()
    recipe = recipes.load(run.folder / run_directory.RECIPE)
    task = tasks.find(recipe)
    processor = task.AUTO_PROCESSOR.from_pretrained(run.model)
    if recipe.tuning.method in tuning.PLAIN_METHODS:
        model: torch.nn.Module = task.AUTO_MODEL.from_pretrained(
            run.model, dtype=torch.float32, use_safetensors=True
        )
    else:
        if base is None:
            base = load_base(run, recipe)
        else:
            config = AutoConfig.from_pretrained(run.model)
            base = pretrained.with_shared_base(base, task.AUTO_MODEL, config)
        model = tuning.load_adapter(base, run.model)
    if recipe.task == "text-classification" and recipe.model.padding_free:
        padding_free.enable(model, {"use_cpu": not torch.cuda.is_available()})
    return model.eval(), processor, recipe


def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_base(run: run_directory.Run, recipe: Recipe) -> PreTrainedModel:
    """The base of a run's adapter, without the adapter.

    Raises:
        UserError: it is not to be had, or its weights are not those that the run was trained on.
    """
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    _quiet()
    expected, found = run.base_digest(), checkpoint.digest()
    if expected and expected != found:
        raise UserError(
            f"{run}: its adapter was trained on other weights of {checkpoint.name} "
            f"(sha256 {expected[:12]}) than are there now ({found[:12]})"
        )
    config = AutoConfig.from_pretrained(run.model)
    return pretrained.load(tasks.find(recipe).AUTO_MODEL, checkpoint, config, recipe)


def shared_base(runs: list[run_directory.Run]) -> PreTrainedModel:
    """The one base of several runs' adapters, loaded once.

    Raises:
        UserError: a run is no adapter, or its base is another than the first's, be it of the same
            shape.
    """
    read = [recipes.load(run.folder / run_directory.RECIPE) for run in runs]
    configs = [AutoConfig.from_pretrained(run.model).to_dict() for run in runs]
    for run, recipe, config in zip(runs, read, configs, strict=True):
        method, kind = recipe.tuning.method, recipe.model.quantization
        if method in tuning.PLAIN_METHODS:
            raise UserError(f"{run}: {method} leaves a whole model, not an adapter; ask it alone")
        ours, first = run.base_digest(), runs[0].base_digest()
        if not ours or not first:
            raise UserError(f"{runs[0] if ours else run}: keeps no hash of its base; ask it alone")
        if ours != first:
            raise UserError(
                f"{run}: its adapter is for another base ({recipe.model.checkpoint}, sha256 "
                f"{ours[:12]}) than that of {runs[0]} ({read[0].model.checkpoint}, {first[:12]})"
            )
        apart = [k for k in config if config[k] != configs[0].get(k) and not OWN_KEYS.search(k)]
        if apart or kind != read[0].model.quantization:
            said = ", ".join(apart) or "quantization"
            raise UserError(f"{run}: has its base set up otherwise than {runs[0]}: {said}")
    return load_base(runs[0], read[0])


@torch.inference_mode()
def logits(
    model: torch.nn.Module, processor: Any, recipe: Recipe, rows: list[dict[str, Any]]
) -> numpy.ndarray:
    """Rows (N) -> logits (N, K), in the rows' order; their mean where a row comes several times."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    parts, order = [], []
    for chosen, batch in tasks.find(recipe).batches(rows, processor, recipe, BATCH):
        inputs = {name: value.to(device) for name, value in batch.items()}
        parts.append(model(**inputs).logits.float().cpu().numpy())
        order.append(chosen)
    found = numpy.concatenate(parts)[numpy.argsort(numpy.concatenate(order), kind="stable")]
    return found.reshape(len(rows), -1, found.shape[1]).mean(1)


def read_rows(given: list[str], file: str | None, run: run_directory.Run) -> list[dict[str, Any]]:
    """Rows to label, as the run's task reads them from words or a file.

    Raises:
        UserError: no rows, or not of the kind that the run labels.
    """
    recipe = recipes.load(run.folder / run_directory.RECIPE)
    if recipe.task not in LABELLING:
        other = "; finetune generate writes with it" if recipe.task == WRITING else ""
        raise UserError(f"{run}: {recipe.task} gives no labels{other}")
    return tasks.find(recipe).read_rows(given, file, recipe)


def generate(
    run: run_directory.Run, prompt: str, seed: int, max_new_tokens: int, greedy: bool
) -> None:
    """Print what a run's language model goes on with, as it comes.

    Raises:
        UserError: the run is of another task, or there is nothing to go on from.
    """
    recipe = recipes.load(run.folder / run_directory.RECIPE)
    if recipe.task != WRITING:
        raise UserError(f"{run}: {recipe.task} writes nothing; finetune predict answers")
    if not prompt.strip():
        raise UserError("there is no text to go on with")
    if max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {max_new_tokens}: has to be at least 1")
    model, tokenizer, _ = load(run)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    chats = run.results()["data"]["documents"] == "messages"
    tasks.find(recipe).write(
        model,
        tokenizer,
        [{"role": "user", "content": prompt}] if chats else prompt,
        seed,
        max_new_tokens,
        do_sample=not greedy,
        streamer=TextStreamer(tokenizer, skip_prompt=chats, skip_special_tokens=True),
    )


def merge(run: run_directory.Run, folder: Path) -> None:
    """Write a run's adapter, folded into its base, as a plain checkpoint.

    Raises:
        UserError: there is no adapter, it cannot be folded, or ``folder`` holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files already; name another --output")
    recipe = recipes.load(run.folder / run_directory.RECIPE)
    method, kind = recipe.tuning.method, recipe.model.quantization
    if method in tuning.PLAIN_METHODS:
        raise UserError(f"{run}: {method} leaves a plain checkpoint already: {run.model}")
    if kind:
        raise UserError(
            f"{run}: was trained over a base in {kind}; folded into full weights it would "
            "answer otherwise, so serve it as an adapter"
        )
    model, processor, _ = load(run)
    tuning.merge(model, method).save_pretrained(folder)
    processor.save_pretrained(folder)


def predict(
    run: run_directory.Run, rows: list[dict[str, Any]], base: PreTrainedModel | None = None
) -> list[dict[str, Any]]:
    """One dict a row with ``prediction`` and, for classes, ``probabilities`` by label name.

    Args:
        base: as in ``load``.
    """
    model, processor, recipe = load(run, base)
    names = run.results()["data"]["label_names"]
    return classification.answers(
        logits(model, processor, recipe, rows), recipe.data.problem_type, names
    )
