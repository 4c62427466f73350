"""Options of adapter methods: lists as text, and values that follow a pattern."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from finetune import recipe
from finetune.errors import UserError
from finetune.recipe.adapters import BottleneckConfig, method_options


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("target_modules", "q_proj,v_proj", ["q_proj", "v_proj"]),
        ("target_modules", "query, attention.output.dense", ["query", "attention.output.dense"]),
        ("target_modules", "q_proj", ["q_proj"]),
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("target_modules", ["q_proj"], ["q_proj"]),
        ("modules_to_save", "classifier", ["classifier"]),
        ("exclude_modules", "lm_head,score", ["lm_head", "score"]),
        ("layers_to_transform", "0,1", [0, 1]),
        ("layers_to_transform", 1, 1),
        ("init_lora_weights", "pissa_niter_4", "pissa_niter_4"),
        ("init_lora_weights", "olora", "olora"),
        ("init_lora_weights", False, False),
    ],
)
def test_options_as_peft_takes_them(name: str, given: Any, expected: Any) -> None:
    assert method_options(LoraConfig, {name: given}, {}) == {name: expected}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "pisa",
            "--init_lora_weights: init_lora_weights: 'pisa' does not fit: did you mean 'pissa'",
        ),
        ("pissa_niter_0", "it can be .* pissa_niter_"),
        ("pissa_niter_x", "it can be .* pissa_niter_"),
        ("eva", "'eva' is not offered: it needs the activations"),
        ("loftq", "'loftq' is not offered: it changes the base's weights"),
    ],
)
def test_an_initialization_that_cannot_be_is_refused(value: str, message: str) -> None:
    where = {"tuning.init_lora_weights": "--init_lora_weights"}
    with pytest.raises(UserError, match=message) as raised:
        method_options(LoraConfig, {"init_lora_weights": value}, where)
    assert len(str(raised.value)) <= 300


def test_a_typo_in_a_choice_of_our_own_method_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'pfeiffer'"):
        method_options(BottleneckConfig, {"placement": "pfeifer"}, {})


def test_lists_are_flags_too(tiny_recipe: Path) -> None:
    flags = ["--method", "lora", "--target_modules", "query,value"]
    read = recipe.load(tiny_recipe, [*flags, "--init_lora_weights", "pissa_niter_4"])
    assert read.tuning.options["target_modules"] == "query,value"
    assert recipe.resolve(read).tuning == read.tuning
    (tiny_recipe.parent / "again.yaml").write_text(read.dump(), encoding="utf-8")
    assert recipe.load(tiny_recipe.parent / "again.yaml").tuning == read.tuning
