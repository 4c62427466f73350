"""Every way of tuning: what learns, what is saved, and that it comes back bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    ViTConfig,
)

from finetune import cli, inference, ledger, recipe, runner, tuning
from finetune.bottleneck_adapters import BottleneckConfig, sublayers
from finetune.errors import Refusal
from finetune.job import Job
from finetune.tasks import text_classification

from .conftest import sentences

# Methods with the options that a model of width 32 needs.
METHODS: dict[str, dict[str, object]] = {
    "bottleneck": {},
    "lora": {"use_dora": True},
    "ia3": {},
    "vera": {"r": 8},
    "oft": {},
    "boft": {},
    "hra": {},
    "loha": {},
    "lokr": {},
    "ln_tuning": {},
    "fourierft": {"n_frequency": 50},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "p_tuning": {"num_virtual_tokens": 4},
}
TEXTS = [text for text, _ in sentences(8, seed=3)]
RELOAD = """
import json, sys, numpy
from finetune import inference, ledger
for folder in sys.argv[2:]:
    model, tokenizer, recipe = inference.load(ledger.Run(folder))
    rows = [{"text": text} for text in json.loads(sys.argv[1])]
    numpy.save(f"{folder}/logits.npy", inference.logits(model, tokenizer, recipe, rows))
"""


def with_tuning(path: Path, method: str, options: dict[str, object]) -> Path:
    text = path.read_text(encoding="utf-8")
    made = path.with_name(f"{method}.yaml")
    made.write_text(
        f"{text}tuning: {json.dumps({'method': method, **options})}\n", encoding="utf-8"
    )
    return made


# What peft has to say about its methods' own defaults.
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_adapters_come_back_bit_for_bit_in_a_new_process(
    tiny_recipe: Path, tiny_bert: Path
) -> None:
    base = load_file(tiny_bert / "model.safetensors")
    expected: dict[str, numpy.ndarray] = {}
    for method, options in METHODS.items():
        read = recipe.load(with_tuning(tiny_recipe, method, options))
        jobs: list[Job] = []

        def build(read: recipe.Recipe, jobs: list[Job] = jobs) -> Job:
            jobs.append(text_classification.build(read))
            return jobs[0]

        run = runner.train(read, build)
        assert run is not None
        model = jobs[0].model.eval()
        rows = [{"text": text} for text in TEXTS]
        expected[str(run)] = inference.logits(model, jobs[0].processor, read, rows)
        assert all("eval_loss" in r for r in run.history() if "eval_accuracy" in r), method
        cost = run.results()["cost"]
        assert 0 < cost["trainable_parameters"] < cost["total_parameters"], method

        weights = dict(model.named_parameters())
        untouched = [
            name
            for name, tensor in base.items()
            if any(
                p.shape == tensor.shape and torch.equal(p, tensor)
                for n, p in weights.items()
                if not p.requires_grad and n.split(".")[-1] == name.split(".")[-1]
            )
        ]
        assert len(untouched) == len(base), (method, set(base) - set(untouched))
        saved = load_file(run.model / "adapter_model.safetensors")
        assert any("classifier" in name for name in saved), method
    command = [sys.executable, "-c", RELOAD, json.dumps(TEXTS), *expected]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        assert numpy.array_equal(numpy.load(f"{folder}/logits.npy"), logits), folder


def test_every_installed_peft_method_is_offered_or_refused_with_a_reason() -> None:
    installed = {str.lower(name) for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    offered = set(tuning.adapter_methods())
    assert len(offered) > 30
    assert offered | set(tuning.NOT_OFFERED) == installed
    assert not offered & set(tuning.NOT_OFFERED)
    assert set(METHODS) <= offered


def test_a_method_of_a_later_peft_needs_no_code(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, "TOMORROW", BottleneckConfig)
    assert "tomorrow" in tuning.adapter_methods()
    tuning.check(recipe.load(with_tuning(tiny_recipe, "tomorrow", {"reduction_factor": 4})))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("xlora", {}, "not offered: it mixes adapters"),
        ("bottelneck", {}, "did you mean 'bottleneck'"),
        ("bottleneck", {"reduction": 8}, "did you mean 'reduction_factor'"),
        ("bottleneck", {"placement": "houlsbi"}, "houlsby"),
        ("bitfit", {"r": 8}, "tuning key 'r'"),
        ("shira", {"r": 1000}, "shira does not fit"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tiny_recipe: Path, method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        text_classification.build(recipe.load(with_tuning(tiny_recipe, method, options)))
    assert "\n" not in str(refusal.value)


def test_bitfit_trains_biases_and_head(tiny_recipe: Path, tiny_bert: Path) -> None:
    run = runner.train(
        recipe.load(with_tuning(tiny_recipe, "bitfit", {})), text_classification.build
    )
    assert run is not None
    before = load_file(tiny_bert / "model.safetensors")
    after = load_file(run.model / "model.safetensors")
    changed = {n for n, t in before.items() if not torch.equal(after[f"bert.{n}"], t)}
    assert "encoder.layer.0.output.dense.bias" in changed
    assert {n for n in changed if not n.endswith("bias")} == {"pooler.dense.weight"}


# --- bottleneck ------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WORDS = SIZES | {"vocab_size": 50, "pad_token_id": 0}
ARCHITECTURES = {
    "bert": BertConfig(**WORDS),
    "roberta": RobertaConfig(**WORDS),
    "electra": ElectraConfig(**WORDS, embedding_size=32),
    "deberta-v2": DebertaV2Config(**WORDS, pooler_hidden_size=32),
    "albert": AlbertConfig(**WORDS, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "gpt2": GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": LlamaConfig(**WORDS, num_key_value_heads=1),
    "modernbert": ModernBertConfig(
        **WORDS, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bottleneck_starts_as_the_identity_anywhere(name: str, placement: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES[name]).eval()
    inputs = {"input_ids": torch.randint(3, 50, (3, 7)), "attention_mask": torch.ones(3, 7).long()}
    with torch.no_grad():
        before = model(**inputs).logits
    config = BottleneckConfig(placement=placement, reduction_factor=8)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        assert torch.equal(adapted(**inputs).logits, before)
    learning = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert all("bottleneck" in n for n in learning)
    layers = 1 if name == "albert" else 2
    width, narrow = 32, 4
    each = 2 * width * narrow + narrow + width
    count = layers * each * (2 if placement == "houlsby" else 1)
    assert sum(p.numel() for p in learning.values()) == count
    for parameter in learning.values():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        moved = adapted(**inputs).logits
        assert (moved - before).abs().max() > 1e-3
        with adapted.disable_adapter():
            assert torch.equal(adapted(**inputs).logits, before)
    adapted.train()
    adapted(**inputs).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.values())


def test_bottleneck_on_minilm_has_the_papers_count(workdir: Path) -> None:
    path = Path(__file__).parent.parent / "recipes" / "rotten_tomatoes" / "minilm.yaml"
    read = recipe.load(
        path, ["--method", "bottleneck", "--max_train_samples", "8", "--max_test_samples", "8"]
    )
    job = text_classification.build(read)
    layers, width, narrow = 6, 384, 384 // 16
    learning = {n: p.numel() for n, p in job.model.named_parameters() if p.requires_grad}
    adapters = sum(count for name, count in learning.items() if "bottleneck" in name)
    assert adapters == layers * 2 * (2 * width * narrow + narrow + width)
    norms = sum(count for name, count in learning.items() if "LayerNorm" in name)
    assert norms == (2 * layers + 1) * 2 * width
    head = width * width + width + 2 * width + 2
    assert sum(learning.values()) == adapters + norms + head


def test_bottleneck_finds_vit_layers() -> None:
    model = AutoModelForImageClassification.from_config(
        ViTConfig(**SIZES, image_size=28, patch_size=7)
    )
    found = sublayers(model, 32)
    assert len(found) == 2
    assert len({s.attention_output for s in found} | {s.feed_forward_output for s in found}) == 4


def test_bottleneck_with_gradient_checkpointing_learns_the_same(tiny_recipe: Path) -> None:
    path = with_tuning(tiny_recipe, "bottleneck", {"placement": "parallel"})
    curves = []
    for flag in ("false", "true"):
        flags = ["--activation_checkpointing", flag, "--output_dir", f"runs/{flag}"]
        run = runner.train(recipe.load(path, flags), text_classification.build)
        assert isinstance(run, ledger.Run)
        curves.append([row["loss"] for row in run.history() if "loss" in row])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


# --- merge -----------------------------------------------------------------------------------


def test_a_merged_lora_answers_the_same_without_peft(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_tuning(tiny_recipe, "lora", {"r": 4, "init_lora_weights": False})
    run = runner.train(recipe.load(path), text_classification.build)
    assert run is not None
    cli.main(["merge", str(run)])
    assert "without peft" in capsys.readouterr().out
    model, tokenizer, read = inference.load(run)
    rows = [{"text": text} for text in TEXTS]
    plain = AutoModelForSequenceClassification.from_pretrained(run.folder / "merged").eval()
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    expected = inference.logits(model, tokenizer, read, rows)
    assert numpy.abs(inference.logits(plain, tokenizer, read, rows) - expected).max() < 1e-5
    unadapted = AutoModelForSequenceClassification.from_pretrained(read.model.checkpoint)
    assert not torch.equal(
        plain.bert.encoder.layer[0].output.dense.weight,
        unadapted.bert.encoder.layer[0].output.dense.weight,
    )
    with pytest.raises(SystemExit):
        cli.main(["merge", str(run)])
    assert "holds files already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "message"),
    [("bottleneck", "cannot be folded"), ("prompt_tuning", "cannot be folded"), ("head", "plain")],
)
def test_what_cannot_be_merged_says_so(tiny_recipe: Path, method: str, message: str) -> None:
    path = with_tuning(tiny_recipe, method, {})
    flags = ["--max_steps", "1", "--load_best_model_at_end", "false"]
    run = runner.train(recipe.load(path, flags), text_classification.build)
    assert run is not None
    with pytest.raises(Refusal, match=message):
        inference.merge(run, Path("merged"))
    assert not Path("merged").exists()


@pytest.mark.parametrize("method", ["lora", "bottleneck", "prompt_tuning", "bitfit"])
def test_the_code_on_the_model_card_answers_as_predict_does(tiny_recipe: Path, method: str) -> None:
    flags = ["--max_steps", "2"]
    run = runner.train(
        recipe.load(with_tuning(tiny_recipe, method, {}), flags), text_classification.build
    )
    assert run is not None
    card = (run.model / "README.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    classify = names["classify"]
    assert callable(classify)
    said = classify("the film was good")[0]
    ours = inference.predict(run, [{"text": "the film was good"}])[0]
    assert said["label"] == ours["prediction"]
    assert said["score"] == pytest.approx(ours["probabilities"][ours["prediction"]], abs=1e-5)
