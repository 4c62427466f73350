"""`finetune train mine.csv`: the guess is printed, written into the run, and trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune import cli, recipe, run_directory
from finetune.data import sources
from finetune.recipe import Recipe, differences
from tests.conftest import sentences, write_csv

Trained = list[tuple[Recipe, Any]]


@pytest.fixture
def trained(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The recipes that ``finetune train`` would train, each with how; the hub does not answer."""
    from finetune.training import runner

    found: Trained = []
    monkeypatch.setattr(runner, "train", lambda read, build, *how: found.append((read, how)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workdir / "no-cache"))
    return found


def reviews(path: Path, count: int = 60) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [(f"{text} {i}", str(i % 5 + 1)) for i, (text, _) in enumerate(sentences(count))]
    return write_csv(path, rows, "review,stars")


def photos(folder: Path) -> Path:
    for i in range(12):
        kind = folder / ("red", "green")[i % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(kind / f"{i}.png")
    return folder


def chats(path: Path) -> Path:
    turn = {"role": "assistant", "content": "Yes."}
    rows = [{"messages": [{"role": "user", "content": text}, turn]} for text, _ in sentences(9)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("finetune: ")


def test_the_guess_is_trained_and_its_recipe_repeats_the_run_to_the_bit(
    workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(workdir / "mine.csv", sentences(96), "text,label")
    small = ["--max_length", "16", "--max_steps", "8", "--logging_steps", "1", "--use_cpu", "true"]
    cli.main(["train", "mine.csv", "--checkpoint", str(tiny_bert), *small])
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "mine.csv: 96 rows. The recipe is guessed; flags change it:"
    assert "text-classification, 2 classes" in printed[1]
    run = run_directory.Run("runs/mine")
    written = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    # Keys at their default are written, too: what was guessed does not depend on defaults.
    assert "  text: text\n  label: label\n  problem_type: single_label_classification\n" in written
    assert written.startswith("name: mine\ntask: text-classification\n")

    cli.main(["train", "runs/mine/recipe.yaml", "--output_dir", "runs/again"])
    assert "guessed" not in capsys.readouterr().err
    again = run_directory.Run("runs/again")
    assert len(run.history()) > 8
    assert again.history() == run.history()
    assert again.results()["metrics"] == run.results()["metrics"]
    repeated = (again.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert differences(written, repeated) == {}
    # The run is found, although another one is below its folder.
    (run.folder / "text").mkdir()
    (run.folder / "text" / "results.json").write_text("{}", encoding="utf-8")
    assert run_directory.one("runs/mine").folder == run.folder

    (run.folder / "results.json").unlink()
    cli.main(["resume", "runs/mine"])
    assert run.history() == again.history()


def test_a_file_after_train_or_as_a_flag_is_the_same(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(Path("data/mine.csv"))
    cli.main(["train", "data/mine.csv", "--num_train_epochs", "1"])
    first = capsys.readouterr().err
    cli.main(["train", "--num_train_epochs", "1", "--train", "data/mine.csv"])
    assert capsys.readouterr().err == first
    (one, how), (two, _) = trained
    assert one == two
    assert how == (False, False, [])
    assert one.data == recipe.Data(train="data/mine.csv", text="review", label="stars")
    assert (one.name, one.training["output_dir"]) == ("mine", "runs/mine")
    assert one.training["num_train_epochs"] == 1
    assert first.splitlines()[1:] == [
        "  task       text-classification, 5 classes                --task --problem_type",
        '  text       review: "plot great a 0"                                     --text',
        "  label      stars: 1 (12), 2 (12), 3 (12), 4 (12), 5 (12)               --label",
        "  model      embedded:minilm, as in your-data/text.yaml             --checkpoint",
        "  training   1 epoch, at most 128 tokens         --num_train_epochs --max_length",
        "  run        runs/mine; its recipe.yaml repeats it without guessing",
    ]


def test_flags_are_not_guessed(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    reviews(Path("mine.csv"))
    flags = ["--problem_type", "regression", "--checkpoint", "new:bert", "--method", "head"]
    cli.main(["train", "mine.csv", *flags, "--output_dir", "elsewhere", "--seed", "3"])
    ((read, _),) = trained
    assert read.data.problem_type == "regression"
    assert (read.model.checkpoint, read.tuning.method) == ("new:bert", "head")
    assert (read.training["output_dir"], read.training["seed"]) == ("elsewhere", 3)
    printed = capsys.readouterr().err
    assert "numbers (regression)" in printed
    assert "new:bert" in printed


def test_photos_without_a_hub_get_a_network_that_needs_none(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(Path("photos"))
    cli.main(["train", "photos/"])
    printed = capsys.readouterr().err
    assert "new:convnet, random weights: the hub is not reachable" in printed
    assert "label: green (6), red (6)" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    scratch = recipe.read("your-data/images-from-scratch")
    (read, _) = trained.pop()
    assert (read.task, read.model) == ("image-classification", scratch.model)
    assert (read.data.train, read.training["num_train_epochs"]) == ("photos/", 40)

    monkeypatch.setattr(sources, "checkpoint", lambda name, revision: None)
    cli.main(["train", "photos"])
    (read, _) = trained.pop()
    assert read.model.checkpoint == "google/vit-base-patch16-224-in21k"
    assert (read.name, read.training["num_train_epochs"]) == ("photos", 10)
    printed = capsys.readouterr().err
    assert "google/vit-base-patch16-224-in21k" in printed
    assert "10 epochs, flipped at random" in printed


def test_a_checkpoint_that_was_asked_for_is_never_replaced(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(Path("photos"))
    with pytest.raises(SystemExit):
        cli.main(["train", "photos", "--checkpoint", "google/vit-base-patch16-224-in21k"])
    printed = capsys.readouterr().err
    assert "random weights" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("finetune: google/vit-base-patch16-224-in21k: the hub cannot be reached")
    assert trained == []


def test_a_folder_of_splits_is_a_dataset(trained: Trained) -> None:
    reviews(Path("mine/train.csv"))
    reviews(Path("mine/test.csv"), 20)
    photos(Path("photos/train"))
    photos(Path("photos/test"))
    for place in ("mine", "photos"):
        cli.main(["train", place])
    (texts, _), (images, _) = trained
    assert texts.data == recipe.Data(dataset="mine", text="review", label="stars")
    assert images.data == recipe.Data(dataset="photos", image="image", label="label")


def test_chats_and_texts_train_a_language_model(trained: Trained) -> None:
    chats(Path("chats.jsonl"))
    Path("corpus.csv").write_text(
        "text\n" + "\n".join(text for text, _ in sentences(30)), encoding="utf-8"
    )
    for place in ("chats.jsonl", "corpus.csv"):
        cli.main(["train", place])
    (chat, _), (text, _) = trained
    assert (chat.task, chat.data.messages) == ("text-generation", "messages")
    assert (chat.tuning.method, text.tuning.method) == ("lora", "full")
    assert (text.task, text.data.text) == ("text-generation", "text")
    assert chat.model.checkpoint == text.model.checkpoint == "embedded:smollm2"


def test_only_the_first_process_prints(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    reviews(Path("mine.csv"))
    cli.main(["train", "mine.csv"])
    assert len(trained) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.csv", "nowhere.csv: no such file or folder"),
        ("--train nowhere.csv", "nowhere.csv: no such file or folder"),
        ("nowhere", "nowhere: no such recipe; `finetune recipes` lists what there is"),
        ("run", "run: is a run, not data; `finetune resume run` continues it"),
        (
            "mine.csv --train other.csv",
            "mine.csv and --train other.csv: train takes one of them, or give a recipe",
        ),
        ("mine.csv --label strs", "mine.csv: no column 'strs'; it has review, stars (set `label:`; "
         "did you mean 'stars'?)"),
        ("mine.csv --task x", "--task: task 'x' is unknown; it can be fill-mask, "
         "image-classification, masked-image-modeling, question-answering, text-classification, "
         "text-generation, token-classification"),
        ("", "train needs a recipe or a file, for example mine.csv; `finetune recipes` lists "
         "recipes"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    trained: Trained, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").touch()
    reviews(Path("mine.csv"))
    assert error_of(capsys, "train", *words.split()) == message
    assert trained == []


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("mine.csv", "mine"),
        ("data/mine.csv", "mine"),
        ("photos/", "photos"),
        ("data/*.csv", "data"),
        ("my reviews (2).csv", "my-reviews-2"),
        (".", "here"),
    ],
)
def test_a_run_is_named_after_its_data(workdir: Path, place: str, name: str) -> None:
    from finetune.commands import starting

    here = workdir / "here"
    here.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert starting.stem(place) == name
