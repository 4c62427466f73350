"""The command line: flags of recipe keys, help, and the error for what it does not know."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from finetune import cli, recipe
from finetune.recipe import command_line

RECIPE = """\
task: text-classification
model: {checkpoint: "embedded:minilm"}
data: {dataset: "embedded:imdb"}
"""
COMMANDS = ["train", "resume", "predict", "generate", "merge", "compare", "recipes", "report"]
COMMANDS += ["distil", "prune"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What ``finetune train`` and ``resume`` would train: (recipe, overwrite, resume, allowed)."""
    from finetune.training import runner

    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    calls = []

    def train(read, build, *how):
        calls.append((read, *how))

    monkeypatch.setattr(runner, "train", train)
    return calls


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("finetune: ")
    assert len(printed.err.splitlines()) == 1
    return printed.err.removeprefix("finetune: ")


@pytest.mark.parametrize(
    "words",
    [
        "r.yaml --seed 1 --bf16",
        "--seed 1 --bf16 r.yaml",
        "--bf16 r.yaml --seed=1",
        "--bf16=true r.yaml --seed 1",
        "--seed 1 --bf16 True r.yaml",
    ],
)
def test_options_can_stand_before_or_after_the_recipe(trained, words):
    cli.main(["train", *words.split()])
    read, overwrite, resume, allowed = trained[0]
    assert (read.training["seed"], read.training["bf16"]) == (1, True)
    assert read == recipe.load("r.yaml", ["--seed", "1", "--bf16", "true"])
    assert (overwrite, resume, allowed) == (False, False, [])


@pytest.mark.parametrize("flag", ["--bf16", "--activation_checkpointing", "--padding-free"])
def test_a_boolean_flag_does_not_take_the_name_of_a_recipe(trained, flag):
    cli.main(["train", flag, "imdb/minilm"])
    read = trained[0][0]
    assert read.name == "imdb/minilm"
    name = flag[2:].replace("-", "_")
    assert (read.training.get(name) or read.model.padding_free) is True


def test_options_of_the_command_are_no_keys(trained):
    allow = ["--allow-changed", "data", "--allow-changed=versions"]
    cli.main(["train", "--resume", *allow, "--streaming", "r.yaml", "--max-length", "64"])
    read, overwrite, resume, allowed = trained[0]
    assert read.data.streaming is True
    assert read.model.max_length == 64
    assert (overwrite, resume, allowed) == (False, True, ["data", "versions"])


def test_resume_takes_the_recipe_and_the_directory_of_the_run(trained):
    Path("run").mkdir()
    Path("r.yaml").rename("run/recipe.yaml")
    cli.main(["resume", "--learning_rate", "1e-4", "run"])
    read, overwrite, resume, _ = trained[0]
    assert read.training["output_dir"] == "run"
    assert read.training["learning_rate"] == 1e-4
    assert (overwrite, resume) == (False, True)


@pytest.mark.parametrize("value", ["-1", "-1e-4", "-.5", "-col"])
def test_a_value_can_start_with_a_minus(value):
    assert command_line.parse_overrides(["--weight_decay", value]) == {"weight_decay": value}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian r.yaml", "command 'trian' is unknown; did you mean 'train'?"),
        ("--sed 1", "command '--sed' is unknown"),
        ("train", "train needs a recipe or a file"),
        ("train --seed", "train needs a recipe or a file"),
        ("train r.yaml other.yaml", "train: 'other.yaml' is one argument too many"),
        ("train r.yaml --sed 1", "--sed: training key 'sed' is unknown; did you mean 'seed'?"),
        ("train --max_lenght 64 r.yaml", "did you mean 'max_length'?"),
        ("train r.yaml --seed 1 --seed 2", "--seed is given twice; keep one"),
        ("train r.yaml --max_length", "argument --max_length: expected one argument"),
        ("train r.yaml --overwrite --resume", "contradict each other"),
        ("train r.yaml --allow-changed data", "add --resume"),
        ("train r.yaml --resume --allow-changed", "expected one argument"),
        ("train r.yaml -s 1", "train: option '-s' is unknown"),
        ("resume", "resume needs a run directory"),
        ("resume nowhere", "nowhere: holds no run (no recipe.yaml)"),
        ("predict", "predict needs a run directory"),
        ("predict runs/a text --fromat csv", "option '--fromat' is unknown; did you mean"),
        ("predict runs/a text --format xml", "argument --format: invalid choice: 'xml'"),
        ("generate runs/a text --seed one", "argument --seed: invalid int value: 'one'"),
        ("generate runs/a", "the following arguments are required: PROMPT"),
        ("compare", "the following arguments are required: RUN"),
        ("report nowhere", "nowhere: no such run directory"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, words, message):
    assert message in error_of(capsys, *words.split())
    assert trained == []


def test_resume_in_another_directory_is_an_error(trained, capsys):
    Path("run").mkdir()
    Path("r.yaml").rename("run/recipe.yaml")
    assert "leave it out" in error_of(capsys, "resume", "run", "--output_dir", "other")


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(command, flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), flag])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: finetune {command}".rstrip())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_the_help_of_train_shows_every_key_with_its_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "r.yaml", "--seed", "1", "--help"])
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    checked = 0
    for section in recipe.SETTINGS.values():
        for f in fields(section):
            if not f.metadata["hidden"]:
                assert f"--{f.name} " in shown
                assert f.metadata["help"] in shown
                checked += 1
    assert checked > 40
    assert "[512]" in shown
    assert "--seed 1" in shown


def test_memory_of_onednn_is_bounded_unless_it_is_set(monkeypatch, capsys):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for given, expected in ((None, "64"), ("7", "7")):
        monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(name, given)
        cli.main(["recipes"])
        assert os.environ[name] == expected


def test_predict_takes_options_between_texts_and_texts_that_start_with_a_minus(monkeypatch, capsys):
    from finetune import inference, run_directory

    given = []

    def read_rows(texts, file, run, columns):
        given.append((str(run), texts))
        return [{"text": text} for text in texts]

    monkeypatch.setattr(run_directory, "one", run_directory.Run)
    monkeypatch.setattr(inference, "read_rows", read_rows)
    monkeypatch.setattr(inference, "printed", lambda rows, run: rows)
    monkeypatch.setattr(inference, "predict", lambda run, rows, *bases: [{"prediction": "x"}] * 5)
    cli.main(["predict", "runs/a", "a", "--format", "csv", "b", "-5", "--", "--x", "- c"])
    assert given == [("runs/a", ["a", "b", "-5", "--x", "- c"])]
    assert capsys.readouterr().out.splitlines()[:2] == ["text,prediction", "a,x"]


def launched(**environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the recipe module of sentiment with a launcher's environment."""
    names = {"ACCELERATE_USE_CPU", "MASTER_PORT", "WORLD_SIZE"}
    kept = {k: v for k, v in os.environ.items() if k not in names}
    code = "from finetune.cli import launch; launch('nowhere.yaml')"
    return subprocess.run(
        [sys.executable, "-c", code, "r.yaml", "--seed", "1"],
        capture_output=True,
        text=True,
        env={**kept, **environment},
    )


def test_fewer_processes_than_asked_for_is_an_error(trained):
    # What accelerate 1.15 sets for `accelerate launch --num_processes 2` without a GPU.
    done = launched(ACCELERATE_USE_CPU="False", MASTER_PORT="29500")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "accelerate started 1 process although several were asked for" in done.stderr
    assert "torchrun --nproc_per_node N -c r.yaml --seed 1" in done.stderr


def test_a_recipe_module_trains_its_recipe_unless_another_is_named(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sentiment.py", "--seed", "1"])
    cli.launch("r.yaml")
    Path("own.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sentiment.py", "own.yaml"])
    cli.launch("r.yaml")
    assert [call[0].name for call in trained] == ["r", "own"]
