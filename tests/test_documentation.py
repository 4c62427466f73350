"""Every command in the README and the recipes runs and does what is documented.

Training commands run on a few rows; those that need the hub have to say that they cannot reach it.
"""

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune import cli, recipe
from finetune.recipe import Recipe
from tests.conftest import make_writer, sentences, write_csv

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md"))]
RECIPES = sorted(p for p in (ROOT / "recipes").glob("*/*.yaml") if p.parent.name != "launch")
# Enough to go through every part of a run, in seconds.
SMALL = [
    *("--max_train_samples", "32", "--max_test_samples", "16", "--validation_size", "16"),
    *("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"),
    *("--max_length", "16"),
]
# Short texts, so that a step costs little.
SHORT = ["--dataset", "embedded:rotten_tomatoes"]
# Recipes whose own data are as small, or are no texts with labels.
OTHER = ("mnist", "wnut16", "cmudict")
# The same for questions.
ASKED = ["--checkpoint", "embedded:minilm", "--train", "squad.json", "--stride", "4"]
# The same for searches: the BBC's articles are not installed for everyone.
FOUND = ["--train", "found.jsonl"]
# What `make TARGET -n` has to print.
MAKE = {
    "imdb": "finetune train recipes/imdb/minilm.yaml",
    "gpt": "finetune train recipes/reviews/smollm2-lora.yaml",
    "serve": "finetune serve runs/rotten_tomatoes/minilm-minute",
    "phonemes": "finetune train recipes/cmudict/transformer.yaml",
    "search": "finetune train recipes/bbc/minilm.yaml",
    "mnist": "finetune compare runs/mnist/cnn-tutorial runs/mnist/cnn",
    "ner": "finetune compare runs/wnut16/minilm-head runs/wnut16/minilm-lora",
    "seeds": "finetune compare runs/rotten_tomatoes/minilm runs/rotten_tomatoes/minilm-lora",
    "few-labels": "finetune compare runs/few-labels/",
    "fewshot": "finetune compare runs/fewshot/",
    "r8": "finetune compare runs/reuters/",
    "dropout": "finetune compare runs/dropout/",
    "adapters": "benchmarks/adapters.py",
    "students": "benchmarks/students.py",
    "bench": "benchmarks/speed.py",
    "scaling": "benchmarks/scaling.py",
    "torture": "benchmarks/torture.py",
    "test": "-m pytest",
    "test-slow": "-m pytest -m slow",
    "test-latest": ".venv-latest/bin/python -m pytest",
    "xla": "-m pytest -m xla",
    "wheel": ".ci/wheel",
    "check": "pyright",
}
LAUNCHERS = {
    ("accelerate", "launch"): "accelerate.commands.launch",
    ("torchrun",): "torch.distributed.run",
}


def commands(text: str) -> list[str]:
    """The commands of a text's shell blocks, without their remarks."""
    blocks = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL))
    lines = [re.split(r"\s{2,}#|\s#\s", line)[0].strip() for line in blocks.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


DOCUMENTED = sorted({c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))})


def documented(*kinds: str) -> list[str]:
    """The documented commands that begin with one of some words."""
    return [c for c in DOCUMENTED if c.startswith(tuple(f"{kind} " for kind in kinds))]


STUDIES = [
    *documented("finetune sweep"),
    *(c for c in documented("finetune train") if re.search(" --(seeds|learning_curve)", c)),
]
TRAIN = [c for c in documented("finetune train") if " recipes/" in c and c not in STUDIES]
ON_DATA = [c for c in documented("finetune train") if c not in {*TRAIN, *STUDIES}]


def recipe_of(command: str) -> str:
    """The recipe that a `finetune train` command names, such as `imdb/minilm`."""
    found = re.search(r" recipes/([\w-]+/[\w-]+)\.yaml", command)
    assert found, command
    return found[1]


def needs_the_hub(command: str) -> bool:
    read = recipe.load(ROOT / "recipes" / f"{recipe_of(command)}.yaml")
    sources = [read.model.checkpoint, *([] if " --train " in command else [read.data.dataset])]
    return any(not str(s).startswith(("embedded:", "new:", "runs/")) for s in sources)


OF_HUB = [c for c in TRAIN if needs_the_hub(c)]


def opening(path: Path) -> list[str]:
    """The commands in the comments that open a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if re.match(r"# (make|finetune|accelerate|cp) ", line):
            lines.append(line[2:])
    return lines


def train(*words: str, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Trains and returns results.json of the run that is left in the working directory."""
    where = folder or Path("runs") / name / "seed-0"
    cli.main(["train", *words, *([] if folder is None else ["--output_dir", str(folder)])])
    assert (where / "report.html").is_file()
    assert (where / "model" / "config.json").is_file() or list(where.glob("model/adapter_*.json"))
    return json.loads((where / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model in place of SmolLM2."""
    return str(make_writer(tmp_path_factory.mktemp("writer")))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what a clone holds, and the files that commands name."""
    for name in ("recipes", "finetune", "Makefile", "pyproject.toml", "constraints.txt", ".ci"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rated = [(f"{t} {i}", str(i % 5 + 1)) for i, (t, _) in enumerate(sentences(120))]
    write_csv(tmp_path / "mine.csv", rated, "review,stars")
    write_csv(tmp_path / "reviews.csv", sentences(3), "text,label")
    write_csv(tmp_path / "label_errors.csv", [("a film of two halves", "positive")])
    texts = [text for text, _ in sentences(40)]
    asked = {"role": "assistant", "content": "!"}
    chats = [{"messages": [{"role": "user", "content": text}, asked]} for text in texts]
    found = [{"query": f"{text} {i}", "passage": f"{i} {text}"} for i, text in enumerate(2 * texts)]
    corpus = [{"text": text} for text in texts]
    for name, rows in (("chats", chats), ("corpus", corpus), ("found", found), ("pages", found)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tagged = [f"see O\nAda B-PER\nLovelace{i} I-PER\n" for i in range(120)]
    (tmp_path / "mine.conll").write_text("\n".join(tagged), encoding="utf-8")
    questions = [
        {"question": question, "context": f"{text} {i}x", "answer": f"{i}x"}
        for i, text in enumerate(texts)
        for question in ("What is last?", "Which one is it?")
    ]
    (tmp_path / "squad.json").write_text(json.dumps(questions), encoding="utf-8")
    (tmp_path / "contract.txt").write_text("It was signed by Ada.", encoding="utf-8")
    scored = [(text, f"{text} {i}", str(i % 5)) for i, (text, _) in enumerate(sentences(120))]
    lines = ["text,other,label", *(",".join(row) for row in scored)]
    (tmp_path / "scored.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Image.new("RGB", (28, 28)).save(tmp_path / "digit.png")
    for i in range(60):
        folder = tmp_path / "photos" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (4 * i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are kept that several commands need, so that each is trained once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(clone: Path, kept: Path, writer: str) -> Callable[[str], None]:
    """Puts a finished run of a recipe such as `imdb/minilm` into the working directory."""

    def put(name: str) -> None:
        here = clone / "runs" / name / "seed-0"
        if (kept / name).is_dir():
            shutil.copytree(kept / name, here)
            return
        own = [] if name.startswith(OTHER) else SHORT
        own = ["--checkpoint", writer] if name.startswith("reviews") else own
        own = ASKED if name.startswith("squad") else own
        own = FOUND if name.startswith("bbc") else own
        train(f"recipes/{name}.yaml", *own, *SMALL, name=name, folder=here.relative_to(clone))
        shutil.copytree(here, kept / name)

    return put


def test_every_documented_command_is_run_below() -> None:
    tools = [" ".join(words) for words in LAUNCHERS]
    subcommands = (
        "check",
        "train",
        "resume",
        "launch",
        "sweep",
        "predict",
        "forecast",
        "evaluate",
        "generate",
        "distil",
        "prune",
        "merge",
        "export",
        "compare",
        "report",
        "serve",
    )
    run = documented("make", *tools, *(f"finetune {command}" for command in subcommands))
    assert sorted([*run, "finetune recipes"]) == DOCUMENTED
    assert len(PAGES) >= 7
    assert len(DOCUMENTED) >= 40
    assert len(OF_HUB) >= 4


def test_every_recipe_reads_and_opens_with_its_command() -> None:
    assert len(RECIPES) >= 30
    for path in RECIPES:
        assert isinstance(recipe.load(path), Recipe)
        name = str(path.relative_to(ROOT))
        assert any(name in command for command in opening(path)), name


@pytest.mark.parametrize("command", documented("make"))
def test_make(command: str, clone: Path) -> None:
    words = shlex.split(command)
    done = subprocess.run([*words, "-n"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    set_to = dict(word.split("=", 1) for word in words[2:])
    expected = MAKE[words[1]]
    if set_to:
        expected = f"finetune train {set_to['RECIPE']} {set_to.get('ARGS', '')}"
    assert expected in done.stdout


LAUNCHED = documented(*(" ".join(words) for words in LAUNCHERS))
# The first of each launcher; the others differ in their recipe, and start Python several times.
FIRST = {next(c for c in LAUNCHED if c.startswith(" ".join(words))) for words in LAUNCHERS}


@pytest.mark.parametrize(
    "command", [c if c in FIRST else pytest.param(c, marks=pytest.mark.slow) for c in LAUNCHED]
)
def test_launchers(command: str, clone: Path, writer: str) -> None:
    words = shlex.split(command)
    start = next(tool for tool in LAUNCHERS if command.startswith(" ".join(tool)))
    own = [] if "finetune/entities.py" in words else SHORT
    if "finetune/writing.py" in words:
        own = ["--checkpoint", writer]
    if "finetune/answers.py" in words:
        own = ASKED
    if "finetune/search.py" in words:
        own = FOUND
    done = subprocess.run(
        [sys.executable, "-m", LAUNCHERS[start], *words[len(start) :], *own, *SMALL],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (results,) = clone.glob("runs/*/*/seed-0/results.json")
    flags = ("--nproc_per_node", "--num_processes")
    processes = next((words[words.index(flag) + 1] for flag in flags if flag in words), "1")
    assert json.loads(results.read_text(encoding="utf-8"))["device"].startswith(f"{processes} x ")


@pytest.mark.parametrize("command", OF_HUB)
def test_train_says_that_the_hub_cannot_be_reached(
    command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Both are read from the environment when the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(clone / "no-cache"))
    read = recipe.load(ROOT / "recipes" / f"{recipe_of(command)}.yaml")
    new = read.model.checkpoint.startswith("new:")
    with pytest.raises(SystemExit) as stop:
        cli.main([*shlex.split(command)[1:], *SMALL])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"finetune: {read.data.dataset if new else read.model.checkpoint}: the hub cannot be "
        "reached and it is not in the local cache; connect, or use an embedded: or local one\n"
    )


@pytest.mark.parametrize("command", [c for c in TRAIN if c not in OF_HUB])
def test_train(
    command: str,
    clone: Path,
    writer: str,
    tiny_bert: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, name = shlex.split(command)[2:], recipe_of(command)
    small = list(SMALL)
    if "--train" not in words and not name.startswith(OTHER):
        small = [*SHORT, *small]
    if name.startswith("bbc"):
        small = [*FOUND, *SMALL]
    if "--find_label_errors" in words:
        # It trains five times.
        small += ["--checkpoint", str(tiny_bert)]
    if name in {"your-data/chat", "your-data/text-corpus"}:
        small = ["--checkpoint", writer, "--max_length", "64", "--max_steps", "1"]
    first = re.fullmatch(r"(\w+/\w+)-after-(mlm|mae)", name)
    if first:
        # The recipe starts from this one's run.
        before = f"{first[1]}-{first[2]}"
        own = SHORT if first[2] == "mlm" else []
        train(f"recipes/{before}.yaml", *own, *SMALL, name=before, folder=Path("runs", before))
    if "--add_feedback" in words:
        run = Path(words[words.index("--add_feedback") + 1], "seed-0")
        run.mkdir(parents=True)
        line = {"text": "A film of two halves.", "label": "positive"}
        (run / "feedback.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    results = train(*words, *small, name=name, folder=Path("runs", "documented"))
    assert results["steps"] == 1
    corrected = {"--add_feedback", "--corrections"} & {*words}
    assert results["data"].get("corrections", 0) == len(corrected)
    if "--find_label_errors" in words:
        assert Path("runs/documented/label_errors.csv").is_file()
    asked = dict(itertools.pairwise(words))
    assert results["seed"] == int(asked.get("--seed", 0))
    assert results["method"] == asked.get("--method", results["method"])
    assert results["data"]["source"].startswith(asked.get("--train", ""))
    assert "95 %" in capsys.readouterr().out


@pytest.mark.parametrize("command", STUDIES)
def test_studies(
    command: str,
    clone: Path,
    tiny_bert: Path,
    started: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command)[1:]
    asked = dict(itertools.pairwise(words))
    small = ["--checkpoint", str(tiny_bert), *SHORT, *SMALL]
    children = int(asked.get("--seeds", 0))
    if "--learning_curve" in words:
        small[small.index("--max_train_samples") + 1] = "256"
        children = 6
    if words[0] == "sweep":
        # Two trials, then the winner with two seeds.
        words[words.index("--trials") + 1], children = "2", 4
        small += ["--seeds", "2"]
    cli.main([*words, *small])
    assert len(started) == children
    assert "95 %" in capsys.readouterr().out
    (page,) = clone.glob("runs/*/*/report.html")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("command", ON_DATA)
def test_train_on_data(
    command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(clone / "no-cache"))
    words = shlex.split(command)[2:]
    asked = dict(itertools.pairwise(words))
    place = Path(asked.get("--output_dir", f"runs/{Path(words[0]).stem}"))
    cli.main(["train", *words, *SMALL])
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    assert (results["steps"], results["data"]["source"]) == (1, words[0])
    assert capsys.readouterr().err.startswith(f"{words[0]}: ")
    read = recipe.read(place / "recipe.yaml")
    assert read.data.problem_type == asked.get("--problem_type", "single_label_classification")


@pytest.mark.parametrize("command", documented("finetune check"))
def test_check(command: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    small = [] if "mine.csv" in words else [*SHORT, *SMALL]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, *small])
    # Made-up texts, and real ones cut to a few tokens, are worth a warning.
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "text-classification" in shown
    assert "warning" in shown
    for page in [words[words.index("--html") + 1]] if "--html" in words else []:
        assert Path(page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("command", documented("finetune resume"))
def test_resume(command: str, finished: Callable[[str], None]) -> None:
    folder = Path(shlex.split(command)[2])
    assert folder.parts[-1] == "seed-0"
    finished("/".join(folder.parts[1:3]))
    # As if the run had been stopped before its end.
    (folder / "results.json").unlink()
    cli.main(shlex.split(command)[1:])
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["steps"] == 1


@pytest.mark.parametrize("command", documented("finetune predict"))
def test_predict(
    command: str,
    finished: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = re.findall(r"runs/(\w+/[\w-]+)", command)
    for name in runs:
        finished(name)
    monkeypatch.setattr(sys, "stdin", ["a film\n", "a plot\n"])
    capsys.readouterr()
    cli.main(shlex.split(command)[1:])
    shown = capsys.readouterr().out.splitlines()
    if "--format csv" in command:
        rows: list[dict[str, Any]] = list(csv.DictReader(shown))
        assert [row["text"] for row in rows] == [text for text, _ in sentences(3)]
    elif "--output labelled.csv" in command:
        rows = list(csv.DictReader(Path("labelled.csv").read_text("utf-8").splitlines()))
        with Path("mine.csv").open(encoding="utf-8") as file:
            assert [row["text"] for row in rows] == [row["review"] for row in csv.DictReader(file)]
    else:
        rows = [json.loads(line) for line in shown]
        expected = 2 if command.endswith("--file -") else len(runs)
        assert len(rows) == expected
    if "wnut16" in command or "bbc" in command:
        assert all(isinstance(row["prediction"], list) for row in rows)
        return
    labels = set("0123456789") if "mnist" in command else {"negative", "positive"}
    if "squad" in command:
        labels = {row["prediction"] for row in rows if row["prediction"] in "It was signed by Ada."}
    if "cmudict" not in command:
        assert {row["prediction"] for row in rows} <= labels


@pytest.mark.parametrize("command", documented("finetune forecast"))
def test_forecast(command: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([*shlex.split(command)[1:], *SHORT, *SMALL])
    shown = capsys.readouterr().out
    assert "minilm: forecast for this machine" in shown
    assert "A100" in shown
    assert not (clone / "runs").exists()


@pytest.mark.parametrize("command", documented("finetune evaluate"))
def test_evaluate(
    command: str, finished: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    finished("imdb/minilm")
    rows = [(*row, ("web", "app")[i % 2]) for i, row in enumerate(sentences(40))]
    lines = ["text,label,source", *(",".join(row) for row in rows)]
    Path("new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    capsys.readouterr()
    cli.main(shlex.split(command)[1:])
    shown = capsys.readouterr().out
    assert "new.csv: 40 rows" in shown
    assert "web" in shown


@pytest.mark.parametrize("command", documented("finetune generate"))
def test_generate(
    command: str, finished: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    finished(words[2].removeprefix("runs/"))
    capsys.readouterr()
    cli.main(words[1:])
    shown = capsys.readouterr().out
    assert shown.startswith(words[3])
    assert len(shown.rstrip("\n")) > len(words[3])


@pytest.mark.parametrize("command", documented("finetune serve"))
def test_serve(
    command: str,
    finished: Callable[[str], None],
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from finetune.serving import server

    served: list[Any] = []
    monkeypatch.setattr(server, "run", lambda app, *where: served.append(where))
    words = shlex.split(command)
    finished(words[2].removeprefix("runs/"))
    cli.main(words[1:])
    if "--dockerfile" in words:
        folder = clone / words[words.index("--dockerfile") + 1]
        assert sorted(p.name for p in folder.iterdir()) == ["Dockerfile", "compose.yaml"]
        assert served == []
    else:
        assert served[0][:2] == ("127.0.0.1", 8000)


@pytest.mark.parametrize("command", documented("finetune merge"))
def test_merge(command: str, finished: Callable[[str], None], clone: Path) -> None:
    words = shlex.split(command)
    finished(words[2].removeprefix("runs/"))
    cli.main(words[1:])
    merged = clone / words[2] / "seed-0" / "merged"
    assert (merged / "model.safetensors").is_file()
    assert not (merged / "adapter_config.json").exists()


@pytest.mark.parametrize("command", documented("finetune launch"))
def test_launch(command: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    cli.main(words[1:])
    shown = capsys.readouterr().out
    if "--dry_run" not in words:
        shown = (clone / "imdb-minilm.sbatch").read_text(encoding="utf-8")
    assert f"finetune train {words[2]} --resume" in shown


@pytest.mark.parametrize("command", documented("finetune distil", "finetune prune"))
def test_smaller(command: str, finished: Callable[[str], None], clone: Path) -> None:
    words = shlex.split(command)
    finished(words[2].removeprefix("runs/"))
    cli.main([*words[1:], *SMALL, "--output_dir", "smaller"])
    read = json.loads((clone / "smaller" / "results.json").read_text(encoding="utf-8"))
    assert f"teacher ({words[2]}/seed-0)" in read["baselines"]
    assert read["cost"]["total_parameters"] < 22_000_000


@pytest.mark.parametrize("command", documented("finetune export"))
def test_export(command: str, clone: Path, tiny_bert: Path) -> None:
    words = shlex.split(command)
    name, run = words[2].removeprefix("runs/"), Path(words[2])
    # Whatever the size of the model, it is converted and compared the same way.
    small = ["--checkpoint", str(tiny_bert), *SHORT, *SMALL]
    train(f"recipes/{name}.yaml", *small, name=name, folder=run)
    cli.main([*words[1:], "--accept_loss"])
    (page,) = run.glob("export/*/README.md")
    assert "Against the torch model" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", documented("finetune compare"))
def test_compare(
    command: str,
    finished: Callable[[str], None],
    clone: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished("imdb/minilm")
    finished("imdb/minilm-lora")
    capsys.readouterr()
    # What a shell makes of the pattern.
    runs = sorted(str(p.relative_to(clone)) for p in clone.glob(shlex.split(command)[2]))
    assert runs == ["runs/imdb/minilm", "runs/imdb/minilm-lora"]
    cli.main(["compare", *runs])
    shown = capsys.readouterr().out
    assert "full" in shown
    assert "lora" in shown


@pytest.mark.parametrize("command", documented("finetune report"))
def test_report(
    command: str, finished: Callable[[str], None], clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished("imdb/minilm")
    page = clone / "runs" / "imdb" / "minilm" / "seed-0" / "report.html"
    page.unlink()
    capsys.readouterr()
    cli.main(shlex.split(command)[1:])
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "this model" in capsys.readouterr().out


def test_recipes(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes"])
    shown = capsys.readouterr().out
    for path in RECIPES:
        assert str(path.relative_to(ROOT / "recipes")) in shown
