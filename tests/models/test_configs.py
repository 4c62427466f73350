"""Configs: one key for the attention dropout of every family, and heads that follow the labels."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, T5Config

from finetune import recipe
from finetune.data import sources
from finetune.models import configs
from finetune.tasks import text_classification
from tests.conftest import sentences, write_csv
from tests.models.test_tuning import ARCHITECTURES

TEMPLATE = Path(__file__).parents[2] / "recipes" / "your-data" / "text.yaml"
FAMILIES: dict[str, PreTrainedConfig] = {
    **ARCHITECTURES,
    "t5": T5Config(
        vocab_size=50,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_turns_attention_dropout_off_in_every_family(family: str) -> None:
    config: Any = copy.deepcopy(FAMILIES[family])
    before = config.to_dict()
    for name in configs.attention_dropouts(config):
        setattr(config, name, 0.5)
    read = recipe.read(TEMPLATE)
    made = configs.override(config, read).to_dict()
    model = AutoModelForSequenceClassification.from_config(config).train()
    attention = {
        name: vars(module).get("dropout_prob", vars(module).get("attention_dropout", 0.0))
        for name, module in model.named_modules()
        if "attention" in type(module).__name__.lower()
    }
    assert family == "t5" or attention
    assert 0.5 not in attention.values()
    drops = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert 0.5 not in drops
    changed = {name for name in made if made[name] != before[name]}
    assert changed <= set(configs.ATTENTION_DROPOUT)
    said = configs.describe(read, config, sources.Checkpoint("x", Path("x"), None))
    assert said == (["t5 has no attention dropout of its own to set"] if family == "t5" else [])


def test_attention_dropout_of_the_checkpoint_stays_where_nothing_is_asked(
    tiny_recipe: Path,
) -> None:
    config: Any = copy.deepcopy(FAMILIES["gpt2"])
    config.attn_pdrop = 0.25
    assert configs.override(config, recipe.read(tiny_recipe)).to_dict()["attn_pdrop"] == 0.25
    flags = ["--attention_dropout", "0.5", "--config", "{attn_pdrop: 0.75}"]
    # The model's own key is the more exact one.
    assert configs.override(config, recipe.read(tiny_recipe, flags)).to_dict()["attn_pdrop"] == 0.75


@pytest.mark.parametrize("names", [("positive", "negative"), ("Positive", "NEGATIVE")])
def test_rows_of_a_head_follow_its_label_names(tiny_recipe: Path, names: tuple[str, str]) -> None:
    first = text_classification.TASK.build(recipe.load(tiny_recipe))
    first.model.save_pretrained("two")
    first.processor.save_pretrained("two")
    config = Path("two/config.json")
    text = config.read_text(encoding="utf-8")
    for i, (old, new) in enumerate(zip(("negative", "positive"), names, strict=True)):
        text = text.replace(f'"{i}": "{old}"', f'"{i}": "{new}"')
        text = text.replace(f'"{old}": {i}', f'"{new}": {i}')
    config.write_text(text, encoding="utf-8")
    job = text_classification.TASK.build(recipe.load(tiny_recipe, ["--checkpoint", "two"]))
    said = "the checkpoint's head is kept, its rows in the order negative, positive"
    assert job.notes[0] == said
    assert job.model.config.id2label == {0: "negative", 1: "positive"}
    inputs = first.processor(["the film was good"], return_tensors="pt")
    with torch.no_grad():
        before, after = (each.model.eval()(**inputs).logits for each in (first, job))
    assert torch.equal(after, before[:, [1, 0]])


def test_a_name_in_two_cases_is_no_order(tiny_recipe: Path) -> None:
    from finetune.models import heads

    assert heads.order(["a", "B"], ["b", "A"]) == [1, 0]
    assert heads.order(["a", "A"], ["A", "a"]) is None
    assert heads.order(["a", "b"], ["a", "c"]) is None


def test_the_template_trains_any_checkpoint(workdir: Path, tiny_bert: Path) -> None:
    write_csv(workdir / "mine.csv", sentences(60))
    folder = workdir / "distilbert"
    config: Any = copy.deepcopy(FAMILIES["distilbert"])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_bert / name).read_bytes())
    job = text_classification.TASK.build(recipe.load(TEMPLATE, ["--checkpoint", "distilbert"]))
    assert job.model.config.attention_dropout == 0.0
