"""Converts the training section of a resolved recipe to ``TrainingArguments``.

Values are taken, in this order, from the recipe, from the task, and from ``DEFAULTS``.
"""

import os
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.utils.import_utils import is_torch_xla_available

from finetune import run_directory
from finetune.errors import UserError
from finetune.evaluation import metrics
from finetune.recipe import Recipe, training_fields
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

# Schedules that take no warm-up, and those that take no options.
PLATEAU = ("reduce_lr_on_plateau", "greedy")
WITHOUT_WARMUP = (*PLATEAU, "constant")
WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
# The ``optim_args`` of torch's optimizers and of Adafactor; transformers ignores all other names.
OPTIM_ARGS: dict[str, set[str]] = {
    "adamw_torch": set(),
    "adamw_torch_fused": set(),
    "adafactor": set(),
    "sgd": {"momentum", "dampening", "weight_decay", "nesterov"},
    "adagrad": {"lr_decay", "weight_decay", "eps"},
    "rmsprop": {"momentum", "alpha", "eps", "weight_decay", "centered"},
}
# Keys that the Trainer ignores without another: that key, the values that make it count (None: any
# that is on), and what to write.
NEEDS: dict[str, tuple[str, tuple[Any, ...] | None, str]] = {
    "eval_steps": ("eval_strategy", ("steps",), "eval_strategy: steps"),
    "save_steps": ("save_strategy", ("steps",), "save_strategy: steps, and eval_strategy: steps"),
    "logging_steps": ("logging_strategy", ("steps",), "logging_strategy: steps"),
    "eval_delay": ("eval_strategy", ("steps", "epoch"), "eval_strategy: epoch"),
    "warmup_steps": (
        "lr_scheduler_type",
        tuple(t.value for t in SchedulerType if t.value not in WITHOUT_WARMUP),
        "lr_scheduler_type: constant_with_warmup, or another with warm-up",
    ),
    "lr_scheduler_kwargs": (
        "lr_scheduler_type",
        tuple(t.value for t in SchedulerType if t.value not in WITHOUT_OPTIONS),
        "another lr_scheduler_type",
    ),
    "activation_checkpointing_kwargs": (
        "activation_checkpointing",
        None,
        "activation_checkpointing: true",
    ),
    "liger_kernel_config": ("use_liger_kernel", None, "use_liger_kernel: true"),
    **{
        f"dataloader_{name}": ("dataloader_num_workers", None, "dataloader_num_workers: 1, or more")
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context")
    },
    **{
        f"hub_{name}": ("push_to_hub", None, "push_to_hub: true")
        for name in ("model_id", "private_repo", "revision")
    },
    **dict.fromkeys(
        ["run_name", "project", "trackio_space_id", "trackio_bucket_id"],
        ("report_to", None, "report_to: trackio"),
    ),
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
    given = {k: v for k, v in recipe.training.items() if k not in training_fields.OWN}
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
    _check_strategies(values, recipe)
    if values.get("lr_scheduler_type") in PLATEAU:
        # Otherwise the schedule takes a higher value for a worse one, whatever the metric.
        mode = {"mode": "max" if values["greater_is_better"] else "min"}
        values["lr_scheduler_kwargs"] = mode | (values.get("lr_scheduler_kwargs") or {})
    # The model folder is pushed once, at the end, with its card; checkpoints are not.
    values |= {"output_dir": str(run.checkpoints), "push_to_hub": False}
    if given.get("label_smoothing_factor", 0.0) != job.label_smoothing:
        raise UserError(
            f"{recipe.where('training.label_smoothing_factor')}: label_smoothing_factor needs "
            "classes to spread the label over; the loss of this run has none. Leave it out"
        )
    if given.get("neftune_noise_alpha") and not isinstance(job.processor, PreTrainedTokenizerBase):
        raise UserError(
            f"{recipe.where('training.neftune_noise_alpha')}: neftune_noise_alpha adds noise to "
            "the embeddings of tokens; this task has none. Leave it out"
        )
    # The task's own loss smooths labels; the Trainer's smoother would only warn.
    values["label_smoothing_factor"] = 0.0
    values.setdefault("dataloader_pin_memory", not values["use_cpu"])
    # The only way in transformers 5 to set the folder of TensorBoard's files.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / run_directory.TENSORBOARD)
    try:
        args = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{recipe.name}: training: {str(error).splitlines()[0]}") from None
    _check_effects(args, values, recipe)
    return args


def _check_strategies(values: dict[str, Any], recipe: Recipe) -> None:
    """Checks that evaluations, checkpoints and early stopping fit each other.

    Raises:
        UserError: they do not.
    """
    evaluates, saves = str(values["eval_strategy"]), str(values["save_strategy"])
    if recipe.training.get("early_stopping_patience") and evaluates == "no":
        raise UserError(
            f"{recipe.where('training.early_stopping_patience')}: early_stopping_patience counts "
            "evaluations, and there are none; set eval_strategy, and take validation rows"
        )
    if not values["load_best_model_at_end"] or saves == "best":
        return
    where = recipe.where("training.save_strategy")
    instead = "or load_best_model_at_end: false to keep the last model"
    if evaluates != saves:
        raise UserError(
            f"{where}: save_strategy {saves} and eval_strategy {evaluates} differ, and the best "
            f"model is loaded at the end; write the same for both, {instead}"
        )
    every, save = values.get("eval_steps") or values["logging_steps"], values.get("save_steps")
    if evaluates != "steps" or not every or not save:
        return
    if (every < 1) != (save < 1):
        where = recipe.where("training.save_steps")
        raise UserError(
            f"{where}: save_steps {save:g} and eval_steps {every:g} have to be both steps, or "
            "both shares below 1"
        )
    times = save / every
    if abs(times - round(times)) > 1e-6 or times < 0.5:
        below, above = (every * n for n in (max(1, int(times)), int(times) + 1))
        advice = f"{below:g}" if below == above else f"{below:g} or {above:g}"
        raise UserError(
            f"{recipe.where('training.save_steps')}: save_steps {save:g} is no multiple of "
            f"eval_steps {every:g}, and the best model is loaded at the end; write save_steps "
            f"{advice}, {instead}"
        )


def _check_effects(args: TrainingArguments, values: dict[str, Any], recipe: Recipe) -> None:
    """Checks that no key of the recipe would be ignored.

    Raises:
        UserError: one would be, or a reporter is not installed.
    """
    resolved = {**vars(args), "push_to_hub": recipe.training.get("push_to_hub")}
    # Without validation rows it is "no", whatever the recipe says.
    resolved["eval_strategy"] = recipe.training.get("eval_strategy") or args.eval_strategy
    for name, (other, effective, advice) in NEEDS.items():
        # What is switched off by name, by a flag for example, may leave its settings in the recipe.
        switch = recipe.training.get(other)
        if not recipe.training.get(name) or switch is False or switch == "no":
            continue
        found = resolved[other]
        if not found or (effective is not None and found not in effective):
            state = getattr(found, "value", found)
            raise UserError(
                f"{recipe.where(f'training.{name}')}: {name} has no effect with {other} "
                f"{state or 'off'}; write {advice}"
            )
    optim = str(values.get("optim", "adamw_torch_fused"))
    if optim.endswith(("_layerwise", "lomo")):
        raise UserError(
            f"{recipe.where('training.optim')}: optim {optim} is not offered: it changes weights "
            "during the backward pass, before a step is checked"
        )
    known = OPTIM_ARGS.get(optim)
    for pair in str(values.get("optim_args") or "").replace(" ", "").split(","):
        name = pair.partition("=")[0]
        if name and known is not None and name not in known:
            raise UserError(
                f"{recipe.where('training.optim_args')}: optim {optim} takes no {name}; "
                f"it takes {', '.join(sorted(known)) or 'no optim_args'}"
            )
    available = get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in available:
            raise UserError(
                f"{recipe.where('training.report_to')}: report_to {name}: its package is not "
                f"installed, or it does not exist; it can be none, {', '.join(available)}"
            )
