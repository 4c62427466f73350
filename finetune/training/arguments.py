"""Converts the training section of a resolved recipe to ``TrainingArguments``.

Values are taken, in this order, from the recipe, from the task, and from ``DEFAULTS``.
"""

import os
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils.import_utils import is_torch_xla_available

from finetune import run_directory
from finetune.errors import UserError
from finetune.evaluation import metrics
from finetune.recipe import Recipe
from finetune.training.job import Job

# Where neither the recipe nor the task sets a key, and the default of TrainingArguments differs.
DEFAULTS: dict[str, Any] = {
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 10,
    "logging_first_step": True,
    # Otherwise the Trainer logs a NaN loss as 0.0.
    "logging_nan_inf_filter": False,
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": "non_padding",
    "report_to": "none",
    # Every weight of a task model is used; looking for unused ones costs a pass over the graph.
    "ddp_find_unused_parameters": False,
}


def has_accelerator() -> bool:
    """Returns whether there is a GPU of any make, or a TPU, that accelerate is to use."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return False
    return torch.accelerator.is_available() or is_torch_xla_available()


def best_model(values: dict[str, Any], recipe: Recipe, job: Job) -> dict[str, Any]:
    """Returns the metric that chooses the best checkpoint, and its direction.

    The recipe's own ``greater_is_better`` wins; the table of metrics knows the rest.

    Raises:
        UserError: the run does not measure that metric, or its direction is unknown.
    """
    name = values.get("metric_for_best_model") or f"eval_{job.headline}"
    where = recipe.where("training.metric_for_best_model")
    extra = {name: each.spec for name, each in job.extra_metrics.items()}
    spec = metrics.chosen_by(name, job.headline, extra, where)
    greater_is_better = values.get("greater_is_better")
    if greater_is_better is None:
        greater_is_better = spec.greater_is_better
    if greater_is_better is None:
        raise UserError(
            f"{where}: whether more {name} is better is not known; set greater_is_better"
        )
    return {"metric_for_best_model": name, "greater_is_better": greater_is_better}


def training_arguments(recipe: Recipe, run: run_directory.Run, job: Job) -> TrainingArguments:
    """Returns the ``TrainingArguments`` of a resolved recipe, over the defaults of this project.

    Raises:
        UserError: values that ``TrainingArguments`` rejects in combination.
    """
    given = recipe.training
    # Explicit, because the Trainer rejects bf16 on a CPU that it only fell back to.
    values: dict[str, Any] = DEFAULTS | {"use_cpu": not has_accelerator()}
    if is_torch_xla_available():
        # The Trainer's default, fused, does not run on XLA, and there is no memory to pin.
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
    # The model folder is pushed once, at the end, with its card; checkpoints are not.
    values |= {"output_dir": str(run.checkpoints), "push_to_hub": False}
    # The task's own loss smooths labels; the Trainer's smoother would only warn.
    values["label_smoothing_factor"] = 0.0
    values.setdefault("dataloader_pin_memory", not values["use_cpu"])
    # The only way in transformers 5 to set the folder of TensorBoard's files.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / run_directory.TENSORBOARD)
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{recipe.name}: training: {str(error).splitlines()[0]}") from None
