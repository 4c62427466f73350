"""Runs that are stopped and resumed end as those that were not; runs that break say so."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import checkpoints, ledger, recipe, resumable, runner
from finetune.tasks import text_classification

MODEL = "runs/whole"


def train(path: Path, *flags: str, task: Any = text_classification, **how: Any) -> ledger.Run:
    run = runner.train(recipe.load(path, flags), task.build, **how)
    assert run is not None
    return run


def end(run: ledger.Run) -> dict[str, Any]:
    """What has to be equal to the bit: the model, the newest checkpoint, history and metrics."""
    newest, skipped = checkpoints.newest(run.checkpoints)
    assert newest is not None
    assert not skipped
    files = [*run.model.glob("*.safetensors"), *newest.folder.glob("*.safetensors")]
    assert len(files) >= 4
    tensors = {(f.name, n): t for f in files for n, t in load_file(f).items()}
    results = run.results()
    kept = {k: results[k] for k in ("metrics", "chosen", "steps", "name")}
    return {"tensors": tensors, "history": run.history(), "results": kept}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["history"] == b["history"]
    assert a["results"] == b["results"]
    assert a["tensors"].keys() == b["tensors"].keys()
    differ = [n for n, t in a["tensors"].items() if not torch.equal(t, b["tensors"][n])]
    assert not differ


class Stop:
    """Sends this process a signal at the n-th call of a method, before it does its work."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, call: int, number: int
    ) -> None:
        kept, calls = getattr(owner, method), []

        def stopped(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return kept(*args, **kwargs)

        self.monkeypatch, self.owner, self.method, self.kept = monkeypatch, owner, method, kept
        monkeypatch.setattr(owner, method, stopped)

    def undo(self) -> None:
        self.monkeypatch.setattr(self.owner, self.method, self.kept)


def stop_and_resume(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    *flags: str,
    at: tuple[str, int],
    number: int = signal.SIGTERM,
    task: Any = text_classification,
) -> ledger.Run:
    stop = Stop(monkeypatch, resumable.ResumableTrainer, *at, number)
    with pytest.raises(SystemExit) as left:
        train(path, *flags, task=task)
    assert left.value.code == 128 + number
    stop.undo()
    return train(path, *flags, task=task, resume=True)


# A bit of dropout makes every step depend on the random numbers' state.
DROPS = ["--config", "{hidden_dropout_prob: 0.1}", "--num_train_epochs", "2"]


@pytest.mark.parametrize(
    "at",
    [("training_step", 3), ("training_step", 6), ("prediction_step", 1), ("_write_whole", 1)],
    ids=["mid-epoch", "last-of-epoch", "evaluation", "save"],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int]
) -> None:
    flags = [*DROPS, "--logging_steps", "4"]
    whole = end(train(tiny_recipe, *flags, "--output_dir", "runs/whole"))
    run = stop_and_resume(monkeypatch, tiny_recipe, *flags, at=at)
    assert_same(whole, end(run))
