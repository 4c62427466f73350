"""The command: what it prints, its exit status, its page, and what it does without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from finetune import cli, recipe
from finetune.checks import check, rendering
from finetune.checks.finding import Example, Finding, Severity
from finetune.data import corpus
from finetune.report import tables
from tests.checks.made_up import reviews, write
from tests.checks.test_images import picture
from tests.conftest import WORDS, make_writer

ENOUGH = ["--max_length", "32"]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit status of `finetune check`, and what it prints on both streams."""
    status = 0
    try:
        cli.main(["check", *words])
    except SystemExit as stop:
        status = int(str(stop.code))
    out, err = capsys.readouterr()
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "Traceback" not in out + err
    return status, out, err


@pytest.fixture
def mine(workdir: Path, tiny_bert: Path) -> Path:
    """A file without faults, of words that the tiny BERT knows or not."""
    rows = []
    for i in range(400):
        # A number of three digits, in words that decide nothing.
        digits = [WORDS[i // 12**k % 12] for k in range(3)]
        text = " ".join([*digits, *digits[::-1], f"{i:05d}"])
        rows.append((text, ("negative", "positive")[(i // 5) % 2]))
    return write(workdir / "mine.csv", rows)


def keys(tiny_bert: Path) -> list[str]:
    return ["--checkpoint", str(tiny_bert), *ENOUGH]


def test_notes_end_with_0_warnings_with_1_and_errors_with_2(
    mine: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    found: list[Finding] = []
    own = (corpus.TEXTS, True, (lambda data, out: out.findings.extend(found),))
    monkeypatch.setitem(check.CHECKS, "text-classification", own)
    for severity in Severity:
        found[:] = [Finding(Severity.NOTE, "rows", 1, "Nothing."), Finding(severity, "x", 2, "Y.")]
        status, out, _ = shown(capsys, "mine.csv", *keys(tiny_bert))
        assert status == severity
        assert severity.name.lower() in out.splitlines()[-1]


def test_a_file_is_checked_with_the_recipe_of_its_kind(
    mine: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = shown(capsys, "mine.csv", *keys(tiny_bert))
    assert status == 1
    assert out.startswith("mine.csv: text-classification\n")
    facts = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "288 train, 32 validation, 80 test (taken from train)" in facts["rows"]
    assert "288 rows, 2,592 tokens, 9 steps of 32; 90 steps in 10 epochs" in facts["one epoch"]
    # The number at the end of each text is no word of the tiny BERT.
    assert "training rows" not in out
    assert "training texts have unknown tokens, 11 % of all" in " ".join(out.split())


def test_planted_faults_are_all_found(
    workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = reviews(200)
    test = [*reviews(60, seed=1), *rows[:5]]
    write(workdir / "train.csv", [*rows, *rows[:20]])
    write(workdir / "test.csv", test)
    more = ["--test", "test.csv", "--validation_size", "0"]
    status, out, _ = shown(capsys, "train.csv", *more, *keys(tiny_bert))
    assert status == 2
    assert out.index("error") < out.index("warning")
    for phrase in (
        "5 test rows are also in train",
        "20 training rows repeat an earlier one",
        "220 training texts have unknown tokens",
        "word counts and a linear model get 100.0 % right",
    ):
        assert phrase in " ".join(out.split())
    # The recipe may say that this is meant.
    status, _, _ = shown(capsys, "train.csv", *more, *keys(tiny_bert), "--allow_overlap")
    assert status == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "check needs a recipe or a file"),
        (["missing.csv"], "missing.csv: no such file or folder"),
        (["broken.csv"], "broken.csv:3: 1 cells where the header has 2"),
        (["mine.csv", "--label", "stars"], "mine.csv: no column 'stars'"),
        (
            ["mine.csv", "--train", "other.csv"],
            "mine.csv and --train other.csv: check takes one of them",
        ),
        (["mine.csv", "--task", "zero-shot"], "task 'zero-shot' is unknown"),
        (["mine.csv", "--html", "nowhere/page.html"], "--html nowhere/page.html: No such file"),
        (["no/recipe"], "no/recipe: no such recipe"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    mine: Path,
    tiny_bert: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("broken.csv").write_text("text,label\na film,good\na plot\n", encoding="utf-8")
    status, _, err = shown(capsys, *words, "--checkpoint", str(tiny_bert))
    assert status == 2
    # The guess is printed before.
    line = err.splitlines()[-1]
    assert message in line
    assert len(line) <= 300


def test_a_missing_checkpoint_is_an_error_among_the_other_findings(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    status, out, _ = shown(capsys, "mine.csv", "--checkpoint", "empty")
    assert status == 2
    assert "empty: has no config.json, so it is not a checkpoint" in out
    assert "linear model" in out


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_numbers_and_sets_are_checked_as_far_as_that_goes(
    workdir: Path, tiny_bert: Path, problem_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["1,2", "3", "2"] if problem_type.startswith("multi") else ["1.5", "2", "-3"]
    write(workdir / "mine.csv", [(t, cells[i % 3]) for i, (t, _) in enumerate(reviews(120))])
    words = ["--problem_type", problem_type, *keys(tiny_bert)]
    status, out, _ = shown(capsys, "mine.csv", *words)
    assert status == 1
    assert "looked for only among rows of one class each" in " ".join(out.split())
    facts = "from -3 to 2, median 1.5" if problem_type == "regression" else "3 classes"
    assert facts in out


def test_chats_show_what_is_learned(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = make_writer(tmp_path_factory.mktemp("writer"))
    rows = []
    for i in range(30):
        asked = {"role": "user", "content": f"Which number? {'x' * i}"}
        rows.append({"messages": [asked, {"role": "assistant", "content": f"It is {i}."}]})
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["chats.jsonl", "--checkpoint", str(writer), "--max_length"]
    status, out, _ = shown(capsys, *words, "100")
    assert status == 0
    assert "chats.jsonl: text-generation\n" in out
    assert "<assistant>«It is " in out
    assert ".</s>»" in out
    status, out, _ = shown(capsys, *words, "30")
    assert status == 1
    assert "training documents have nothing to learn" in " ".join(out.split())


def test_images_are_checked_from_class_folders(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(40):
        file = Path("photos", ("cat", "dog")[i % 2], f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(file)
    Image.new("RGB", (48, 48)).save("photos/cat/black.png")
    status, out, _ = shown(capsys, "photos", "--html", "page.html")
    assert status == 1
    assert "photos: image-classification\n" in out
    assert "1 images have one colour" in " ".join(out.split())
    assert "sizes" in out
    assert "data:image/png;base64," in Path("page.html").read_text(encoding="utf-8")


def test_broken_images_are_listed_with_the_reason(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(120):
        file = Path("photos", ("cat", "dog")[i % 2], f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i, (8, 8)).save(file)
    Path("photos/dog/broken.png").write_bytes(b"no image")
    status, out, _ = shown(capsys, "photos")
    assert status == 1
    told = " ".join(out.split())
    assert "1 rows cannot be used photos/dog/broken.png: " in told
    assert "is not an image, or its header is broken" in told


def test_the_page_escapes_the_data_and_needs_no_network(
    mine: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"<script>{text}</script>", label) for text, label in reviews(100)]
    write(Path("mine.csv"), [*rows, *[(rows[0][0], "positive")]])
    shown(capsys, "mine.csv", "--checkpoint", str(tiny_bert), "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "occur with different labels" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "http" not in page


def checked(tiny_recipe: Path, **given) -> check.Checked:
    return check.Checked(recipe.read(tiny_recipe), "tiny", "mine.csv", **given)


def test_what_is_learned_is_coloured_on_a_terminal_only(tiny_recipe: Path) -> None:
    parts = checked(tiny_recipe, learned=[("Why? ", False), ("Because.", True)])
    assert "Why? «Because.»" in tables.as_text(*rendering.table(parts))
    console = Console(width=80, force_terminal=True, color_system="standard", _environ={})
    with console.capture() as capture:
        console.print(*rendering.table(parts, colour=True), sep="\n")
    assert "\x1b[2mWhy? \x1b[0m\x1b[1;32mBecause.\x1b[0m" in capture.get()


def test_escape_sequences_of_the_data_do_not_reach_the_terminal(tiny_recipe: Path) -> None:
    bad = Finding(Severity.NOTE, "a\x1b[31m", 1, "Do.", [Example("b\x1b[2J", "c\x1b]0;x\x07")])
    parts = checked(tiny_recipe, findings=[bad], learned=[("d\x1b[31m", True)])
    assert "\x1b" not in tables.as_text(*rendering.table(parts))


def test_a_classifier_is_checked_without_torch(tiny_recipe: Path) -> None:
    code = (
        "import sys, finetune.cli\n"
        "try: finetune.cli.main(['check', 'tiny.yaml'])\n"
        "except SystemExit as stop: assert stop.code == 1, stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reviews.csv: text-classification, with the recipe tiny.yaml\n")


@pytest.mark.parametrize("task", ["embedding", "reranking"])
def test_queries_with_passages_are_checked(
    workdir: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    rows = [{"query": f"where is {i}", "passage": f"number {i} is here"} for i in range(40)]
    rows += [{"query": "where is nothing", "passage": ""}, rows[0]]
    Path("found.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = f"task: {task}\nmodel: {{checkpoint: tiny}}\ndata: {{train: found.jsonl}}\n"
    Path("search.yaml").write_text(recipe, encoding="utf-8")
    status, out, _ = shown(capsys, "search.yaml")
    assert status == 1
    assert "found.jsonl:41: empty passage" in out


def test_a_task_without_checks_names_those_that_have_some(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "task: sentence-similarity\nmodel: {checkpoint: tiny}\ndata: {train: scored.csv}\n"
    Path("scored.yaml").write_text(recipe, encoding="utf-8")
    status, _, err = shown(capsys, "scored.yaml")
    assert status == 2
    assert "sentence-similarity has no checks; these have: text-classification, " in err
