"""A recipe's ``training`` -> ``TrainingArguments``, over this project's defaults."""

import os
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils.import_utils import is_liger_kernel_available, is_torch_xla_available

from finetune import run_directory
from finetune.errors import UserError
from finetune.evaluation import metrics
from finetune.models import tuning
from finetune.recipe import Recipe, typed_as
from finetune.training.job import Job

# What this project does where a recipe is silent and TrainingArguments would do another thing.
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 10,
    "logging_first_step": True,
    # A NaN that is logged as 0.0 is a lie.
    "logging_nan_inf_filter": False,
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": "non_padding",
    "report_to": "none",
    # Every weight of a task model is used; looking for others costs a pass over the graph a step.
    "ddp_find_unused_parameters": False,
}

# Keys of TrainingArguments that a run here has another way for.
NOT_OFFERED = {
    "save_only_model": "a checkpoint is there to be resumed from",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint after the step without being asked",
}
# Below these nothing is learned, though the Trainer would go on.
LEAST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}


def has_accelerator() -> bool:
    """Whether there is anything but the CPU to train on: a GPU of any make, or a TPU."""
    return torch.accelerator.is_available() or is_torch_xla_available()


def checked(recipe: Recipe) -> dict[str, Any]:
    """The recipe's ``training``, each key a field of ``TrainingArguments`` and of its type.

    Raises:
        UserError: an unknown key, a value of another type or out of range, fp16 without a GPU,
            Liger kernels that are not installed.
    """
    given = typed_as(TrainingArguments, recipe.training, "training", recipe.origin)
    for name, low in LEAST.items():
        if given.get(name, low) < low:
            raise UserError(
                f"{recipe.where(f'training.{name}')}: {name} has to be at least {low:g}"
            )
    if given.get("num_train_epochs", 1) <= 0 and given.get("max_steps", -1) <= 0:
        where = recipe.where("training.num_train_epochs")
        raise UserError(f"{where}: num_train_epochs has to be above 0")
    for name, why in NOT_OFFERED.items():
        if given.get(name):
            raise UserError(f"{recipe.where(f'training.{name}')}: {name} is not offered: {why}")
    if given.get("fp16") and not torch.cuda.is_available():
        raise UserError(f"{recipe.where('training.fp16')}: fp16 needs a GPU; use bf16, or nothing")
    if given.get("use_liger_kernel") and not is_liger_kernel_available():
        where = recipe.where("training.use_liger_kernel")
        raise UserError(f"{where}: use_liger_kernel needs `pip install liger-kernel`, and a GPU")
    return given


def best_model(values: dict[str, Any], recipe: Recipe, job: Job) -> dict[str, Any]:
    """Returns the metric that chooses the best checkpoint, and its direction.

    The recipe's own ``greater_is_better`` wins; the table of metrics knows the rest.

    Raises:
        UserError: the run does not measure that metric, or its direction is unknown.
    """
    name = values.get("metric_for_best_model") or f"eval_{job.headline}"
    where = recipe.where("training.metric_for_best_model")
    spec = metrics.chosen_by(name, job.headline, job.extra_metrics, where)
    greater_is_better = values.get("greater_is_better")
    if greater_is_better is None:
        greater_is_better = spec.greater_is_better
    if greater_is_better is None:
        raise UserError(
            f"{where}: whether more {name} is better is not known; set greater_is_better"
        )
    return {"metric_for_best_model": name, "greater_is_better": greater_is_better}


def training_arguments(recipe: Recipe, run: run_directory.Run, job: Job) -> TrainingArguments:
    """``TrainingArguments`` of a recipe, over this project's defaults.

    Raises:
        UserError: what ``checked`` refuses, and what the Trainer does.
    """
    given = checked(recipe)
    # Said aloud, because the Trainer refuses bf16 on a CPU that it only fell back to.
    values: dict[str, Any] = DEFAULTS | {"use_cpu": not has_accelerator()}
    values["learning_rate"] = tuning.learning_rate(recipe.tuning.method)
    if is_torch_xla_available():
        # The Trainer's own, fused, does not run there, and there is no memory to pin.
        values |= {"optim": "adamw_torch", "dataloader_pin_memory": False}
    values |= job.training | given
    if not len(job.data.validation):
        values["eval_strategy"] = "no"
    chooses = values["eval_strategy"] != "no"
    values.setdefault("save_strategy", values["eval_strategy"] if chooses else "epoch")
    values.setdefault("load_best_model_at_end", chooses and values["save_strategy"] != "no")
    if values["eval_strategy"] == "steps" and "save_steps" not in given:
        values["save_steps"] = values.get("eval_steps") or values["logging_steps"]
    values |= best_model(values, recipe, job)
    # The model folder is pushed at the end, with its card; not the checkpoints on the way.
    values |= {"output_dir": str(run.checkpoints), "push_to_hub": False}
    # The task's own loss smooths; the Trainer's smoother would only warn where it cannot.
    values["label_smoothing_factor"] = 0.0
    values.setdefault("dataloader_pin_memory", not values["use_cpu"])
    # The only way transformers 5 has to say where TensorBoard's files go.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / run_directory.TENSORBOARD)
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{recipe.name}: training: {str(error).splitlines()[0]}") from None
