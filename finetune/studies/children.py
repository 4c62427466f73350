"""Trains runs in child processes, so that what ends one of them ends no other."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

import psutil

from finetune.errors import TrainingError, UserError
from finetune.run_directory import RECIPE, Run

# How often a child is looked after, in seconds.
POLL = 0.5
# A run gains little from more cores than this, so that more runs are trained at once.
CORES_OF_A_RUN = 4
# Share of the memory that is free when the first run has ended, for the others.
MEMORY = 0.8


def log_of(run: Run) -> Path:
    """Returns the file of what a child prints, beside its run directory."""
    return run.folder.with_name(f"{run.folder.name}.log")


def start(words: list[str], log: IO[bytes], threads: int | None) -> "subprocess.Popen[bytes]":
    """Starts ``finetune`` with some words as a child process."""
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "finetune", *words]
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **own})


def at_once(peak: int) -> int:
    """Returns how many runs fit on this machine together.

    Args:
        peak: bytes that one needs.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    memory = MEMORY * psutil.virtual_memory().available // max(peak, 1)
    return max(1, min(_cores() // CORES_OF_A_RUN, int(memory)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Children:
    """Child processes that train; those still running end with the ``with`` block.

    They get SIGTERM, on which a run saves a checkpoint.
    """

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the children that run and waits for them; no further one is started."""
        with self.lock:
            self.stopped = True
            running = list(self.running)
        for child in running:
            child.terminate()
        for child in running:
            child.wait()

    def train(
        self,
        run: Run,
        place: str,
        flags: Mapping[str, str],
        threads: int | None = None,
        enough: Callable[[], bool] = lambda: False,
        overwrite: bool = False,
    ) -> dict[str, Any] | None:
        """Trains a run, or what is left of it, and returns its results.

        A child outlives a study that was killed: its run is waited for.

        Args:
            place, flags: as ``finetune train`` takes them.
            threads: of the child; all cores by default.
            enough: asked again and again; the child ends when it returns True.
            overwrite: start anew, whatever the directory holds.

        Returns:
            results.json; None for a run that had enough.

        Raises:
            UserError: what the child rejected.
            TrainingError: the child ended without a result; names its log.
        """
        run.wait()
        if not run.is_finished or overwrite:
            words = ["train", place, *(f"--{key}={value}" for key, value in flags.items())]
            words += [f"--output_dir={run}", *(["--overwrite"] if overwrite else [])]
            if (run.folder / RECIPE).is_file() and not overwrite:
                words.append("--resume")
            log = log_of(run)
            log.parent.mkdir(parents=True, exist_ok=True)
            if not self._finishes(words, log, threads, enough):
                return None
        return run.results()

    def _finishes(
        self, words: list[str], log: Path, threads: int | None, enough: Callable[[], bool]
    ) -> bool:
        """Runs a child to its end; returns False if it had enough.

        Raises:
            UserError, TrainingError: as in ``train``.
        """
        with log.open("ab") as file:
            with self.lock:
                if self.stopped:
                    raise TrainingError("the study was stopped")
                child = start(words, file, threads)
                self.running.add(child)
            status = None
            while status is None:
                try:
                    status = child.wait(POLL)
                except subprocess.TimeoutExpired:
                    if enough():
                        child.terminate()
                        child.wait()
                        break
            # After an error it is still among those that end with the study.
            with self.lock:
                self.running.discard(child)
        if not status:
            return status == 0
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        if status == 2:
            raise UserError(lines[-1].removeprefix("finetune: "))
        raise TrainingError(f"ended with status {status}: {lines[-1][:200]} ({log})")

    def each(self, jobs: list[Callable[[int | None], dict[str, Any] | None]]) -> None:
        """Runs jobs: the first alone, the others as many at once as fit beside each other.

        Args:
            jobs: each takes the number of threads, and returns results.json.
        """
        first = jobs[0](None)
        if len(jobs) == 1:
            return
        most = at_once(first["cost"]["peak_memory_bytes"] if first else 0)
        threads = max(1, _cores() // most) if most > 1 else None
        with ThreadPoolExecutor(most) as pool:
            futures = [pool.submit(job, threads) for job in jobs[1:]]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
