"""What becomes of each field of ``transformers.TrainingArguments`` in a recipe's training section.

- ``USED``: the Trainer, or this project, does with it what transformers documents.
- ``REPLACED``: this project does it in another way.
- ``REFUSED``: other values than those accepted would have no effect here, or break what this
  project promises. The error gives the reason.

A test compares the three with the installed class, so that a field of a new release has to be
judged before that release is accepted. Imports nothing heavy: the command line needs ``BOOLEANS``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from finetune.errors import UserError


@dataclass(frozen=True)
class Refused:
    """Why a field's values are refused, and the ones that are accepted."""

    why: str
    accepted: tuple[Any, ...] = (None, False)


USED = {
    # the length of the training, the batch, the optimizer and its schedule
    *("num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "neftune_noise_alpha"),
    # precision, memory, compilers
    *("bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("use_liger_kernel", "liger_kernel_config", "torch_empty_cache_steps", "use_cpu"),
    # randomness and rows
    *("seed", "data_seed", "full_determinism"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    # logs
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node"),
    *("log_level", "log_level_replica", "include_num_input_tokens_seen"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
    "trackio_static_space_id",
    # evaluation and the best checkpoint
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("eval_accumulation_steps", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "save_strategy", "save_steps"),
    # the hub
    *("hub_model_id", "hub_private_repo", "hub_revision"),
    # several processes
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "ddp_backend", "ddp_timeout"),
}
REPLACED = {
    "output_dir": "the run directory; checkpoints are in a folder of it",
    "save_total_limit": "checkpoints are rotated before a save, and the best is always kept",
    "push_to_hub": "the model folder is pushed once, at the end, with its card",
    "label_smoothing_factor": "the task's own loss smooths labels, and a task without any refuses",
    "disable_tqdm": "hides this project's progress bar",
    "gradient_checkpointing": "the old name of activation_checkpointing",
    "gradient_checkpointing_kwargs": "the old name of activation_checkpointing_kwargs",
}
# The new names of fields that transformers still accepts under an old one, with a warning.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
SHARDED = "use accelerate launch --config_file recipes/launch/fsdp2.yaml, which splits the model"
REFUSED = {
    # they would change the result without saying so
    "bf16_full_eval": Refused("it casts the model itself; bf16: true evaluates in bf16, too"),
    "fp16_full_eval": Refused("it casts the model itself; fp16: true evaluates in fp16, too"),
    "auto_find_batch_size": Refused(
        "it trains on from half-trained weights with smaller steps; the error for running out of "
        "memory names sizes that train the same"
    ),
    "average_tokens_across_devices": Refused(
        "the loss is always averaged over the labels of all processes", (True,)
    ),
    "logging_nan_inf_filter": Refused("a loss that is not finite ends the run", (False,)),
    "use_cache": Refused("with a cache, documents that share a block would attend to each other"),
    "accelerator_config": Refused(
        "rows are divided between processes by this project's own sampler", (None,)
    ),
    "dataloader_drop_last": Refused("every row is trained on once an epoch"),
    "dataloader_in_order": Refused("a resumed run needs the batches in order", (True,)),
    "ignore_data_skip": Refused("a resumed run continues at the right row"),
    "train_sampling_strategy": Refused(
        "it can be random or group_by_length", ("random", "group_by_length")
    ),
    # the task decides
    "remove_unused_columns": Refused("it follows from the task", ()),
    "label_names": Refused("they follow from the task", (None,)),
    "length_column_name": Refused("rows are measured in tokens by the task", ("length",)),
    "debug": Refused(
        "only underflow_overflow can be found without a TPU",
        ("", [], None, "underflow_overflow", ["underflow_overflow"]),
    ),
    # predictions are needed whole, for intervals and for predictions.parquet
    "prediction_loss_only": Refused("the metrics need the predictions"),
    "eval_do_concat_batches": Refused("the metrics need the predictions in one array", (True,)),
    "eval_use_gather_object": Refused("predictions are tensors"),
    "batch_eval_metrics": Refused("intervals need the predictions of all rows"),
    "include_for_metrics": Refused("metrics get predictions and labels", ([], None)),
    # checkpoints and resuming
    "save_only_model": Refused("runs are resumed from their checkpoints"),
    "save_on_each_node": Refused("the main process writes the run directory"),
    "enable_jit_checkpoint": Refused("SIGTERM always saves a checkpoint after the step"),
    "restore_callback_states_from_checkpoint": Refused("a resumed run always restores them"),
    "resume_from_checkpoint": Refused("write `finetune resume RUN`, or add --resume"),
    # the hub
    "hub_token": Refused("a token does not belong in a recipe; set HF_TOKEN", (None,)),
    "hub_strategy": Refused(
        "the model folder is pushed once, at the end", ("end", "every_save", None)
    ),
    "hub_always_push": Refused("the model folder is pushed once, at the end"),
    # the models of several processes
    "fsdp": Refused(SHARDED, (None, False, "")),
    "fsdp_config": Refused(SHARDED, (None, {})),
    "deepspeed": Refused(SHARDED, (None, {})),
    "parallelism_config": Refused(SHARDED, (None,)),
    "local_rank": Refused("the launcher sets LOCAL_RANK in the environment", (-1,)),
    # what a run does
    "do_train": Refused("finetune train always trains", (True,)),
    "do_eval": Refused("eval_strategy: 'no' turns evaluation off", (True,)),
    "do_predict": Refused("finetune train always tests, once", (True,)),
    "skip_memory_metrics": Refused("results.json always has the peak memory", (True,)),
}
# Keys of the training section that are this project's own, with their types and ranges.
OWN: dict[str, Any] = {"early_stopping_patience": Annotated[int | None, Field(ge=1)]}
# The fields that are true or false, for the command line, which does not import transformers.
BOOLEANS = {
    *("activation_checkpointing", "auto_find_batch_size", "average_tokens_across_devices"),
    *("batch_eval_metrics", "bf16", "bf16_full_eval", "dataloader_drop_last"),
    *("dataloader_in_order", "dataloader_persistent_workers", "dataloader_pin_memory"),
    *("ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph", "disable_tqdm"),
    *("do_eval", "do_predict", "do_train", "enable_jit_checkpoint", "eval_do_concat_batches"),
    *("eval_on_start", "eval_use_gather_object", "fp16", "fp16_full_eval", "full_determinism"),
    *("gradient_checkpointing", "greater_is_better", "hub_always_push", "hub_private_repo"),
    *("ignore_data_skip", "load_best_model_at_end", "log_on_each_node", "logging_first_step"),
    *("logging_nan_inf_filter", "prediction_loss_only", "push_to_hub", "remove_unused_columns"),
    *("restore_callback_states_from_checkpoint", "save_on_each_node", "save_only_model"),
    *("skip_memory_metrics", "tf32", "torch_compile", "use_cache", "use_cpu", "use_liger_kernel"),
}
# Names of earlier releases and of other programs, and what to write instead.
_BATCH, _EVAL_BATCH = "per_device_train_batch_size", "per_device_eval_batch_size"
FORMER = {
    **dict.fromkeys(["epochs", "num_epochs", "n_epochs", "max_epochs"], "num_train_epochs"),
    **dict.fromkeys(["batch_size", "train_batch_size", "per_gpu_train_batch_size"], _BATCH),
    **dict.fromkeys(["eval_batch_size", "per_gpu_eval_batch_size"], _EVAL_BATCH),
    **dict.fromkeys(["lr", "learning_rate_init"], "learning_rate"),
    **dict.fromkeys(["max_seq_length", "max_seq_len", "seq_length", "max_len"], "max_length"),
    **dict.fromkeys(["grad_accum", "accumulation_steps"], "gradient_accumulation_steps"),
    **dict.fromkeys(["model_name_or_path", "model_name", "base_model"], "checkpoint"),
    **dict.fromkeys(["optimizer", "optimizer_type"], "optim"),
    **dict.fromkeys(["scheduler", "lr_scheduler"], "lr_scheduler_type"),
    **dict.fromkeys(["patience", "early_stopping"], "early_stopping_patience"),
    **dict.fromkeys(["use_lora", "use_peft"], "method lora"),
    **dict.fromkeys(["lora_r", "lora_rank"], "r, with method lora"),
    **dict.fromkeys(["class_weight", "pos_weight"], "class_weights"),
    **dict.fromkeys(["loss_type", "loss_function", "focal_loss"], "loss focal"),
    "evaluation_strategy": "eval_strategy",
    "label_smoothing": "label_smoothing_factor",
    "warmup_ratio": "warmup_steps, whose values below 1 are a share of all steps",
    "no_cuda": "use_cpu",
    "group_by_length": "train_sampling_strategy group_by_length, which is the default",
    "adafactor": "optim adafactor",
    "torchdynamo": "torch_compile_backend",
    "mixed_precision": "bf16, or fp16",
    "num_workers": "dataloader_num_workers",
    "push_to_hub_model_id": "hub_model_id",
    "overwrite_output_dir": "the option --overwrite of finetune train",
    "train_file": "train",
    "validation_file": "validation",
    "test_file": "test",
    "dataset_name": "dataset",
    "dataset_config_name": "dataset_config",
    "text_column_name": "text",
    "text_column": "text",
    "image_column_name": "image",
    "label_column_name": "label",
    "label_column": "label",
    "model_revision": "revision",
    "gradient_clipping": "max_grad_norm",
    "max_eval_samples": "validation_size",
    "max_predict_samples": "max_test_samples",
    "load_in_4bit": "quantization nf4",
    "load_in_8bit": "quantization int8",
}
# Names that nothing stands for, and why.
GONE = {
    "logging_dir": "TensorBoard's files are always in the run directory's folder tensorboard",
    **dict.fromkeys(
        ["fp16_opt_level", "fp16_backend", "half_precision_backend"],
        "it was apex's, which transformers 5 does not use; fp16 and bf16 need no such setting",
    ),
    **dict.fromkeys(
        ["use_mps_device", "tpu_num_cores", "use_ipex", "device"],
        "the device is found by itself; use_cpu is the only setting",
    ),
    "past_index": "transformers 5 has removed it",
    "jit_mode_eval": "transformers 5 has removed it; torch_compile compiles the model",
    "include_tokens_per_second": "results.json always has the tokens per second",
    "include_inputs_for_metrics": "metrics get predictions and labels",
    "save_safetensors": "every checkpoint is written as safetensors",
    "ray_scope": "`finetune sweep` searches settings, with Optuna",
    "num_labels": "the labels are counted in the data",
}


def refuse_former(name: str, place: str) -> None:
    """Raises the ``UserError`` for a name of earlier releases or other programs."""
    if name in FORMER:
        raise UserError(f"{place}: {name} is not a key here; write {FORMER[name]}")
    if name in GONE:
        raise UserError(f"{place}: {name} is not a key here: {GONE[name]}")


def renamed(given: dict[str, Any], origin: Mapping[str, str]) -> dict[str, Any]:
    """Returns training keys by their new names.

    Raises:
        UserError: a key stands there under both names.
    """
    for old in set(RENAMED) & set(given):
        if RENAMED[old] in given:
            place = origin.get(f"training.{old}", old)
            raise UserError(f"{place}: {old} is the old name of {RENAMED[old]}; keep one")
    return {RENAMED.get(name, name): value for name, value in given.items()}


def check(given: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Checks training keys against the table; values that are refused need not have their type.

    Raises:
        UserError: one is refused.
    """
    for name, value in given.items():
        refused = REFUSED.get(name)
        if refused and value not in refused.accepted:
            place = origin.get(f"training.{name}", "training")
            shown = name if value is True else f"{name} {value}"
            raise UserError(f"{place}: {shown} is not offered: {refused.why}")
