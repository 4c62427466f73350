"""The private and undocumented parts of libraries that this project depends on.

``tests/training/test_private_api.py`` compares the list with the installed versions, so that a new
release fails with everything that it changed. To accept a release: compare the bodies, adapt the
code that depends on them, and add the new hashes here. It is one file because a list in several
places would not be complete.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Dependency:
    """One name of a library.

    Args:
        kind: ``override``: ``used_by`` has a method or attribute of this name. ``use``: it reads,
            calls or imports it. ``copy``: it does what its body does. ``order``: it depends on
            what its body calls, and when.
        hashes: of the accepted definitions (decorators, parameters and body), each with the
            versions of the library that have it; none if only the name matters.
    """

    name: str
    kind: Literal["override", "use", "copy", "order"]
    used_by: str
    reason: str
    hashes: dict[str, str] = field(default_factory=dict)


TRAINER = "transformers.Trainer"
TUNERS = "peft.tuners.tuners_utils"

DEPENDENCIES = [
    # --- Trainer ------------------------------------------------------------------------------
    Dependency(
        f"{TRAINER}._run_epoch",
        "override",
        "finetune.training.hooks",
        "resume: an epoch without steps left must not run",
        {"ff5d03c5edfabb38": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._maybe_log_save_evaluate",
        "override",
        "finetune.training.hooks",
        "signals: interrupted evaluations; one save at an epoch's end",
        {"6fb272a6d90a6c67": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._determine_best_metric",
        "override",
        "finetune.training.hooks",
        "the best step has to be saved to be loaded at the end",
        {"151a9ac0b1cadc60": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._get_grad_norm",
        "override",
        "finetune.training.hooks",
        "the only hook between backward pass and optimizer with the norm",
        {"f963e387d0a4b006": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._track_num_input_tokens",
        "override",
        "finetune.training.hooks",
        "counts tokens on the device, and waits for it",
        {"e23c0887613a2aac": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._get_train_sampler",
        "override",
        "finetune.training.hooks",
        "a step's rows must not depend on the number of processes",
        {"5067de3ee121e401": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._get_eval_sampler",
        "override",
        "finetune.training.hooks",
        "evaluation reads the rows in order, whatever the training does",
        {"4713bc404dcad5f3": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._save_checkpoint",
        "override",
        "finetune.training.hooks",
        "checkpoints are atomic, verified and complete",
        {"39c9ce39d5e45d96": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_from_checkpoint",
        "override",
        "finetune.training.hooks",
        "reads this project's checkpoints",
        {"79e1a7f34a5d1e60": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_optimizer_and_scheduler",
        "override",
        "finetune.training.hooks",
        "reads this project's checkpoints",
        {"c22d6ca64f0b4771": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_rng_state",
        "override",
        "finetune.training.hooks",
        "reads this project's checkpoints; called after skipped batches",
        {"ae9d1f10d791517a": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_best_model",
        "override",
        "finetune.training.hooks",
        "reads this project's checkpoints, after verifying them",
        {"81538cb322c08822": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._tr_loss",
        "use",
        "finetune.training.hooks",
        "the loss since the last log is part of a checkpoint",
    ),
    Dependency(
        f"{TRAINER}._globalstep_last_logged",
        "use",
        "finetune.training.hooks",
        "as above: the step of the last log",
    ),
    Dependency(
        f"{TRAINER}._total_loss_scalar",
        "use",
        "finetune.training.hooks",
        "the reported average is over the steps of this process",
    ),
    Dependency(
        f"{TRAINER}._train_batch_size",
        "use",
        "finetune.training.hooks",
        "rows of a micro-batch",
    ),
    Dependency(
        f"{TRAINER}._loss_shifts_labels",
        "use",
        "finetune.training.hooks",
        "the first token of a causal LM has no loss",
    ),
    Dependency(
        f"{TRAINER}._get_num_items_in_batch",
        "order",
        "finetune.training.hooks",
        "divides by the labels that _loss_shifts_labels leaves",
        {"ee4254060580c35d": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._inner_training_loop",
        "order",
        "finetune.training.resumable",
        "on_train_begin follows the loading; on_epoch_begin precedes _run_epoch",
        {"b1f3568d2b184a00": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._init_training_state",
        "order",
        "finetune.training.resumable",
        "the position in the data follows from global_step alone",
        {"595cf9241485e345": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._prepare_for_training",
        "order",
        "finetune.training.checkpointing",
        "optimizer and schedule exist when they are loaded",
        {"eb9bcc0b73befa7c": "5.23", "d13fa6b57d853b22": "5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_scaler",
        "order",
        "finetune.training.checkpointing",
        "finds no file of its own in a checkpoint, and does nothing",
        {"da9a5c3fa4a088f6": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._load_callback_state",
        "order",
        "finetune.training.checkpointing",
        "does nothing by default; callbacks' counters are restored later",
        {"dcc19170bfb7b865": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._evaluate",
        "order",
        "finetune.training.resumable",
        "lets EvaluationInterrupted through",
        {"bd3efdffba87a090": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._finalize_training",
        "order",
        "finetune.training.resumable",
        "loads the best weights before on_train_end",
        {"88abebacf0224314": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._get_dataloader",
        "order",
        "finetune.training.sampling",
        "BatchRebalanceSampler is not sharded again",
        {"e693bb5d4526484b": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}._save",
        "order",
        "finetune.training.trainer",
        "writes training_args.bin, which save_model deletes",
        {"dbd6c419bd2b7612": "5.23, 5.24"},
    ),
    Dependency(
        f"{TRAINER}.prediction_step",
        "order",
        "finetune.training.trainer",
        "takes label_names out of a batch before compute_loss",
        {"aafa06eb56f8a0c4": "5.23", "46a818b50555313b": "5.24"},
    ),
    Dependency(
        "transformers.trainer_pt_utils.BatchRebalanceSampler",
        "use",
        "finetune.training.sampling",
        "the Trainer's base class for samplers that know processes",
        {"7818ef54df0c517b": "5.23, 5.24"},
    ),
    Dependency(
        "transformers.trainer_callback.ExportableState",
        "use",
        "finetune.training.checkpointing",
        "callbacks with counters, such as early stopping",
    ),
    Dependency(
        "transformers.integrations.integration_utils.get_available_reporting_integrations",
        "use",
        "finetune.training.arguments",
        "report_to names a package that is installed",
    ),
    Dependency(
        "transformers.utils.generic.ModelOutput",
        "use",
        "finetune.training.losses",
        "type of a model's outputs",
    ),
    Dependency(
        "transformers.utils.import_utils.is_liger_kernel_available",
        "use",
        "finetune.recipe.resolving",
        "not exported",
    ),
    Dependency(
        "torch.optim.lr_scheduler.LRScheduler._last_lr",
        "use",
        "finetune.training.checkpointing",
        "rates of a schedule that resumes with another recipe",
    ),
    Dependency(
        "transformers.TrainingArguments._n_gpu",
        "use",
        "finetune.training.processes",
        "there is no argument for one GPU of several",
    ),
    Dependency(
        "accelerate.Accelerator._is_accelerate_prepared",
        "use",
        "finetune.training.runner",
        "a model prepared for prediction has to be prepared again",
    ),
    Dependency(
        "transformers.PreTrainedModel._no_split_modules",
        "use",
        "finetune.training.sharding",
        "the layers that FSDP2 gathers one by one",
    ),
    # --- AdaLoRA ------------------------------------------------------------------------------
    Dependency(
        "peft.tuners.adalora.AdaLoraModel.update_and_allocate",
        "copy",
        "finetune.training.adalora",
        "is called without a rank pattern",
        {"2ca98a556045679e": "0.21.2"},
    ),
    Dependency(
        "peft.tuners.adalora.AdaLoraModel.forward",
        "copy",
        "finetune.training.adalora",
        "its regularization is added as a gradient",
        {"e2cf4e9ee0b56ef3": "0.21.2"},
    ),
    Dependency(
        "peft.tuners.adalora.RankAllocator.update_ipt",
        "copy",
        "finetune.training.adalora",
        "its statistics are part of a checkpoint",
        {"b1ef17fe4be41448": "0.21.2"},
    ),
    # --- Bottleneck adapters as a peft tuner --------------------------------------------------
    Dependency(f"{TUNERS}.BaseTuner", "use", "finetune.models.bottleneck", "base class of a tuner"),
    Dependency(
        f"{TUNERS}.BaseTunerLayer",
        "use",
        "finetune.models.bottleneck",
        "base class of a tuner's layers",
    ),
    Dependency(
        f"{TUNERS}.BaseTuner.inject_adapter",
        "order",
        "finetune.models.bottleneck",
        "calls the methods below",
        {"465e6163880da571": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTuner._prepare_adapter_config",
        "override",
        "finetune.models.bottleneck",
        "there are no target modules to choose",
        {"ff3eef0fe52700c7": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTuner._prepare_model",
        "override",
        "finetune.models.bottleneck",
        "finds the target modules by their shapes",
        {"f592714465123805": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTuner._create_and_replace",
        "override",
        "finetune.models.bottleneck",
        "puts the layer into the model",
        {"2217ec7f8aee0bd3": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTuner._post_injection_hook",
        "override",
        "finetune.models.bottleneck",
        "a parallel adapter reads another module's input",
        {"cea3f0ec33318742": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTuner._replace_module",
        "use",
        "finetune.models.bottleneck",
        "puts the layer into the model",
        {"fdb36d9f0a447c9b": "0.21.2"},
    ),
    Dependency(
        f"{TUNERS}.BaseTunerLayer._active_adapter",
        "use",
        "finetune.models.bottleneck",
        "names the active adapter",
    ),
    Dependency(
        f"{TUNERS}.BaseTunerLayer._move_adapter_to_device_of_base_layer",
        "use",
        "finetune.models.bottleneck",
        "a new adapter has its layer's device",
        {"24c596e4d74daddd": "0.21.2"},
    ),
    Dependency(
        "peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING",
        "use",
        "finetune.models.bottleneck",
        "the registry has no public function for a file's prefix",
    ),
    Dependency(
        "transformers.activations.ACT2FN",
        "use",
        "finetune.models.bottleneck",
        "activations by name",
    ),
    Dependency(
        "peft.tuners.lora.Linear",
        "use",
        "finetune.models.speed.merged_lora",
        "its class is replaced on a CPU",
    ),
    Dependency(
        "peft.tuners.lora.Linear.forward",
        "copy",
        "finetune.models.speed.merged_lora",
        "the same result, as one product",
        {"21b44cf01785f941": "0.21.2"},
    ),
    # --- Attention ----------------------------------------------------------------------------
    Dependency(
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        "use",
        "finetune.models.speed.per_sequence",
        "attention of padded batches",
        {"d36e0edceb433869": "5.23", "a244c43715867df8": "5.24"},
    ),
    Dependency(
        "transformers.masking_utils.sdpa_mask",
        "use",
        "finetune.models.speed.per_sequence",
        "mask of padded batches",
        {"a1f072834dd74ab6": "5.23, 5.24"},
    ),
    Dependency(
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
        "use",
        "finetune.models.speed.unpadding",
        "attention functions by name",
    ),
    Dependency(
        "transformers.utils.import_utils.is_flash_attn_2_available",
        "use",
        "finetune.models.speed.padding_free",
        "not exported",
    ),
    Dependency(
        "transformers.utils.import_utils.is_kernels_available",
        "use",
        "finetune.models.speed.padding_free",
        "not exported",
    ),
    Dependency(
        "transformers.utils.generic.is_flash_attention_requested",
        "use",
        "finetune.models.pretrained",
        "not exported",
    ),
    Dependency(
        "transformers.PreTrainedConfig._attn_implementation",
        "use",
        "finetune.models.speed.padding_free",
        "name of the model's attention function",
    ),
    Dependency(
        "transformers.models.bert.modeling_bert.BertSelfAttention.forward",
        "copy",
        "finetune.models.speed.padding_free",
        "the last layer's queries are those of the first token",
        {"09b2a320cfb10064": "5.23", "f38f165d15b64563": "5.24"},
    ),
    Dependency(
        "transformers.models.roberta.modeling_roberta.RobertaEmbeddings.create_position_ids_from_input_ids",
        "use",
        "finetune.models.speed.unpadding",
        "RoBERTa's positions start after the padding token's",
        {"9ee07f5083d41efe": "5.23", "a5dcc8ae33124731": "5.24"},
    ),
    # --- Forecasts ----------------------------------------------------------------------------
    Dependency(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "use",
        "finetune.forecast.counting",
        "operations of attention on the CPU",
    ),
    Dependency(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
        "use",
        "finetune.forecast.counting",
        "operations of its backward pass",
    ),
    # --- Models from scratch ------------------------------------------------------------------
    Dependency(
        "transformers.models.vit_mae.modeling_vit_mae",
        "use",
        "finetune.tasks.masked_image_modeling",
        "base class of the model",
    ),
    Dependency(
        "transformers.PreTrainedModel._from_config",
        "use",
        "finetune.tasks.masked_image_modeling",
        "a model with random weights",
    ),
    Dependency(
        "transformers.PreTrainedModel._init_weights",
        "override",
        "finetune.models.convnets",
        "initial weights of networks from scratch",
        {"d98a7c3709314a20": "5.23", "281879b5ea37cec8": "5.24"},
    ),
    Dependency(
        "transformers.PreTrainedModel._is_hf_initialized",
        "use",
        "finetune.tasks.masked_image_modeling",
        "the first layer is initialized again",
    ),
    # --- sacrebleu ----------------------------------------------------------------------------
    Dependency(
        "sacrebleu.metrics.base.Metric._extract_corpus_statistics",
        "use",
        "finetune.evaluation.generation",
        "BLEU and chrF of resampled rows, without comparing texts again",
    ),
    Dependency(
        "sacrebleu.metrics.base.Metric._compute_score_from_stats",
        "use",
        "finetune.evaluation.generation",
        "as above",
    ),
    Dependency(
        "transformers.trainer_pt_utils.nested_concat",
        "use",
        "finetune.export.proof",
        "joins the outputs of batches as the Trainer does",
    ),
    # --- optuna -------------------------------------------------------------------------------
    Dependency(
        "optuna.trial.FrozenTrial._trial_id",
        "use",
        "finetune.studies.sweep",
        "a trial that was killed goes on: nothing public leads from a stored trial to a Trial",
    ),
    # --- exporters, experimental in transformers 5.23 ------------------------------------------
    *(
        Dependency(
            f"transformers.exporters.{name}",
            "use",
            "finetune.export.formats",
            "exports to ONNX and OpenVINO; the package documents the names without submodules",
        )
        for name in (
            "configs.OnnxConfig",
            "configs.OpenVINOConfig",
            "exporter_onnx.OnnxExporter",
            "exporter_openvino.OpenVINOExporter",
            "quantizers.quantizer_nncf.NNCFOnnxQuantizer",
            "quantizers.quantizer_nncf.NNCFOpenVINOQuantizer",
            "quantizers.quantizer_nncf.NNCFQuantizationConfig",
            "quantizers.quantizer_nncf.NNCFWeightCompressionConfig",
            "quantizers.quantizer_onnxruntime.OnnxRuntimeDynamicConfig",
            "quantizers.quantizer_onnxruntime.OnnxRuntimeQuantizer",
            "quantizers.quantizer_onnxruntime.OnnxRuntimeStaticConfig",
        )
    ),
]
