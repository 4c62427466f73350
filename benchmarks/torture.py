"""Breaks tiny trainings on purpose, and counts how many resume bit for bit.

    make torture                               every figure, this project beside the plain Trainer
    python benchmarks/torture.py --short       a few of each, in a few minutes
    python benchmarks/torture.py --only kill flip --side finetune

Each figure prints n/N: of N faults, n with the right outcome. The resumed run has to end with the
same bits as an undisturbed run (weights, optimizer, random state, history, metrics), or the fault
has to be found and reported. One process, one thread, a BERT with two layers.
"""

import argparse
import ctypes
import gc
import os
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from victims import KINDS, Ours, Plain, do, fork, prepare, wait, wrapped

from finetune import run_directory
from finetune.errors import UserError
from finetune.training import checkpoints, random_state
from finetune.training.saver import Saver

Side = Ours | Plain
# The figures of this project with a wrong outcome.
broken: list[str] = []
# The kinds of trainings that are killed: one of each task that computes its results in its own way.
KILLED = ["random", "entities", "questions", "pairs"]
# Where each cell of the resume matrix is stopped, in steps of an epoch of seven.
PLACES = {"mid-epoch": 3, "boundary": 7, "second epoch": 10}


class Count:
    """Counts right outcomes, and what happened otherwise."""

    def __init__(self) -> None:
        self.right, self.all = 0, 0
        self.others: dict[str, int] = {}

    def add(self, right: bool, otherwise: str) -> None:
        self.all += 1
        self.right += right
        if not right:
            self.others[otherwise] = self.others.get(otherwise, 0) + 1

    def __str__(self) -> str:
        rest = ", ".join(f"{count} {what}" for what, count in self.others.items())
        return f"{self.right}/{self.all}" + (f" ({rest})" if rest else "")


def judge(side: Side, count: Count, run: str, whole: Any, kind: str, *flags: str) -> None:
    """Resumes a disturbed run, and compares its end with that of the undisturbed one."""
    status = do(lambda: side.resume(run, kind, *flags), f"{Path(run).name}.log")
    ended = side.end(run)
    count.add(ended == whole, "refuse to resume" if status or ended is None else "end otherwise")
    if ended == whole:
        shutil.rmtree(run, ignore_errors=True)


def whole_of(side: Side, name: str, kind: str, *flags: str) -> Any:
    status = do(lambda: side.train(f"runs/{name}", kind, *flags), f"{name}.log")
    ended = side.end(f"runs/{name}")
    assert status == 0, f"{name}.log: status {status}"
    assert ended is not None, name
    return ended


# --- the figures -------------------------------------------------------------------------------


def kill(side: Side, size: int) -> None:
    """SIGKILL at random times, half of them during a save."""
    count, draw, saving = Count(), random.Random(1), 0
    flags = ["--eval_steps", "1", "--save_total_limit", "2"]
    whole, took = {}, {}
    for kind in KILLED:
        began = time.monotonic()
        whole[kind] = whole_of(side, f"kill-{kind}", kind, *flags)
        took[kind] = time.monotonic() - began
    for i in range(size):
        run, (hear, say) = f"runs/kill-{i}", os.pipe()
        # Half of each kind's are during a save.
        kind = KILLED[i // 2 % len(KILLED)]
        owner, method = side.save_of()
        wanted = 1 + draw.randrange(13)

        def victim(
            run: str = run,
            say: int = say,
            owner: Any = owner,
            method: str = method,
            kind: str = kind,
        ) -> None:
            kept = getattr(owner, method)

            def told(*args: Any, **kwargs: Any) -> Any:
                os.write(say, b"(")
                result = kept(*args, **kwargs)
                os.write(say, b")")
                return result

            setattr(owner, method, told)
            side.train(run, kind, *flags)

        pid = fork(victim, "victim.log")
        os.close(say)
        heard = b""
        if i % 2:
            while heard.count(b"(") < wanted and (byte := os.read(hear, 1)):
                heard += byte
            time.sleep(draw.uniform(0, 0.02))
        else:
            # Over the whole life of the process: loading, training, testing.
            time.sleep(draw.uniform(0, took[kind]))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while byte := os.read(hear, 1):
            heard += byte
        os.close(hear)
        saving += heard.count(b"(") > heard.count(b")")
        if side.end(run) is not None:
            # Over before it was killed.
            count.add(side.end(run) == whole[kind], "end otherwise")
        else:
            where = Path(run)
            started = (where / run_directory.RECIPE).is_file() or side.name != "finetune"
            if started:
                judge(side, count, run, whole[kind], kind, *flags)
            else:
                # Killed before the run had a folder: nothing to resume, and nothing in the way.
                do(lambda run=run, kind=kind: side.train(run, kind, *flags))
                count.add(side.end(run) == whole[kind], "end otherwise")
    show("SIGKILL at random times", side, count, f"{saving} of them during a save")


def calls(side: Side, size: int) -> None:
    """Kills before and after each file-system call of a save."""
    count, n = Count(), 0
    flags = ["--eval_steps", "4", "--save_total_limit", "2"]
    whole = whole_of(side, "calls-whole", "random", *flags)
    owner, method = side.save_of()
    while True:
        n += max(1, 60 // size)
        run = f"runs/calls-{n}"

        def victim(run: str = run, n: int = n) -> None:
            left, on = [n], []

            def one(*_: Any) -> None:
                if on:
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)

            audited = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
            sys.addaudithook(lambda event, _: one() if on and event in audited else None)
            for module, name in ((os, "fsync"), (checkpoints, "save_file"), (os, "close")):
                wrapped(module, name, one)
            kept = getattr(owner, method)
            saves = []

            def third(*args: Any, **kwargs: Any) -> Any:
                saves.append(1)
                # The third, so that there is one to fall back to and one to delete.
                on.extend([1] * (len(saves) == 3))
                kept(*args, **kwargs)
                if side.name == "finetune":
                    args[0].saver.finish()
                if on:
                    os.kill(os.getpid(), signal.SIGKILL if left[0] <= 1 else signal.SIGALRM)

            setattr(owner, method, third)
            side.train(run, "random", *flags)

        status = wait(fork(victim, "victim.log"))
        assert status in (-signal.SIGKILL, -signal.SIGALRM), status
        if side.name == "finetune":
            newest, _ = checkpoints.newest(Path(run) / run_directory.CHECKPOINTS)
            if newest is None:
                count.add(False, "without a checkpoint")
                continue
        judge(side, count, run, whole, "random", *flags)
        if status == -signal.SIGALRM:
            break
    show("kill before and after each file-system call of a save", side, count)


def flip(side: Side, size: int) -> None:
    """Flips a random bit of a random file of the newest checkpoint."""
    count, draw = Count(), random.Random(2)
    flags = ["--save_total_limit", "3"]
    whole_of(side, "flip", "random", *flags)
    folder = Path("runs/flip/checkpoints")
    if side.name == "finetune":
        newest, _ = checkpoints.newest(folder)
        assert newest is not None
        place = newest.folder
    else:
        size = min(size, 40)
        place = Path(str(get_last_checkpoint(str(folder))))
    for i in range(size):
        file = draw.choice(sorted(p for p in place.iterdir() if p.is_file() and p.stat().st_size))
        bytes_, at = bytearray(file.read_bytes()), draw.randrange(file.stat().st_size)
        kept = bytes(bytes_)
        bytes_[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes_)
        if side.name == "finetune":
            found, skipped = checkpoints.newest(folder)
            right = found is not None and found.folder != place and len(skipped) == 1
            count.add(right, f"not noticed in {file.name}")
        else:
            copy = f"runs/flip-{i}"
            shutil.copytree("runs/flip", copy)
            shutil.rmtree(f"{copy}/model")
            status = do(lambda copy=copy: side.resume(copy, "random", *flags))
            count.add(status != 0, "train on")
            shutil.rmtree(copy)
        file.write_bytes(kept)
    show("one bit flipped in a checkpoint", side, count)


def term(side: Side, size: int) -> None:
    """SIGTERM at random times of the training: exits with 143 soon, and resumes exactly."""
    count, draw, slowest = Count(), random.Random(3), 0.0
    flags = ["--eval_steps", "2"]
    whole = whole_of(side, "term-whole", "random", *flags)
    for i in range(size):
        run, (hear, say) = f"runs/term-{i}", os.pipe()
        # A third each: in a step, in an evaluation, in a save.
        owner, method = [
            (side.trainer(), "training_step"),
            (side.trainer(), "prediction_step"),
            side.save_of(),
        ][i % 3]
        at = 1 + draw.randrange([13, 7, 6][i % 3])

        def victim(run: str = run, say: int = say, what: Any = (owner, method, at)) -> None:
            owner, method, at = what
            wrapped(owner, method, lambda call: os.write(say, b"!") if call == at else None)
            side.train(run, "random", *flags)

        pid = fork(victim, "victim.log")
        os.close(say)
        assert os.read(hear, 1), f"{method} was not called {at} times"
        os.close(hear)
        time.sleep(draw.uniform(0, 0.01))
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        status = wait(pid)
        slowest = max(slowest, time.monotonic() - began)
        if status != 128 + signal.SIGTERM:
            count.add(False, f"exit {status}")
            continue
        judge(side, count, run, whole, "random", *flags)
    show("SIGTERM in steps, evaluations, saves", side, count, f"slowest exit {slowest:.1f} s")


def matrix(side: Side, size: int) -> None:
    """All kinds of batches, stopped in three places; the control lacks the random state."""
    count, control = Count(), Count()
    cells = [
        (kind, workers, accumulation, method)
        for kind in KINDS
        for workers in (0, 2)
        for accumulation in (1, 3)
        for method in (["full", "lora"] if kind == "random" else ["full"])
    ]
    for cell in cells[:: max(1, 24 // size)]:
        kind, workers, accumulation, method = cell
        name = "-".join(map(str, cell)).replace(" ", "-")
        flags = ["--dataloader_num_workers", str(workers), "--method", method]
        if side.name != "finetune":
            # What SIGTERM saves there is another figure's; here it has a whole checkpoint of the
            # step before, and is killed.
            flags += ["--eval_steps", "1"]
        flags += ["--gradient_accumulation_steps", str(accumulation)]
        flags += ["--per_device_train_batch_size", str(12 // accumulation)]
        whole = whole_of(side, f"matrix-{name}", kind, *flags)
        for place, step in PLACES.items():
            run = f"runs/matrix-{name}-{step}"

            def stop(
                cell: Any = cell, run: str = run, step: int = step, flags: Any = flags
            ) -> None:
                ours = side.name == "finetune"
                # SIGTERM in a step acts after it, SIGKILL has to come in the next.
                at = (step - ours) * cell[2] + 1
                number = signal.SIGTERM if ours else signal.SIGKILL
                stop = lambda call: os.kill(os.getpid(), number) if call == at else None  # noqa: E731
                wrapped(side.trainer(), "training_step", stop)
                side.train(run, cell[0], *flags)

            status = do(stop, "victim.log")
            if status != 128 + signal.SIGTERM and side.name == "finetune":
                count.add(False, f"exit {status} {kind} {place}")
                continue
            if side.name == "finetune" and kind != "augmentation" and place != "boundary":
                control_run = f"{run}-control"
                shutil.copytree(run, control_run)
                do(lambda run=control_run: without_random(side, run), "control.log")
                control.add(side.end(control_run) not in (None, whole), "end the same")
                shutil.rmtree(control_run)
            judge(side, count, run, whole, kind, *flags)
    show("resume matrix", side, count)
    if control.all:
        show("  control without the random state: differs", side, control)


def without_random(side: Side, run: str) -> None:
    random_state.restore = lambda state, device: None
    side.resume(run)


def ranks(side: Side, size: int) -> None:
    """Two processes, one of them killed: the other one exits, too, and the run resumes exactly."""
    count, draw, slowest = Count(), random.Random(4), 0.0
    flags = ["--per_device_train_batch_size", "6", "--eval_steps", "2"]

    def both(go: Callable[[], object], signals: bool = False) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def member(rank: int) -> None:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
            go()

        return [fork(lambda rank=rank: member(rank), f"rank-{rank}.log") for rank in (0, 1)]

    def done(pids: list[int]) -> list[int]:
        return [wait(pid) for pid in pids]

    assert done(both(lambda: side.train("runs/ranks-whole", "random", *flags))) == [0, 0]
    whole = side.end("runs/ranks-whole")
    for i in range(size):
        run, (hear, say) = f"runs/ranks-{i}", os.pipe()
        at = 3 + draw.randrange(9)

        def victims(run: str = run, say: int = say, at: int = at) -> None:
            told = lambda call: os.write(say, b"!") if call == at else None  # noqa: E731
            wrapped(side.trainer(), "training_step", told)
            side.train(run, "random", *flags)

        pids = both(victims)
        os.close(say)
        os.read(hear, 1)
        os.close(hear)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(pids[i % 2], signal.SIGKILL)
        os.waitpid(pids[i % 2], 0)
        began = time.monotonic()
        other = wait(pids[1 - i % 2], 30)
        slowest = max(slowest, time.monotonic() - began)
        if other in (0, -99):
            count.add(False, f"other rank exits {other}")
            continue
        statuses = done(both(lambda run=run: side.resume(run, "random", *flags)))
        right = statuses == [0, 0] and side.end(run) == whole
        count.add(right, f"exit {statuses}" if any(statuses) else "end otherwise")
    show("two ranks, one killed", side, count, f"the other ends within {slowest:.1f} s")


def early(side: Side, size: int) -> None:
    """Early stopping, full and LoRA: after a kill it stops at the same step."""
    count, draw = Count(), random.Random(5)
    for method in ("full", "lora"):
        flags = ["--method", method, "--learning_rate", "0.05", "--eval_steps", "2"]
        flags += ["--num_train_epochs", "4", "--metric_for_best_model", "eval_loss"]

        def train(run: str, flags: list[str] = flags) -> None:
            side.stops_early()
            side.train(run, "random", *flags)

        def resume(run: str, flags: list[str] = flags) -> None:
            side.stops_early()
            side.resume(run, "random", *flags)

        assert do(lambda train=train, m=method: train(f"runs/early-{m}")) == 0
        whole = side.end(f"runs/early-{method}")
        for i in range(size):
            run = f"runs/early-{method}-{i}"
            at = 4 + draw.randrange(3)

            def victim(run: str = run, at: int = at, train: Any = train) -> None:
                kill = lambda call: os.kill(os.getpid(), signal.SIGKILL) if call == at else None  # noqa: E731
                wrapped(side.trainer(), "training_step", kill)
                train(run)

            do(victim, "victim.log")
            status = do(lambda run=run, resume=resume: resume(run), "early.log")
            count.add(side.end(run) == whole, "refuse" if status else "end otherwise")
    show("early stopping after a kill, full and LoRA", side, count)


def nan(side: Side, size: int) -> None:
    """A loss that is NaN: the run stops with an error, and its checkpoints are finite."""
    count, draw = Count(), random.Random(6)
    for i in range(size):
        run, at = f"runs/nan-{i}", 2 + draw.randrange(11)

        def victim(run: str = run, at: int = at) -> None:
            owner, seen = side.trainer(), []
            kept = owner.compute_loss

            def spoiled(*args: Any, **kwargs: Any) -> Any:
                # The model is in training mode in steps alone.
                loss = kept(*args, **kwargs)
                if args[1].training:
                    seen.append(1)
                return loss * float("nan") if len(seen) == at and args[1].training else loss

            owner.compute_loss = spoiled
            side.train(run, "random", "--save_steps", "4")

        status = do(victim, "nan.log")
        log = Path("nan.log").read_text(encoding="utf-8")
        named = f"step {at}: the loss is nan" in log and "its rows: train-" in log
        finite = all(
            bool(torch.isfinite(t).all())
            for f in Path(run).rglob("checkpoint-*/model.safetensors")
            for t in load_file(f).values()
            if t.is_floating_point()
        )
        count.add(status == 1 and named and finite, f"exit {status}")
    show("NaN in a step: stops, names the rows, keeps finite weights", side, count)


def full(side: Side, size: int) -> None:
    """A full disk: one line of error, a valid checkpoint or none, and an exact resume."""
    count, draw = Count(), random.Random(7)
    flags = ["--eval_steps", "2", "--save_total_limit", "2"]
    whole = whole_of(side, "full-whole", "random", *flags)
    libc = ctypes.CDLL(None, use_errno=True)
    for i in range(size):
        kilobytes = 40 + draw.randrange(760)

        def victim(i: int = i, kilobytes: int = kilobytes) -> None:
            # A mount namespace, and for whoever is not root a user namespace that may mount.
            assert libc.unshare(0x00020000 | (0x10000000 if os.geteuid() else 0)) == 0, os.strerror(
                ctypes.get_errno()
            )
            # Mounts of this process are not visible to others.
            assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
            Path(f"runs/full-{i}").mkdir(parents=True)
            place = str(Path(f"runs/full-{i}").resolve()).encode()
            assert libc.mount(b"tmpfs", place, b"tmpfs", 0, f"size={kilobytes}k".encode()) == 0
            run = f"runs/full-{i}/run"
            Path(run).mkdir()

            def careless() -> None:
                # Half of them without the check of the free space, so that writes fail.
                if i % 2:
                    Saver.shortage = lambda self, count, expected: None
                side.train(run, "random", *flags)

            status = wait(fork(careless, "full.log"))
            log = Path("full.log").read_text(encoding="utf-8")
            assert status in (0, 1, 2) or side.name != "finetune", f"status {status}"
            assert "Traceback" not in log or side.name != "finetune", log[-300:]
            if status == 0:
                assert side.end(run) == whole
                return
            assert libc.mount(b"tmpfs", place, b"tmpfs", 32, b"size=100000k") == 0
            newest, skipped = checkpoints.newest(Path(run) / run_directory.CHECKPOINTS)
            assert side.name != "finetune" or not skipped, skipped
            go = side.resume if (Path(run) / run_directory.RECIPE).is_file() else side.train
            assert wait(fork(lambda: go(run, "random", *flags), "full-2.log")) == 0
            assert side.end(run) == whole
            print("with" if newest else "without", "a checkpoint")

        status = do(victim, f"full-{i}.log")
        count.add(status == 0, "lost" if status == 70 else f"exit {status}")
    show("disk full", side, count)


def rotation(side: Side, size: int) -> None:
    """Own and other folders: keeps the others, the best checkpoint and the last one."""
    count, draw = Count(), random.Random(8)
    for i in range(size):
        folder = Path(f"rotation/{i}")
        folder.mkdir(parents=True)
        foreign = []
        for name in ("checkpoint-best-f1", "checkpoint-7x", "mine", "checkpoint-900", ".tmp-mine"):
            if draw.random() < 0.5:
                (folder / name).mkdir()
                (folder / name / "model.safetensors").write_text("mine", encoding="utf-8")
                foreign.append(name)
        steps = sorted(draw.sample(range(1, 800), draw.randint(2, 6)))
        best, last = draw.choice(steps), steps[-1]
        for step in steps:
            if side.name == "finetune":
                staged = checkpoints.stage(folder, step)
                checkpoints.write(staged, "model", {"w": torch.zeros(2)})
                checkpoints.seal(staged, checkpoints.name(step), None, {})
            else:
                (folder / f"checkpoint-{step}").mkdir()
                (folder / f"checkpoint-{step}" / "model.safetensors").write_text("", "utf-8")
        limit = draw.randint(1, 3)
        if side.name == "finetune":
            Saver(folder, limit, {}).rotate({checkpoints.name(best), checkpoints.name(last)}, 1)
        else:
            rotate_checkpoints(str(folder), limit, str(folder / f"checkpoint-{best}"), True)
        kept = {p.name for p in folder.iterdir()}
        right = {*foreign, f"checkpoint-{best}", f"checkpoint-{last}"} <= kept
        count.add(right, "lose a folder")
    show("rotation among foreign folders", side, count)


def race(side: Side, size: int) -> None:
    """Two processes on one run directory: exactly one runs."""
    if side.name != "finetune":
        return
    count = Count()
    for i in range(size):

        def one(i: int = i) -> None:
            try:
                with run_directory.Run(f"runs/race-{i}").claim("task: x\n"):
                    time.sleep(0.2)
            except UserError:
                sys.exit(2)

        pids = [fork(one, f"race-{n}.log") for n in range(2)]
        count.add(sorted(wait(pid) for pid in pids) == [0, 2], "go otherwise")
    show("two processes on one folder", side, count)


pauses: dict[str, float] = {}


def pause(side: Side, size: int) -> None:
    """Times a save of MiniLM (22.7 million weights, with two AdamW values each)."""
    flags = ["--checkpoint", "embedded:minilm", "--max_steps", str(size + 1), "--eval_steps", "1"]

    def timed() -> None:
        owner, method = side.save_of()
        kept, took = getattr(owner, method), []

        def save(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = kept(*args, **kwargs)
            took.append(time.perf_counter() - began)
            Path("pause.txt").write_text(str(statistics.median(took)), encoding="utf-8")
            return result

        setattr(owner, method, save)
        side.train("runs/pause", "random", *flags)

    assert do(timed, "pause.log") == 0
    pauses[side.name] = float(Path("pause.txt").read_text())
    text = f"{pauses[side.name]:.2f} s"
    if len(pauses) > 1:
        text += f"; this project's takes {pauses['finetune'] / pauses[side.name]:.2f} times that"
    print(f"{'a save of MiniLM, median':<58} {side.name:<14} {text}", flush=True)


def show(what: str, side: Side, count: Count, more: str = "") -> None:
    print(f"{what:<58} {side.name:<14} {count}{f'; {more}' if more else ''}", flush=True)
    if side.name == "finetune" and count.right < count.all:
        broken.append(what)


# How often each figure repeats: in the short form, and in the long one.
FIGURES: dict[Callable[[Side, int], None], tuple[int, int]] = {
    kill: (8, 50),
    calls: (8, 60),
    flip: (40, 200),
    term: (3, 20),
    matrix: (3, 24),
    ranks: (2, 6),
    early: (1, 4),
    nan: (2, 10),
    full: (2, 20),
    rotation: (50, 500),
    race: (5, 50),
    pause: (3, 10),
}


def main() -> None:
    """Runs the chosen figures; exits with an error if one of this project has a wrong outcome."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    names = [figure.__name__ for figure in FIGURES]
    parser.add_argument("--short", action="store_true", help="a few faults of each figure")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--side", choices=["finetune", "plain", "both"], default="both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Objects loaded by now are shared with every child; the garbage collector skips them.
    gc.freeze()
    sides: list[Side] = [] if options.side == "plain" else [Ours()]
    sides += [] if options.side == "finetune" else [Plain()]
    here = Path.cwd()
    for figure, sizes in FIGURES.items():
        if figure.__name__ not in options.only:
            continue
        for side in sides:
            with tempfile.TemporaryDirectory(dir=here, prefix=".torture-") as place:
                os.chdir(place)
                # In a child, too: it starts threads, and a fork would copy their locks.
                assert do(prepare) == 0
                began = time.monotonic()
                figure(side, sizes[0] if options.short else sizes[1])
                print(f"    {time.monotonic() - began:.0f} s", file=sys.stderr)
                os.chdir(here)
    if broken:
        sys.exit(f"wrong outcomes: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
