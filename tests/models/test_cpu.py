"""CPU kernels compute what torch's and peft's own layers compute."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune.models.speed import cpu
from finetune.tasks import text_classification
from tests.conftest import train_job

# Allocates blocks larger than glibc keeps by default; prints the page faults of the last steps.
STEPS = """\
import resource, sys, torch
from finetune.models.speed import cpu
if sys.argv[1] == "kept":
    cpu.keep_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    states = [torch.ones(2**24) for _ in range(2)]
    del states
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of Linux")
def test_a_step_takes_the_memory_of_the_one_before() -> None:
    def pages(way: str) -> int:
        words = [sys.executable, "-c", STEPS, way]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert pages("kept") < 0.1 * pages("given back")


@pytest.mark.parametrize("shape", [(5, 7, 12), (1, 12), (12,), (0, 12)], ids=str)
@pytest.mark.parametrize("out", [3, 12, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_torchs(shape: tuple[int, ...], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(12, out, bias=bias)
    ours = copy.deepcopy(theirs)
    ours.__class__ = cpu.Linear
    # As they come from a longer row, and as a sum hands its gradient back.
    states = torch.randn(*shape[:-1], 20)[..., :12]

    def learn(layer: nn.Linear) -> list[torch.Tensor]:
        x = states.detach().requires_grad_()
        y = layer(x)
        # As AdaLoRA adds to what its base layer gives.
        y += 1
        y.square().sum().backward(retain_graph=True)
        y.sum().backward()
        assert x.grad is not None
        return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]

    for found, expected in zip(learn(ours), learn(theirs), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert len(learn(ours)) == 3 + bias


def test_a_frozen_layer_gets_no_gradient() -> None:
    frozen = nn.Linear(4, 3).requires_grad_(False)
    frozen.__class__ = cpu.Linear
    x = torch.randn(2, 4, requires_grad=True)
    frozen(x).sum().backward()
    assert frozen.weight.grad is None
    assert x.grad is not None
    assert torch.allclose(x.grad, frozen.weight.sum(0).expand(2, 4))
    assert not frozen(x.detach()).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_linear_layer_of_another_precision_is_torchs_own(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 3).to(dtype)
    x = torch.randn(2, 4, dtype=dtype)
    expected = layer(x)
    layer.__class__ = cpu.Linear
    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float()).dtype is torch.bfloat16


def test_a_linear_layer_answers_by_the_bits_of_torchs() -> None:
    layer, x = nn.Linear(384, 384).eval(), torch.randn(64, 384)
    expected = layer(x)
    layer.__class__ = cpu.Linear
    assert torch.equal(layer(x), expected)


def lora(**options: Any) -> Any:
    """A tiny BERT under LoRA whose every matrix has left its beginning."""
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
    """Logits of a batch, and the gradients of what learns."""
    torch.manual_seed(1)
    logits = model(input_ids=torch.arange(48).view(3, 16)).logits
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}],
    ids=str,
)
def test_lora_is_pefts(options: dict[str, Any]) -> None:
    theirs = lora(**options)
    ours = copy.deepcopy(theirs)
    cpu.prepare(ours)
    for training in (True, False):
        (expected, gradients), (logits, found) = (step(m.train(training)) for m in (theirs, ours))
        assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert found.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            # A key's bias gets no gradient but noise: softmax does not see it.
            near = 1e-5 * max(float(gradient.abs().max()), 1e-2 * largest)
            assert torch.allclose(found[name], gradient, rtol=0, atol=near), name


def test_lora_takes_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora()
    cpu.prepare(model)
    count = sum(isinstance(module, cpu.LoraLinear) for module in model.modules())
    calls = []
    product = cpu.MergedProduct.apply
    monkeypatch.setattr(cpu.MergedProduct, "apply", lambda *x: calls.append(1) or product(*x))
    step(model.train())
    # Two layers of six products, the pooler's and the head's.
    assert len(calls) == count == 14


def test_a_run_on_the_cpu_trains_by_them(tiny_recipe: Path) -> None:
    flags = ["--method", "lora", "--use_cpu", "true"]
    run, job = train_job(text_classification, tiny_recipe, *flags)
    kinds = {type(module) for module in job.model.modules()}
    assert {cpu.Linear, cpu.LoraLinear} <= kinds
    assert not {nn.Linear, cpu.PeftLinear} & kinds
    assert run.is_finished


def test_lora_switched_off_or_folded_in_answers_as_ever() -> None:
    model = lora().train()
    ids = torch.arange(48).view(3, 16)
    cpu.prepare(model)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        folded = model.merge_and_unload()(input_ids=ids).logits
    assert not torch.allclose(base, adapted, atol=1e-3)
    assert torch.allclose(folded, adapted, atol=1e-5)
