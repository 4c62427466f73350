"""Loads the adapter of a finished run, and merges it into its base."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import UserError
from finetune.models import prompt_cache


def load_adapter(base: PreTrainedModel, folder: Path) -> nn.Module:
    """Returns the base with the adapter and head saved in ``folder``, for inference."""
    from peft import PeftModel

    from finetune.models import bottleneck

    bottleneck.register()
    prompt_cache.accept_past_key_values(base)
    return PeftModel.from_pretrained(base, str(folder))


def plain(model: nn.Module) -> PreTrainedModel:
    """Returns the model of transformers inside a model that may have an adapter."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model  # pyright: ignore


def merge(model: nn.Module, method: str, inside: bool = False) -> PreTrainedModel:
    """Returns the base model with the adapter merged into its weights.

    Args:
        inside: leave layers that cannot be merged inside the model, as its modules.

    Raises:
        UserError: the method adds layers or tokens, which cannot be merged into weights.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    assert isinstance(model, PeftModel)
    error = UserError(f"{method} cannot be merged into the base's weights; serve it as an adapter")
    if not isinstance(model.base_model, BaseTuner):
        raise error
    try:
        return model.base_model.merge_and_unload(safe_merge=True)  # pyright: ignore
    except (NotImplementedError, AttributeError, ValueError):
        if inside:
            return model.get_base_model()  # pyright: ignore
        raise error from None
