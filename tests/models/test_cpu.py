"""Training on a CPU: merged LoRA computes what peft computes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune.models.speed import cpu, merged_lora
from finetune.models.speed.dropout import Dropout
from tests.conftest import train_job


def lora(**options: Any) -> Any:
    """A tiny BERT with LoRA, all of whose matrices differ from their initial zeros."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model("bert", vocab_size=64, intermediate_size=48, **sizes, **none)
    model = AutoModelForSequenceClassification.from_config(config)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options)
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return adapted


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a batch, and the gradients of trainable parameters."""
    torch.manual_seed(1)
    logits = model(input_ids=torch.arange(48).view(3, 16)).logits
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}],
    ids=str,
)
def test_lora_has_pefts_logits_and_gradients(options: dict[str, Any]) -> None:
    theirs = lora(**options)
    ours = copy.deepcopy(theirs)
    dropout = {module: type(module) for module in ours.modules() if isinstance(module, nn.Dropout)}
    cpu.prepare(ours)
    for module, kind in dropout.items():
        # Dropout of our own draws other values.
        module.__class__ = kind
    for training in (True, False):
        (expected, gradients), (logits, found) = (step(m.train(training)) for m in (theirs, ours))
        assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert found.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            # The gradient of a key's bias is only rounding noise: softmax cancels the bias.
            near = 1e-5 * max(float(gradient.abs().max()), 1e-2 * largest)
            assert torch.allclose(found[name], gradient, rtol=0, atol=near), name


def test_lora_takes_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora()
    cpu.prepare(model)
    count = sum(isinstance(module, merged_lora.LoraLinear) for module in model.modules())
    calls = []
    product = merged_lora.MergedProduct.apply
    monkeypatch.setattr(
        merged_lora.MergedProduct, "apply", lambda *x: calls.append(1) or product(*x)
    )
    step(model.train())
    # Two layers with six linear layers each, the pooler and the head.
    assert len(calls) == count == 14


def test_a_run_on_the_cpu_uses_merged_lora_and_dropout(tiny_recipe: Path) -> None:
    flags = ["--method", "lora", "--use_cpu", "true", "--config", "{hidden_dropout_prob: 0.1}"]
    run, job = train_job(tiny_recipe, *flags)
    kinds = {type(module) for module in job.model.modules()}
    assert {merged_lora.LoraLinear, Dropout} <= kinds
    assert not {PeftLinear, nn.Dropout} & kinds
    assert run.is_finished


def test_disabled_or_merged_lora_computes_what_pefts_does() -> None:
    model = lora().train()
    ids = torch.arange(48).view(3, 16)
    cpu.prepare(model)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    assert not torch.allclose(base, adapted, atol=1e-3)
    assert torch.allclose(merged, adapted, atol=1e-5)
