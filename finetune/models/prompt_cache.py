"""Lets peft 0.21 put its virtual tokens into the cache of models in transformers 5.24.

- transformers 5.24 renamed the argument ``past_key_values`` of models to ``cache``.
- peft 0.21 rejects models without ``past_key_values``, and looks for it in the inputs of each
  generation step: without it, it would insert the prompt again at every token.
- ``accept_past_key_values`` gives one model the old name back. It does nothing on earlier versions
  of transformers, and can be deleted once peft uses the new name.
"""

import inspect
import types
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def accept_past_key_values(model: PreTrainedModel) -> None:
    """Lets a model and its base model take ``past_key_values``, before peft wraps the model."""
    for module in {model, model.base_model}:
        parameters = inspect.signature(module.forward).parameters
        if "cache" in parameters and "past_key_values" not in parameters:
            _rename_argument(module)
            if module.can_generate():
                module.prepare_inputs_for_generation = types.MethodType(_renamed_inputs, module)


def _rename_argument(module: nn.Module) -> None:
    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            kwargs["cache"] = past_key_values
        return type(self).forward(self, *args, **kwargs)

    own = inspect.signature(type(module).forward)
    added = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = sorted([*own.parameters.values(), added], key=lambda p: p.kind)
    vars(forward)["__signature__"] = own.replace(parameters=parameters)
    module.forward = types.MethodType(forward, module)


def _renamed_inputs(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    inputs = type(self).prepare_inputs_for_generation(self, *args, **kwargs)
    inputs["past_key_values"] = inputs.pop("cache", None)
    return inputs
