"""``per_device_train_batch_size: auto`` changes micro-batches, never the rows of a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from finetune import recipe, run_directory
from finetune.errors import TrainingError
from finetune.tasks import text_classification
from finetune.training import memory, runner
from finetune.training.job import Job
from finetune.training.memory import SavedTensors, choose
from tests.conftest import interrupted, train

AUTO = ("--per_device_train_batch_size", "auto")


@pytest.mark.parametrize(
    ("fixed", "row", "free", "rows", "expected"),
    [
        (100, 10, 1000, 16, (16, 1)),
        (100, 10, 260, 16, (16, 1)),
        (100, 10, 259, 16, (8, 2)),
        (100, 10, 190, 24, (8, 3)),
        (100, 10, 149, 24, (4, 6)),
        (100, 10, 200, 7, (7, 1)),
        (100, 10, 160, 7, (1, 7)),
        (100, 10, 110, 16, (1, 16)),
        (100, 10, 109, 16, None),
        (100, float("inf"), 1000, 16, None),
    ],
)
def test_the_largest_divisor_that_fits_is_chosen(
    fixed: float, row: float, free: float, rows: int, expected: tuple[int, int] | None
) -> None:
    assert choose(fixed, row, free, rows) == expected


def test_saved_tensors_are_counted_once_and_without_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())
    saved = SavedTensors(model)
    for rows in (3, 1):
        with saved:
            model(torch.ones(rows, 4)).sum().backward()
        saved.end_pass()
    # The input of the layer and the output of the sigmoid, of the larger batch.
    assert saved.most == 2 * 3 * 4 * 4


def test_the_memory_of_a_cpu_is_divided_between_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=900))
    assert memory.free_bytes(torch.device("cpu")) == 900
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory.free_bytes(torch.device("cpu")) == 300


def test_auto_keeps_the_rows_of_the_recipe_or_has_its_own(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text(encoding="utf-8")
    size = yaml.safe_load(text)["training"]["per_device_train_batch_size"]
    found = recipe.load(tiny_recipe, AUTO)
    assert found.auto_batch
    assert found.training["per_device_train_batch_size"] == size
    assert not recipe.load(tiny_recipe).auto_batch
    own = text.replace(f"per_device_train_batch_size: {size}", "per_device_train_batch_size: auto")
    assert own != text
    tiny_recipe.write_text(own, encoding="utf-8")
    found = recipe.load(tiny_recipe)
    assert found.auto_batch
    assert found.training["per_device_train_batch_size"] == 32
    assert not recipe.load(tiny_recipe, ["--per_device_train_batch_size", "4"]).auto_batch


def measured(monkeypatch: pytest.MonkeyPatch, rows: float) -> None:
    """Lets ``rows`` rows fit into memory, whatever a row needs."""
    last: dict[str, float] = {}
    row_bytes = memory.row_bytes

    def row(trainer: Any) -> float:
        model = cast(torch.nn.Module, trainer.model)
        last["row"] = row_bytes(trainer)
        assert last["row"] > 0
        last["fixed"] = memory.COPIES * sum(p.nbytes for p in model.parameters())
        return last["row"]

    def free(device: torch.device) -> float:
        return (last["fixed"] + rows * last["row"]) / memory.SHARE

    monkeypatch.setattr(memory, "row_bytes", row)
    monkeypatch.setattr(memory, "free_bytes", free)


def without_dropout(given: recipe.Recipe) -> Job:
    """The task's job; dropout draws another mask for other micro-batches."""
    job = text_classification.TASK.build(given)
    for module in job.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return job


def sizes(run: run_directory.Run) -> tuple[int, int]:
    given = yaml.safe_load((run.folder / run_directory.RECIPE).read_text())["training"]
    return given["per_device_train_batch_size"], given["gradient_accumulation_steps"]


def test_a_run_with_auto_is_the_run_without_and_resumes_without_measuring(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = train(tiny_recipe, build=without_dropout)
    measured(monkeypatch, rows=7.5)
    given = recipe.load(tiny_recipe, [*AUTO, "--output_dir", "runs/auto"])
    with pytest.raises(KeyboardInterrupt):
        runner.train(given, interrupted(without_dropout))
    run = run_directory.Run("runs/auto")
    assert sizes(run) == (4, 4)
    assert "micro-batches of 4 rows, 4 a step: a row needs" in capsys.readouterr().err
    monkeypatch.setattr(memory, "fit", None)
    runner.train(given, without_dropout, resume=True)
    assert sizes(run) == (4, 4)
    assert run.results()["steps"] == numbers.results()["steps"]
    for ours, theirs in zip(run.history(), numbers.history(), strict=True):
        for key in set(theirs) & {"loss", "eval_loss", "grad_norm", "learning_rate"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


def test_a_row_that_does_not_fit_is_one_line(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, rows=0.9)
    with pytest.raises(TrainingError, match="a single row does not fit") as caught:
        train(tiny_recipe, *AUTO)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    assert not Path("runs/tiny/seed-0/recipe.yaml").exists()
