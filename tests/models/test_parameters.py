"""Layer-wise learning rates: the embeddings have the lowest, the head the highest."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BeitConfig,
    BertConfig,
    ConvNextConfig,
    DebertaV2Config,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    ResNetConfig,
    RobertaConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
)

from finetune.errors import UserError
from finetune.models import parameters

LAYERS = 3
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 30, "pad_token_id": 0}
IMAGE: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
GPT2 = GPT2Config(n_embd=16, n_layer=LAYERS, n_head=2, vocab_size=30, pad_token_id=0)
LLAMA = LlamaConfig(**TEXT, num_key_value_heads=1)
DECODER: dict[str, Any] = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
DECODER |= {"decoder_num_hidden_layers": 2, "decoder_intermediate_size": 32}
# Three stages of 1, 2 and 1 layers, for the hierarchical ones.
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16], "depths": [1, 2, 1]}
SWIN: dict[str, Any] = {"depths": [1, 2, 1], "num_heads": [2, 2, 2]}
text = AutoModelForSequenceClassification.from_config
masked = AutoModelForMaskedLM.from_config
causal = AutoModelForCausalLM.from_config
image = AutoModelForImageClassification.from_config
pretraining = AutoModelForPreTraining.from_config
# How to make a model, its config, the number of its layers.
MODELS = {
    "bert": (text, BertConfig(**TEXT), LAYERS),
    "bert masked": (masked, BertConfig(**TEXT), LAYERS),
    "roberta": (text, RobertaConfig(**TEXT), LAYERS),
    "distilbert": (
        text,
        DistilBertConfig(vocab_size=30, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=32),
        LAYERS,
    ),
    "albert": (text, AlbertConfig(**TEXT, embedding_size=8), 1),
    "electra": (
        text,
        ElectraConfig(**TEXT, embedding_size=8),
        LAYERS,
    ),
    "deberta-v2": (
        text,
        DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["c2p"]),
        LAYERS,
    ),
    "modernbert": (text, ModernBertConfig(**TEXT), LAYERS),
    "gpt2": (text, GPT2, LAYERS),
    "gpt2 writes": (causal, GPT2, LAYERS),
    "llama": (text, LLAMA, LAYERS),
    "llama writes": (causal, LLAMA, LAYERS),
    "vit": (image, ViTConfig(**IMAGE), LAYERS),
    "vit-mae": (pretraining, ViTMAEConfig(**IMAGE, **DECODER), LAYERS),
    "deit": (DeiTForImageClassification, DeiTConfig(**IMAGE), LAYERS),
    "beit": (image, BeitConfig(**IMAGE), LAYERS),
    "dinov2": (image, Dinov2Config(**IMAGE, mlp_ratio=2), LAYERS),
    "swin": (
        image,
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, window_size=2, **SWIN),
        4,
    ),
    "convnext": (image, ConvNextConfig(**STAGES, num_stages=3), 4),
    "resnet": (
        image,
        ResNetConfig(**STAGES, embedding_size=8, layer_type="basic"),
        4,
    ),
}


def inputs(config: Any) -> dict[str, torch.Tensor]:
    """Returns a batch of two tiny texts or images."""
    if hasattr(config, "vocab_size") and not isinstance(config, BeitConfig):
        return {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    side = config.image_size if hasattr(config, "image_size") else 32
    return {"pixel_values": torch.zeros(2, 3, side, side)}


@pytest.mark.parametrize("name", MODELS)
def test_rates_grow_from_the_embeddings_to_the_head(name: str) -> None:
    make, config, count = MODELS[name]
    torch.manual_seed(0)
    model: Any = make(config)
    groups = parameters.parameter_groups(model, set(), 1.0, 0.0, 0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == {id(p) for _, p in parameters.trainable(model)}
    assert set(rates.values()) == {0.5**i for i in range(count + 2)}

    # Modules in the order of their first use.
    used: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        if module not in used:
            used.append(module)

    for module in model.modules():
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(**inputs(config))
    output = model.get_output_embeddings()
    order = [
        rates[id(p)]
        for m in used
        for p in m.parameters(recurse=False)
        # An output layer that shares the embeddings' weights has their rate.
        if p.requires_grad and not (m is output and p is model.get_input_embeddings().weight)
    ]
    heads = "classifier", "score", "cls.", "decoder.", "lm_head"
    own = {n: rates[id(p)] for n, p in parameters.trainable(model)}
    embedding = {v for n, v in own.items() if "embed" in n and not n.startswith(heads)}
    assert embedding <= {0.5 ** (count + 1)}
    assert {v for n, v in own.items() if n.startswith(heads)} <= {1.0}
    assert order == sorted(order)
    assert len(set(order)) == count + 2


def test_an_adapter_has_the_rate_of_its_layer() -> None:
    plain = text(BertConfig(**TEXT))
    lora = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    model: Any = get_peft_model(plain, lora)
    layers = parameters.layers_of(model)
    found = {n: layers[n] for n, _ in parameters.trainable(model)}
    assert {layer for n, layer in found.items() if "classifier" in n} == {LAYERS + 1}
    for layer in range(LAYERS):
        assert {v for n, v in found.items() if f"layer.{layer}." in n} == {layer + 1}


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(UserError, match="layer_decay: Linear has no numbered layers; leave it out"):
        parameters.parameter_groups(nn.Linear(2, 2), set(), 1.0, 0.0, 0.5)
