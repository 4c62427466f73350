"""PiSSA and OLoRA start by changing the base; runs start from, and are saved for, the true one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import inference
from finetune.models import adapters
from tests.conftest import WORDS, make_writer, train, train_job

ROWS = [{"text": "the film was good"}, {"text": "a poor plot"}]


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
        {"init_lora_weights": "olora", "rank_pattern": {"query": 3}, "alpha_pattern": {"value": 5}},
        {"init_lora_weights": "pissa", "use_dora": True},
    ],
    ids=["pissa", "rslora", "patterns", "dora"],
)
def test_the_saved_adapter_is_a_plain_lora_of_the_checkpoint(
    tiny_recipe: Path,
    tiny_bert: Path,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tiny_recipe.read_text("utf-8")
    tiny_recipe.write_text(f"{text}tuning: {json.dumps({'method': 'lora', 'r': 4, **options})}\n")
    run, job = train_job(tiny_recipe, "--learning_rate", "0.05")
    assert "saved as a plain LoRA of twice the rank" in capsys.readouterr().err
    model, _, _ = inference.load(run)
    base = load_file(tiny_bert / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    own = f"base_model.model.bert.{name}".replace(".weight", ".base_layer.weight")
    assert torch.equal(dict(model.named_parameters())[own].cpu(), base[name])
    assert not torch.equal(dict(job.model.named_parameters())[own].cpu(), base[name])
    trained, again = (
        dict(adapters.merge(m, "lora").named_parameters()) for m in (job.model, model)
    )
    assert (trained[f"bert.{name}"] - base[name]).abs().max() > 0.01
    assert trained.keys() == again.keys()
    for key, weight in trained.items():
        assert torch.allclose(again[key], weight, rtol=0, atol=1e-5), key


def test_adapters_answer_the_same_beside_a_pissa_one_in_any_order(tiny_recipe: Path) -> None:
    flags = ["--method", "lora", "--r", "4", "--output_dir"]
    plain = train(tiny_recipe, *flags, "runs/l")
    pissa = train(tiny_recipe, *flags, "runs/p", "--init_lora_weights", "pissa")
    alone = {str(run): inference.predict(run, ROWS) for run in (plain, pissa)}
    for order in ([plain, pissa], [pissa, plain]):
        base = inference.shared_base(order)
        for run in order:
            assert inference.predict(run, ROWS, base) == alone[str(run)]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_before_training_is_the_checkpoint(workdir: Path, init: str) -> None:
    make_writer(workdir / "writer")
    rows = [{"text": f"{a} {b} {c}"} for a in WORDS for b in WORDS[:3] for c in WORDS[:2]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "texts.jsonl").write_text(lines, encoding="utf-8")
    path = workdir / "writer.yaml"
    path.write_text(
        "task: text-generation\n"
        "model: {checkpoint: writer, max_length: 32}\n"
        "data: {train: texts.jsonl, holdout: 8, validation_size: 4}\n"
        "tuning: {method: lora, r: 4}\n"
        "training: {learning_rate: 1.0e-3, max_steps: 2, use_cpu: true}\n",
        encoding="utf-8",
    )
    before = {
        name: train(path, "--init_lora_weights", name, "--output_dir", f"runs/{name}").results()[
            "baselines"
        ]["before training"]["bits_per_byte"]["value"]
        for name in ("true", init)
    }
    assert before[init] == pytest.approx(before["true"], abs=1e-5)
