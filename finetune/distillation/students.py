"""Builds the job of a student: that of its task, with a teacher's outputs beside training rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import pandas
import torch
from datasets import Dataset, concatenate_datasets

from finetune import run_directory, tasks
from finetune.data import augmentation, splits
from finetune.distillation.teacher import Teacher
from finetune.errors import UserError
from finetune.models import pruning
from finetune.recipe import Distillation, Recipe
from finetune.tasks.classification import Classifier
from finetune.training.job import Job
from finetune.training.losses import TEACHER_LOGITS, TEACHER_STATES, DistillationLoss

TAUGHT = (TEACHER_LOGITS, TEACHER_STATES)


def builder(recipe: Recipe) -> Callable[[Recipe], Job]:
    """Returns what builds a recipe's job: its task, which a teacher may complete.

    Raises:
        UserError: the recipe asks for a student that its task, method or data cannot have.
    """
    task = tasks.find(recipe.task, recipe.where("task"))
    asked = recipe.distillation
    task.check(recipe)
    if asked == Distillation() and not pruning.is_asked(recipe):
        return task.build
    if not isinstance(task, Classifier):
        raise UserError(f"{recipe.name}: smaller models and teachers are for classification so far")
    if recipe.tuning.method != "full":
        raise UserError(f"{recipe.where('tuning.method')}: a smaller or taught model needs full")
    if asked == Distillation():
        return task.build
    if not asked.teacher:
        raise UserError(f"{recipe.name}: distillation needs a teacher, for example --teacher RUN")
    run_directory.one(asked.teacher)
    changed = augmentation.active(recipe.augmentation) or augmentation.mixes(recipe.augmentation)
    if changed and (asked.label_weight < 1 or asked.hidden_weight):
        raise UserError(
            f"{recipe.name}: a teacher's outputs are computed once, but augmentation changes "
            "images every epoch; leave it out, or learn from labels only: --label_weight 1"
        )
    return lambda recipe: _taught(task.build(recipe), recipe, task)


def _taught(job: Job, recipe: Recipe, task: Classifier) -> Job:
    """Returns the job with the teacher as a baseline and, unless labels are all, in its loss.

    Raises:
        UserError: the teacher does not fit, or the file of unlabelled texts cannot be used.
    """
    asked, teacher = recipe.distillation, Teacher(recipe, task, job.data)
    untaught = job.baselines
    if asked.unlabelled:
        job = _with_unlabelled(job, recipe, teacher)
    own: Any = job.model.config
    layers = own.num_hidden_layers if asked.hidden_weight else 0
    if layers and own.to_dict().get("hidden_size") != teacher.width:
        raise UserError(
            f"{recipe.where('distillation.hidden_weight')}: the student's hidden states have "
            f"{own.to_dict().get('hidden_size')} features and the teacher's {teacher.width}; make "
            "them the same, or leave hidden_weight out"
        )
    test = teacher.outputs(job.data.test)
    job = replace(
        job,
        baselines=lambda: {**untaught(), f"teacher ({teacher.run})": test},
        teacher=teacher.digest,
    )
    if asked.label_weight == 1 and not layers:
        return job
    outputs, classes = teacher.outputs(job.data.train, layers), len(teacher.order)
    columns = {TEACHER_LOGITS: outputs[:, :classes]}
    if layers:
        columns[TEACHER_STATES] = outputs[:, classes:].reshape(len(outputs), layers, -1)
    train = concatenate_datasets([job.splits["train"], Dataset.from_dict(columns)], axis=1)
    return replace(
        job,
        splits=job.splits | {"train": train},
        collator=_Collator(job.collator),
        # The collator reads columns that the model does not know.
        training=job.training | {"remove_unused_columns": False},
        loss=DistillationLoss(
            labels=job.loss,
            problem_type=job.data.problem_type,
            label_weight=asked.label_weight,
            temperature=asked.temperature,
            hidden_weight=asked.hidden_weight,
        ),
    )


class _Collator:
    """Collates rows as the task does, and a teacher's outputs beside them where rows have any."""

    def __init__(self, plain: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        self.plain = plain

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        left_out = {*TAUGHT, *pruning.NOT_INPUTS}
        batch = self.plain([{k: v for k, v in row.items() if k not in left_out} for row in rows])
        for name in TAUGHT:
            if name in rows[0]:
                values = numpy.asarray([row[name] for row in rows], numpy.float32)
                batch[name] = torch.from_numpy(values)
        return batch


def _with_unlabelled(job: Job, recipe: Recipe, teacher: Teacher) -> Job:
    """Returns the job with further training texts, labelled by the teacher.

    Texts that are in one of the splits already are left out.

    Raises:
        UserError: the task does not take further rows, or the file has none.
    """
    where, file = recipe.where("distillation.unlabelled"), recipe.distillation.unlabelled
    if job.encode is None:
        raise UserError(f"{where}: unlabelled rows are texts; {recipe.task} has none")
    task = teacher.task
    rows = [row for row in task.read_rows([], file, recipe) if not task.is_empty(row)]
    frame = pandas.DataFrame(rows).drop_duplicates()
    frame.insert(0, "id", [f"unlabelled-{number}" for number in range(len(frame))])
    known = pandas.concat([job.data.train, job.data.validation, job.data.test])
    shared = splits.Frame(known, "").shared(frame)
    frame = frame.set_index("id").drop(shared).reset_index()
    if frame.empty:
        raise UserError(f"{where}: {file} has no text that the splits have not")
    frame["label"] = _answers(teacher.outputs(frame), job.data.problem_type)
    data = replace(
        job.data,
        train=pandas.concat([job.data.train, frame], ignore_index=True),
        report=job.data.report | {"unlabelled": len(frame)},
    )
    train = concatenate_datasets([job.splits["train"], job.encode(frame)])
    note = f"{len(frame):,} unlabelled texts, {len(shared):,} others are in a split already"
    return replace(job, data=data, splits=job.splits | {"train": train}, notes=[*job.notes, note])


def _answers(logits: numpy.ndarray, problem_type: str) -> list[Any]:
    """Returns what a teacher predicts, as a ``Corpus`` has its labels."""
    if problem_type == "regression":
        return logits[:, 0].tolist()
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(float).tolist()
    return logits.argmax(1).tolist()
