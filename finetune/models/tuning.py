"""Applies a tuning method to a model: full, head, bitfit, contrastive, or an adapter by peft.

- ``check`` rejects unknown methods and options before any weight is read.
- ``apply`` freezes what the method does not train, or wraps the model by peft, with this project's
  defaults (``_defaults``) under the recipe's own options.
- ``load_adapter`` and ``merge`` are for finished runs.

peft is imported inside functions, so that runs without an adapter start without it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedModel

from finetune.data.sources import Checkpoint
from finetune.errors import UserError
from finetune.models import changed_base, configs, prompt_cache
from finetune.models import heads as head_rows
from finetune.recipe import Recipe
from finetune.recipe.methods import CONTRASTIVE, PLAIN_METHODS

# Over peft's own defaults, by its own option names; a recipe's options go over both. Methods that
# are not listed adapt every linear layer, where they take target modules at all.
ADAPTER_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
    # The steps of the run are told when it starts.
    "adalora": {"total_step": 10**9, "target_modules": "all-linear"},
    # Its feed-forward modules have to be among its targets: peft's own choice for the model.
    "ia3": {},
}
# Keys, values and the feed-forward output, for the architectures that peft's own list leaves out.
IA3_MODULES: dict[str, tuple[list[str], list[str]]] = {
    "electra": (["key", "value", "output.dense"], ["output.dense"]),
    "albert": (["key", "value", "ffn_output"], ["ffn_output"]),
    "distilbert": (["k_lin", "v_lin", "ffn.lin2"], ["ffn.lin2"]),
    "modernbert": (["attn.Wqkv", "mlp.Wo"], ["mlp.Wo"]),
    "vit": (["k_proj", "v_proj", "mlp.fc2"], ["mlp.fc2"]),
}
# peft's option for rows of an embedding that learn.
NEW_TOKENS = "trainable_token_indices"
RANKS_GONE = "the ranks that it lowered are gone; merge it, or start anew"
TOKENS_ONLY = "peft reads virtual tokens to predict only; start anew"


def is_causal_lm(model: PreTrainedModel) -> bool:
    """Returns whether the model predicts next tokens; encoder-decoders do."""
    return model.can_generate()


def head_modules(model: PreTrainedModel) -> list[str]:
    """Returns the names of the modules that belong to the task's head.

    These are all modules outside of the base model, and the base model's pooler: only the head
    reads it, and many checkpoints have none. An encoder of embeddings has no head. Neither has a
    causal LM in this sense: its output layer was pretrained.
    """
    if is_causal_lm(model):
        return []
    prefix = model.base_model_prefix
    outside = [
        name
        for name, child in model.named_children()
        if name != prefix and list(child.parameters())
    ]
    pooler = [
        f"{prefix}.pooler" for name, _ in model.base_model.named_children() if name == "pooler"
    ]
    return pooler + outside if outside else []


def is_prompt(method: str) -> bool:
    """Returns whether a method adds virtual tokens, to the input or to every layer."""
    from peft import PromptLearningConfig

    from finetune.recipe.adapters import adapter_methods

    return issubclass(adapter_methods().get(method, object), PromptLearningConfig)


def before_training(model: nn.Module, checkpoint: Checkpoint) -> AbstractContextManager[Any]:
    """Returns a context in which a model without any step yet computes as its checkpoint does."""
    from peft import PeftModel

    starts_adapted = changed_base.is_changed(model) or checkpoint.adapter
    if isinstance(model, PeftModel) and not starts_adapted:
        return model.disable_adapter()
    return nullcontext()


def check(recipe: Recipe, pairs: bool = False) -> None:
    """Checks, before any weight is read, that the method fits the task and quantized weights.

    Args:
        pairs: whether the task can pair its rows by class.

    Raises:
        UserError: it does not, or bitsandbytes is not installed.
    """
    method, kind = recipe.tuning.method, recipe.model.quantization
    if method == CONTRASTIVE and not pairs:
        raise UserError(
            f"{recipe.where('tuning.method')}: contrastive pairs texts by their class; use it with "
            "task: text-classification"
        )
    if kind and method in PLAIN_METHODS:
        raise UserError(
            f"{recipe.where('model.quantization')}: weights in {kind} cannot be trained; use an "
            "adapter, for example method: lora"
        )
    if kind and not find_spec("bitsandbytes"):
        raise UserError(
            f"{recipe.where('model.quantization')}: {kind} needs bitsandbytes: "
            "pip install 'finetune-recipes[quantization]'"
        )


def or_user_error(action: Callable[[], Any], recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """Returns what ``action`` returns; errors of peft and torch become a ``UserError``."""
    try:
        return action()
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        message = " ".join(str(error).split())
        if "meta tensor" in message.lower():
            raise
        where, method = recipe.where("tuning.method"), recipe.tuning.method
        raise UserError(f"{where}: {method} does not fit {checkpoint.name}: {message}") from None


def apply(model: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """Returns the model with only the method's weights trainable, wrapped by peft for an adapter.

    Raises:
        UserError: the method does not fit the model, with peft's message.
    """
    method = recipe.tuning.method
    if method in {"full", CONTRASTIVE}:
        return model
    added = configs.added_tokens(model.config, checkpoint)
    heads = head_modules(model)
    if method in PLAIN_METHODS:
        if added:
            raise _tokens_stay_new(recipe, checkpoint, len(added))
        for name, parameter in model.named_parameters():
            in_head = any(name.startswith(f"{head}.") for head in heads)
            parameter.requires_grad = in_head or (method == "bitfit" and name.endswith("bias"))
        return model

    from peft import PromptLearningConfig, get_peft_model, prepare_model_for_kbit_training

    from finetune.models import bottleneck
    from finetune.recipe.adapters import adapter_methods, method_options

    bottleneck.register()
    if checkpoint.adapter:
        return _continued(model, recipe, checkpoint)
    cls = adapter_methods()[method]
    known = {f.name for f in fields(cls)}
    if added and NEW_TOKENS not in known:
        raise _tokens_stay_new(recipe, checkpoint, len(added))
    if issubclass(cls, PromptLearningConfig) and model.main_input_name != "input_ids":
        where = recipe.where("tuning.method")
        raise UserError(f"{where}: {method} adds tokens to a text; {checkpoint.name} takes none")
    defaults = {k: v for k, v in _defaults(model, method, cls, heads).items() if k in known}
    if added:
        defaults[NEW_TOKENS] = _token_modules(model, added)
    options = method_options(cls, recipe.tuning.options, recipe.origin)
    if getattr(model, "is_quantized", False):
        checkpointing = bool(recipe.training.get("activation_checkpointing", False))
        model = prepare_model_for_kbit_training(model, checkpointing)
    if issubclass(cls, PromptLearningConfig):
        prompt_cache.accept_past_key_values(model)
    config: Any = or_user_error(lambda: cls(**defaults | options), recipe, checkpoint)
    adapted = or_user_error(lambda: get_peft_model(model, config), recipe, checkpoint)
    changed_base.note_start(adapted, config)
    if added:
        # The new rows are saved by themselves; peft would save all of them beside.
        save = partial(adapted.save_pretrained, save_embedding_layers=False)
        vars(adapted)["save_pretrained"] = save
    if checkpoint.gguf:
        # A folder of GGUF files is not a checkpoint by itself: the file has to be named.
        own = Path(checkpoint.name)
        config.base_model_name_or_path = str(own.resolve() if own.is_file() else own)
    elif checkpoint.revision:
        # The hub id and its commit are valid elsewhere, a cache folder is not.
        config.base_model_name_or_path, config.revision = checkpoint.name, checkpoint.revision
    return adapted


def _token_modules(model: PreTrainedModel, added: range) -> dict[str, list[int]]:
    """Returns the rows to learn of the modules that have one for each token, by module name."""
    modules: list[Any] = [model.get_input_embeddings()]
    if is_causal_lm(model) and not model.config.tie_word_embeddings:
        modules.append(model.get_output_embeddings())
    names = [n for n, module in model.named_modules() if any(module is m for m in modules)]
    return {name: list(added) for name in names}


def _tokens_stay_new(recipe: Recipe, checkpoint: Checkpoint, count: int) -> UserError:
    where, method = recipe.where("tuning.method"), recipe.tuning.method
    return UserError(
        f"{where}: the tokenizer of {checkpoint.name} has {count} tokens that its model has not, "
        f"and {method} would not learn them; use lora, or full"
    )


def check_start(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Checks that an adapter that the checkpoint names can go on with the recipe's method.

    Raises:
        UserError: the method or one of its options is not the adapter's.
    """
    if checkpoint.adapter is None:
        return
    from peft import PeftConfig

    from finetune.recipe.adapters import adapter_methods, method_options

    run, method, where = checkpoint.adapter.parent, recipe.tuning.method, recipe.where
    saved: Any = PeftConfig.from_pretrained(str(checkpoint.adapter))
    kind = str.lower(saved.peft_type)
    if is_prompt(kind) or kind == "adalora":
        reason = TOKENS_ONLY if is_prompt(kind) else RANKS_GONE
        raise UserError(
            f"{where('model.checkpoint')}: the {kind} adapter of {run} cannot go on: {reason}"
        )
    if method != kind:
        raise UserError(
            f"{where('tuning.method')}: {run} is an adapter; `method: {kind}` goes on training it, "
            f"and `finetune merge` makes a whole model for {method}"
        )
    cls = adapter_methods()[method]
    for name, value in method_options(cls, recipe.tuning.options, recipe.origin).items():
        own = getattr(saved, name)
        same = sorted(value) == sorted(own or []) if isinstance(value, list) else value == own
        # How the weights began no longer matters, and peft writes the modules that it found.
        if not same and not name.startswith("init") and value != "all-linear":
            raise UserError(
                f"{where(f'tuning.{name}')}: {name} is {value}, and {own} in the adapter of {run} "
                "that goes on; leave it out"
            )


def _continued(model: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """Returns the base with a run's adapter, to go on training it.

    Raises:
        UserError: the adapter is for another task or other labels.
    """
    from peft import PeftConfig, PeftModel

    assert checkpoint.adapter is not None
    where, run = recipe.where("model.checkpoint"), checkpoint.adapter.parent
    before: Any = AutoConfig.from_pretrained(checkpoint.adapter)
    own: Any = model.config
    names = [list(config.id2label.values()) for config in (before, own)]
    rows = head_rows.order(*names)
    saved: Any = PeftConfig.from_pretrained(str(checkpoint.adapter))
    wanted = _task_type(model)
    if saved.task_type != wanted:
        raise UserError(
            f"{where}: the adapter of {run} is for {saved.task_type}, and this task needs {wanted}"
        )
    if rows is None:
        shown = ["/".join(each[:8]) for each in names]
        raise UserError(
            f"{where}: the adapter of {run} has a head for {shown[0]}, and the data has {shown[1]}"
        )
    adapted = PeftModel.from_pretrained(model, str(checkpoint.adapter), is_trainable=True)
    if rows != sorted(rows):
        head_rows.reorder(model, rows)
    return adapted


def _task_type(model: PreTrainedModel) -> str | None:
    """Returns peft's name of the task; there is none for images and for answers.

    peft 0.21 has QUESTION_ANS, but its model drops the token types that it is given.
    """
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    if is_causal_lm(model):
        return "CAUSAL_LM"
    if model.main_input_name != "input_ids" or "ForQuestionAnswering" in type(model).__name__:
        return None
    if not head_modules(model):
        return "FEATURE_EXTRACTION"
    return "TOKEN_CLS" if type(model).__name__.endswith("ForTokenClassification") else "SEQ_CLS"


def _defaults(model: PreTrainedModel, method: str, cls: type, heads: list[str]) -> dict[str, Any]:
    """Returns this project's defaults of a method's options; the caller drops unknown keys."""
    from peft import PromptLearningConfig

    # peft saves the heads of some task types only, and never the pooler.
    saved = [head.rpartition(".")[2] for head in heads]
    norms = [
        name
        for name, module in model.named_modules()
        if _is_norm(module) and not any(name.startswith(f"{head}.") for head in heads)
    ]
    common: dict[str, Any] = {"task_type": _task_type(model), "modules_to_save": saved}
    if common["task_type"] == "FEATURE_EXTRACTION" and getattr(model.base_model, "pooler", None):
        # Nothing reads it, so it would get no gradient.
        common["exclude_modules"] = r".*\.pooler\..*"
    if method == "bottleneck":
        return common | {"modules_to_save": saved + norms}
    if method == "ln_tuning":
        return common | {"target_modules": norms}
    if issubclass(cls, PromptLearningConfig):
        # peft looks for the widths under BERT's names. Some methods add tokens to every layer.
        embeddings: Any = model.get_input_embeddings()
        every_layer = method in {"prefix_tuning", "cartridge"}
        return common | {
            "num_virtual_tokens": 20,
            "num_attention_heads": model.config.num_attention_heads,
            "token_dim": model.config.hidden_size if every_layer else embeddings.embedding_dim,
        }
    if method == "ia3" and model.config.model_type in IA3_MODULES:
        targets, feed_forward = IA3_MODULES[model.config.model_type]
        return common | {"target_modules": targets, "feedforward_modules": feed_forward}
    return common | ADAPTER_DEFAULTS.get(method, {"target_modules": "all-linear"})


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
