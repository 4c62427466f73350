"""Reads and writes run directories, and decides what in them may be deleted.

- ``recipe.yaml`` is written first: a directory that has it holds a run.
- ``results.json`` is written last and in one step: a directory that has it holds a finished run.
- ``feedback.jsonl`` and ``feedback`` hold what users of the served model corrected (see
  ``data.corrections``). They stay when a run is replaced: the new one may learn from them.
- A run directory can be any writable folder. Only the files and folders in ``OURS`` are ever
  deleted, and only from a folder that holds a run.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from finetune.errors import UserError
from finetune.recipe import differences

if TYPE_CHECKING:
    import pandas

RESULTS, RECIPE, HISTORY = "results.json", "recipe.yaml", "history.jsonl"
PICTURES = "pictures"
REJECTED, PREDICTIONS, REPORT = "rejected.jsonl", "predictions.parquet", "report.html"
MODEL, MERGED, CHECKPOINTS, TENSORBOARD = "model", "merged", "checkpoints", "tensorboard"
EXPORTS, EXPORT = "export", "export.json"
# Beside the runs of one recipe with several seeds: what they have in common.
SEEDS = "seeds.json"
# Labels that are probably wrong, and the runs that were trained to find them.
LABEL_ERRORS, PARTS = "label_errors.csv", "label_errors"
LOCK = ".lock"
OURS = [RESULTS, RECIPE, HISTORY, REJECTED, PREDICTIONS, REPORT, LABEL_ERRORS]
OURS += [PARTS, PICTURES, MODEL, MERGED, EXPORTS, CHECKPOINTS, TENSORBOARD]


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader sees the old text or the new, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def apply_umask(folder: Path) -> None:
    """Gives every file of a folder the permissions of a new file.

    safetensors writes through a temporary file that only its owner can read.
    """
    # The mask can be asked for only by setting it, and other threads write files meanwhile.
    probe = folder / f".mode.{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def refuse_changes(run: str, changes: dict[str, tuple[Any, Any]], allowed: Collection[str]) -> None:
    """Checks that a run to resume is the same in all that its numbers depend on.

    Args:
        changes: (before, now) by key, for what differs.

    Raises:
        UserError: a key that differs is not ``allowed``; the message shows all of them.
    """
    left = {key: pair for key, pair in changes.items() if key not in allowed}
    if left:
        shown = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in left.items())
        insist = " ".join(f"--allow-changed {key}" for key in left)
        raise UserError(f"{run}: is of another run: {shown}; undo that, or add {insist}")


def _has_content(path: Path) -> bool:
    """Returns whether there is a file, a link, or a folder that is not empty."""
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


class Run:
    """One run directory."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def is_finished(self) -> bool:
        return (self.folder / RESULTS).is_file()

    def wait(self) -> None:
        """Waits until no process trains in the directory."""
        if self.folder.is_dir():
            with filelock.FileLock(self.folder / LOCK):
                pass

    def seeds(self) -> dict[str, Any] | None:
        """Returns seeds.json of the runs that this is one of; None for a run that is alone."""
        found = seeds(self.folder.parent)
        return found if found and self.folder.name in found["runs"].values() else None

    @contextmanager
    def claim(
        self,
        recipe: str,
        overwrite: bool = False,
        resume: bool = False,
        allowed: Collection[str] = (),
    ) -> Iterator[None]:
        """Locks the directory for one training process; nothing in it changes before ``begin``.

        Args:
            allowed: keys in which the recipe of a run to resume may differ.

        Raises:
            UserError: the directory cannot be written, or another process trains in it; it holds a
                run and neither ``overwrite`` nor ``resume`` is given; it holds no run but files
                with the names of ours; the run to resume had another recipe.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / LOCK, timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self}: another process trains there; wait, or name another --output_dir"
            ) from None
        except OSError as error:
            raise UserError(f"{self}: cannot be written: {error.strerror}") from None
        try:
            held = (self.folder / RECIPE).is_file()
            if held and not (overwrite or resume):
                raise UserError(
                    f"{self}: holds a run already; --resume continues it, --overwrite replaces it"
                )
            foreign = [] if held else [name for name in OURS if _has_content(self.folder / name)]
            if foreign:
                raise UserError(
                    f"{self}: holds {foreign[0]}, but no run (no {RECIPE}), and training would "
                    "replace it; name another --output_dir"
                )
            if held and resume:
                before = (self.folder / RECIPE).read_text(encoding="utf-8")
                refuse_changes(str(self), differences(before, recipe), allowed)
            yield
        finally:
            lock.release()

    def begin(self, recipe: str, resume: bool = False) -> None:
        """Deletes what an earlier run left, unless it is resumed, and writes the resolved recipe.

        Called after all checks, so that a mistake in a recipe neither deletes the old run nor
        leaves half of a new one. A symbolic link is deleted, never what it leads to. The old
        recipe is replaced last: a directory with files of a run always holds a recipe.
        """
        if not resume:
            for name in OURS:
                path = self.folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif name != RECIPE:
                    path.unlink(missing_ok=True)
        write_whole(self.folder / RECIPE, recipe)

    def rewrite_history(self, rows: list[dict[str, Any]]) -> None:
        """Replaces history.jsonl: that of a resumed run goes back to its checkpoint's step."""
        write_whole(self.folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: dict[str, Any]) -> None:
        """Appends one line to history.jsonl."""
        with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Returns the logged steps, oldest first."""
        path = self.folder / HISTORY
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def write_rejected(self, rows: list[dict[str, Any]]) -> None:
        """Writes the rejected rows, if any, with their reasons."""
        if rows:
            write_whole(self.folder / REJECTED, "".join(json.dumps(row) + "\n" for row in rows))

    def write_predictions(self, rows: "pandas.DataFrame") -> None:
        """Writes the predictions for the test rows."""
        rows.to_parquet(self.folder / PREDICTIONS, index=False)

    def predictions(self) -> "pandas.DataFrame":
        """Returns the test rows: id, text, label, prediction, probabilities."""
        import pandas

        return pandas.read_parquet(self.folder / PREDICTIONS)

    def write_image(self, name: str, png: bytes) -> None:
        """Writes a PNG image for the report; its caption is the file's name."""
        (self.folder / PICTURES).mkdir(exist_ok=True)
        (self.folder / PICTURES / f"{name}.png").write_bytes(png)

    def images(self) -> dict[str, bytes]:
        """Returns the report's PNG images by caption."""
        return {p.stem: p.read_bytes() for p in sorted((self.folder / PICTURES).glob("*.png"))}

    def write_label_errors(self, rows: list[dict[str, str]]) -> None:
        """Writes training rows whose labels are probably wrong, the worst first, as a table."""
        file = io.StringIO()
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(self.folder / LABEL_ERRORS, file.getvalue())

    def label_errors(self) -> list[dict[str, str]]:
        """Returns the rows that ``write_label_errors`` wrote; none where it was not asked for."""
        path = self.folder / LABEL_ERRORS
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json, which marks the run as finished."""
        write_whole(self.folder / RESULTS, json.dumps(results, indent=2) + "\n")

    def results(self) -> dict[str, Any]:
        """Returns the contents of results.json.

        Raises:
            UserError: the directory holds no finished run.
        """
        if not self.is_finished:
            raise UserError(f"{self}: holds no finished run (no {RESULTS})")
        return json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))

    def exports(self) -> list[dict[str, Any]]:
        """Returns export.json of every export in the run directory, by name."""
        found = sorted((self.folder / EXPORTS).glob(f"*/{EXPORT}"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def base_digest(self) -> str | None:
        """Returns the sha256 of the weights the run started from; None if an old run has none."""
        return self.results()["checkpoint"].get("sha256")

    def write_report(self, html: str) -> None:
        """Writes report.html."""
        write_whole(self.folder / REPORT, html)


class Export(Run):
    """A folder that `finetune export` wrote: it predicts as its run does, wherever it is."""

    @property
    def model(self) -> Path:
        return self.folder

    def results(self) -> dict[str, Any]:
        """Returns the part of the run's results.json that predictions need."""
        return json.loads((self.folder / EXPORT).read_text(encoding="utf-8"))["run"]


def find(places: list[str]) -> list[Run]:
    """Returns the finished runs at or below some folders, in order and each once.

    Raises:
        UserError: a folder does not exist, or none holds a finished run.
    """
    found: dict[Path, Run] = {}
    for place in places:
        path = Path(place)
        if not path.is_dir():
            raise UserError(f"{place}: no such run directory")
        for results in sorted(path.rglob(RESULTS)):
            found.setdefault(results.parent.resolve(), Run(results.parent))
    if not found:
        raise UserError(f"{', '.join(places)}: no finished run in it (no {RESULTS})")
    return list(found.values())


def seeds(folder: Path) -> dict[str, Any] | None:
    """Returns a folder's seeds.json, which `finetune train --seeds` wrote; None without."""
    path = folder / SEEDS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def one(place: str) -> Run:
    """Returns the run that a folder is, or the only one below it.

    Of several seeds, the one that validation prefers.

    Raises:
        UserError: there is none, or more than one.
    """
    runs = find([place])
    if Run(place).is_finished:
        return Run(place)
    several = seeds(Path(place))
    if several and several["kept"]:
        return Run(Path(place) / several["kept"])
    if len(runs) > 1:
        listed = ", ".join(str(run) for run in runs[:5])
        raise UserError(f"{place}: holds {len(runs)} runs; name one of {listed}")
    return runs[0]


def one_or_export(place: str) -> Run:
    """Returns the export that a folder is, or else ``one``."""
    return Export(place) if (Path(place) / EXPORT).is_file() else one(place)
