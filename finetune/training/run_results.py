"""What a run comes to: results.json, predictions, model card, report, hub repository."""

import dataclasses
import resource
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState

from finetune import DISTRIBUTION, run_directory
from finetune.data.corpus import Corpus
from finetune.evaluation import scoring
from finetune.models import tuning
from finetune.recipe import Recipe, differences
from finetune.report import card, page
from finetune.training.job import Job

UNTUNED = "before training"


@dataclasses.dataclass
class Start:
    """The model before training, without its adapter: its test logits, and what it writes."""

    logits: numpy.ndarray
    samples: dict[str, str]


def results(
    recipe: Recipe,
    job: Job,
    state: TrainerState,
    args: TrainingArguments,
    logits: numpy.ndarray,
    labels: numpy.ndarray,
    start: Start | None = None,
) -> dict[str, Any]:
    """results.json without its cost, from the test split's logits (N, K) and labels."""
    data = job.data
    best = None
    if state.best_global_step:
        best = {"step": state.best_global_step, "value": state.best_metric}
        best["metric"] = str(args.metric_for_best_model)
    return {
        "name": recipe.name,
        "task": recipe.task,
        "checkpoint": {
            "name": job.checkpoint.name,
            "revision": job.checkpoint.revision,
            "sha256": job.checkpoint.digest(),
            "gguf": job.checkpoint.gguf,
        },
        "method": recipe.tuning.method,
        "seed": args.seed,
        "headline": job.headline,
        **job.score(logits, labels, 1000),
        "baselines": _beside(job, logits, labels, start),
        **({"samples": _samples(job, start)} if start else {}),
        "reference": dataclasses.asdict(recipe.reference) if recipe.reference else None,
        "chosen": best,
        "steps": state.global_step,
        "data": {
            "source": data.source,
            "revision": data.revision,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "test_is": data.test_is,
            "problem_type": data.problem_type,
            "label_names": data.label_names,
            **data.report,
        },
        "versions": versions(),
        "git_commit": _git_commit(),
        "device": _device(args),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _beside(
    job: Job, logits: numpy.ndarray, labels: numpy.ndarray, start: Start | None
) -> dict[str, Any]:
    """Each baseline's headline on the test rows, and how far the model is from it.

    Of the model as it started, all that is measured of the tuned one.
    """
    difference = job.difference or partial(scoring.difference, job.data.problem_type)
    beside = job.baselines() | ({UNTUNED: start.logits} if start else {})

    def scores(name: str, said: numpy.ndarray) -> dict[str, Any]:
        metrics = job.score(said, labels, scoring.RESAMPLES)["metrics"]
        return metrics if name == UNTUNED else {job.headline: metrics[job.headline]}

    return {
        name: {**scores(name, said), "difference": difference(logits, said, labels)}
        for name, said in beside.items()
    }


def _samples(job: Job, start: Start) -> list[dict[str, str]]:
    return [
        {"given": given, "before": start.samples[given], "after": after}
        for given, after in job.samples().items()
    ]


def cost(
    model: torch.nn.Module,
    run: run_directory.Run,
    seconds: float,
    seen: dict[str, float],
    started: float,
) -> dict[str, Any]:
    """What training took: seconds, rows and real tokens (no padding), bytes, parameters.

    Args:
        seen: what was trained on by what it is, for example rows and tokens; zeros are left out.
    """
    counted: dict[str, Any] = {}
    for what, count in seen.items():
        if count:
            counted[f"{what}_seen"] = int(count)
            counted[f"{what}_per_second"] = round(count / seconds, 1)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        # kB on Linux, bytes on macOS
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {
        "train_seconds": round(seconds, 2),
        "total_seconds": round(time.time() - started, 2),
        **counted,
        "peak_memory_bytes": int(peak),
        **tuning.count_parameters(model),
        "model_bytes": sum(f.stat().st_size for f in run.model.rglob("*") if f.is_file()),
    }


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its recipe and data."""
    names = ("torch", "transformers", "peft", "accelerate", "datasets")
    return {"finetune": version(DISTRIBUTION), **{name: version(name) for name in names}}


def identity(recipe: Recipe, job: Job, processes: int) -> dict[str, Any]:
    """What has to be the same for a run to be resumed; ``changes`` compares two."""
    return {
        "recipe": recipe.dump(),
        "data": job.data.fingerprint,
        "base": job.checkpoint.digest(),
        "versions": versions(),
        "processes": processes,
    }


def changes(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In what two ``identity`` differ, (was, is) by key; a recipe's are ``section.key``."""
    found = differences(was["recipe"], now["recipe"])
    for key in ("data", "base", "processes"):
        if was[key] != now[key]:
            found[key] = (was[key], now[key])
    others = [
        name for name in now["versions"] if was["versions"].get(name) != now["versions"][name]
    ]
    if others:
        before, after = (
            " ".join(f"{name} {each['versions'].get(name)}" for name in others)
            for each in (was, now)
        )
        found["versions"] = (before, after)
    return found


def _git_commit() -> str | None:
    """The commit of the working tree, with a + where files differ from it; None without git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") or None


def _device(args: TrainingArguments) -> str:
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    if args.device.type == "cuda":
        what = torch.cuda.get_device_name()
    else:
        what = f"{args.device.type}, {torch.get_num_threads()} threads"
    return f"{args.world_size} x {what}, {precision}"


def write(
    recipe: Recipe, job: Job, run: run_directory.Run, results: dict[str, Any], logits: numpy.ndarray
) -> None:
    """Predictions and card; then results.json, which finishes the run; then the report."""
    rows = job.data.test.copy()
    if "label" in rows:
        rows["label"] = [_shown(v, job.data) for v in rows["label"]]
    said = job.answers(logits)
    rows["prediction"] = [answer["prediction"] for answer in said]
    if "probabilities" in said[0]:
        rows["probabilities"] = [list(answer["probabilities"].values()) for answer in said]
    run.write_predictions(rows.drop(columns="digest", errors="ignore"))
    for name, picture in job.pictures().items():
        run.write_picture(name, picture)
    (run.model / "README.md").write_text(card.render(recipe, results), encoding="utf-8")
    run.write_results(results)
    run.write_report(page.render(run))


def _shown(label: Any, data: Corpus) -> Any:
    if data.problem_type == "single_label_classification":
        return data.label_names[label]
    if data.problem_type == "multi_label_classification":
        return [name for name, on in zip(data.label_names, label, strict=True) if on]
    return label


def push(recipe: Recipe, run: run_directory.Run) -> None:
    """Upload the model folder, card included, to the hub repository the recipe names."""
    from huggingface_hub import HfApi

    api, training = HfApi(), recipe.training
    name = str(training.get("hub_model_id") or recipe.name.replace("/", "-"))
    private = bool(training.get("hub_private_repo", False))
    repo = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo.repo_id, folder_path=run.model, revision=training.get("hub_revision")
    )
