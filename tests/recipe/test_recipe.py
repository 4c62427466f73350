"""Recipes: what is read, what is an error and with which line, what the command line changes."""

import copy
import dataclasses
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import TrainingArguments

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import Data, Model, Reference, Tuning
from finetune.training.arguments import training_arguments
from finetune.training.job import Job

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """\
task: text-classification
model: {checkpoint: "embedded:minilm", max_length: 128}
data:
  dataset: "embedded:imdb"
  text: review
  label: stars
  holdout: 5000
  max_train_samples: 2000
tuning: {method: lora, r: 4}
training:
  learning_rate: 1e-4
  num_train_epochs: 2
reference: {metric: accuracy, value: 0.946, source: "Sun et al. 2019"}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write r.yaml in a working directory of its own; its name, as messages show it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("r.yaml").write_bytes(text.encode())
        return "r.yaml"

    return write


def error_of(path: str, *flags: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe.load(path, flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def plain(read: recipe.Recipe) -> recipe.Recipe:
    """The recipe without the places it was read from."""
    return replace(read, origin={})


# --- numbers and texts by their declared type --------------------------------------------------


def test_numbers_are_read_by_the_declared_type(write):
    text = GOOD.replace("max_length: 128", "max_length: 010").replace(
        "holdout: 5000", "holdout: 1e-1"
    )
    read = recipe.load(write(text))
    assert read.model.max_length == 10
    assert read.data.holdout == pytest.approx(0.1)
    assert read.training["learning_rate"] == 1e-4
    assert isinstance(read.training["learning_rate"], float)


def test_training_numbers_reach_training_arguments(write):
    text = GOOD.replace("1e-4", "1e-5").replace("num_train_epochs: 2", "num_train_epochs: 010")
    args = arguments(recipe.load(write(text)))
    assert args.learning_rate == 1e-5
    assert args.num_train_epochs == 10


def test_a_text_field_keeps_what_looks_like_a_number_or_a_word_of_yaml(write):
    text = GOOD.replace("text: review", "text: 007").replace("label: stars", 'label: "y"')
    read = recipe.load(write(text))
    assert (read.data.text, read.data.label) == ("007", "y")


# --- what is an error ---------------------------------------------------------------------------

REJECTED = {
    "unknown key": (GOOD.replace("max_length", "max_lenght"), 2, "did you mean 'max_length'?"),
    "unknown section": (GOOD.replace("model:", "modle:"), 2, "did you mean 'model'?"),
    "unknown key in data": (GOOD.replace("  holdout", "  houldout"), 7, "did you mean 'holdout'?"),
    "duplicate key": (GOOD.replace("  text: review", "  text: a\n  text: b"), 6, "given twice"),
    "alias": (GOOD.replace("text: review", "text: &a review\n  x: *a"), 5, "spell it out"),
    "tag": (GOOD.replace("text: review", "text: !!str review"), 5, "spell it out"),
    "second document": (GOOD + "---\ntask: other\n", 14, "second document"),
    "tab": (GOOD.replace("  text: review", "\ttext: review"), 5, "indent with spaces"),
    "list at the root": ("- task: a\n", 1, "mapping"),
    "word at the root": ("\ntask\n", 2, "mapping"),
    "empty file": ("", 1, "empty"),
    "only comments": ("# nothing\n", 1, "empty"),
    "too deep": (GOOD + f"x: {'[' * 10_000}{']' * 10_000}\n", 14, "more than 50 mappings or lists"),
    "not YAML": (GOOD.replace("{method: lora", "{method: lora]"), 9, "not YAML"),
    "bare yes": (GOOD.replace("review", "yes"), 5, "write true or false"),
    "bare no": (GOOD.replace("review", "no"), 5, 'or "no"'),
    "bare on": (GOOD.replace("review", "On"), 5, 'or "On"'),
    "wrong type": (GOOD.replace("128", "long"), 2, "max_length: 'long' does not fit"),
    "fraction for a count": (GOOD.replace("128", "12.5"), 2, "max_length"),
    "list for a text": (GOOD.replace("review", "[a, b]"), 5, "text"),
    "null for a text": (GOOD.replace("review", "null"), 5, "text"),
    "word for a choice": (
        GOOD.replace("max_length: 128", "truncation: haed"),
        2,
        "did you mean 'head'?",
    ),
    "section that is a word": (
        GOOD.replace("tuning: {method: lora, r: 4}", "tuning: lora"),
        9,
        "map",
    ),
    "section that is a list": (
        GOOD.replace("tuning: {method: lora, r: 4}", "tuning: []"),
        9,
        "map",
    ),
    "empty section": (GOOD.replace("tuning: {method: lora, r: 4}", "tuning:"), 9, "map"),
    "training that is a list": (GOOD.split("training:")[0] + "training: [1]\n", 10, "mapping"),
    "NaN": (GOOD.replace("5000", "NaN"), 7, "not a finite number"),
    "infinity": (GOOD.replace("5000", "1e999"), 7, "not a finite number"),
    "below the least": (GOOD.replace("5000", "-1"), 7, "at least 0"),
    "out of range": (GOOD.replace("r: 4", "layer_decay: 1.5"), 9, "from 0 to 1"),
    "list as a key": (GOOD.replace("  text: review", "  [a]: review"), 5, "one word"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_with_the_line_and_the_fix(write, case):
    text, line, says = REJECTED[case]
    message = error_of(write(text))
    assert message.startswith(f"r.yaml:{line}: ")
    assert says in message


def test_missing_file_missing_sections_and_wrong_encoding_name_the_file(write, tmp_path):
    assert error_of("nowhere.yaml").startswith("nowhere.yaml: no such recipe")
    assert "checkpoint" in error_of(write("task: a\ndata: {dataset: b}\n"))
    assert "dataset" in error_of(write("task: a\nmodel: {checkpoint: b}\n"))
    assert error_of(write("model: {checkpoint: b}\n")).startswith("r.yaml: needs a line `task:")
    (tmp_path / "r.yaml").write_bytes(b"task: caf\xe9\n")
    assert error_of("r.yaml") == "r.yaml: not UTF-8 at byte 9"


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token", "token"])
def test_a_secret_is_rejected_and_never_echoed(write, name):
    by_file = error_of(write(GOOD.replace("training:", f"training:\n  {name}: hf_SECRET")))
    by_flag = error_of(write(GOOD), f"--{name}", "hf_SECRET")
    assert by_file.startswith("r.yaml:11: ")
    assert by_flag.startswith(f"--{name}: ")
    for message in (by_file, by_flag):
        assert "HF_TOKEN" in message
        assert "SECRET" not in message


# --- the command line --------------------------------------------------------------------------


def test_flags_win_over_the_file_and_say_so(write):
    flags = ["--learning_rate", "3e-5", "--max-length=64", "--method", "full", "--bf16"]
    read = recipe.read(write(GOOD), [*flags, "--truncation", "tail"])
    assert read.training == {
        "learning_rate": 3e-5,
        "num_train_epochs": 2,
        "bf16": True,
        "seed": 0,
        "output_dir": "runs/r/seed-0",
    }
    assert (read.model.max_length, read.model.truncation) == (64, "tail")
    assert read.tuning.method == "full"
    assert read.model.checkpoint == "embedded:minilm"
    assert read.where("training.learning_rate") == "--learning_rate"
    assert read.where("training.num_train_epochs") == "r.yaml:12"
    assert read.where("task") == "r.yaml:1"


def test_a_flag_of_an_option_in_the_tuning_section_stays_there(write):
    assert recipe.load(write(GOOD), ["--r", "16"]).tuning.options == {"r": 16}
    assert recipe.read(write(GOOD), ["--r", "16"]).tuning.options == {"r": 16}


def test_flags_take_null_and_mappings(write):
    flags = ["--max_train_samples", "null", "--config", "{hidden_dropout_prob: 0.2}"]
    read = recipe.load(write(GOOD), flags)
    assert read.data.max_train_samples is None
    assert read.model.config == {"hidden_dropout_prob": 0.2}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max_length", "long"], "--max_length: max_length: 'long' does not fit"),
        (["--holdout", "nan"], "--holdout: holdout: nan is not a finite number"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["stray"], "'stray' belongs to no flag"),
        (["--config", "{a: 1, a: 2}"], "key 'a' is given twice"),
        (["--truncation", "middle"], "--truncation: "),
    ],
)
def test_a_bad_flag_is_named(write, flags, says):
    assert says in error_of(write(GOOD), *flags)


@pytest.mark.parametrize("flag", ["train", "dataset"])
def test_own_data_starts_the_data_section_anew(write, flag):
    flags = [f"--{flag}", "own.csv", "--label", "class", "--problem_type", "regression"]
    read = recipe.load(write(GOOD), flags)
    expected = Data(label="class", problem_type="regression", **{flag: "own.csv"})
    assert read.data == expected
    assert read.reference is None
    assert read.training == {
        "learning_rate": 1e-4,
        "num_train_epochs": 2,
        "seed": 0,
        "output_dir": "runs/own/r/seed-0",
    }
    assert read.name == "own/r"


def test_other_data_flags_keep_the_data_section(write):
    read = recipe.load(write(GOOD), ["--max_train_samples", "100"])
    assert read.data.dataset == "embedded:imdb"
    assert read.data.max_train_samples == 100
    assert read.data.text == "review"
    assert read.reference is not None


# --- the dump ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("text: review", 'text: "y"').replace("label: stars", 'label: "no"'),
        GOOD.replace("text: review", 'text: "null"').replace("label: stars", 'label: "1e5"'),
        GOOD.replace("r: 4", 'target_modules: ["1e5", "NaN", "on", "010", "é"], r: 4'),
        GOOD.replace("max_length: 128", "config: {a: null, b: [1, 2.5], c: true, d: {}}"),
        GOOD.replace("1e-4", "1e-300"),
    ],
    ids=["whole", "bare words", "null and numbers", "option texts", "nested", "small number"],
)
def test_the_dump_reads_back_as_the_same_recipe(write, text):
    read = recipe.load(write(text))
    again = recipe.load(write(read.dump()))
    assert plain(again) == plain(read)


def test_metrics_are_a_list_of_names_in_the_file_or_a_flag(write):
    path = write(GOOD + "metrics: [matthews_correlation, ./mine.py]\n")
    read = recipe.load(path)
    assert read.metrics == ["matthews_correlation", "./mine.py"]
    assert plain(recipe.load(write(read.dump()))) == plain(read)
    changed = recipe.load(path, ["--metrics", "[cohen_kappa]"])
    assert changed.metrics == ["cohen_kappa"]
    assert changed.where("metrics") == "--metrics"
    assert recipe.load(write(GOOD)).metrics == []
    assert "metrics" not in recipe.load("r.yaml").dump()


@pytest.mark.parametrize("value", ["cohen_kappa", "{a: b}", "[a, {b: c}]", "[a, null]"])
def test_metrics_that_are_no_list_of_names_are_an_error_with_their_place(write, value):
    assert error_of(write(GOOD + f"metrics: {value}\n")).startswith("r.yaml:14: metrics: ")
    assert error_of(write(GOOD), "--metrics", value).startswith("--metrics: metrics: ")


def test_the_dump_holds_the_overrides(write):
    read = recipe.load(write(GOOD), ["--train", "own.csv", "--learning_rate", "3e-5"])
    again = recipe.load(write(read.dump()))
    assert plain(again) == plain(read)
    assert again.training["learning_rate"] == 3e-5


# --- resolving ---------------------------------------------------------------------------------


def test_a_light_recipe_has_every_default_and_does_not_import_torch(write):
    path = write(GOOD.replace("  learning_rate: 1e-4\n", ""))
    code = (
        "import sys; from finetune import recipe\n"
        f"read = recipe.read({path!r}, ['--seed', '3'])\n"
        "print(read.training, {'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    expected = {
        "num_train_epochs": 2,
        "seed": 3,
        "learning_rate": 1e-3,
        "output_dir": "runs/r/seed-3",
    }
    assert done.stdout == f"{expected} set()\n"


@pytest.mark.parametrize(("method", "rate"), [("full", 5e-5), ("ia3", 1e-2), ("hra", 1e-3)])
def test_the_learning_rate_is_the_methods(write, method, rate):
    text = GOOD.replace("  learning_rate: 1e-4\n", "").replace("lora, r: 4", method)
    assert recipe.load(write(text)).training["learning_rate"] == rate
    assert recipe.load(write(text), ["--learning_rate", "0.5"]).training["learning_rate"] == 0.5


def test_a_home_folder_is_expanded(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    read = recipe.load(write(GOOD), ["--output_dir", "~/runs/a"])
    assert read.training["output_dir"] == "/home/me/runs/a"
    read = recipe.load(write(GOOD.replace("training:", "training:\n  output_dir: ~/b")))
    assert read.training["output_dir"] == "/home/me/b"


def test_options_of_the_method_are_flags_and_stand_in_the_dump(write):
    read = recipe.load(write(GOOD), ["--lora_alpha", "32", "--use_dora", "--seed", "2"])
    assert read.tuning.options == {"r": 4, "lora_alpha": 32, "use_dora": True}
    assert read.where("tuning.lora_alpha") == "--lora_alpha"
    assert read.training["seed"] == 2
    assert set(read.training) == {"learning_rate", "num_train_epochs", "seed", "output_dir"}
    assert plain(recipe.load(write(read.dump()))) == plain(read)


def test_a_resolved_recipe_dumps_to_the_same_text_again(write):
    first = recipe.load(write(GOOD), ["--lora_alpha", "32", "--seed=1", "--config={a: [1, null]}"])
    text = first.dump()
    again = recipe.load(write(text))
    assert again.dump() == text
    assert recipe.differences(text, again.dump()) == {}


def test_a_recipe_is_frozen_and_training_does_not_change_it(tiny_recipe):
    from finetune.tasks import text_classification
    from finetune.training import runner

    read = recipe.load(tiny_recipe, ["--method", "lora", "--r", "2", "--max_steps", "1"])
    before, text = copy.deepcopy(read), read.dump()
    for section in (read, read.model, read.data, read.tuning, read.augmentation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, fields(section)[0].name, "other")
    run = runner.train(read, text_classification.TASK.build)
    assert run is not None
    assert read == before
    # The run has the very recipe that was loaded, and the task built.
    assert (run.folder / "recipe.yaml").read_text(encoding="utf-8") == text


# --- the fields --------------------------------------------------------------------------------


def test_field_names_are_flags_of_one_meaning():
    own = [f.name for section in (Model, Data, Tuning) for f in fields(section)]
    assert len(own) == len(set(own))
    # The Trainer's own label_names, inputs of the model, is a key of the training section only.
    assert set(own) & {f.name for f in fields(TrainingArguments)} == {"label_names"}
    assert not set(own) & {"task", "resume", "overwrite", "help"}


def test_every_field_has_its_help():
    for section in (Model, Data, Tuning, Reference):
        for f in fields(section):
            assert f.metadata["help"], f.name


def test_every_recipe_of_the_project_is_read():
    files = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "launch")
    for file in files:
        read = recipe.load(file)
        assert read.name == f"{file.parent.name}/{file.stem}"
        assert file.read_text(encoding="utf-8").startswith("# "), f"{file}: no command on top"
    assert len(files) >= 1


def test_the_run_is_named_after_the_data_and_the_variant(write, tmp_path):
    folder = tmp_path / "recipes" / "imdb"
    folder.mkdir(parents=True)
    (folder / "minilm.yaml").write_text(GOOD, encoding="utf-8")
    assert recipe.load(folder / "minilm.yaml").name == "imdb/minilm"
    assert recipe.load(write(GOOD)).name == "r"


# --- the training section ----------------------------------------------------------------------


def arguments(read: recipe.Recipe) -> TrainingArguments:
    os.environ.pop("TENSORBOARD_LOGGING_DIR", None)
    run = run_directory.Run("runs/x")
    # The attributes of a job that the function reads.
    data = SimpleNamespace(validation=[1])
    job = SimpleNamespace(
        data=data, headline="accuracy", training={}, extra_metrics={}, label_smoothing=0.0
    )
    try:
        return training_arguments(read, run, cast(Job, job))
    finally:
        os.environ.pop("TENSORBOARD_LOGGING_DIR", None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("learning_rate: -1e-4", "learning_rate"),
        ("learning_rate: NaN", "learning_rate: nan is not a finite number"),
        ("learning_rate: fast", "learning_rate: 'fast' does not fit"),
        ("learning_rat: 1e-4", "did you mean 'learning_rate'?"),
        ("num_train_epochs: 0", "num_train_epochs has to be above 0"),
        ("num_train_epochs: -3", "num_train_epochs has to be above 0"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size"),
        ("per_device_train_batch_size: 2.5", "per_device_train_batch_size"),
    ],
)
def test_bad_training_values_are_rejected_with_their_line(write, line, says):
    text = GOOD.split("training:")[0] + f"training:\n  {line}\n"
    message = error_of(write(text))
    assert message.startswith("r.yaml:11: ")
    assert says in message
