"""A run's checkpoints on disk: sealed while it trains on, deleted once nothing needs them."""

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
    """Knows which checkpoint is the last whole one, and keeps what it needs.

    Args:
        folder: the run's checkpoints.
        limit: how many to keep, those that are needed among them; None for all.
        run: what the run is of, for the manifest.
    """

    def __init__(self, folder: Path, limit: int | None, run: dict[str, Any]) -> None:
        self.folder, self.limit, self.run = folder, limit, run
        # The last checkpoint that is known to be whole, and the step of the best one it needs.
        self._saved: str | None = None
        self._needed: int | None = None
        # What is written but still to be hashed, to reach the disk and to get its name; that goes
        # on beside the next steps.
        self._sealer = ThreadPoolExecutor(1)
        self._sealing: tuple[Future[Path], str, int | None] | None = None

    @property
    def saved(self) -> str | None:
        """The last checkpoint that is whole."""
        self.settle()
        return self._saved

    def note(self, final: str, best: int | None) -> None:
        """Take this checkpoint for the last whole one; ``best`` is the step of one it needs."""
        self._saved, self._needed = final, best

    def wait(self) -> None:
        """Wait until what was written last is sealed, or failed to be."""
        if self._sealing:
            wait([self._sealing[0]])

    def settle(self) -> None:
        """Wait until what was written last is sealed.

        Raises:
            TrainingError: it could not be; older checkpoints stay valid.
        """
        if self._sealing is None:
            return
        (sealed, final, best), self._sealing = self._sealing, None
        try:
            sealed.result()
        except OSError as error:
            raise TrainingError(self.unwritten(final, error)) from None
        self.note(final, best)

    def unwritten(self, final: str, error: OSError | SafetensorError | str) -> str:
        """The message that this checkpoint cannot be written."""
        why = error.strerror if isinstance(error, OSError) else error
        kept = f"{self._saved} stays the last" if self._saved else "there is none before it"
        return f"{self.folder / final}: cannot be written: {why}; {kept}"

    @contextmanager
    def save(self, step: int, final: str, best: int | None, expected: int) -> Iterator[Path]:
        """A folder to write a checkpoint into, which is sealed behind the caller's back.

        Args:
            final: the checkpoint's name.
            best: the step of the best checkpoint so far, which may be this one.
            expected: bytes that it will take, if there is none to go by.

        Raises:
            TrainingError: it does not fit on the disk, or the one before could not be sealed.
        """
        # Before the save, so that a disk that holds two checkpoints stays large enough; what the
        # last one needs stays until the new one is whole.
        needed = {checkpoints.name(step) for step in (best, self._needed) if step}
        self.clear({self.saved, *needed}, 1)
        if small := self.shortage(1, expected):
            raise TrainingError(self.unwritten(final, small))
        staged = checkpoints.stage(self.folder, step)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sealed = self._sealer.submit(self._seal, staged, final, None if best == step else best)
        self._sealing = sealed, final, best

    def _seal(self, staged: Path, final: str, best: int | None) -> Path:
        try:
            return checkpoints.seal(staged, final, best, self.run)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def clear(self, keep: set[str | None], coming: int) -> None:
        """Delete the oldest checkpoints, none of ``keep``, until ``coming`` more fit the limit."""
        if self.limit is None:
            return
        names = {name for name in keep if name}
        for folder in checkpoints.candidates(self.folder):
            if len(names) + coming < self.limit:
                names.add(folder.name)
        checkpoints.clear(self.folder, names)

    def shortage(self, count: int, expected: int) -> str | None:
        """What is wrong if so many checkpoints do not fit on the disk; None if they do."""
        need = expected
        if self.saved and (self.folder / self.saved).is_dir():
            need = checkpoints.size(self.folder / self.saved)
        free = shutil.disk_usage(self.folder.parent).free
        if free >= count * need:
            return None
        return (
            f"the disk has {free / 1e6:,.1f} MB left, and {count} x {need / 1e6:,.1f} MB of "
            "checkpoints have to fit; make room"
        )
