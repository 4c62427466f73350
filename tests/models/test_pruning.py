"""Smaller models: what goes is what matters least, and what is left is an ordinary checkpoint."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from finetune.errors import UserError
from finetune.models import pruning
from finetune.recipe import Data, Model, Recipe, Tuning
from finetune.training.losses import ClassificationLoss

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "num_labels": 3}
TEXTS = {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}
IMAGES = {"image_size": 16, "patch_size": 8}


def made(kind: str, **values: Any) -> PreTrainedModel:
    """A classifier of four layers whose weights all matter."""
    own = SIZES | (IMAGES if kind == "vit" else TEXTS) | values
    if kind == "qwen3":
        own |= {"num_key_value_heads": 2, "head_dim": 8}
    if kind == "distilbert":
        own["hidden_dim"] = own.pop("intermediate_size")
    config = AutoConfig.for_model(kind, architectures=[], **own)
    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def batch(model: PreTrainedModel, count: int = 24) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(count, 3, 16, 16, generator=draw), "labels": labels}
    return {"input_ids": torch.randint(1, 40, (count, 9), generator=draw), "labels": labels}


def shrunk(model: PreTrainedModel, **sizes: int) -> PreTrainedModel:
    every = batch(model)
    recipe = Recipe(
        task="",
        model=replace(Model(), **sizes),
        data=Data(),
        tuning=Tuning(),
        training={"use_cpu": True},
        reference=None,
        name="a.yaml",
        origin={},
    )
    rows = Dataset.from_dict({"row": list(range(24)), "length": [9] * 24})

    def collate(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: value[[row["row"] for row in chosen]] for name, value in every.items()}

    loss = ClassificationLoss("single_label_classification")
    return pruning.shrink(model, recipe, rows, collate, loss).eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(**batch(model)).logits


def readers(model: PreTrainedModel, layer: int) -> dict[str, torch.Tensor]:
    """The weights of a layer that read its heads' and its neurons' outputs."""
    ends = ("o_proj.weight", "attention.output.dense.weight"), ("fc2.weight", "down_proj.weight")
    neurons = (*ends[1], f"layer.{layer}.output.dense.weight")
    found = {}
    for name, weight in model.named_parameters():
        if f".{layer}." in name and name.endswith(neurons):
            found["feed_forward"] = weight
        elif f".{layer}." in name and name.endswith(ends[0]):
            found["heads"] = weight
    return found


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("bert", {"feed_forward": 20}),
        ("roberta", {"feed_forward": 20}),
        ("electra", {"feed_forward": 20}),
        ("vit", {"feed_forward": 20, "heads": 1}),
        ("llama", {"feed_forward": 20, "heads": 2}),
    ],
)
def test_heads_and_neurons_that_nothing_reads_go(
    kind: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    model = made(kind)
    for layer in range(4):
        found = readers(model, layer)
        assert len(found) == 2, list(dict(model.named_parameters()))
        # Each layer keeps others, and its own order.
        neurons = torch.randperm(48, generator=torch.Generator().manual_seed(layer))
        found["feed_forward"].data[:, neurons[20:]] = 0
        if "heads" in sizes:
            heads = [(layer + i) % 4 for i in range(sizes["heads"], 4)]
            found["heads"].data.view(32, 4, 8)[:, heads] = 0
    expected = logits(model)
    small = shrunk(model, **sizes)
    assert small.num_parameters() < 0.9 * model.num_parameters()
    assert torch.allclose(logits(small), expected, atol=1e-5)
    small.save_pretrained(tmp_path)
    both: Any = type(model).from_pretrained(tmp_path, output_loading_info=True)
    loaded, report = both
    assert not any(report.values()), report
    assert torch.allclose(logits(loaded.eval()), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "qwen3"])
def test_layers_are_kept_evenly_spaced_to_the_last(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    ends = ("o_proj.weight", "o_proj.bias", "fc2.weight", "fc2.bias", "down_proj.weight")
    for name, weight in model.named_parameters():
        # With nothing added to the residual stream, a layer does nothing.
        if re.search(r"\.[02]\.", name) and name.endswith(ends):
            weight.data.zero_()
    expected = logits(model)
    small = shrunk(model, layers=2)
    assert small.config.num_hidden_layers == 2
    assert torch.allclose(logits(small), expected, atol=1e-5)
    small.save_pretrained(tmp_path)
    assert torch.allclose(logits(type(model).from_pretrained(tmp_path).eval()), expected, atol=1e-5)


def test_a_model_of_the_same_size_stays_the_same() -> None:
    model = made("bert")
    assert torch.equal(logits(shrunk(model, layers=4, feed_forward=48)), logits(model))
    assert shrunk(model) is model


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("bert", {"heads": 2}, "a.yaml: bert ties the size of a head to their number, so heads"),
        ("bert", {"heads": 3}, "a.yaml: bert has no such size: The hidden size"),
        ("bert", {"layers": 5}, "a.yaml: layers 5 is more than the checkpoint's 4"),
        ("vit", {"heads": 5}, "a.yaml: heads 5 is more than the checkpoint's 4"),
        ("distilbert", {"feed_forward": 8}, "distilbert has no intermediate_size that could be"),
        ("qwen3", {"heads": 2}, "a.yaml: qwen3 shares keys among its heads"),
        ("modernbert", {"layers": 2}, r"modernbert has model.layers.1.attn_norm.weight, which"),
        ("modernbert", {"feed_forward": 8}, "of several kinds, of which none can go"),
    ],
)
def test_what_cannot_be_smaller_is_an_error(kind: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shrunk(made(kind), **sizes)
