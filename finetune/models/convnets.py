"""Small convolutional nets to measure transformers against, as transformers loads and saves them.

``new:convnet`` in a recipe. Stages of convolutions, each ended by 2x2 pooling, then linear layers.
With ``channels: [32]``, one 5x5 convolution and no batch norm it is the net of the MNIST tutorials;
with three stages of two 3x3 convolutions, batch norm and global pooling a modern one.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class ConvNetConfig(PreTrainedConfig):
    """Widths and depths of a ``ConvNet``; ``hidden_size: 0`` pools globally before one linear."""

    model_type = "convnet"

    channels: list[int] | tuple[int, ...] = (32, 64, 128)
    convolutions: int = 2
    kernel_size: int = 3
    batch_norm: bool = True
    hidden_size: int = 0
    dropout: float = 0.0
    image_size: int = 28
    num_channels: int = 3


class ConvNet(PreTrainedModel):
    """(B, C, H, W) -> logits (B, K)."""

    config_class = ConvNetConfig
    base_model_prefix = "stages"
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        into, layers = config.num_channels, []
        for width in config.channels:
            for _ in range(config.convolutions):
                layers.append(nn.Conv2d(into, width, config.kernel_size, padding="same"))
                layers += [nn.BatchNorm2d(width)] if config.batch_norm else []
                layers.append(nn.ReLU())
                into = width
            layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        if config.hidden_size:
            side = config.image_size // 2 ** len(config.channels)
            head = [nn.Flatten(), nn.Linear(into * side**2, config.hidden_size), nn.ReLU()]
            into = config.hidden_size
        else:
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.classifier = nn.Sequential(
            *head, nn.Dropout(config.dropout), nn.Linear(into, config.num_labels)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own, as the tutorials have them; transformers' would be for linear layers.
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()

    def forward(
        self, pixel_values: torch.Tensor, labels: Any = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits alone: the loss is the runner's."""
        logits: Any = self.classifier(self.stages(pixel_values))
        return ImageClassifierOutputWithNoAttention(logits=logits)


def register() -> None:
    """Make transformers know the type, as it knows its own."""
    AutoConfig.register(ConvNetConfig.model_type, ConvNetConfig, exist_ok=True)
    AutoModelForImageClassification.register(ConvNetConfig, ConvNet, exist_ok=True)
