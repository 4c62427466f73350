"""Bottleneck adapters (Houlsby et al. 2019), as a method that peft saves, loads and switches.

Two small layers with a nonlinearity between them, h + up(act(down(h))), behind a sublayer of every
transformer layer. They start as the identity, and only they, the layer norms and the head learn.
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
    """Names of one transformer layer's projections, found by what they do."""

    attention_output: str
    feed_forward_input: str
    feed_forward_output: str


def sublayers(model: nn.Module, hidden_size: int) -> list[Sublayers]:
    """The projections of every transformer layer, in order, by role and not by name.

    In a layer, the feed-forward output is the last linear that narrows to ``hidden_size``; its
    input is the first linear of that inner width (or twice it, gated); the attention output is the
    last linear to ``hidden_size`` before that.
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
    # A layer that carries another adapter already has its projection one level down.
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
    """Input and output width of a linear layer; GPT-2's Conv1D is one, stored transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A projection with an adapter behind it, or beside the part it ends (``source``)."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, Any] = {}
        self.parallel: set[str] = set()
        self.beside: torch.Tensor | None = None
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.add(adapter_name, config)

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Give the layer another adapter, which starts as the identity."""
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
        """Forward hook of the feed-forward input: what a parallel adapter reads."""
        self.beside = arguments[0]

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., inner) -> (..., width), as the projection, with the active adapters' part."""
        out = self.base_layer(hidden, *args, **kwargs)
        beside, self.beside = self.beside, None
        if self.disable_adapters:
            return out
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                source = beside if name in self.parallel else out
                assert source is not None
                narrow = self.activations[name](self.bottleneck_down[name](source))
                out = out + self.bottleneck_up[name](narrow)
        return out


class BottleneckModel(BaseTuner):
    """What peft calls a tuner: puts ``BottleneckLayer`` where the config's placement says."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own declaration

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        found = sublayers(model, model.config.hidden_size)  # pyright: ignore
        if not found:
            raise ValueError("no transformer layers with attention and feed-forward part found")
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
    """Make peft know the method by its name, as it knows its own."""
    PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel  # pyright: ignore
    PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = PREFIX  # pyright: ignore


register()
