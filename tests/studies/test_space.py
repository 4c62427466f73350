"""Search spaces are typed against the recipe's own keys."""

from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.studies import space
from finetune.studies.space import Choice, Range


@pytest.fixture
def lora(tiny_recipe: Path) -> str:
    text = tiny_recipe.read_text(encoding="utf-8")
    tiny_recipe.write_text(text + "tuning: {method: lora, r: 8}\n", encoding="utf-8")
    return str(tiny_recipe)


def test_values_have_the_types_of_the_keys(lora: str) -> None:
    given = (
        "learning_rate=loguniform(1e-4, 1e-2) r=uniform(4,16) lora_dropout=uniform(0,1) "
        "lr_scheduler_type=[linear, cosine] padding_free=[true, false] lora-alpha=[16, 32] "
        "early_stopping_patience=[null, 2]"
    )
    found = space.typed(space.parse(given), lora)
    assert found == {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "r": Range(4, 16, log=False),
        "lora_dropout": Range(0.0, 1.0, log=False),
        "lr_scheduler_type": Choice(("linear", "cosine")),
        "padding_free": Choice((True, False)),
        "lora_alpha": Choice((16, 32)),
        "early_stopping_patience": Choice((None, 2)),
    }
    kinds = {key: type(values.low) for key, values in found.items() if isinstance(values, Range)}
    assert kinds == {"learning_rate": float, "r": int, "lora_dropout": float}


def test_a_file_gives_the_same_space(lora: str, workdir: Path) -> None:
    text = "learning_rate: loguniform(1e-4, 1e-2)\nr: [4, 8]\n"
    (workdir / "space.yaml").write_text(text, encoding="utf-8")
    line = "learning_rate=loguniform(1e-4, 1e-2) r=[4, 8]"
    assert space.parse("space.yaml") == space.parse(line)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("learning_rate", "'learning_rate' has to be key=loguniform"),
        ("", "names no key"),
        ("r=[1] r=[2]", "r is given twice"),
        ("nowhere.yaml", "no such file"),
        ("learning_rat=[1]", "did you mean 'learning_rate'"),
        ("learning_rate=loguniform(0,1)", "logarithm does not exist"),
        ("learning_rate=uniform(2,1)", "is empty"),
        ("learning_rate=normal(0,1)", "has to be key=loguniform"),
        ("learning_rate=[-1]", "has to be at least 0"),
        ("r=[four]", "r"),
        ("lr_scheduler_type=uniform(1,2)", "lr_scheduler_type"),
        ("padding_free=uniform(0,1)", "is no number"),
        ("seed=[0,1]", "cannot be searched"),
        ("holdout=[10,20]", "cannot be searched"),
        ("test=[a.csv]", "cannot be searched"),
    ],
)
def test_mistakes_are_found_before_a_trial(given: str, message: str, lora: str) -> None:
    with pytest.raises(UserError) as caught:
        space.typed(space.parse(given), lora)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [True, None, 3, 0.1, 1e-05, "cosine"])
def test_a_flag_has_the_value(value: object, lora: str) -> None:
    from finetune import recipe

    key = {bool: "padding_free", type(None): "early_stopping_patience", int: "r", str: "optim"}
    name = key.get(type(value), "learning_rate")
    given = "adamw_torch" if value == "cosine" else value
    read = recipe.load(lora, {name: space.as_flag(given)})
    assert space.value_of(read, name) == given
