"""Cached features: training a head on them equals training it on the frozen encoder."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from finetune import inference, recipe
from finetune.data import sources
from finetune.tasks import text_classification
from finetune.training.job import Job
from tests.conftest import train_job

HEAD = ("--method", "head", "--learning_rate", "3e-2", "--num_train_epochs", "3")


def curve(path: Path, name: str, *flags: str) -> tuple[list[float], list[float], Job]:
    """Trains the recipe; returns its training losses, its validation losses and its job."""
    run, job = train_job(path, "--output_dir", f"runs/{name}", *flags)
    rows = run.history()
    losses = [row["loss"] for row in rows if "loss" in row]
    return losses, [row["eval_loss"] for row in rows if "eval_loss" in row], job


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the sequence length of every forward pass through a BERT's layers."""
    from transformers.models.bert.modeling_bert import BertEncoder

    passed, forward = [], BertEncoder.forward

    def counted(self: Any, hidden: torch.Tensor, *others: Any, **options: Any) -> Any:
        passed.append(hidden.shape[1])
        return forward(self, hidden, *others, **options)

    monkeypatch.setattr(BertEncoder, "forward", counted)
    return passed


def test_training_on_features_is_training_the_head(tiny_recipe: Path) -> None:
    losses, scores, job = curve(tiny_recipe, "cached", *HEAD)
    plain, others, without = curve(tiny_recipe, "plain", *HEAD, "--cache_features", "false")
    assert losses == pytest.approx(plain, abs=1e-5)
    assert scores == pytest.approx(others, abs=1e-5)
    assert losses[-1] < losses[0]
    assert "the encoder's features computed once, without its dropout" in job.notes
    assert len(without.notes) == 1
    # Both models still take texts.
    read = recipe.load(tiny_recipe)
    rows = [{"text": "the film was good"}, {"text": "awful plot"}]
    ours = inference.outputs(job.model.eval(), job.processor, read, rows)
    theirs = inference.outputs(without.model.eval(), without.processor, read, rows)
    assert abs(ours - theirs).max() < 1e-5


def test_the_encoder_runs_once_per_row_over_all_runs(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve(tiny_recipe, "first", *HEAD)
    assert len(list(sources.cache("features").glob("*.safetensors"))) == 3
    passed = count_passes(monkeypatch)
    first = curve(tiny_recipe, "again", *HEAD)
    # Only the proofs at start-up are left, with and without padding.
    assert len(passed) == 3
    for file in sources.cache("features").glob("*.safetensors"):
        file.write_bytes(b"cut short")
    assert curve(tiny_recipe, "mended", *HEAD)[0] == first[0]


@pytest.mark.parametrize(
    "flags", [["--max_length", "9"], ["--truncation", "tail"], ["--split_seed", "1"]]
)
def test_other_rows_or_another_encoding_are_other_features(
    tiny_recipe: Path, flags: list[str]
) -> None:
    text = tiny_recipe.read_text("utf-8").replace("max_length: 16", "max_length: 8")
    tiny_recipe.write_text(text, encoding="utf-8")
    text_classification.TASK.build(recipe.load(tiny_recipe, ["--method", "head"]))
    before = set(sources.cache("features").glob("*.safetensors"))
    text_classification.TASK.build(recipe.load(tiny_recipe, ["--method", "head", *flags]))
    assert set(sources.cache("features").glob("*.safetensors")) - before


def test_another_encoder_has_other_features(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--method", "head"]))
    assert isinstance(job.model, PreTrainedModel)
    next(job.model.base_model.parameters()).data.add_(1)
    job.model.save_pretrained("other")
    job.processor.save_pretrained("other")
    text_classification.TASK.build(
        recipe.load(tiny_recipe, ["--method", "head", "--checkpoint", "other"])
    )
    assert len(list(sources.cache("features").glob("*.safetensors"))) == 6


def test_a_head_that_reads_all_states_gets_no_cached_features(tiny_recipe: Path) -> None:
    source = text_classification.TASK.build(recipe.load(tiny_recipe))
    config = AutoConfig.for_model(
        "modernbert",
        **{"vocab_size": 17, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0},
        **{"classifier_pooling": "mean", "local_attention": 8, "architectures": []},
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained("mean")
    source.processor.save_pretrained("mean")
    flags = ["--method", "head", "--checkpoint", "mean"]
    job = text_classification.TASK.build(recipe.load(tiny_recipe, flags))
    assert job.notes == [
        "the checkpoint's head is kept under new label names",
        "batches without padding by SDPA per sequence; flash attention needs CUDA",
        "the encoder runs every epoch: the head reads more than the first token's state",
    ]
    assert "input_ids" in job.splits["train"].column_names


def test_a_copy_of_the_model_stands_alone(tiny_recipe: Path) -> None:
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--method", "head"]))
    twin = copy.deepcopy(job.model)
    states = torch.randn(2, 1, 32)
    for parameter in job.model.parameters():
        parameter.data.zero_()
    assert job.model(inputs_embeds=states).logits.abs().max() == 0
    assert twin(inputs_embeds=states).logits.abs().max() > 0


def test_no_gradient_flows_below_the_lowest_trainable_layer(tiny_recipe: Path) -> None:
    tiny_recipe.write_text(
        tiny_recipe.read_text("utf-8")
        + "tuning: {method: lora, target_modules: [query], layers_to_transform: [1]}\n",
        encoding="utf-8",
    )
    job: Any = text_classification.TASK.build(recipe.load(tiny_recipe))
    layers = job.model.get_base_model().bert.encoder.layer
    outputs = []
    for layer in layers:
        layer.register_forward_hook(lambda module, given, out: outputs.append(out))
    rows = [
        {k: v for k, v in job.splits["train"][i].items() if k in {"input_ids", "labels"}}
        for i in range(4)
    ]
    job.model.train()(**job.collator(rows))
    assert [out.requires_grad for out in outputs] == [False, True]
