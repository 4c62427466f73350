"""Saves and rotates a run's checkpoints; hashing and fsync run in the background."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from finetune.errors import TrainingError
from finetune.training import checkpoints


class Saver:
    """Writes checkpoints, and deletes those that nothing needs any more.

    - ``save`` gives a staged folder to write into. When it is left, a thread hashes the files,
      syncs them and renames the folder while the training goes on.
    - The next call that needs the result waits for it, and raises its error.

    Args:
        folder: the run's folder of checkpoints.
        limit: how many checkpoints to keep, including the best and the last; None for all.
        run: identifies the run in each manifest.
    """

    def __init__(self, folder: Path, limit: int | None, run: dict[str, Any]) -> None:
        self.folder, self.limit, self.run = folder, limit, run
        # The last complete checkpoint, and the step of the best one that it refers to.
        self._last: str | None = None
        self._best: int | None = None
        self._executor = ThreadPoolExecutor(1)
        self._sealing: tuple[Future[Path], str, int | None] | None = None

    @property
    def last(self) -> str | None:
        """Name of the last complete checkpoint."""
        self.finish()
        return self._last

    def set_last(self, name: str, best: int | None) -> None:
        """Sets the last complete checkpoint, and the step of the best one that it refers to."""
        self._last, self._best = name, best

    def wait(self) -> None:
        """Waits until the last save is complete or has failed."""
        if self._sealing:
            wait([self._sealing[0]])

    def finish(self) -> None:
        """Waits until the last save is complete.

        Raises:
            TrainingError: it failed; older checkpoints stay valid.
        """
        if self._sealing is None:
            return
        (sealed, name, best), self._sealing = self._sealing, None
        try:
            sealed.result()
        except OSError as error:
            raise TrainingError(self.failure(name, error)) from None
        self.set_last(name, best)

    def failure(self, name: str, error: OSError | SafetensorError | str) -> str:
        """Returns the message for a checkpoint that cannot be written."""
        why = error.strerror if isinstance(error, OSError) else error
        kept = f"the last one is {self._last}" if self._last else "there is no earlier one"
        return f"{self.folder / name}: cannot be written: {why}; {kept}"

    @contextmanager
    def save(self, step: int, name: str, best: int | None, expected: int) -> Iterator[Path]:
        """Yields a folder to write a checkpoint into; it is completed in the background.

        Args:
            name: the checkpoint's name.
            best: the step of the best checkpoint so far, which may be this one.
            expected: its size in bytes, if there is no earlier checkpoint to measure.

        Raises:
            TrainingError: the disk is too small, or the previous save failed.
        """
        # Rotates before the save, so that a disk with room for two checkpoints is enough. What the
        # last checkpoint refers to stays until the new one is complete.
        needed = {checkpoints.name(step) for step in (best, self._best) if step}
        self.rotate({self.last, *needed}, 1)
        if shortage := self.shortage(1, expected):
            raise TrainingError(self.failure(name, shortage))
        staged = checkpoints.stage(self.folder, step)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        other = None if best == step else best
        self._sealing = self._executor.submit(self._seal, staged, name, other), name, best

    def _seal(self, staged: Path, name: str, best: int | None) -> Path:
        try:
            return checkpoints.seal(staged, name, best, self.run)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def rotate(self, keep: set[str | None], incoming: int) -> None:
        """Deletes the oldest checkpoints, except ``keep``, so that ``incoming`` more fit."""
        if self.limit is None:
            return
        kept = {name for name in keep if name}
        for folder in checkpoints.candidates(self.folder):
            if len(kept) + incoming < self.limit:
                kept.add(folder.name)
        checkpoints.delete_except(self.folder, kept)

    def shortage(self, count: int, expected: int) -> str | None:
        """Returns an error message if ``count`` checkpoints do not fit on the disk."""
        size = expected
        if self.last and (self.folder / self.last).is_dir():
            size = checkpoints.size(self.folder / self.last)
        free = shutil.disk_usage(self.folder.parent).free
        if free >= count * size:
            return None
        return (
            f"the disk has {free / 1e6:,.1f} MB left, and needs room for {count} checkpoints of "
            f"{size / 1e6:,.1f} MB; free some space"
        )
