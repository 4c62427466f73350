"""Run directories: who may write one, what is kept, what is deleted."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from finetune import run_directory
from finetune.errors import UserError
from finetune.run_directory import Run

RECIPE = "task: text-classification\n"
# Claims a run, says so, and holds it until its input ends.
HOLD = """
import sys
from finetune.errors import UserError
from finetune.run_directory import Run
try:
    run = Run(sys.argv[1])
    with run.claim(sys.argv[2]):
        run.begin(sys.argv[2])
        print("runs", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run("runs/imdb/seed-0")


def claim(run: Run, recipe: str = RECIPE, **kwargs: bool) -> None:
    with run.claim(recipe, **kwargs):
        run.begin(recipe, kwargs.get("resume", False))


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def hold(run: Run) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(run), RECIPE]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def test_a_run_begun_holds_the_recipe_and_frees_the_directory(run):
    claim(run)
    assert (run.folder / "recipe.yaml").read_text(encoding="utf-8") == RECIPE
    claim(run, resume=True)


def test_a_directory_that_holds_a_run_is_never_written_over(run):
    claim(run)
    run.log({"step": 1})
    message = error_of(claim, run, "task: other\n")
    assert message.startswith("runs/imdb/seed-0: holds a run already")
    assert "--resume" in message
    assert "--overwrite" in message
    assert (run.folder / "recipe.yaml").read_text(encoding="utf-8") == RECIPE
    assert run.history() == [{"step": 1}]


def test_a_resume_with_another_recipe_is_refused(run):
    claim(run)
    message = error_of(claim, run, "task: other\n", resume=True)
    assert message == (
        "runs/imdb/seed-0: is of another run: task was text-classification and is other; "
        "undo that, or add --allow-changed task"
    )
    assert (run.folder / "recipe.yaml").read_text(encoding="utf-8") == RECIPE


def test_a_resume_keeps_what_the_run_has(run):
    claim(run)
    run.log({"step": 1})
    claim(run, resume=True)
    run.log({"step": 2})
    assert run.history() == [{"step": 1}, {"step": 2}]


def test_overwrite_deletes_what_is_ours_and_nothing_else(run):
    claim(run)
    run.write_results({"name": "first"})
    run.log({"step": 1})
    for ours in (run.model, run.checkpoints / "checkpoint-1"):
        ours.mkdir(parents=True)
        (ours / "weights").write_text("x", encoding="utf-8")
    notes = run.folder / "notes" / "mine.txt"
    notes.parent.mkdir()
    for file in (notes, run.folder / "results.csv", run.folder / "checkpoint-best.zip"):
        file.write_text("mine", encoding="utf-8")
    claim(run, "task: other\n", overwrite=True)
    left = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    mine = {"notes/mine.txt", "results.csv", "checkpoint-best.zip"}
    assert left - {".lock"} == mine | {"recipe.yaml"}
    assert (run.folder / "recipe.yaml").read_text(encoding="utf-8") == "task: other\n"
    assert not run.is_finished


def test_a_failed_run_frees_the_directory(run):
    with pytest.raises(ZeroDivisionError), run.claim(RECIPE):
        raise ZeroDivisionError
    claim(run, resume=True)


def test_two_claims_in_one_process(run):
    with run.claim(RECIPE):
        assert "another process trains there" in error_of(claim, run, resume=True)


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_a_directory_held_by_another_process_is_refused(run, how):
    other = hold(run)
    assert other.stdout is not None
    assert other.stdout.readline() == "runs\n"
    message = error_of(claim, run, **how)
    assert message.startswith("runs/imdb/seed-0: another process trains there")
    other.communicate()
    assert other.returncode == 0
    claim(run, resume=True)


def test_of_two_processes_that_start_at_once_exactly_one_runs(run):
    for race in range(3):
        raced = Run(f"runs/race-{race}")
        both = [hold(raced), hold(raced)]
        printed = []
        for process in both:
            assert process.stdout is not None
            printed.append(process.stdout.readline())
        for process in both:
            process.communicate()
        assert sorted(p.returncode for p in both) == [0, 2]
        assert printed.count("runs\n") == 1
        assert sum("another process trains there" in line for line in printed) == 1


def overwrite_beside_foreign_files(run: Run) -> None:
    """Trains twice in a folder with foreign files, of which nothing may be lost."""
    before = {p.name for p in run.folder.iterdir()} if run.folder.is_dir() else set()
    notes = run.folder / "notes" / "mine.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine", encoding="utf-8")
    claim(run)
    run.log({"step": 1})
    assert "holds a run already" in error_of(claim, run)
    claim(run, overwrite=True)
    assert notes.read_text(encoding="utf-8") == "mine"
    left = {p.name for p in run.folder.iterdir()}
    assert left - before - {".lock"} == {"notes", "recipe.yaml"}


@pytest.mark.parametrize("place", ["..", "../beside", "runs/../../beside"])
def test_a_run_directory_can_be_outside_of_the_working_directory(tmp_path, monkeypatch, place):
    inside = tmp_path / "project" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    overwrite_beside_foreign_files(Run(place))
    assert not [p for p in inside.rglob("*") if p.is_file()]


def test_an_absolute_run_directory(run, tmp_path_factory):
    overwrite_beside_foreign_files(Run(tmp_path_factory.mktemp("elsewhere") / "run"))
    assert list(Path.cwd().iterdir()) == []


def test_a_link_can_lead_to_the_run_directory(run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Path("runs").symlink_to(outside)
    overwrite_beside_foreign_files(run)
    assert (outside / "imdb/seed-0/recipe.yaml").is_file()


def test_a_link_inside_a_run_is_removed_and_not_what_it_leads_to(run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "weights").write_text("mine", encoding="utf-8")
    claim(run)
    run.model.symlink_to(outside)
    (run.folder / "results.json").symlink_to(outside / "weights")
    claim(run, overwrite=True)
    assert (outside / "weights").read_text(encoding="utf-8") == "mine"
    assert {p.name for p in run.folder.iterdir()} - {".lock"} == {"recipe.yaml"}


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize("name", ["model/weights", "report.html", "checkpoints/a/b"])
def test_a_folder_with_files_of_our_names_that_is_no_run_is_left_alone(run, how, name):
    file = run.folder / name
    file.parent.mkdir(parents=True)
    file.write_text("mine", encoding="utf-8")
    message = error_of(claim, run, **how)
    assert message.startswith(f"runs/imdb/seed-0: holds {name.split('/')[0]}, but no run")
    assert "name another --output_dir" in message
    assert file.read_text(encoding="utf-8") == "mine"


def test_an_empty_folder_of_our_names_is_no_obstacle(run):
    # The Trainer makes it before a run begins.
    run.checkpoints.mkdir(parents=True)
    claim(run)


def test_a_place_that_cannot_be_written_is_refused(run):
    Path("runs").write_text("a file", encoding="utf-8")
    assert error_of(claim, run).startswith("runs/imdb/seed-0: cannot be written: ")


# --- files -------------------------------------------------------------------------------------


def test_results_are_written_whole_or_not_at_all(run, monkeypatch):
    claim(run)
    run.write_results({"name": "old"})
    with pytest.raises(TypeError):
        run.write_results({"name": object()})
    assert run.results() == {"name": "old"}

    seen = []
    replace = Path.replace

    def watched(staged: Path, target: Path) -> Path:
        seen.append((json.loads(staged.read_text(encoding="utf-8")), run.results()))
        return replace(staged, target)

    monkeypatch.setattr(Path, "replace", watched)
    run.write_results({"name": "new"})
    # Until the one step that replaces it, a reader sees the old file.
    assert seen == [({"name": "new"}, {"name": "old"})]
    assert run.results() == {"name": "new"}
    names = {p.name for p in run.folder.iterdir()}
    assert names - {".lock"} == {"recipe.yaml", "results.json"}


def test_what_is_written_reads_back(run):
    claim(run)
    assert run.history() == []
    rows = pandas.DataFrame({"id": ["test-1"], "label": ["a"], "probabilities": [[0.25, 0.75]]})
    run.write_predictions(rows)
    back = run.predictions()
    assert back["id"].tolist() == ["test-1"]
    assert list(back["probabilities"][0]) == [0.25, 0.75]
    run.write_rejected([])
    assert not (run.folder / "rejected.jsonl").exists()
    run.write_rejected([{"line": 3, "reason": "empty text"}])
    text = (run.folder / "rejected.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {"line": 3, "reason": "empty text"}


def test_finished_runs_are_found_once_and_in_order(run):
    for name in ("runs/b/seed-1", "runs/a/seed-0", "runs/b/seed-0"):
        claim(Run(name))
        Run(name).write_results({"name": name})
    claim(Run("runs/unfinished"))
    found = [str(r) for r in run_directory.find(["runs", "runs/b"])]
    assert found == ["runs/a/seed-0", "runs/b/seed-0", "runs/b/seed-1"]
    assert str(run_directory.one("runs/a")) == "runs/a/seed-0"
    assert "holds 2 runs; name one of runs/b/seed-0" in error_of(run_directory.one, "runs/b")
    assert "no finished run" in error_of(run_directory.find, ["runs/unfinished"])
    assert "no finished run" in error_of(Run("runs/unfinished").results)
    assert "no such run directory" in error_of(run_directory.find, ["elsewhere"])
