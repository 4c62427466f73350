"""Padding-free batches give the padded ones' logits, gradients, losses and predictions."""

import inspect
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from finetune import inference, recipe, run_directory
from finetune.data import sources
from finetune.models import tuning
from finetune.models.speed import padding_free
from finetune.tasks import text, text_classification
from finetune.training import arguments
from finetune.training.job import Job
from tests.conftest import sentences, train_job

CPU = {"use_cpu": True}
FREE = "batches without padding by SDPA per sequence; flash attention needs CUDA"
LONGEST = 64
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "gelu"},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    # MiniLM's own shape: a BERT of twelve heads.
    "bert, minilm": {"hidden_size": 48, "num_attention_heads": 12, "hidden_act": "gelu"},
    "modernbert": {"local_attention": 16, "classifier_pooling": "cls", "pad_token_id": 0},
    "modernbert, mean": {"local_attention": 16, "classifier_pooling": "mean", "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0, "classifier_dropout": 0.0},
    "mistral": {
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "pad_token_id": 0,
        "classifier_dropout": 0.0,
    },
}


def config(family: str) -> Any:
    """A tiny model's config, without dropout."""
    kind = family.partition(",")[0]
    shape = {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": LONGEST},
    }
    made = AutoConfig.for_model(kind, architectures=[], num_labels=3, **shape | FAMILIES[family])
    for name, value in made.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(made, name, 0.0)
    return made


def model(family: str, auto: Any = AutoModelForSequenceClassification) -> PreTrainedModel:
    """A tiny model with weights large enough for each of them to change the logits."""
    torch.manual_seed(0)
    shape = config(family)
    if auto is AutoModelForQuestionAnswering:
        shape.num_labels = 2
    made = auto.from_config(shape)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return made


def batch(padding: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of different lengths, the shortest and longest possible ones, and two equal ones."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, LONGEST, 23, 23, 40])
    ids = torch.randint(3, 99, (len(lengths), LONGEST), generator=draw)
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}


def gradients(learner: torch.nn.Module, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients by parameter name, and the logits of rows (B, K) or of real tokens (T, K)."""
    learner.zero_grad()
    out = learner(**rows)
    answers = "start_logits" in out
    logits = torch.stack([out.start_logits, out.end_logits], -1) if answers else out.logits
    if logits.ndim == 3:
        logits = logits[rows["attention_mask"].bool()]
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
    functional.cross_entropy(logits, labels).backward()
    found = {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
    return found | {"logits": logits.detach()}


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float
) -> None:
    assert found.keys() == expected.keys()
    largest = max(t.abs().max() for t in expected.values())
    for name, tensor in expected.items():
        # The gradient of a key's bias is only rounding noise: softmax cancels the bias.
        scale = max(tensor.abs().max(), 1e-2 * largest)
        assert (found[name] - tensor).abs().max() <= relative * scale, name


def adapted(family: str, auto: Any, method: str) -> torch.nn.Module:
    """A tiny model under a tuning method, an adapter's weights as large as the others."""
    learner = model(family, auto)
    if method == "full":
        return learner.train()
    read = recipe.Recipe(
        **{"task": "text-classification", "model": recipe.Model(), "data": recipe.Data()},
        **{"tuning": recipe.Tuning(method=method), "training": {}, "reference": None},
        **{"name": "tiny", "origin": {}},
    )
    made = tuning.apply(learner, read, sources.Checkpoint("tiny", Path(), None))
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.train()


HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "answer": AutoModelForQuestionAnswering,
}
# A head on every token does not pool.
CASES = [
    (family, head, method)
    for family in FAMILIES
    for head in HEADS
    for method in ("full", "lora", "bottleneck")
    if head == "sequence" or family != "modernbert, mean"
]


@pytest.mark.parametrize(("family", "head", "method"), CASES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_logits_and_gradients_are_the_padded_ones(family: str, head: str, method: str) -> None:
    learner = adapted(family, HEADS[head], method)
    base = next(m for m in learner.modules() if isinstance(m, PreTrainedModel))
    rows = batch(base.config.pad_token_id or 0)
    if "token_type_ids" in inspect.signature(base.base_model.forward).parameters:
        rows["token_type_ids"] = (torch.arange(LONGEST) > 3).long().expand(6, -1).contiguous()
    expected = gradients(learner, rows)
    assert padding_free.enable(learner, CPU) == FREE
    assert learner.training
    shapes = []
    base.base_model.register_forward_pre_hook(
        lambda module, given, options: shapes.append(options["input_ids"].shape), with_kwargs=True
    )
    found = gradients(learner, rows)
    assert shapes == [(1, 5 + 1 + LONGEST + 23 + 23 + 40)]
    assert_close({"logits": found.pop("logits")}, {"logits": expected.pop("logits")}, 1e-6)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_the_last_layer_computes_queries_for_the_first_token_only(family: str) -> None:
    learner = model(family)
    assert padding_free.enable(learner, CPU) == FREE
    feed_forward, queries, outputs = [], [], []
    for layer in learner.base_model.encoder.layer:
        layer.intermediate.register_forward_pre_hook(
            lambda m, given: feed_forward.append(given[0].shape)
        )
        query = layer.attention.self.query
        query.register_forward_pre_hook(lambda m, given: queries.append(given[0].shape))
    learner.base_model.register_forward_hook(lambda m, given, out: outputs.append(out[0].shape))
    learner.activation_checkpointing_enable()
    learner.train()
    found = gradients(learner, batch(learner.config.pad_token_id))
    # Gradient checkpointing runs the layers again, from the last to the first.
    assert [shape[1] for shape in feed_forward] == [156, 6, 6, 156]
    assert [shape[1] for shape in queries] == [156, 6, 6, 156]
    # One state a text, without padding.
    assert [shape[:2] for shape in outputs] == [(6, 1)]
    learner.activation_checkpointing_disable()
    assert_close(found, gradients(learner, batch(learner.config.pad_token_id)), 1e-6)


def test_attention_dropout_is_the_configs() -> None:
    torch.manual_seed(0)
    made = config("bert")
    made.attention_probs_dropout_prob = 0.5
    learner = AutoModelForSequenceClassification.from_config(made)
    assert padding_free.enable(learner, CPU) == FREE
    rows = batch(0)
    learner.train()
    assert not torch.equal(learner(**rows).logits, learner(**rows).logits)
    learner.eval()
    assert torch.equal(learner(**rows).logits, learner(**rows).logits)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (
            "deberta-v2",
            {"relative_attention": True, "pos_att_type": ["c2p"]},
            "another attention",
        ),
        ("albert", {"embedding_size": 16}, "pooler does not take all"),
        ("mobilebert", {"intra_bottleneck_size": 32}, "logits would change"),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8}, "attention takes softcap"),
    ],
)
def test_an_architecture_that_cannot_be_unpadded_is_unchanged(
    kind: str, options: dict[str, Any], why: str
) -> None:
    torch.manual_seed(0)
    shape = {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "vocab_size": 99, "pad_token_id": 0},
    }
    made = AutoConfig.for_model(kind, architectures=[], **shape | options)
    learner = AutoModelForSequenceClassification.from_config(made).eval()
    rows, before = batch(0), learner.config._attn_implementation
    expected = learner(**rows).logits
    line = padding_free.enable(learner, CPU)
    assert line.startswith("batches padded: ")
    assert why in line
    assert learner.config._attn_implementation == before
    assert torch.equal(learner(**rows).logits, expected)


def curve(path: Path, name: str, *flags: str) -> tuple[run_directory.Run, list[float], Job]:
    """Trains the recipe; returns the run, its losses and its job."""
    words = ["--output_dir", f"runs/{name}", *flags]
    run, job = train_job(path, *words)
    return run, [row["loss"] for row in run.history() if "loss" in row], job


@pytest.mark.parametrize("method", ["full", "lora", "bottleneck"])
def test_fifty_steps_have_the_padded_losses(tiny_recipe: Path, method: str) -> None:
    draw = random.Random(0)
    # Pairs of texts, from one word to more than max_length takes.
    rows = [
        (" ".join([text] * draw.randint(1, 4)), draw.choice(text.split()), label)
        for text, label in sentences(160)
    ]
    lines = ["text,second,label", *(",".join(row) for row in rows)]
    Path("reviews.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--method", method, "--text_pair", "second", "--max_length", "40"]
    flags += ["--max_steps", "50", "--per_device_train_batch_size", "8"]
    free, losses, job = curve(tiny_recipe, "free", *flags)
    _, padded, other = curve(tiny_recipe, "padded", *flags, "--padding_free", "false")
    assert len(losses) == 50
    assert losses == pytest.approx(padded, abs=1e-5)
    assert FREE in job.notes
    assert "batches padded: the recipe says so" in other.notes
    texts = [{"text": a, "text_pair": b} for a, b, _ in rows[:20]]
    learner, tokenizer, read = inference.load(free)
    modules = [m for m in learner.modules() if isinstance(m, PreTrainedModel)]
    assert modules[0].config._attn_implementation == padding_free.PER_SEQUENCE
    ours = inference.outputs(learner, tokenizer, read, texts)
    read = replace(read, model=replace(read.model, padding_free=False))
    (free.folder / run_directory.RECIPE).write_text(read.dump(), encoding="utf-8")
    plain, *_ = inference.load(free)
    theirs = inference.outputs(plain, tokenizer, read, texts)
    assert abs(ours - theirs).max() < 1e-5


def test_virtual_tokens_keep_the_padding(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--method", "prompt_tuning"]))
    assert job.notes == ["batches padded: the encoder does not take token ids"]


def test_the_log_says_how_batches_are_computed(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = curve(tiny_recipe, "a", "--max_steps", "1")
    assert FREE in capsys.readouterr().err
    assert "per_sequence" not in (run.model / "config.json").read_text("utf-8")


def test_on_xla_batches_have_one_shape_and_the_optimizer_is_one_that_works(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (padding_free, arguments, text):
        monkeypatch.setattr(module, "is_torch_xla_available", lambda: True)
    read = recipe.load(tiny_recipe)
    job = text_classification.TASK.build(read)
    assert job.notes == ["batches padded: XLA needs fixed shapes"]
    texts: Any = job.splits["train"].select_columns(["input_ids", "attention_mask"])
    assert {job.collator([texts[i]])["input_ids"].shape for i in range(8)} == {(1, 16)}
    args = arguments.training_arguments(read, run_directory.Run("runs/a"), job)
    assert args.optim == "adamw_torch"
    read.training["optim"] = "adafactor"
    assert arguments.training_arguments(read, run_directory.Run("runs/a"), job).optim == "adafactor"


# torch 2.13's own compiler still uses it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_steps_have_the_same_losses(tiny_recipe: Path) -> None:
    # The default backend, inductor, computes the same but compiles for a minute.
    flags, how = ["--max_steps", "3"], ["--torch_compile_backend", "aot_eager"]
    _, losses, _ = curve(tiny_recipe, "eager", *flags)
    _, compiled, job = curve(tiny_recipe, "compiled", *flags, *how)
    assert job.notes == ["batches padded: torch.compile would recompile for every new shape"]
    assert len(losses) == 3
    assert compiled == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@torch.no_grad()
def test_hidden_states_of_first_tokens_are_those_of_padded_batches(family: str) -> None:
    learner = model(family).eval()
    rows = batch(learner.config.pad_token_id)
    expected = learner(**rows, output_hidden_states=True).hidden_states
    assert padding_free.enable(learner, CPU).startswith("batches without padding")
    found = learner(**rows, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(ours[:, 0], theirs[:, 0], atol=1e-4)
