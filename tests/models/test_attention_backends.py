"""Attention functions and devices of a GPU, with fakes of both: they run on a CPU."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from finetune import inference, recipe
from finetune.data import packing, sources
from finetune.errors import UserError
from finetune.inference import prediction
from finetune.models import devices, pretrained
from finetune.models.speed import packed_rows, padding_free
from finetune.tasks import causal_lm, masked_lm
from finetune.tasks.base import Task
from finetune.training import losses
from finetune.training.ema import EMA
from tests import fake_gpu
from tests.conftest import make_writer, sentences, train_job
from tests.models.test_padding_free import assert_close, batch, config, gradients, model

BF16 = {"bf16": True}
FLASH = "flash_attention_2"


# --- the model's device ----------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with an accelerator that is not CUDA, and whose memory is not the CPU's."""
    with fake_gpu.memory(monkeypatch) as device:
        yield device


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    """A language model that attends to something, as freshly initialized weights hardly do."""
    made = AutoModelForCausalLM.from_pretrained(make_writer(tmp_path))
    made.config.use_cache = False
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made.eval()


def test_the_fake_memory_keeps_devices_apart(gpu: torch.device) -> None:
    there = torch.ones(3, 2, device=gpu)
    assert float((there @ torch.ones(2, 3).to(gpu)).sum()) == 18
    with pytest.raises(RuntimeError, match="same device"):
        torch.add(there, torch.ones(3, 2))


def test_packing_is_tested_on_the_models_device(writer: Any, gpu: torch.device) -> None:
    # A quantized model is loaded there, and never moved.
    writer.to(gpu)
    assert packing.is_kept_apart(writer)


def test_checks_move_the_model_to_where_it_trains(writer: Any, gpu: torch.device) -> None:
    assert packed_rows.keeps_apart(writer, {"use_cpu": True})
    assert writer.device.type == "cpu"
    assert packed_rows.keeps_apart(writer, {})
    assert writer.device == gpu


def test_hidden_tokens_are_tested_on_the_models_device(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner: Any = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    with fake_gpu.memory(monkeypatch) as gpu:
        assert masked_lm.only_hidden(learner.to(gpu))


def test_padding_free_batches_on_an_accelerator_that_is_not_cuda(gpu: torch.device) -> None:
    learner = model("bert")
    expected = gradients(learner, batch(0))
    line = padding_free.enable(learner, BF16)
    assert line == "batches without padding by SDPA per sequence; flash attention needs CUDA"
    assert learner.device == gpu
    found = gradients(learner, {name: value.to(gpu) for name, value in batch(0).items()})
    assert_close({name: value.cpu() for name, value in found.items()}, expected, 1e-5)


def test_the_ema_follows_a_model_that_is_moved_later(gpu: torch.device) -> None:
    learner = torch.nn.Linear(2, 2, bias=False)
    start = learner.weight.detach().clone()
    ema = EMA(learner, 0.5)
    learner.to(gpu)
    for _ in range(2):
        learner.weight.data.add_(1)
        ema.on_step_end(None, None, None)
    # Otherwise every step would copy all weights to the CPU.
    assert [average.device for average in ema.averaged.module.parameters()] == [gpu]
    # The average starts with the first step's weights, and its second decay is 2/11.
    with ema.in_place():
        torch.testing.assert_close(learner.weight.detach().cpu(), start + 1 + 9 / 11)
    torch.testing.assert_close(learner.weight.detach().cpu(), start + 2)


def test_rows_are_predicted_on_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, gpu: torch.device
) -> None:
    task: Any = SimpleNamespace(
        batches=lambda *given: [([0], {"x": torch.ones(1, 1)})],
        forward=lambda model, inputs: [(model.weight.device, inputs["x"].device)],
        join=lambda parts, rows: parts,
        decode=lambda outputs, processor: outputs,
    )
    task.outputs = lambda *given: Task.outputs(task, *given)
    monkeypatch.setattr(prediction.tasks, "find", lambda name: task)
    read: Any = SimpleNamespace(task="")
    assert inference.outputs(torch.nn.Linear(1, 1), None, read, [{}]) == [[(gpu, gpu)]]


def test_text_is_generated_on_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, gpu: torch.device
) -> None:
    learner, used = torch.nn.Linear(1, 1), []
    task = SimpleNamespace(
        generates=True, generate=lambda model, *_, **options: used.append(model.weight.device)
    )
    monkeypatch.setattr(prediction.tasks, "find", lambda name: task)
    monkeypatch.setattr(prediction.recipes, "read", lambda path: SimpleNamespace(task=""))
    monkeypatch.setattr(prediction, "load", lambda run, **_: (learner, None, None))
    run: Any = SimpleNamespace(folder=Path(), results=lambda: {"data": {}})
    inference.generate(run, "a", 0, 1, greedy=True)
    assert used == [gpu]


@pytest.mark.parametrize(
    ("accelerator", "use_cpu", "expected"),
    # None: transformers takes the GPU.
    [("cuda", False, None), ("cuda", True, {"": "cpu"}), ("mps", False, {"": "mps"})],
)
def test_quantized_weights_are_loaded_where_they_train(
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    use_cpu: bool,
    expected: dict[str, str] | None,
) -> None:
    device = torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    asked: dict[str, Any] = {}

    class Auto(AutoModelForSequenceClassification):
        @classmethod
        def from_pretrained(cls, *folders: Any, **options: Any) -> Any:
            asked.update(options)
            return model("bert")

    flags = ["--quantization", "nf4", "--method", "lora", "--use_cpu", str(use_cpu).lower()]
    read = recipe.load(tiny_recipe, flags)
    checkpoint = sources.checkpoint(read.model.checkpoint, None)
    settings = AutoConfig.from_pretrained(checkpoint.folder)
    pretrained.load(Auto, checkpoint, settings, read)
    assert asked["device_map"] == expected
    assert asked["quantization_config"].load_in_4bit


# --- packed batches under flash attention ----------------------------------------------------


def documents(count: int = 12) -> list[dict[str, list[int]]]:
    ids = [[b % 250 + 1 for b in text.encode()] for text, _ in sentences(count)]
    return [{"input_ids": each, "labels": list(each)} for each in ids]


def packed_loss(learner: Any, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of packed documents in batches of so many rows, and its gradient."""
    found = documents()
    shared = packing.pack([len(each["input_ids"]) for each in found], 96)
    assert max(len(block) for block in shared) > 1
    blocks = [packing.block([found[i] for i in chosen]) for chosen in shared]
    learner.zero_grad()
    total = torch.zeros(())
    count = torch.tensor(sum(len(each["input_ids"]) - 1 for each in found))
    for start in range(0, len(blocks), rows):
        given = packing.Collator(0)(blocks[start : start + rows])
        labels = given.pop("labels")
        total = total + losses.NextTokenLoss()(learner(**given), labels, count)
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in learner.parameters()])


def single_loss(learner: Any) -> float:
    """The loss of the same documents, each alone."""
    with torch.no_grad():
        nats = [
            learner(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
            for ids in (torch.tensor([each["input_ids"]]) for each in documents())
        ]
    return float(sum(nats)) / sum(len(each["input_ids"]) - 1 for each in documents())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> fake_gpu.Kernel:
    """A machine with CUDA and the package flash_attn."""
    fake_gpu.cuda(monkeypatch)
    return fake_gpu.flash_attn(monkeypatch, fake_gpu.Kernel())


def test_flash_attention_mixes_packed_rows_of_larger_batches(
    writer: Any, kernel: fake_gpu.Kernel
) -> None:
    expected = single_loss(writer)
    writer.set_attn_implementation(FLASH)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = packed_loss(writer, 1)[0], packed_loss(writer, 2)[0]
        assert not packing.is_kept_apart(writer, 5e-2)
    # What a test with one row does not see.
    assert float(one) == pytest.approx(float(expected), abs=5e-3)
    assert abs(float(two) - float(expected)) > 5e-2


def test_joined_rows_keep_documents_apart_in_batches_of_any_size(
    writer: Any, kernel: fake_gpu.Kernel
) -> None:
    expected = single_loss(writer)
    with torch.autocast("cpu", torch.bfloat16):
        gradient = packed_loss(writer, 1)[1]
    writer.set_attn_implementation(FLASH)
    assert packed_rows.keeps_apart(writer, BF16)
    assert {call["dtype"] for call in kernel.calls} == {torch.bfloat16}
    for rows in (1, 2, 4):
        with torch.autocast("cpu", torch.bfloat16):
            kernel.calls.clear()
            found, learned = packed_loss(writer, rows)
        assert float(found) == pytest.approx(float(expected), abs=5e-3)
        assert float((learned - gradient).norm() / gradient.norm()) < 2e-2
        # The kernel is told every document, and the padding of every row but the longest.
        lengths = kernel.calls[0]["lengths"][0]
        assert max(lengths) <= max(len(each["input_ids"]) for each in documents())
        assert sum(lengths) % rows == 0


def test_a_kernel_that_leaks_anyway_is_not_packed_for(writer: Any, kernel: fake_gpu.Kernel) -> None:
    kernel.leaks = True
    writer.set_attn_implementation(FLASH)
    assert not packed_rows.keeps_apart(writer, BF16)
    assert not writer.base_model._forward_hooks
    assert not writer.base_model._forward_pre_hooks


def test_rows_are_not_joined_where_several_gpus_share_a_process(
    writer: Any, kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    writer.set_attn_implementation(FLASH)
    assert not packed_rows.keeps_apart(writer, BF16)


@pytest.fixture
def texts(workdir: Path) -> Path:
    """A recipe for a tiny language model with flash attention."""
    rows = [text for text, _ in sentences(60)]
    (workdir / "texts.txt").write_text("\n\n".join(rows), encoding="utf-8")
    lines = ["text", *rows]
    (workdir / "texts.csv").write_text("\n".join(lines), encoding="utf-8")
    made = workdir / "flash.yaml"
    made.write_text(
        f"""\
task: text-generation
model:
  checkpoint: "{make_writer(workdir / "writer")}"
  max_length: 64
  config: {{attn_implementation: {FLASH}}}
data: {{train: texts.csv, holdout: 20, validation_size: 10}}
training: {{bf16: true, max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1}}
""",
        encoding="utf-8",
    )
    return made


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_language_model_trains_and_writes_with_flash_attention(
    texts: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # The Trainer stays on the CPU: torch.cuda is not replaced.
    kernel = fake_gpu.flash_attn(monkeypatch, fake_gpu.Kernel())
    monkeypatch.setattr(devices, "without_flash", lambda training: "")
    flags = ["--method", method, "--use_cpu", "true"]
    run, _ = train_job(texts, *flags)
    assert run.results()["data"]["packed"]
    assert kernel.calls
    text = texts.read_text("utf-8").replace(FLASH, "sdpa")
    texts.with_name("sdpa.yaml").write_text(text, encoding="utf-8")
    other, _ = train_job(texts.with_name("sdpa.yaml"), *flags)
    ours, theirs = ([row["loss"] for row in r.history() if "loss" in row] for r in (run, other))
    assert len(ours) == 2
    assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize(
    ("capability", "flags", "why"),
    [
        ((8, 0), ["--bf16", "false"], "flash_attention_2 needs bf16 or fp16"),
        ((7, 5), [], r"flash_attention_2 needs a GPU of compute capability 8\.0 .* has 7\.5"),
        ((8, 0), ["--use_cpu", "true"], "flash_attention_2 needs a GPU"),
    ],
)
def test_flash_attention_that_cannot_run_is_one_line(
    texts: Path,
    kernel: fake_gpu.Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    flags: list[str],
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(UserError, match=why) as caught:
        causal_lm.TASK.build(recipe.load(texts, flags))
    assert "flash.yaml:5: attn_implementation" in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert not kernel.calls


def test_a_masked_model_is_checked_with_flash_attention(
    texts: Path, tiny_bert: Path, kernel: fake_gpu.Kernel
) -> None:
    read = recipe.load(texts, ["--checkpoint", str(tiny_bert), "--max_length", "16"])
    job = masked_lm.TASK.build(replace(read, task="fill-mask"))
    assert isinstance(job.collator, masked_lm.MaskCollator)
    assert job.collator.with_hidden
    # Padding is left out: three of four tokens of the second row.
    assert kernel.calls[-1]["lengths"][0] == [4, 3]


# --- padding-free batches on CUDA ------------------------------------------------------------

FAMILIES = {
    # Windows as the kernel takes them: tokens before and after, -1 for all.
    "bert": {(-1, -1)},
    "roberta": {(-1, -1)},
    "modernbert": {(-1, -1), (8, 8)},
    "gpt2": {(-1, 0)},
    "mistral": {(15, 0)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_torchs_kernel_gives_the_padded_results(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.cuda(monkeypatch)
    kernel = fake_gpu.torch_kernel(monkeypatch, fake_gpu.Kernel())
    learner = model(family)
    rows = batch(learner.config.pad_token_id or 0)
    expected = gradients(learner, rows)
    assert padding_free.enable(learner, BF16) == "batches without padding by varlen_attn"
    kernel.calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(learner, rows)
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        scale = max(value.norm(), 0.1 * largest)
        assert (found[name].float() - value).norm() < 0.15 * scale, name
    assert {call["window"] for call in kernel.calls} == FAMILIES[family]
    assert {call["dtype"] for call in kernel.calls} == {torch.bfloat16}
    lengths = [call["lengths"] for call in kernel.calls]
    assert lengths[0] == [[5, 1, 64, 23, 23, 40]] * 2
    if family == "bert":
        # The last layer asks for the first token of each text only.
        assert lengths[-1] == [[1] * 6, [5, 1, 64, 23, 23, 40]]


def chosen(monkeypatch: pytest.MonkeyPatch, learner: Any, training: dict[str, Any]) -> str:
    """The log's line, and a check that the model computes what it did."""
    rows = batch(0)
    with torch.no_grad():
        expected = learner(**rows).logits
    before = torch.get_rng_state()
    line = padding_free.enable(learner, training)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, bool(training.get("bf16"))):
        found = learner(**rows).logits
    assert (found - expected).abs().max() < 5e-2 * expected.abs().max()
    assert not learner.training
    return line.removeprefix("batches without padding by ")


def with_dropout() -> Any:
    made = config("bert")
    made.attention_probs_dropout_prob = 0.1
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(made).eval()


def test_attention_dropout_takes_flash_attn(
    kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.torch_kernel(monkeypatch, fake_gpu.Kernel())
    learner = with_dropout()
    line = chosen(monkeypatch, learner, BF16)
    assert line == "flash-attn; not varlen_attn: has no attention dropout"
    with torch.autocast("cpu", torch.bfloat16):
        learner.train()(**batch(0))
    assert kernel.calls[-1]["dropout"] == 0.1


def test_attention_dropout_without_flash_attn_takes_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.cuda(monkeypatch)
    fake_gpu.torch_kernel(monkeypatch, fake_gpu.Kernel())
    line = chosen(monkeypatch, with_dropout(), BF16)
    why = "not varlen_attn: has no attention dropout; not flash-attn: it is not installed"
    assert line == f"SDPA per sequence; {why}"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (fake_gpu.Kernel(leaks=True), "the logits would change"),
        (fake_gpu.Kernel(backward=2.0), "the gradients would change"),
        (None, r"Could not run .*"),
    ],
)
def test_a_kernel_that_computes_something_else_is_not_taken(
    kernel: fake_gpu.Kernel,
    monkeypatch: pytest.MonkeyPatch,
    broken: fake_gpu.Kernel | None,
    why: str,
) -> None:
    if broken:
        fake_gpu.torch_kernel(monkeypatch, broken)
    line = chosen(monkeypatch, model("bert").eval(), BF16)
    assert line.startswith("flash-attn; not varlen_attn: ")
    assert pytest.approx(line.split(": ")[1]) == why if broken else "Could not run" in line


def test_where_no_kernel_works_it_is_sdpa(
    kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.torch_kernel(monkeypatch, fake_gpu.Kernel(leaks=True))
    kernel.leaks = True
    line = chosen(monkeypatch, model("bert").eval(), BF16)
    why = "not varlen_attn: the logits would change; not flash-attn: the logits would change"
    assert line == f"SDPA per sequence; {why}"


def test_a_package_that_cannot_be_loaded_is_passed_over(
    kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.torch_kernel(monkeypatch, fake_gpu.Kernel(leaks=True))
    monkeypatch.delattr(sys.modules["flash_attn"], "flash_attn_varlen_func")
    line = chosen(monkeypatch, model("bert").eval(), BF16)
    assert line.startswith("SDPA per sequence; ")
    assert "not flash-attn: cannot import name" in line


@pytest.mark.parametrize(
    ("capability", "training", "why"),
    [
        ((8, 0), {}, "flash attention needs bf16 or fp16"),
        (
            (7, 5),
            {"fp16": True},
            "flash attention needs a GPU of compute capability 8.0 or more, and this one has 7.5",
        ),
        ((8, 0), {"use_cpu": True, "bf16": True}, "flash attention needs a GPU"),
    ],
)
def test_without_what_flash_attention_needs_it_is_sdpa(
    kernel: fake_gpu.Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    training: dict[str, Any],
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert chosen(monkeypatch, model("bert").eval(), training) == f"SDPA per sequence; {why}"
    assert not kernel.calls


def test_a_model_that_fails_in_the_precision_of_training_stays_padded(
    kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner: Any = model("bert").eval()
    before = learner.config._attn_implementation

    def fail(module: Any, given: Any, output: torch.Tensor) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no 16 bits")

    hook = learner.classifier.register_forward_hook(fail)
    assert padding_free.enable(learner, BF16) == "batches padded: no 16 bits"
    hook.remove()
    assert learner.config._attn_implementation == before
    assert not learner.base_model._forward_hooks


def test_several_gpus_in_one_process_pad(
    kernel: fake_gpu.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    learner = model("bert")
    line = "batches padded: one process has several GPUs; start one process for each GPU"
    assert padding_free.enable(learner, BF16) == line
    # Predictions use one GPU.
    with torch.no_grad():
        assert padding_free.enable(learner, {}).startswith("batches without padding")
