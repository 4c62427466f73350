"""Exports a run: converts its model, compares the export with the run, writes the folder."""

import json
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel

from finetune import run_directory, tasks
from finetune.data import sources
from finetune.errors import UserError
from finetune.export import engine, formats, proof
from finetune.recipe import Recipe, Tuning
from finetune.recipe.methods import PLAIN_METHODS
from finetune.report import exports
from finetune.training.job import Job

# Rows of train by which int8 activations are scaled, as many as NNCF takes by itself.
CALIBRATION_ROWS = 300


def export(
    run: run_directory.Run,
    whole: PreTrainedModel,
    model: torch.nn.Module,
    processor: Any,
    recipe: Recipe,
    to: str,
    precision: str,
    folder: Path,
    accept_loss: bool = False,
    base_folder: str | None = None,
) -> dict[str, Any]:
    """Exports a run's model into a folder and returns the contents of its export.json.

    Args:
        whole: the run's model without peft around it, as ``inference.whole`` loads it.
        model: the same as ``inference.load`` loads it, to compare with.
        to: ``onnx`` or ``openvino``.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        folder: replaced if it holds an export, and else has to be empty.
        accept_loss: whether the export may be clearly worse than the run.
        base_folder: the base of an adapter, where it is not found by itself.

    Raises:
        UserError: the model cannot be exported, the run's data are no longer there or have
            changed, or the export is not as good as the run.
    """
    held = (folder / run_directory.EXPORT).is_file()
    if folder.exists() and not held and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files; name another --output")
    job = _job(run, recipe, base_folder)
    sample = proof.collate(job, "test", [0, len(job.splits["test"]) - 1])
    names = [name for name in processor.model_input_names if name in sample]
    rows = job.splits["train"] if precision == "int8" else []
    chosen = numpy.linspace(0, max(0, len(rows) - 1), min(len(rows), CALIBRATION_ROWS), dtype=int)
    calibration = [proof.collate(job, "train", [i]) for i in chosen.tolist()]

    # Before fp16 halves them.
    weights = sum(parameter.nbytes for parameter in whole.parameters())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        staged = Path(temporary) / folder.name
        formats.convert(
            whole,
            _named(sample, names),
            [_named(batch, names) for batch in calibration],
            to,
            precision,
            staged,
        )
        processor.save_pretrained(staged)
        shutil.copy(run.folder / run_directory.RECIPE, staged)
        manifest = json.loads((staged / run_directory.EXPORT).read_text(encoding="utf-8"))
        results = run.results()
        manifest |= {
            "name": folder.name,
            "precision": precision,
            "run": {key: results[key] for key in ("name", "task", "method", "headline", "data")},
        }
        _write(staged, manifest)
        made = engine.load(staged)
        found = proof.compare(job, model, made)
        proof.judge(found, results["headline"], precision, accept_loss)
        manifest["outputs"] = made.outputs
        manifest["checked"] = found | {
            "engine": made.name,
            "bytes": sum(f.stat().st_size for f in staged.glob("*model.*")),
            "torch_bytes": weights,
            "versions": {n: version(n) for n in ("torch", "transformers", *formats.LIBRARIES[to])},
        }
        _write(staged, manifest)
        text = exports.readme(manifest, recipe)
        (staged / "README.md").write_text(text, encoding="utf-8")
        run_directory.apply_umask(staged)
        if held:
            shutil.rmtree(folder)
        staged.rename(folder)
    return manifest


def _job(run: run_directory.Run, recipe: Recipe, base_folder: str | None) -> Job:
    """Returns the run's job again: its splits, and how they are scored.

    Raises:
        UserError: the task is not exported, or the data are gone or not those of the run.
    """
    results, task = run.results(), tasks.find(recipe.task)
    if task.not_exported:
        raise UserError(f"{run}: {task.name} is not exported: {task.not_exported}")
    start = str(run.model)
    if recipe.tuning.method not in PLAIN_METHODS:
        start = sources.base(results["checkpoint"], run.folder, base_folder).name
    again = replace(recipe.model, checkpoint=start, padding_free=False)
    if recipe.tuning.method in PLAIN_METHODS or base_folder:
        again = replace(again, revision=None)
    job = task.build(replace(recipe, model=again, tuning=Tuning()))
    if job.data.fingerprint != results["data"]["fingerprint"]:
        raise UserError(
            f"{run}: the data of {recipe.name} have changed since the run, so there are no test "
            "rows to compare on; train it again"
        )
    # Also what the run's validation rows have set.
    job.data.report |= results["data"]
    return job


def _named(batch: formats.Batch, names: list[str]) -> formats.Batch:
    return {name: batch[name] for name in names}


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2) + "\n"
    run_directory.write_whole(folder / run_directory.EXPORT, text)
