"""Tuning methods: what is trained, what is saved, and that it loads bit for bit."""

import copy
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    ViTConfig,
)

from finetune import cli, inference, recipe, run_directory
from finetune.data import sources
from finetune.errors import UserError
from finetune.models import parameters, pretrained, tuning
from finetune.models.bottleneck import sublayers
from finetune.recipe import methods
from finetune.recipe.adapters import BottleneckConfig, adapter_methods
from finetune.report import files
from finetune.tasks import text_classification
from finetune.training import adalora, checkpoints, runner
from finetune.training.job import Job
from tests.conftest import sentences, train_job, write_csv

# Methods with the options that a model of width 32 needs.
METHODS: dict[str, dict[str, object]] = {
    "bottleneck": {},
    "lora": {"use_dora": True},
    "adalora": {"init_r": 4, "target_r": 2},
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
from finetune import inference, run_directory
for folder in sys.argv[2:]:
    model, tokenizer, recipe = inference.load(run_directory.Run(folder))
    rows = [{"text": text} for text in json.loads(sys.argv[1])]
    numpy.save(f"{folder}/logits.npy", inference.outputs(model, tokenizer, recipe, rows))
"""


def with_tuning(path: Path, method: str, options: dict[str, object]) -> Path:
    text = path.read_text(encoding="utf-8")
    made = path.with_name(f"{method}.yaml")
    made.write_text(
        f"{text}tuning: {json.dumps({'method': method, **options})}\n", encoding="utf-8"
    )
    return made


# peft warns about its own methods' defaults.
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_adapters_load_bit_for_bit_in_a_new_process(tiny_recipe: Path, tiny_bert: Path) -> None:
    base = load_file(tiny_bert / "model.safetensors")
    expected: dict[str, numpy.ndarray] = {}
    for method, options in METHODS.items():
        # With this metric the best epoch is not the last, so the test covers loading it again.
        worst = ["--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]
        path = with_tuning(tiny_recipe, method, options)
        run, job = train_job(path, *worst)
        model, read = job.model.eval(), recipe.load(path)
        rows = [{"text": text} for text in TEXTS]
        expected[str(run)] = inference.outputs(model, job.processor, read, rows)
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
        chosen = run.results()["chosen"]
        assert chosen["step"] < run.results()["steps"], method
        best = checkpoints.read(run.checkpoints / f"checkpoint-{chosen['step']}", "model")
        ends = parameters.trained_state(model)
        assert set(best) == set(ends), method
        assert all(torch.equal(best[name], ends[name]) for name in ends), method
    command = [sys.executable, "-c", RELOAD, json.dumps(TEXTS), *expected]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        assert numpy.array_equal(numpy.load(f"{folder}/logits.npy"), logits), folder


def test_every_installed_peft_method_is_offered_or_rejected_with_a_reason() -> None:
    installed = {str.lower(name) for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    offered = set(adapter_methods())
    assert len(offered) > 30
    assert offered | set(methods.NOT_OFFERED) == installed
    assert not offered & set(methods.NOT_OFFERED)
    assert set(METHODS) <= offered


def test_a_method_of_a_later_peft_needs_no_code(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, "TOMORROW", BottleneckConfig)
    assert "tomorrow" in adapter_methods()
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
def test_what_cannot_work_is_rejected_in_one_line(
    tiny_recipe: Path, method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        text_classification.TASK.build(recipe.load(with_tuning(tiny_recipe, method, options)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("method", "options", "architecture"),
    [
        ("shira", {"r": 1000}, None),
        ("prefix_tuning", {}, "deberta-v2"),
        ("hra", {}, "gpt2"),
    ],
)
def test_a_misfit_is_rejected_before_weights_load(
    tiny_recipe: Path,
    method: str,
    options: dict[str, object],
    architecture: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = recipe.load(with_tuning(tiny_recipe, method, options))
    checkpoint = sources.checkpoint(read.model.checkpoint)
    config: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint.folder)
    if architecture:
        size = config.vocab_size
        config = copy.deepcopy(ARCHITECTURES[architecture])
        config.vocab_size = size

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)
    with pytest.raises(UserError, match=f"{method} does not fit"):
        pretrained.load(AutoModelForSequenceClassification, checkpoint, config, read)
    full = recipe.load(tiny_recipe)
    with pytest.raises(AssertionError, match="weights were loaded"):
        pretrained.load(AutoModelForSequenceClassification, checkpoint, config, full)


def test_a_recipe_without_a_learning_rate_gets_its_methods(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text(encoding="utf-8")
    tiny_recipe.write_text(text.replace("  learning_rate: 2.0e-3\n", ""), encoding="utf-8")
    for method in ("full", "ia3", "hra"):
        flags = ["--max_steps", "1", "--lr_scheduler_type", "constant"]
        read = recipe.load(with_tuning(tiny_recipe, method, {}), flags)
        run = runner.train(read, text_classification.TASK.build)
        assert run is not None
        rates = {row["learning_rate"] for row in run.history() if "learning_rate" in row}
        assert rates == {methods.learning_rate(method)}
    assert len({methods.learning_rate(m) for m in ("full", "ia3", "hra")}) == 3


# --- AdaLoRA ---------------------------------------------------------------------------------


def test_adalora_lowers_the_rank_to_its_budget(tiny_recipe: Path) -> None:
    options: dict[str, object] = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}
    path = with_tuning(tiny_recipe, "adalora", options)
    read = recipe.load(path, ["--load_best_model_at_end", "false"])
    run = runner.train(read, text_classification.TASK.build)
    assert run is not None
    saved = load_file(run.model / "adapter_model.safetensors")
    values = [tensor for name, tensor in saved.items() if "lora_E" in name]
    assert len(values) == 12
    assert all(len(each) == 4 for each in values)
    assert sum(int((each != 0).sum()) for each in values) == 2 * len(values)


def test_adalora_keeps_its_factors_orthogonal_as_pefts_own_loss_does(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(with_tuning(tiny_recipe, "adalora", {})))
    model, inputs = job.model, {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    labels = torch.zeros(2, dtype=torch.long)
    torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
    adalora.RankBudget(model).on_pre_optimizer_step(None, None, None)
    ours = {n: p.grad.clone() for n, p in learning.items() if p.grad is not None}
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    assert any("lora_A" in name for name in ours)
    for name, gradient in ours.items():
        theirs = learning[name].grad
        assert theirs is not None
        assert torch.allclose(gradient, theirs, atol=1e-6), name


def test_adalora_without_enough_steps_is_rejected(tiny_recipe: Path) -> None:
    read = recipe.load(with_tuning(tiny_recipe, "adalora", {"tinit": 50}))
    with pytest.raises(UserError, match="leave none of the"):
        runner.train(read, text_classification.TASK.build)


# --- quantized bases -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
# bitsandbytes warns that it casts to the type it computes in.
@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_an_adapter_on_a_quantized_base_loads_again(
    tiny_recipe: Path, kind: str, method: str
) -> None:
    path = with_tuning(tiny_recipe, method, {})
    run, job = train_job(path, "--quantization", kind)
    read = recipe.load(path)
    model = job.model.eval()
    frozen = model.get_parameter(
        "base_model.model.bert.encoder.layer.0.output.dense.base_layer.weight"
    )
    assert frozen.element_size() == 1
    losses = [row["loss"] for row in run.history() if "loss" in row]
    assert numpy.mean(losses[-3:]) < numpy.mean(losses[:3])
    assert run.results()["cost"]["model_bytes"] < 200_000
    rows = [{"text": text} for text in TEXTS]
    expected = inference.outputs(model, job.processor, read, rows)
    assert numpy.array_equal(inference.outputs(*inference.load(run), rows), expected)
    with pytest.raises(UserError, match=f"on a base in {kind}"):
        inference.merge(run, Path("merged"))


def test_quantization_says_what_it_needs(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nf4 cannot be trained; use an adapter"):
        tuning.check(recipe.load(tiny_recipe, ["--quantization", "nf4"]))
    lora = recipe.load(tiny_recipe, ["--quantization", "nf4", "--method", "lora"])
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'finetune-recipes\[quantization\]'"):
        tuning.check(lora)
    with pytest.raises(UserError, match="quantization: 'nf5' does not fit"):
        recipe.load(tiny_recipe, ["--quantization", "nf5"])


# --- several adapters ------------------------------------------------------------------------


def trained(path: Path, name: str, *flags: str) -> run_directory.Run:
    read = recipe.load(path, ["--output_dir", f"runs/{name}", "--max_steps", "4", *flags])
    run = runner.train(read, text_classification.TASK.build)
    assert run is not None
    return run


def test_several_adapters_predict_from_one_base(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = [(text, str(i % 3)) for i, (text, _) in enumerate(sentences(136, seed=5))]
    write_csv(tiny_recipe.parent / "grades.csv", grades)
    own = ["--train", "grades.csv", "--holdout", "24"]
    runs = [
        trained(with_tuning(tiny_recipe, "lora", {"r": 4}), "a"),
        trained(with_tuning(tiny_recipe, "bottleneck", {}), "b"),
        trained(with_tuning(tiny_recipe, "ia3", {}), "c", *own),
    ]
    rows = [{"text": text} for text in TEXTS]
    alone = {str(run): inference.predict(run, rows) for run in runs}
    loads: list[object] = []
    load = AutoModelForSequenceClassification.from_pretrained

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", counted)
    named = [word for run in runs for word in ("--adapter", str(run))]
    capsys.readouterr()
    cli.main(["predict", *named, *TEXTS])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(loads) == 1
    assert [row["adapter"] for row in printed] == [str(run) for run in runs for _ in TEXTS]
    for row, expected in zip(printed, [a for each in alone.values() for a in each], strict=True):
        assert row["prediction"] == expected["prediction"]
        assert row["probabilities"] == expected["probabilities"]
    cli.main(["predict", *named, "--format", "csv", TEXTS[0]])
    table = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table.columns) == [
        *("text", "adapter", "prediction", "negative", "positive", "0", "1", "2")
    ]
    assert table["2"].isna().tolist() == [True, True, False]


def test_adapters_of_one_base_share_its_memory(tiny_recipe: Path) -> None:
    runs = [trained(with_tuning(tiny_recipe, m, {}), m) for m in ("lora", "bottleneck")]
    base = inference.shared_base(runs)
    places = {p.data_ptr() for p in base.base_model.parameters()}
    for run in runs:
        model, _, _ = inference.load(run, base)
        mine = {p.data_ptr() for p in model.parameters()}
        assert places <= mine
        assert not any(p.is_meta for p in model.parameters())


def test_an_adapter_for_another_base_of_the_same_shape_is_rejected(
    tiny_recipe: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    first = next(name for name in weights if name.endswith("dense.weight"))
    weights[first][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    path = with_tuning(tiny_recipe, "lora", {})
    ours, theirs = trained(path, "ours"), trained(path, "theirs", "--checkpoint", str(other))
    whole = trained(tiny_recipe, "whole")
    with pytest.raises(UserError, match="runs/theirs: its adapter is for another base"):
        inference.shared_base([ours, theirs])
    with pytest.raises(UserError, match="runs/whole: full saves a whole model"):
        inference.shared_base([ours, whole])
    short = trained(path, "short", "--config", "{num_hidden_layers: 1}")
    with pytest.raises(UserError, match="another config than that of runs/ours: num_hidden_layers"):
        inference.shared_base([ours, short])
    # The base may be changed after the adapter was trained.
    shutil.copy(tiny_bert / "model.safetensors", other / "model.safetensors")
    with pytest.raises(UserError, match="trained on other weights"):
        inference.predict(theirs, [{"text": "a film"}])


def test_an_adapter_is_no_checkpoint_for_another_method(tiny_recipe: Path) -> None:
    run = trained(with_tuning(tiny_recipe, "lora", {}), "a")
    with pytest.raises(UserError, match="is an adapter; `method: lora` goes on training it"):
        text_classification.TASK.build(recipe.load(tiny_recipe, ["--checkpoint", str(run)]))


def test_options_of_a_method_are_flags_too(tiny_recipe: Path) -> None:
    flags = ["--method", "lora", "--r", "2", "--use_dora", "true", "--max_steps", "1"]
    run = runner.train(recipe.load(tiny_recipe, flags), text_classification.TASK.build)
    assert run is not None
    saved = load_file(run.model / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in saved)
    assert {t.shape[0] for n, t in saved.items() if "lora_A" in n} == {2}
    assert recipe.load(run.folder / "recipe.yaml").tuning.options == {"r": 2, "use_dora": True}
    for wrong, message in [
        (["--method", "lora", "--rr", "2"], "--rr: training key 'rr' is unknown"),
        (["--method", "lora", "--r", "two"], "--r: r: 'two' does not fit"),
        (["--method", "hra", "--use_dora", "true"], "--use_dora: training key"),
    ]:
        with pytest.raises(UserError, match=message):
            runner.train(recipe.load(tiny_recipe, [*wrong, "--output_dir", "runs/wrong"]), never)


def never(read: recipe.Recipe) -> Job:
    tuning.check(read)
    raise AssertionError("no error was raised")


def test_bitfit_trains_biases_and_head(tiny_recipe: Path, tiny_bert: Path) -> None:
    run = runner.train(
        recipe.load(with_tuning(tiny_recipe, "bitfit", {})), text_classification.TASK.build
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


# The methods in the README's table of defaults, and the pairs that peft does not support.
EVERYWHERE = ["lora", "adalora", "ia3", "vera", "oft", "loha", "lokr", "ln_tuning", "bottleneck"]
EVERYWHERE += ["prompt_tuning", "p_tuning", "prefix_tuning"]
CANNOT = {
    **{("gpt2", method): "Conv1D" for method in ("oft", "loha", "lokr")},
    **{(n, "prefix_tuning"): "past key values" for n in ("deberta-v2", "albert")},
    **{(n, "prefix_tuning"): "past key values" for n in ("distilbert", "modernbert")},
}


# peft warns that vera shares its projections between layers of different width.
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_fit_every_architecture(tiny_recipe: Path, name: str, method: str) -> None:
    read = recipe.load(with_tuning(tiny_recipe, method, {}))
    checkpoint = sources.Checkpoint(name, Path(), None)
    config = copy.deepcopy(ARCHITECTURES[name])
    if (name, method) in CANNOT:
        with pytest.raises(UserError, match=CANNOT[name, method]):
            pretrained.load(AutoModelForSequenceClassification, checkpoint, config, read)
        return
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    heads = [f".{head}." for head in tuning.head_modules(model)]
    adapted = tuning.apply(model, read, checkpoint)
    ids = torch.randint(3, 50, (2, 7))
    adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    learning = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    in_head = {n for n in learning if any(head in n for head in heads)}
    assert in_head
    assert set(learning) - in_head
    assert [n for n, p in learning.items() if p.grad is None] == []


VIT = ViTConfig(**SIZES, image_size=28, patch_size=7)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("method", EVERYWHERE)
def test_defaults_fit_vit(tiny_recipe: Path, method: str) -> None:
    read = recipe.load(with_tuning(tiny_recipe, method, {}))
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(copy.deepcopy(VIT))
    checkpoint = sources.Checkpoint("vit", Path(), None)
    if method in {"prompt_tuning", "p_tuning", "prefix_tuning"}:
        with pytest.raises(UserError, match="adds tokens to a text; vit takes none"):
            tuning.apply(model, read, checkpoint)
        return
    adapted = tuning.apply(model, read, checkpoint)
    adapted(pixel_values=torch.randn(2, 3, 28, 28)).logits.sum().backward()
    learning = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert any("classifier" in n for n in learning)
    assert any("classifier" not in n for n in learning)
    assert [n for n, p in learning.items() if p.grad is None] == []


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bottleneck_starts_as_the_identity_on_every_architecture(name: str, placement: str) -> None:
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
    path = Path(__file__).parents[2] / "recipes" / "rotten_tomatoes" / "minilm.yaml"
    read = recipe.load(
        path, ["--method", "bottleneck", "--max_train_samples", "8", "--max_test_samples", "8"]
    )
    job = text_classification.TASK.build(read)
    layers, width, narrow = 6, 384, 384 // 16
    learning = {n: p.numel() for n, p in job.model.named_parameters() if p.requires_grad}
    adapters = sum(count for name, count in learning.items() if "bottleneck" in name)
    assert adapters == layers * 2 * (2 * width * narrow + narrow + width)
    norms = sum(count for name, count in learning.items() if "LayerNorm" in name)
    assert norms == (2 * layers + 1) * 2 * width
    head = width * width + width + 2 * width + 2
    assert sum(learning.values()) == adapters + norms + head


def test_bottleneck_finds_vit_layers() -> None:
    model = AutoModelForImageClassification.from_config(VIT)
    found = sublayers(model, 32)
    assert len(found) == 2
    assert len({s.attention_output for s in found} | {s.feed_forward_output for s in found}) == 4


def test_bottleneck_with_gradient_checkpointing_has_the_same_losses(tiny_recipe: Path) -> None:
    path = with_tuning(tiny_recipe, "bottleneck", {"placement": "parallel"})
    curves = []
    for flag in ("false", "true"):
        flags = ["--activation_checkpointing", flag, "--output_dir", f"runs/{flag}"]
        run = runner.train(recipe.load(path, flags), text_classification.TASK.build)
        assert isinstance(run, run_directory.Run)
        curves.append([row["loss"] for row in run.history() if "loss" in row])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


# --- merge -----------------------------------------------------------------------------------


def test_a_merged_lora_predicts_the_same_without_peft(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_tuning(tiny_recipe, "lora", {"r": 4, "init_lora_weights": False})
    run = runner.train(recipe.load(path), text_classification.TASK.build)
    assert run is not None
    cli.main(["merge", str(run)])
    assert "without peft" in capsys.readouterr().out
    model, tokenizer, read = inference.load(run)
    rows = [{"text": text} for text in TEXTS]
    plain = AutoModelForSequenceClassification.from_pretrained(run.folder / "merged").eval()
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    expected = inference.outputs(model, tokenizer, read, rows)
    assert numpy.abs(inference.outputs(plain, tokenizer, read, rows) - expected).max() < 1e-5
    unadapted = AutoModelForSequenceClassification.from_pretrained(read.model.checkpoint)
    assert not torch.equal(
        plain.bert.encoder.layer[0].output.dense.weight,
        unadapted.bert.encoder.layer[0].output.dense.weight,
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["merge", str(run)])
    assert stop.value.code == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "message"),
    [("bottleneck", "cannot be merged"), ("prompt_tuning", "cannot be merged"), ("head", "plain")],
)
def test_what_cannot_be_merged_is_rejected(tiny_recipe: Path, method: str, message: str) -> None:
    path = with_tuning(tiny_recipe, method, {})
    flags = ["--max_steps", "1", "--load_best_model_at_end", "false"]
    run = runner.train(recipe.load(path, flags), text_classification.TASK.build)
    assert run is not None
    with pytest.raises(UserError, match=message):
        inference.merge(run, Path("merged"))
    assert not Path("merged").exists()


@pytest.mark.parametrize("method", ["lora", "bottleneck", "prompt_tuning", "bitfit"])
def test_the_code_on_the_model_card_predicts_the_same(tiny_recipe: Path, method: str) -> None:
    flags = ["--max_steps", "2"]
    run = runner.train(
        recipe.load(with_tuning(tiny_recipe, method, {}), flags), text_classification.TASK.build
    )
    assert run is not None
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    classify = names["classify"]
    assert callable(classify)
    answer = classify("the film was good")[0]
    ours = inference.predict(run, [{"text": "the film was good"}])[0]
    assert answer["label"] == ours["prediction"]
    assert answer["score"] == pytest.approx(ours["probabilities"][ours["prediction"]], abs=1e-5)
