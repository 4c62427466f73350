"""Small convolutional networks, as a baseline for vision transformers (``new:convnet``).

- Each stage is some convolutions with ReLU, then 2x2 max pooling. Linear layers follow.
- ``channels: [32]``, one 5x5 convolution and ``batch_norm: false`` is the network of the MNIST
  tutorials; the defaults are three stages of two 3x3 convolutions with batch norm and global
  average pooling.
- Registered with transformers, so that the Auto classes load and save them.
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
    """Sizes of a ``ConvNet``; ``hidden_size: 0`` means global pooling and one linear layer."""

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
    """A convolutional image classifier: pixels (B, C, H, W) -> logits (B, K)."""

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
        # torch's defaults, as in the tutorials; transformers' initialization is for transformers.
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()

    def forward(
        self, pixel_values: torch.Tensor, labels: Any = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Returns logits without a loss; the Trainer computes it."""
        logits: Any = self.classifier(self.stages(pixel_values))
        return ImageClassifierOutputWithNoAttention(logits=logits)


def register() -> None:
    """Registers the model type with transformers' Auto classes."""
    AutoConfig.register(ConvNetConfig.model_type, ConvNetConfig, exist_ok=True)
    AutoModelForImageClassification.register(ConvNetConfig, ConvNet, exist_ok=True)
