"""A recipe's run: train, choose, test once, save."""

import dataclasses
import errno
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from finetune import run_directory
from finetune.errors import TrainingError, UserError
from finetune.models import parameters, tuning
from finetune.models.speed import cpu
from finetune.recipe import Recipe
from finetune.report import wording
from finetune.training import adalora, checkpoints, run_results
from finetune.training.arguments import DEFAULTS, checked, has_accelerator, training_arguments
from finetune.training.callbacks import Epochs, History, Progress
from finetune.training.job import Job
from finetune.training.signals import Signals
from finetune.training.trainer import StepTrainer


def train(
    recipe: Recipe,
    build: Callable[[Recipe], Job],
    overwrite: bool = False,
    resume: bool = False,
    allowed: Collection[str] = (),
) -> run_directory.Run | None:
    """Train a recipe into its run directory and test it once.

    Args:
        build: the task's; called after the directory is claimed.
        overwrite, resume: what to do with a directory that holds a run. A run that was killed
            before its first checkpoint starts from its beginning; a finished one is left alone.
        allowed: what may differ from the run to resume: ``section.key`` of the recipe, ``data``,
            ``base``, ``processes``, ``versions``.

    Returns:
        The run, finished; None in the processes that only helped the main one.

    Raises:
        UserError: anything the user has to mend.
        TrainingError: the run broke: numbers that are not finite, a full disk, no memory.
        SystemExit: a signal ended it; in training, after the step and with a checkpoint.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.time()
    if recipe.tuning.method not in tuning.PLAIN_METHODS:
        tuning.claim_flags(recipe, {f.name for f in dataclasses.fields(TrainingArguments)})
    recipe.training = checked(recipe)
    recipe.training.setdefault("seed", DEFAULTS["seed"])
    recipe.training.setdefault("output_dir", f"runs/{recipe.name}/seed-{recipe.training['seed']}")
    run = run_directory.Run(recipe.training["output_dir"])
    on_cpu = bool(recipe.training.get("use_cpu", not has_accelerator()))
    main = PartialState(cpu=on_cpu).is_main_process
    text = recipe.dump()
    claim = run.claim(text, overwrite, resume, allowed) if main else nullcontext()
    with Signals() as signals, claim, _room(run):
        if resume and run.is_finished:
            if main:
                print(f"finetune: {run} is finished; nothing is left to resume", file=sys.stderr)
            return run if main else None
        transformers.set_seed(recipe.training["seed"])
        job = build(recipe)
        args = training_arguments(recipe, run, job)
        identity = run_results.identity(recipe, job, args.world_size)
        (last,) = broadcast_object_list(
            [_last(run, identity, allowed) if resume and main else None]
        )
        changed = list(run_results.changes(last.run, identity)) if last else []
        if args.device.type == "cpu" and not args.torch_compile:
            cpu.prepare(job.model)
        trainer = _trainer(recipe, job, run, args, signals, identity, changed)
        if trainer.is_sharded:
            raise UserError(
                f"{recipe.name}: FSDP and DeepSpeed split the model, and checkpoints here are of "
                "whole ones; start it with `accelerate launch --multi_gpu`, an adapter if memory "
                "is short"
            )
        if main:
            if small := trainer.check_disk(2):
                raise UserError(f"{run}: {small}")
            run.begin(text, resume=last is not None)
            run.write_rejected(job.data.rejected)
            print(_opening(recipe, job, run), file=sys.stderr)
        start = _start(trainer, job) if job.untuned else None
        if last:
            trainer.resume(last)
        else:
            trainer.train()
        state = trainer.state
        rows = (state.epoch or 0) * len(job.splits["train"])
        tokens = (state.epoch or 0) * job.tokens or state.num_input_tokens_seen
        seen = {"rows": rows, "tokens": tokens}
        seconds = trainer.seconds_before
        logits, labels = test(trainer, job)
        _save(trainer, job, run)
        if main:
            results = run_results.results(recipe, job, trainer.state, args, logits, labels, start)
            if recipe.tuning.skip_non_finite:
                results["skipped_steps"] = trainer.counted["skipped"]
            since = started - trainer.seconds_elsewhere
            results["cost"] = run_results.cost(job.model, run, seconds, seen, since)
            run_results.write(recipe, job, run, results, logits)
            trainer.tidy()
            if recipe.training.get("push_to_hub"):
                run_results.push(recipe, run)
    trainer.accelerator.wait_for_everyone()
    return run if main else None


@contextmanager
def _room(run: run_directory.Run) -> Iterator[None]:
    """Let a full disk, wherever it is met, end the run with one line."""
    try:
        yield
    except Exception as error:
        # Not every library that writes says so by an error number.
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise TrainingError(
            f"{run}: {os.strerror(errno.ENOSPC)}; make room, and `finetune resume` goes on"
        ) from None


def _last(
    run: run_directory.Run, identity: dict[str, Any], allowed: Collection[str]
) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from; None for a run that has none yet. Newer ones are deleted.

    Raises:
        UserError: there are checkpoints and none is whole, or it is of another run.
    """
    last, skipped = checkpoints.newest(run.checkpoints)
    for line in skipped:
        print(f"finetune: skipped {line}", file=sys.stderr)
    if last is None:
        if skipped:
            raise UserError(f"{run}: no checkpoint to resume from; --overwrite starts anew")
        return None
    run_directory.refuse_changes(str(last.folder), run_results.changes(last.run, identity), allowed)
    every = checkpoints.candidates(run.checkpoints)
    checkpoints.clear(run.checkpoints, {c.name for c in every[every.index(last.folder) :]})
    print(f"finetune: resumes {run} from {last.folder.name}", file=sys.stderr)
    return last


def _trainer(
    recipe: Recipe,
    job: Job,
    run: run_directory.Run,
    args: TrainingArguments,
    signals: Signals,
    identity: dict[str, Any],
    changed: list[str],
) -> StepTrainer:
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores = job.score(*_arrays(prediction), 0)
        return {name: metric["value"] for name, metric in scores["metrics"].items()}

    budget, history = adalora.RankBudget(job.model), History(run)
    trainer = StepTrainer(
        signals=signals,
        run=identity,
        parts={"adalora": budget, "history": history},
        changed=changed,
        layer_decay=recipe.tuning.layer_decay,
        ema_decay=recipe.tuning.ema_decay,
        skip_non_finite=recipe.tuning.skip_non_finite,
        name_rows=job.name_rows,
        model=job.model,
        args=args,
        data_collator=job.collator,
        train_dataset=job.splits["train"],
        eval_dataset=by_length(job.splits["validation"])[0],
        processing_class=job.processor,
        compute_loss_func=job.loss,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=job.reduce,
        callbacks=[history, Epochs(job.collator), budget],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    progress = Progress()
    progress.headline = job.headline
    trainer.add_callback(progress)
    return trainer


def by_length(rows: Dataset) -> tuple[Dataset, numpy.ndarray]:
    """Rows sorted longest first, so that batches need little padding, and the order taken."""
    order = numpy.argsort(-numpy.asarray(rows["length"]), kind="stable")
    return rows.select(order), order


def test(trainer: Trainer, job: Job) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Logits (N, K) and labels of the test split, in its own order; called once a run.

    Logits are averaged over a row's views, as timm's ``--tta`` does.
    """
    rows, order = by_length(job.splits["test"])
    logits, labels = _arrays(trainer.predict(cast(Any, rows)))
    back, count = numpy.argsort(order, kind="stable"), len(job.data.test)
    views = logits[back].reshape(count, -1, logits.shape[1])
    return views.mean(1), labels[back][:: views.shape[1]]


def _start(trainer: Trainer, job: Job) -> run_results.Start:
    with tuning.without_adapter(job.model):
        found = run_results.Start(test(trainer, job)[0], job.samples())
    # accelerate prepared the model to answer alone, and would leave it so: processes that train
    # it would never share a gradient.
    plain = trainer.accelerator.unwrap_model(job.model, keep_fp32_wrapper=False)
    vars(plain).pop("_is_accelerate_prepared", None)
    return found


def _arrays(output: EvalPrediction | PredictionOutput) -> tuple[numpy.ndarray, numpy.ndarray]:
    logits, labels = output.predictions, output.label_ids
    assert isinstance(logits, numpy.ndarray)
    assert isinstance(labels, numpy.ndarray)
    return logits, labels


def _save(trainer: Trainer, job: Job, run: run_directory.Run) -> None:
    trainer.save_model(str(run.model))
    if trainer.is_world_process_zero():
        # Adapters: the head's shape and the label names are the config's to tell. How the base is
        # held is not: with that, transformers would take the base for one stored in few bits.
        config: Any = trainer.accelerator.unwrap_model(job.model).config
        vars(config).pop("quantization_config", None)
        config.save_pretrained(run.model)


def _opening(recipe: Recipe, job: Job, run: run_directory.Run) -> str:
    data, count = job.data, parameters.count_parameters(job.model)
    notes = [*job.notes]
    if "share_truncated" in data.report:
        notes.append(f"{data.report['share_truncated']:.0%} of texts truncated")
    notes += wording.packed(data.report)
    if data.report.get("new_head"):
        notes.append(f"{recipe.model.checkpoint} has no head for masks, so guesses start at random")
    if data.rejected:
        notes.append(f"{len(data.rejected)} rows set aside ({run_directory.REJECTED})")
    if data.report["contradictions_in_train"]:
        notes.append(f"{data.report['contradictions_in_train']} texts with two labels")
    return (
        f"{recipe.model.checkpoint} on {data.source}: {len(data.train)} train, "
        f"{len(data.validation)} validation, {len(data.test)} test ({data.test_is})\n"
        f"{', '.join(notes)}; {recipe.tuning.method} trains {count['trainable_parameters']:,} of "
        f"{count['total_parameters']:,} parameters -> {run}"
    )
