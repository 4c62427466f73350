"""Trains a recipe into its run directory: train, choose a checkpoint, test once, save.

From a recipe to its gradient a reader crosses five files: ``cli.py``, ``recipe/resolving.py``, the
task's module in ``tasks/``, this file, and ``trainer.py``, whose bases save, resume and hook.
"""

import dataclasses
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy
import transformers
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from finetune import run_directory
from finetune.errors import TrainingError, UserError
from finetune.models import changed_base, tuning
from finetune.models.speed import cpu
from finetune.recipe import Recipe, read
from finetune.training import (
    adalora,
    checkpoints,
    memory,
    opening,
    processes,
    run_results,
    sharding,
)
from finetune.training.arguments import training_arguments
from finetune.training.callbacks import EarlyStopping, History, Progress, TimeLimit
from finetune.training.job import Job
from finetune.training.sampling import EpochRows
from finetune.training.signals import Signals
from finetune.training.trainer import StepTrainer


def train(
    recipe: Recipe,
    build: Callable[[Recipe], Job],
    overwrite: bool = False,
    resume: bool = False,
    allowed: Collection[str] = (),
    end: float | None = None,
) -> run_directory.Run | None:
    """Trains a recipe into its run directory and tests it once.

    The model card and the report are not written here: see ``finetune.report``.

    Args:
        recipe: resolved, as ``recipe.load`` returns it.
        build: of the recipe's task; called after the directory is locked.
        overwrite, resume: what to do with a directory that holds a run. A run that was killed
            before its first checkpoint starts from the beginning; a finished one is not touched.
        allowed: what may differ from the run to resume: ``section.key`` of the recipe, ``data``,
            ``base``, ``teacher``, ``processes``, ``versions``.
        end: when training has to end, in seconds of ``time.monotonic``.

    Returns:
        The finished run in the main process; None in the others.

    Raises:
        UserError: a mistake that the user has to correct.
        TrainingError: the run failed: numbers that are not finite, a full disk, no memory.
        SystemExit: a signal ended it; during training, after the step and with a checkpoint.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.time()
    run = run_directory.Run(recipe.training["output_dir"])
    processes.check_accelerate(recipe)
    sharding.check(recipe)
    main = processes.connect(recipe).is_main_process
    if recipe.auto_batch and resume:
        recipe = _chosen_before(recipe, run)
    text = recipe.dump()
    claim = run.claim(text, overwrite, resume, allowed) if main else nullcontext()
    with Signals() as signals, claim, _room(run):
        processes.check_folder(run.folder, main)
        if resume and run.is_finished:
            if main:
                print(f"finetune: {run} is finished; nothing is left to resume", file=sys.stderr)
            return run if main else None
        deterministic = recipe.training.get("full_determinism")
        seed = transformers.enable_full_determinism if deterministic else transformers.set_seed
        seed(recipe.training["seed"])
        job = build(recipe)
        args = training_arguments(recipe, run, job)
        other_gpus = processes.use_one_gpu(args)
        if args.device.type == "cpu" and not args.torch_compile:
            cpu.prepare(job.model)
        chosen = None
        if recipe.auto_batch:
            recipe, chosen = fit(recipe, job, run, args, signals)
            text = recipe.dump()
        identity = run_results.identity(recipe, job, args.world_size)
        last = _last(run, identity, allowed) if resume and main else None
        processes.wait()
        (last,) = broadcast_object_list([last])
        changed = list(run_results.changes(last.run, identity)) if last else []
        trainer = new_trainer(recipe, job, run, args, signals, identity, changed)
        if end is not None:
            trainer.add_callback(TimeLimit(end))
        unused = trainer.allow_unused_weights()
        if trainer.is_sharded and job.generate:
            raise UserError(f"{recipe.name}: FSDP2 does not work with {recipe.task}: it generates")
        if main:
            if small := trainer.check_disk(2):
                raise UserError(f"{run}: {small}")
            run.begin(text, resume=last is not None)
            run.write_rejected(job.data.rejected)
            print(opening.describe(recipe, job, run), file=sys.stderr)
            for note in filter(None, [other_gpus, unused, chosen]):
                print(f"finetune: {note}", file=sys.stderr)
        processes.wait()
        # A split model needs an optimizer before it can be evaluated.
        start = _start(trainer, job) if job.untuned and not trainer.is_sharded else None
        if last:
            trainer.resume(last)
        else:
            trainer.train()
        processes.wait()
        state = trainer.state
        rows = (state.epoch or 0) * len(job.splits["train"])
        tokens = (state.epoch or 0) * job.tokens or state.num_input_tokens_seen
        seen = {"rows": rows, "tokens": tokens}
        seconds = trainer.train_seconds
        outputs, labels = test(trainer, job)
        _save(trainer, job, run)
        if main:
            results = run_results.results(
                recipe, job, trainer.state, args, trainer.accelerator, outputs, labels, start
            )
            if recipe.tuning.skip_non_finite:
                results["skipped_steps"] = trainer.counters["skipped"]
            if recipe.training.get("early_stopping_patience") or end is not None:
                results["stopped_early"] = state.global_step < state.max_steps
            since = started - trainer.earlier_seconds
            results["cost"] = run_results.cost(job.model, run, seconds, seen, since)
            run_results.write(job, run, results, outputs)
            trainer.tidy()
    processes.wait()
    return run if main else None


@contextmanager
def _room(run: run_directory.Run) -> Iterator[None]:
    """Turns the error of a full disk, wherever it is raised, into one line."""
    try:
        yield
    except Exception as error:
        # Not every library that writes raises it with an error number.
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise TrainingError(
            f"{run}: {os.strerror(errno.ENOSPC)}; make room, and `finetune resume` goes on"
        ) from None


def _last(
    run: run_directory.Run, identity: dict[str, Any], allowed: Collection[str]
) -> checkpoints.Checkpoint | None:
    """Returns the checkpoint to resume from, None if there is none yet; deletes newer ones.

    Raises:
        UserError: there are checkpoints and none is intact, or it belongs to another run.
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
    checkpoints.delete_except(run.checkpoints, {c.name for c in every[every.index(last.folder) :]})
    print(f"finetune: resumes {run} from {last.folder.name}", file=sys.stderr)
    return last


def _sizes(recipe: Recipe) -> tuple[int, int]:
    """Returns the recipe's rows of a micro-batch and micro-batches of a step."""
    given, default = recipe.training, TrainingArguments
    size = given.get("per_device_train_batch_size", default.per_device_train_batch_size)
    return size, given.get("gradient_accumulation_steps", default.gradient_accumulation_steps)


def _with_sizes(recipe: Recipe, size: int, count: int) -> Recipe:
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
    return dataclasses.replace(recipe, training=recipe.training | sizes, auto_batch=False)


def _chosen_before(recipe: Recipe, run: run_directory.Run) -> Recipe:
    """Returns the recipe with the micro-batches of the run to resume, if its steps are as large."""
    path = run.folder / run_directory.RECIPE
    if path.is_file():
        size, count = _sizes(read(path))
        if size * count == math.prod(_sizes(recipe)):
            return _with_sizes(recipe, size, count)
    return recipe


def fit(
    recipe: Recipe, job: Job, run: run_directory.Run, args: TrainingArguments, signals: Signals
) -> tuple[Recipe, str]:
    """Sets the micro-batches that fit into memory, in ``args`` and in the recipe returned.

    Returns:
        The recipe, and a line about them.

    Raises:
        UserError: the memory of the device cannot be measured.
        TrainingError: a single row does not fit.
    """
    trial = new_trainer(recipe, job, run, args, signals, {}, [], quiet=True)
    size, count, line = memory.fit(trial)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, count
    return _with_sizes(recipe, size, count), line


def new_trainer(
    recipe: Recipe,
    job: Job,
    run: run_directory.Run,
    args: TrainingArguments,
    signals: Signals,
    identity: dict[str, Any],
    changed: list[str],
    quiet: bool = False,
) -> StepTrainer:
    """Returns the trainer of a job; ``quiet`` leaves the progress bar out."""
    validation, order = by_length(job.splits["validation"])

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        outputs, labels = _in_order(prediction, order)
        scores = job.all_scores(*job.collect(outputs, labels, "validation"), 0)
        return {name: metric["value"] for name, metric in scores["metrics"].items()}

    budget, history = adalora.RankBudget(job.model), History(run)
    patience = recipe.training.get("early_stopping_patience")
    rows: Any = job.splits["train"]
    trainer = StepTrainer(
        signals=signals,
        run=identity,
        stateful={"adalora": budget, "history": history},
        changed_keys=changed,
        layer_decay=recipe.tuning.layer_decay,
        ema_decay=recipe.tuning.ema_decay,
        skip_non_finite=recipe.tuning.skip_non_finite,
        name_rows=job.name_rows,
        before_evaluation=job.before_evaluation,
        balanced=job.balanced,
        model=job.model,
        args=args,
        data_collator=job.collator,
        train_dataset=EpochRows(rows) if "epoch" in rows.column_names else rows,
        eval_dataset=validation,
        processing_class=job.processor,
        compute_loss_func=job.loss,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=job.reduce,
        callbacks=[history, budget, *([EarlyStopping(patience)] if patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    progress = Progress()
    progress.headline = job.headline
    if not quiet and not recipe.training.get("disable_tqdm"):
        trainer.add_callback(progress)
    return trainer


def by_length(rows: Dataset) -> tuple[Dataset, numpy.ndarray]:
    """Returns rows sorted longest first, so that batches need little padding, and their order."""
    order = numpy.argsort(-numpy.asarray(rows["length"]), kind="stable")
    return rows.select(order), order


def test(trainer: Trainer, job: Job) -> tuple[Any, Any]:
    """Returns outputs and labels of the test rows, in their order; called once a run."""
    if job.rescale and len(job.splits["validation"]):
        job.rescale(job.model, *_predict(trainer, job, "validation"))
    if job.calibrates and len(job.splits["validation"]):
        _predict(trainer, job, "validation")
    return _predict(trainer, job, "test")


def _predict(trainer: Trainer, job: Job, split: str) -> tuple[Any, Any]:
    rows, order = by_length(job.splits[split])
    # predict() would compute validation's metrics for these rows, too.
    metrics, trainer.compute_metrics = trainer.compute_metrics, None
    prediction = trainer.predict(cast(Any, rows))
    trainer.compute_metrics = metrics
    return job.collect(*_in_order(prediction, order), split)


def _in_order(
    prediction: EvalPrediction | PredictionOutput, order: numpy.ndarray
) -> tuple[Any, Any]:
    """Outputs and labels (arrays or tuples of them) back in the order of their split."""
    back = numpy.argsort(order, kind="stable")

    def reordered(part: Any) -> Any:
        return tuple(map(reordered, part)) if isinstance(part, tuple) else part[back]

    return reordered(prediction.predictions), reordered(prediction.label_ids)


def _start(trainer: Trainer, job: Job) -> run_results.Start:
    with tuning.before_training(job.model, job.checkpoint):
        found = run_results.Start(test(trainer, job)[0], job.samples())
    # accelerate prepared the model for evaluation only and would keep it so: processes that train
    # it would never share a gradient.
    plain = trainer.accelerator.unwrap_model(job.model, keep_fp32_wrapper=False)
    vars(plain).pop("_is_accelerate_prepared", None)
    return found


def _save(trainer: Trainer, job: Job, run: run_directory.Run) -> None:
    trainer.save_model(str(run.model))
    if trainer.is_world_process_zero():
        changed_base.save_for_checkpoint(trainer.accelerator.unwrap_model(job.model), run.model)
        # An adapter's folder needs the config for the head's shape and the label names. Without its
        # quantization: with it, transformers would take the base for one stored in 4 or 8 bits.
        model = trainer.accelerator.unwrap_model(job.model)
        config: Any = model.config
        vars(config).pop("quantization_config", None)
        config.save_pretrained(run.model)
        # So does generation, which stops where the documents here end.
        for part in model.modules():
            if isinstance(part, PreTrainedModel) and part.can_generate():
                part.generation_config.save_pretrained(run.model)
                break
        if job.finish:
            job.finish(run.model)
        run_directory.apply_umask(run.model)
