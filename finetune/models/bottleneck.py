"""Bottleneck adapters (Houlsby et al. 2019), registered as a peft method.

- An adapter is two small linear layers with a residual connection, h + up(act(down(h))), after a
  sublayer of every transformer layer.
- ``up`` starts at zero, so the model starts unchanged. Only the adapters, the layer norms and the
  head are trained.
- peft saves, loads, enables and disables them like its own methods.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from finetune.recipe.adapters import BOTTLENECK, BottleneckConfig

PREFIX = "bottleneck_"


@dataclass
class Sublayers:
    """Names of the linear layers of one transformer layer that adapters attach to."""

    attention_output: str
    feed_forward_input: str
    feed_forward_output: str


def sublayers(model: nn.Module, hidden_size: int) -> list[Sublayers]:
    """Finds the linear layers of every transformer layer by their shapes, in order.

    - Feed-forward output: the last linear from a wider input to ``hidden_size``.
    - Feed-forward input: the first linear to that inner width, or to twice it if it is gated.
    - Attention output: the last linear to ``hidden_size`` before the feed-forward input.
    """
    found: list[Sublayers] = []
    taken: list[str] = []
    for list_name, layers in model.named_modules():
        inside = any(list_name.startswith(f"{outer}.") for outer in taken)
        if inside or not isinstance(layers, nn.ModuleList):
            continue
        for i, layer in enumerate(layers):
            roles = _roles(layer, hidden_size)
            if roles:
                found.append(Sublayers(*(f"{list_name}.{i}.{name}" for name in roles)))
                taken.append(list_name)
    return found


def _roles(layer: nn.Module, hidden_size: int) -> tuple[str, str, str] | None:
    # In a layer that already has an adapter the linear layer is called ``base_layer``.
    shapes = [
        (name.removesuffix(".base_layer"), *features(module))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and PREFIX not in name
    ]
    narrowing = [(n, into) for n, into, out in shapes if out == hidden_size and into > hidden_size]
    if not narrowing:
        return None
    output, width = narrowing[-1]
    names = [name for name, _, _ in shapes]
    inputs = [n for n, into, out in shapes if into == hidden_size and out in {width, 2 * width}]
    before = shapes[: names.index(inputs[0])] if inputs else []
    attention = [name for name, _, out in before if out == hidden_size]
    return (attention[-1], inputs[0], output) if attention else None


def features(module: nn.Module) -> tuple[int, int]:
    """Returns input and output width of a linear layer, or of GPT-2's Conv1D (transposed)."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer followed by an adapter, or with one parallel to the feed-forward part."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, Any] = {}
        self.parallel: set[str] = set()
        self.parallel_input: torch.Tensor | None = None
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.add(adapter_name, config)

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Adds an adapter to the layer, initialized to the identity."""
        width = features(self.get_base_layer())[1]
        narrow = max(1, int(width / config.reduction_factor))
        down, up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.normal_(down.weight, std=0.02)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.activations[adapter_name] = ACT2FN[config.activation]
        if config.placement == "parallel":
            self.parallel.add(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def keep_input(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """Forward pre-hook of the feed-forward input: keeps the parallel adapter's input."""
        self.parallel_input = arguments[0]

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Applies the linear layer and the active adapters: (..., inner) -> (..., width)."""
        out = self.base_layer(hidden, *args, **kwargs)
        parallel_input, self.parallel_input = self.parallel_input, None
        if self.disable_adapters:
            return out
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                source = parallel_input if name in self.parallel else out
                assert source is not None
                narrow = self.activations[name](self.bottleneck_down[name](source))
                out = out + self.bottleneck_up[name](narrow)
        return out


class BottleneckModel(BaseTuner):
    """A peft tuner that puts ``BottleneckLayer`` at the config's placement."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own declaration

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        found = sublayers(model, model.config.hidden_size)  # pyright: ignore
        if not found:
            raise ValueError("found no transformer layers with attention and a feed-forward part")
        targets = [s.feed_forward_output for s in found]
        if peft_config.placement == "houlsby":
            targets += [s.attention_output for s in found]
        peft_config.target_modules = targets

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.add(adapter_name, peft_config)
            return
        made = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            made.requires_grad_(False)
        self._replace_module(parent, target_name, made, target)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if config.placement == "parallel":
            modules = dict(model.named_modules())
            for part in sublayers(model, model.config.hidden_size):  # pyright: ignore
                made = modules[part.feed_forward_output]
                assert isinstance(made, BottleneckLayer)
                modules[part.feed_forward_input].register_forward_pre_hook(made.keep_input)


def register() -> None:
    """Registers the method with peft under its name."""
    PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel  # pyright: ignore
    PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = PREFIX  # pyright: ignore


register()
