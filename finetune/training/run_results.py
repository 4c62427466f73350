"""The results of a run: results.json and the test rows' predictions."""

import dataclasses
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState

from finetune import DISTRIBUTION, run_directory
from finetune.evaluation import predictions, scoring
from finetune.models import configs, parameters
from finetune.recipe import Recipe, differences
from finetune.training.job import Job

UNTUNED = "before training"


@dataclasses.dataclass
class Start:
    """The model before training, without its adapter: test outputs and generated samples."""

    outputs: Any
    samples: dict[str, str]


def results(
    recipe: Recipe,
    job: Job,
    state: TrainerState,
    args: TrainingArguments,
    accelerator: Accelerator,
    outputs: Any,
    labels: Any,
    start: Start | None = None,
) -> dict[str, Any]:
    """Returns results.json without its cost.

    Args:
        outputs, labels: of the test rows, as ``Job.collect`` returned them.
        start: the model before training, where it is a baseline.
    """
    data, config = job.data, cast(Any, job.model).config
    best = None
    if state.best_global_step:
        best = {"step": state.best_global_step, "value": state.best_metric}
        best["metric"] = str(args.metric_for_best_model)
    return {
        "name": recipe.name,
        "task": recipe.task,
        "checkpoint": job.checkpoint.record(Path(recipe.training["output_dir"]))
        | {"added_tokens": len(configs.added_tokens(config, job.checkpoint))},
        "method": recipe.tuning.method,
        "seed": args.seed,
        "headline": job.headline,
        **job.all_scores(outputs, labels, scoring.RESAMPLES),
        **job.details(outputs, labels),
        "baselines": _baselines(job, outputs, labels, start),
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
        "device": device(args, accelerator),
        "accelerate": _settings(accelerator),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _baselines(job: Job, outputs: Any, labels: Any, start: Start | None) -> dict[str, Any]:
    """Each baseline's headline metric on the test rows and the difference of the model from it.

    For the model before training, all metrics.
    """

    def scores(name: str, theirs: Any) -> dict[str, Any]:
        metrics = job.score(theirs, labels, scoring.RESAMPLES)["metrics"]
        return metrics if name == UNTUNED else {job.headline: metrics[job.headline]}

    found = job.baselines() | ({UNTUNED: start.outputs} if start else {})
    return {
        name: {**scores(name, theirs), "difference": job.difference(outputs, theirs, labels)}
        for name, theirs in found.items()
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
    return {
        "train_seconds": round(seconds, 2),
        "total_seconds": round(time.time() - started, 2),
        **counted,
        "peak_memory_bytes": peak_memory_bytes(),
        **parameters.count_parameters(model),
        "model_bytes": sum(f.stat().st_size for f in run.model.rglob("*") if f.is_file()),
    }


def peak_memory_bytes() -> int:
    """Returns the most bytes in use so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        # Windows
        return psutil.Process().memory_info().peak_wset  # pyright: ignore[reportAttributeAccessIssue]
    # kB on Linux, bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its recipe and data."""
    names = ("torch", "transformers", "peft", "accelerate", "datasets")
    return {"finetune": version(DISTRIBUTION), **{name: version(name) for name in names}}


def identity(recipe: Recipe, job: Job, processes: int) -> dict[str, Any]:
    """What has to be the same for a run to be resumed; ``changes`` compares two."""
    return {
        "recipe": recipe.dump(),
        "data": job.data.fingerprint,
        "base": job.checkpoint.start(),
        "teacher": job.teacher,
        "versions": versions(),
        "processes": processes,
    }


def changes(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In what two ``identity`` differ, (was, is) by key; a recipe's are ``section.key``."""
    found = differences(was["recipe"], now["recipe"])
    for key in ("data", "base", "teacher", "processes"):
        # Checkpoints of before there were teachers have none.
        if was.get(key) != now[key]:
            found[key] = (was.get(key), now[key])
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


def _settings(accelerator: Accelerator) -> dict[str, Any]:
    """Returns what accelerate did, whichever of recipe, launcher and config file asked for it."""
    state = accelerator.state
    return {
        "distributed_type": state.distributed_type.value,
        "backend": state.backend,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": state.dynamo_plugin.backend.value,  # pyright: ignore[reportOptionalMemberAccess]
        "gradient_accumulation": accelerator.gradient_state.plugin_kwargs,
    }


def device(args: TrainingArguments, accelerator: Accelerator) -> str:
    """Describes the devices and the precision of a run."""
    precision = accelerator.mixed_precision.replace("no", "fp32")
    if args.device.type == "cuda":
        what = torch.cuda.get_device_name()
    else:
        what = f"{args.device.type}, {torch.get_num_threads()} threads"
    return f"{args.world_size} x {what}, {precision}"


def write(job: Job, run: run_directory.Run, results: dict[str, Any], outputs: Any) -> None:
    """Writes predictions and images; last results.json, which makes the run a finished one."""
    answers = job.answers(outputs, results["data"])
    run.write_predictions(predictions.table(job.data.test, answers, results["data"]))
    for caption, image in job.images().items():
        run.write_image(caption, image)
    run.write_results(results)
