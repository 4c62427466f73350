"""Interrupted runs resume bit for bit; runs that break have an error message."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from finetune import cli, recipe, run_directory
from finetune.errors import TrainingError, UserError
from finetune.recipe import Recipe
from finetune.tasks import text_classification
from finetune.training import (
    checkpoints,
    random_state,
    resumable,
    run_results,
    runner,
    saver,
    signals,
)
from finetune.training.job import Job
from tests.conftest import interrupted, train


def end(run: run_directory.Run) -> dict[str, Any]:
    """Returns what has to be equal bit for bit: model, newest checkpoint, history, metrics."""
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
    """Sends this process a signal at the n-th call of a method, before its body runs."""

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
) -> run_directory.Run:
    stop = Stop(monkeypatch, resumable.ResumableTrainer, *at, number)
    with pytest.raises(SystemExit) as left:
        train(path, *flags)
    assert left.value.code == 128 + number
    stop.undo()
    return train(path, *flags, resume=True)


# Dropout makes every step depend on the random state.
DROPS = ["--config", "{hidden_dropout_prob: 0.1}", "--logging_steps", "4"]


@pytest.mark.parametrize(
    ("at", "number"),
    [
        (("training_step", 3), signal.SIGINT),
        (("training_step", 6), signal.SIGTERM),
        (("prediction_step", 1), signal.SIGTERM),
        (("write_files", 1), signal.SIGTERM),
        (("load_best_weights", 1), signal.SIGTERM),
    ],
    ids=["mid-epoch", "last-of-epoch", "evaluation", "save", "best"],
)
def test_a_stopped_and_resumed_run_ends_like_an_uninterrupted_one(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int], number: int
) -> None:
    whole = end(train(tiny_recipe, *DROPS, "--output_dir", "runs/whole"))
    run = stop_and_resume(monkeypatch, tiny_recipe, *DROPS, at=at, number=number)
    assert_same(whole, end(run))
    assert run.results()["cost"]["train_seconds"] > 0
    # The checkpoint after the evaluation replaced the one before it.
    assert not list(run.checkpoints.glob("*-unevaluated"))


def test_a_resumed_run_adds_the_training_time_before(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable.ResumableTrainer, "train_seconds", 100.0)
    run = stop_and_resume(monkeypatch, tiny_recipe, at=("training_step", 3))
    cost = run.results()["cost"]
    assert cost["total_seconds"] > cost["train_seconds"] == 100


def test_without_the_random_state_a_resumed_run_differs(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = end(train(tiny_recipe, *DROPS, "--output_dir", "runs/whole"))
    monkeypatch.setattr(random_state, "restore", lambda state, device: None)
    resumed = end(stop_and_resume(monkeypatch, tiny_recipe, *DROPS, at=("training_step", 3)))
    with pytest.raises(AssertionError):
        assert_same(whole, resumed)


@pytest.mark.parametrize("kind", ["second epoch, accumulated, workers", "masks", "adalora"])
def test_all_kinds_of_batches_and_methods_resume(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    flags = [*DROPS, "--eval_strategy", "steps", "--eval_steps", "3"]
    call = 8
    if kind == "masks":
        flags += ["--task", "fill-mask"]
    elif kind == "adalora":
        flags += ["--method", "adalora", "--tinit", "1", "--tfinal", "2", "--deltaT", "1"]
        flags += ["--num_train_epochs", "3", "--ema_decay", "0.9"]
    else:
        flags += ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "8"]
        flags += ["--dataloader_num_workers", "2"]
        call = 15
    whole = end(train(tiny_recipe, *flags, "--output_dir", "runs/whole"))
    run = stop_and_resume(monkeypatch, tiny_recipe, *flags, at=("training_step", call))
    assert_same(whole, end(run))


def test_early_stopping_resumes_its_count(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--eval_strategy", "steps", "--eval_steps", "1", "--learning_rate", "0.1"]
    flags += ["--num_train_epochs", "4", "--metric_for_best_model", "eval_loss"]
    flags += ["--early_stopping_patience", "3"]
    whole = train(tiny_recipe, *flags, "--output_dir", "runs/whole")
    steps = whole.results()["steps"]
    assert 3 < steps < 24
    assert whole.results()["stopped_early"] is True
    # Stopped before the last evaluation, and during the save after it.
    run = stop_and_resume(monkeypatch, tiny_recipe, *flags, at=("training_step", steps - 1))
    assert_same(end(whole), end(run))
    flags += ["--output_dir", "runs/last"]
    last = stop_and_resume(monkeypatch, tiny_recipe, *flags, at=("write_files", steps))
    assert_same(end(whole), end(last))


def test_an_invalid_checkpoint_is_skipped_and_reported(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*DROPS, "--eval_strategy", "steps", "--eval_steps", "1"]
    whole = end(train(tiny_recipe, *flags, "--output_dir", "runs/whole"))
    stop = Stop(monkeypatch, resumable.ResumableTrainer, "training_step", 5, signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        train(tiny_recipe, *flags)
    assert left.value.code == 143
    stop.undo()
    run = run_directory.Run("runs/tiny/seed-0")
    file = checkpoints.candidates(run.checkpoints)[0] / "optimizer.safetensors"
    assert file.parent.name == "checkpoint-5-unevaluated"
    file.write_bytes(file.read_bytes()[:-1])
    newer = run.checkpoints / "checkpoint-6"
    newer.mkdir()
    (newer / "trainer_state.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert_same(whole, end(train(tiny_recipe, *flags, resume=True)))
    errors = capsys.readouterr().err
    assert "skipped runs/tiny/seed-0/checkpoints/checkpoint-6: has no manifest.json" in errors
    assert "checkpoint-5-unevaluated: optimizer.safetensors has" in errors
    assert "resumes runs/tiny/seed-0 from checkpoint-4" in errors
    # Another program may have written it, so it is kept.
    assert (run.checkpoints / "checkpoint-6.aside-1" / "trainer_state.json").is_file()


def test_a_checkpoint_without_a_manifest_is_rejected(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runner.train(recipe.load(tiny_recipe), interrupted(text_classification.TASK.build))
    run = run_directory.Run("runs/tiny/seed-0")
    for manifest in run.checkpoints.glob("*/manifest.json"):
        manifest.unlink()
    with pytest.raises(SystemExit) as left:
        cli.main(["resume", str(run)])
    assert left.value.code == 2
    assert "no checkpoint to resume from; --overwrite starts anew" in capsys.readouterr().err


def test_changes_of_a_resumed_run_are_listed_and_can_be_allowed(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runner.train(recipe.load(tiny_recipe), interrupted(text_classification.TASK.build))
    run, moved = Path("runs/tiny/seed-0"), Path("runs/moved")
    run.rename(moved)
    rate = ["--learning_rate", "1e-4"]
    with pytest.raises(SystemExit) as left:
        cli.main(["resume", str(moved), *rate])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert "training.learning_rate was 0.002 and is 0.0001" in shown
    assert "undo that, or add --allow-changed training.learning_rate" in shown
    text = Path("reviews.csv").read_text("utf-8")
    Path("reviews.csv").write_text(text + "a fine fine cast,positive\n", encoding="utf-8")
    monkeypatch.setattr(run_results, "version", lambda name: "9.9")
    with pytest.raises(SystemExit) as left:
        cli.main(["resume", str(moved)])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert "data was " in shown
    assert "torch 9.9" in shown
    assert "--allow-changed data --allow-changed versions" in shown
    monkeypatch.undo()
    monkeypatch.chdir(tiny_recipe.parent)
    Path("reviews.csv").write_text(text, encoding="utf-8")
    cli.main(["resume", str(moved), *rate, "--allow-changed", "training.learning_rate"])
    rows = run_directory.Run(moved).history()
    assert {row["learning_rate"] for row in rows if row["step"] <= 6 and "loss" in row} == {0.002}
    assert {row["learning_rate"] for row in rows if row["step"] > 6 and "loss" in row} == {0.0001}
    assert run_directory.Run(moved).results()["name"] == "tiny"


def test_a_run_without_a_checkpoint_starts_from_its_beginning(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(read: Recipe) -> Job:
        job = text_classification.TASK.build(read)
        run_directory.Run("runs/tiny/seed-0").log({"step": 1, "loss": 9.0})
        return job

    read = recipe.load(tiny_recipe, ["--max_steps", "2"])
    monkeypatch.setattr(runner.StepTrainer, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.train(read, build)
    monkeypatch.undo()
    monkeypatch.chdir(tiny_recipe.parent)
    cli.main(["resume", "runs/tiny/seed-0"])
    run = run_directory.Run("runs/tiny/seed-0")
    assert [row["step"] for row in run.history() if "loss" in row] == [1, 2]
    capsys.readouterr()
    cli.main(["resume", "runs/tiny/seed-0"])
    assert "is finished; nothing is left to resume" in capsys.readouterr().err


# --- runs that break ---------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the loss of these steps NaN."""
    kept, calls = runner.StepTrainer.compute_loss, []

    def spoiled(trainer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = kept(trainer, model, *args, **kwargs)
        if model.training:
            calls.append(1)
            return loss * (float("nan") if len(calls) in steps else 1.0)
        return loss

    monkeypatch.setattr(runner.StepTrainer, "compute_loss", spoiled)


def test_a_step_that_is_not_finite_ends_the_run_and_names_its_rows(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = []

    def build(read: Recipe) -> Job:
        jobs.append(text_classification.TASK.build(read))
        return jobs[-1]

    spoil(monkeypatch, {8})
    with pytest.raises(TrainingError, match="step 8: the loss is nan") as caught:
        runner.train(recipe.load(tiny_recipe), build)
    named = str(caught.value).split("its rows: ")[1].split(".")[0].split(", ")
    assert len(named) == len(set(named)) == 16
    assert set(named) < set(jobs[0].data.train["id"])
    assert "the last checkpoint is checkpoint-6" in str(caught.value)
    found, _ = checkpoints.newest(Path("runs/tiny/seed-0/checkpoints"))
    assert found is not None
    weights = checkpoints.read(found.folder, "model")
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())
    # The step did not change the weights.
    assert all(bool(torch.isfinite(p).all()) for p in jobs[0].model.parameters())

    with pytest.raises(SystemExit) as left:
        cli.main(["train", "tiny.yaml", "--overwrite", "--learning_rate", "1e30"])
    assert left.value.code == 1
    assert "finetune: step " in capsys.readouterr().err


def test_an_accelerator_judges_a_step_before_its_optimizer() -> None:
    trainer = SimpleNamespace(
        step_loss=torch.tensor(1.0),
        accelerator=SimpleNamespace(scaler=None),
        args=SimpleNamespace(device=torch.device("cuda"), world_size=1),
        state=SimpleNamespace(global_step=4),
        skip_limit=0,
        unchecked=None,
    )
    judged = []
    trainer._check_step = lambda step, bad, *_: judged.append((step, bool(bad)))
    runner.StepTrainer.check_gradients(cast(Any, trainer), torch.tensor(float("inf")))
    assert judged == [(5, True)]


class Scaler(torch.amp.GradScaler):
    """A gradient scaler of fp16, on a CPU, with which gradients overflow above a scale."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, overflows_above: float) -> None:
        super().__init__("cpu")
        self.overflows_above, self.scales = overflows_above, []
        made, end_step = runner.new_trainer, runner.StepTrainer.end_step

        def scaled(*args: Any) -> Any:
            trainer = made(*args)
            trainer.accelerator.scaler, trainer.accelerator.native_amp = self, True
            return trainer

        def record(trainer: Any, *args: Any) -> None:
            self.scales.append(self.get_scale())
            end_step(trainer, *args)

        monkeypatch.setattr(runner, "new_trainer", scaled)
        monkeypatch.setattr(runner.StepTrainer, "end_step", record)
        # Clipping asks for it to undo the scale.
        monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")

    def scale(self, outputs: Any) -> Any:
        scaled = super().scale(outputs)
        return scaled * (float("inf") if self.get_scale() > self.overflows_above else 1.0)


def test_overflows_of_a_gradient_scaler_in_the_first_steps_are_not_errors(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = Scaler(monkeypatch, 2.0**12)
    run = train(tiny_recipe)
    # An epoch has six steps, and its end is a call of its own.
    assert scaler.scales[:6] == [2.0**15, 2.0**14, 2.0**13, 2.0**12, 2.0**12, 2.0**12]
    rows = [row for row in run.history() if "loss" in row]
    assert len(rows) == 12
    # The first steps did not change the weights.
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert run.results()["device"].endswith("fp16")


def test_gradients_that_overflow_at_any_scale_end_the_run(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = Scaler(monkeypatch, 0.0)
    message = r"step 18: the loss is 0\.\d+ and its gradient's norm (inf|nan)"
    with pytest.raises(TrainingError, match=message):
        train(tiny_recipe, "--num_train_epochs", "4")
    assert scaler.scales[-1] == 0.5


def test_steps_that_are_not_finite_can_be_skipped(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--method", "adalora", "--tinit", "1", "--tfinal", "2", "--deltaT", "1"]
    for more in ([], flags):
        with monkeypatch.context() as patch:
            spoil(patch, {3, 9})
            run = train(tiny_recipe, *more, "--skip_non_finite", "2", overwrite=True)
        assert run.results()["skipped_steps"] == [3, 9]
        logged = [row["step"] for row in run.history() if "loss" in row]
        assert logged == [step for step in range(1, 13) if step not in {3, 9}]
    with monkeypatch.context() as patch:
        spoil(patch, {3, 9})
        with pytest.raises(TrainingError, match="step 9"):
            train(tiny_recipe, "--skip_non_finite", "1", overwrite=True)


def test_a_metric_that_is_not_finite_ends_the_run(tiny_recipe: Path) -> None:
    def build(read: Recipe) -> Job:
        job = text_classification.TASK.build(read)
        kept = job.score

        def score(*args: Any) -> dict[str, Any]:
            scores = kept(*args)
            scores["metrics"]["accuracy"]["value"] = float("nan")
            return scores

        job.score = score
        return job

    with pytest.raises(TrainingError, match="step 6: eval_accuracy is nan on the validation rows"):
        runner.train(recipe.load(tiny_recipe), build)


def test_invalid_best_weights_are_not_loaded(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = runner.StepTrainer.load_best_weights

    def damaged(trainer: Any) -> None:
        trainer.saver.finish()
        file = Path(str(trainer.state.best_model_checkpoint)) / "model.safetensors"
        spoiled = bytearray(file.read_bytes())
        spoiled[-1] ^= 1
        file.write_bytes(spoiled)
        kept(trainer)

    monkeypatch.setattr(runner.StepTrainer, "load_best_weights", damaged)
    with pytest.raises(
        TrainingError, match=r"model.safetensors does not match its checksum; `finetune"
    ):
        train(tiny_recipe)
    assert not Path("runs/tiny/seed-0/model").exists()


def test_out_of_memory_names_the_batch_that_would_fit(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(runner.StepTrainer, "compute_loss", full)
    with pytest.raises(TrainingError) as caught:
        train(tiny_recipe)
    assert str(caught.value).startswith(
        "step 1: out of memory with per_device_train_batch_size 16; "
        "use --per_device_train_batch_size 8 --gradient_accumulation_steps 2, which trains the same"
    )


def test_a_full_disk_is_found_before_training_and_before_a_save(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, free = saver.shutil.disk_usage, [300_000, 100_000_000, 1000]
    monkeypatch.setattr(
        saver.shutil, "disk_usage", lambda place: usage(place)._replace(free=free.pop(0))
    )
    with pytest.raises(
        UserError, match=r"the disk has 0\.3 MB left, and needs room for 2 checkpoints of 0\.3 MB"
    ):
        train(tiny_recipe)
    assert not Path("runs/tiny/seed-0/recipe.yaml").exists()
    with pytest.raises(
        TrainingError, match=r"checkpoint-6: cannot be written: .*; there is no earlier one"
    ):
        train(tiny_recipe)
    monkeypatch.undo()
    monkeypatch.chdir(tiny_recipe.parent)

    def fails(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(runner.StepTrainer, "training_step", fails)
    with pytest.raises(TrainingError, match="seed-0: No space left on device; make room"):
        train(tiny_recipe, overwrite=True)


def test_a_save_that_fails_in_the_background_ends_the_run_and_keeps_the_last_checkpoint(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = end(train(tiny_recipe, *DROPS, "--output_dir", "runs/whole"))
    kept, calls = checkpoints.seal, []

    def failing(*args: Any) -> Path:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return kept(*args)

    # The save runs beside the next steps; whoever needs its result next raises its error.
    monkeypatch.setattr(checkpoints, "seal", failing)
    message = "checkpoint-12: cannot be written: Input/output error; the last one is checkpoint-6"
    with pytest.raises(TrainingError, match=message):
        train(tiny_recipe, *DROPS)
    (folder,) = Path("runs/tiny/seed-0/checkpoints").iterdir()
    assert folder.name == "checkpoint-6"
    assert_same(whole, end(train(tiny_recipe, *DROPS, resume=True)))


def test_a_second_signal_stops_at_once() -> None:
    with signals.Signals() as handler:
        handler.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    with pytest.raises(SystemExit) as left, signals.Signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert left.value.code == 130


def test_a_signal_that_a_launcher_passes_on_is_not_a_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    killed = []
    with signals.Signals() as handler:
        handler.deferred = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert handler.received == signal.SIGTERM
        handler.received_at -= signals.REPEAT_SECONDS
        monkeypatch.setattr(signals.os, "kill", lambda pid, number: killed.append(number))
        handler._handle(signal.SIGTERM, None)
    assert killed == [signal.SIGTERM]


@pytest.mark.parametrize("key", ["save_only_model", "enable_jit_checkpoint"])
def test_keys_that_conflict_with_resuming_are_rejected(tiny_recipe: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is not offered"):
        train(tiny_recipe, f"--{key}", "true")


# Only rank 1 receives a signal, in its eighth step.
SIGNALLED = """
import os, signal, sys
from finetune import cli
from finetune.training import trainer
kept, calls = trainer.StepTrainer.training_step, []
def step(*args, **kwargs):
    calls.append(1)
    if len(calls) == 8 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return kept(*args, **kwargs)
trainer.StepTrainer.training_step = step
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_step_to_stop_at(tiny_recipe: Path) -> None:
    Path("signalled.py").write_text(SIGNALLED, encoding="utf-8")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
    ]
    flags = [*DROPS, "--per_device_train_batch_size", "8", "--output_dir"]
    train_it = ["train", "tiny.yaml", *flags]

    def done(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*launch, *words], capture_output=True, text=True)

    assert done("-m", "finetune", *train_it, "runs/whole").returncode == 0
    stopped = done("signalled.py", *train_it, "runs/two")
    # torchrun ends with 1 and a traceback of its own, which shows the status of the first process.
    assert stopped.returncode == 1
    assert "exitcode  : 143" in stopped.stderr
    assert stopped.stderr.count("SIGTERM: step 8 is saved") == 1
    assert stopped.stderr.count("Traceback") == stopped.stderr.count("ChildFailedError: ") == 1
    resumed = done("-m", "finetune", "resume", "runs/two")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(end(run_directory.Run("runs/whole")), end(run_directory.Run("runs/two")))
    refused = done("-m", "finetune", *train_it, "runs/two")
    assert refused.returncode == 1
    assert "exitcode  : 2" in refused.stderr
    assert refused.stderr.count("holds a run already") == 1
    assert refused.stderr.count("Traceback") == refused.stderr.count("ChildFailedError: ") == 1
