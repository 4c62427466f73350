"""Checkpoints on disk: complete or absent, every byte verified, no other folder deleted."""

import errno
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from finetune.models import parameters
from finetune.training import checkpoints
from finetune.training.checkpoints import InvalidCheckpoint
from finetune.training.saver import Saver


def save(parent: Path, step: int, best: int | None = None, evaluated: bool = True) -> Path:
    staged = checkpoints.stage(parent, step)
    checkpoints.write(staged, "model", {"weight": torch.full((40,), float(step))})
    checkpoints.write(staged, "optimizer", {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1})
    return checkpoints.seal(staged, checkpoints.name(step, evaluated), best, {"data": "abc"})


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_state_reads_back_bit_for_bit(tmp_path: Path) -> None:
    tree = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.randn(3, 2).T}, 7: {}},
        "groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 7], "none": None}],
        "tie": float("-inf"),
        "half": torch.randn(3).to(torch.bfloat16),
    }
    checkpoints.write(tmp_path, "all", tree)
    back = checkpoints.read(tmp_path, "all")
    assert back["python"] == tree["python"]
    assert back["numpy"][0] == tree["numpy"][0]
    assert numpy.array_equal(back["numpy"][1], tree["numpy"][1])
    assert back["numpy"][1].dtype == tree["numpy"][1].dtype
    for written, read in [(tree["torch"], back["torch"]), (tree["half"], back["half"])]:
        assert written.dtype == read.dtype
        assert torch.equal(written, read)
    assert torch.equal(back["state"][0]["exp_avg"], tree["state"][0]["exp_avg"])
    assert back["state"][7] == {}
    assert back["groups"] == tree["groups"]
    assert isinstance(back["groups"][0]["betas"], tuple)
    assert back["tie"] == tree["tie"]
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(TypeError, match=r"a\.1: object cannot be saved"):
        checkpoints.write(tmp_path, "odd", {"a": [1, object()]})


def test_the_newest_valid_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") == (None, [])
    for step in (2, 10, 9):
        save(tmp_path, step)
    save(tmp_path, 10, evaluated=False)
    found, skipped = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.folder.name == "checkpoint-10"
    assert (found.step, found.run, skipped) == (10, {"data": "abc"}, [])
    shutil.rmtree(found.folder)
    found, _ = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.folder.name == "checkpoint-10-unevaluated"


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    draw, seen = random.Random(0), 0
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for _ in range(25):
            spoiled = bytearray(whole)
            spoiled[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            file.write_bytes(spoiled)
            found, skipped = checkpoints.newest(tmp_path)
            assert found is not None
            assert found.step == 1
            assert len(skipped) == 1
            seen += 1
        file.write_bytes(whole)
    assert seen == 25 * 4
    found, skipped = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, skipped) == (2, [])


def damage(folder: Path, how: str) -> None:
    file = folder / "optimizer.json"
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "renamed":
        folder.rename(folder.with_name("checkpoint-3"))
    elif how == "plain":
        (folder / "manifest.json").unlink()
    elif how == "newer":
        body = checkpoints.manifest(folder) | {"format": checkpoints.FORMAT + 1}
        (folder / "manifest.json").write_text(checkpoints._render(body), encoding="utf-8")
    elif how == "text":
        (folder / "manifest.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "optimizer.json is missing"),
        ("cut", r"optimizer.json has \d+ bytes, and should have \d+"),
        ("renamed", "is of step 2"),
        ("plain", "has no manifest.json: it is incomplete, or another program wrote it"),
        ("newer", "has format 3, and this program reads 2"),
        ("text", "manifest.json cannot be read"),
    ],
)
def test_the_message_names_what_is_wrong_with_a_checkpoint(
    tmp_path: Path, how: str, message: str
) -> None:
    damage(save(tmp_path, 2), how)
    (folder,) = checkpoints.candidates(tmp_path)
    with pytest.raises(InvalidCheckpoint, match=message):
        checkpoints.verify(folder)


def test_a_checkpoint_whose_best_is_lost_is_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1)
    best = save(tmp_path, 2)
    save(tmp_path, 3, best=2)
    found, _ = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, found.best) == (3, 2)
    damage(best, "cut")
    found, skipped = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "needs checkpoint-2, which optimizer.json has" in skipped[0]


class Killed(BaseException):
    pass


def test_a_save_killed_at_any_call_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining: list[float] = []

    def counted(kept: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            remaining[0] -= 1
            if not remaining[0]:
                raise Killed
            return kept(*args, **kwargs)

        return call

    for name in ("mkdir", "open", "fsync", "rename", "close"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(checkpoints, "save_file", counted(checkpoints.save_file))
    remaining[:] = [numpy.inf]
    save(tmp_path, 1)
    for call in range(1, 100):
        remaining[:] = [call]
        try:
            save(tmp_path, 2)
        except Killed:
            remaining[:] = [numpy.inf]
            found, skipped = checkpoints.newest(tmp_path)
            assert found is not None
            assert skipped == []
            if found.step == 2:
                # It was renamed, and killed before the parent folder was synced.
                shutil.rmtree(found.folder)
        else:
            break
    remaining[:] = [numpy.inf]
    assert 10 < call < 100
    found, _ = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 2
    checkpoints.delete_except(tmp_path, {"checkpoint-2"})
    assert names(tmp_path) == {"checkpoint-2"}


def test_only_own_checkpoints_are_deleted(tmp_path: Path) -> None:
    """Random folders: the best checkpoint, the last one and folders of others stay."""
    draw = random.Random(0)
    for trial in range(25):
        parent = tmp_path / str(trial)
        steps = sorted(draw.sample(range(1, 50), 5))
        for step in steps:
            save(parent, step)
        foreign = {"checkpoint-best", "checkpoint-900", "checkpoint-", ".tmp-mine", "notes.txt"}
        for name in foreign - {"notes.txt"}:
            (parent / name).mkdir()
            (parent / name / "weights").write_text("mine", encoding="utf-8")
        (parent / "notes.txt").write_text("mine", encoding="utf-8")
        (parent / "checkpoint-77").symlink_to(parent / "checkpoint-900")
        (parent / ".tmp-3-99999").mkdir()
        noted = parent / checkpoints.name(steps[0]) / "notes.txt"
        noted.write_text("mine", encoding="utf-8")
        best, limit = draw.choice(steps), draw.randint(1, 4)
        keep: set[str | None] = {checkpoints.name(best), checkpoints.name(steps[-1])}
        Saver(parent, limit, {}).rotate(keep, 1)
        ours = {name for name in names(parent) if name.startswith("checkpoint-")} - foreign
        ours -= {"checkpoint-77"}
        assert foreign | {"checkpoint-77"} <= names(parent)
        assert noted.read_text(encoding="utf-8") == "mine"
        assert keep <= ours
        assert len(ours - {noted.parent.name}) <= max(limit - 1, len(keep))
        assert ".tmp-3-99999" not in names(parent)


def test_an_invalid_folder_of_the_same_name_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "checkpoint-4" / "mine").write_text("mine", encoding="utf-8")
    save(tmp_path, 4)
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-4.aside-1"}
    assert (tmp_path / "checkpoint-4.aside-1" / "mine").is_file()
    assert checkpoints.verify(tmp_path / "checkpoint-4").step == 4


def test_weights_of_another_model_are_not_loaded_in_part() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    held = {name: tensor.clone() for name, tensor in parameters.trained_state(model).items()}
    assert set(held) == {
        *("0.weight", "1.weight", "1.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }
    for odd in (
        {k: v for k, v in held.items() if k != "1.bias"},
        held | {"2.weight": torch.zeros(1)},
        held | {"1.bias": torch.zeros(4)},
        held | {"1.bias": torch.zeros(3, dtype=torch.float64)},
    ):
        with pytest.raises(ValueError, match="differs"):
            parameters.load_trained_state(model, {k: v + 1 for k, v in odd.items()})
        assert all(torch.equal(t, held[n]) for n, t in parameters.trained_state(model).items())
    parameters.load_trained_state(model, {k: v + 1 for k, v in held.items()})
    assert all(torch.equal(t, held[n] + 1) for n, t in parameters.trained_state(model).items())


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    body = json.loads((save(tmp_path, 5, best=3) / "manifest.json").read_text("utf-8"))["manifest"]
    assert (body["step"], body["best"], body["run"]) == (5, 3, {"data": "abc"})
    assert set(body["files"]) == {"model.safetensors", "optimizer.json", "optimizer.safetensors"}


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_system_that_cannot_flush_a_folder_saves_and_says_so_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: str,
) -> None:
    # Windows opens no folder (EACCES); some network file systems flush none (EINVAL).
    number = {"open": errno.EACCES, "fsync": errno.EINVAL}[call]
    kept, refused = getattr(os, call), []

    def refusing(place: Any, *arguments: Any) -> Any:
        number_of = isinstance(place, int)
        folder = stat.S_ISDIR(os.fstat(place).st_mode) if number_of else Path(place).is_dir()
        if folder:
            refused.append(place)
            raise OSError(number, os.strerror(number))
        return kept(place, *arguments)

    checkpoints._report_no_sync.cache_clear()
    monkeypatch.setattr(os, call, refusing)
    for step in (1, 2):
        assert checkpoints.verify(save(tmp_path, step)).step == step
    assert len(refused) >= 4
    shown = capsys.readouterr().err
    assert shown.count("cannot be flushed to disk here") == 1
    assert os.strerror(number) in shown
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        save(tmp_path, 3)
    checkpoints._report_no_sync.cache_clear()
