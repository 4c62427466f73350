"""What a run directory holds; the only reader and writer of it.

``results.json`` is written last and at once, so a directory that has it holds a finished run.
"""

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
LOCK = ".lock"
OURS = [RESULTS, RECIPE, HISTORY, REJECTED, PREDICTIONS, REPORT]
OURS += [PICTURES, MODEL, MERGED, CHECKPOINTS, TENSORBOARD]


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def refuse_changes(run: str, changes: dict[str, tuple[Any, Any]], allowed: Collection[str]) -> None:
    """Stop a resume that is not of the same run.

    Args:
        changes: what was and what is, by key.

    Raises:
        UserError: a key that differs is not ``allowed``; shows each.
    """
    left = {key: pair for key, pair in changes.items() if key not in allowed}
    if left:
        shown = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in left.items())
        insist = " ".join(f"--allow-changed {key}" for key in left)
        raise UserError(f"{run}: is of another run: {shown}; undo that, or insist with {insist}")


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

    @contextmanager
    def claim(
        self,
        recipe: str,
        overwrite: bool = False,
        resume: bool = False,
        allowed: Collection[str] = (),
    ) -> Iterator[None]:
        """Hold the directory for one training process; nothing in it changes before ``begin``.

        Args:
            allowed: keys in which the recipe of a run to resume may differ.

        Raises:
            UserError: another process holds it, it holds a run and neither ``overwrite`` nor
                ``resume`` was said, or the run to resume had another recipe.
        """
        inside = Path.cwd().resolve()
        if not self.folder.resolve().is_relative_to(inside):
            raise UserError(
                f"--output_dir {self}: lies outside {inside.name}/, where you started; "
                "runs stay inside"
            )
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
                    f"{self}: holds a run already; --resume goes on with it, "
                    "--overwrite starts anew"
                )
            if held and resume:
                before = (self.folder / RECIPE).read_text(encoding="utf-8")
                refuse_changes(str(self), differences(before, recipe), allowed)
            yield
        finally:
            lock.release()

    def begin(self, recipe: str, resume: bool = False) -> None:
        """Clear what an earlier run left, unless it is resumed, and write the resolved recipe.

        Only files of ours go. Called when nothing is left to refuse, so that a mistake in a
        recipe neither costs the old run nor leaves half a new one.
        """
        if not resume:
            for name in OURS:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        write_whole(self.folder / RECIPE, recipe)

    def rewrite_history(self, rows: list[dict[str, Any]]) -> None:
        """Replace history.jsonl: a resumed run's goes back to where its checkpoint was."""
        write_whole(self.folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to history.jsonl."""
        with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first."""
        path = self.folder / HISTORY
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def write_rejected(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows set aside, if any, with their reasons."""
        if rows:
            write_whole(self.folder / REJECTED, "".join(json.dumps(row) + "\n" for row in rows))

    def write_predictions(self, rows: "pandas.DataFrame") -> None:
        """Write the test rows' predictions."""
        rows.to_parquet(self.folder / PREDICTIONS, index=False)

    def predictions(self) -> "pandas.DataFrame":
        """The test rows: id, text, label, prediction, probabilities."""
        import pandas

        return pandas.read_parquet(self.folder / PREDICTIONS)

    def write_picture(self, name: str, png: bytes) -> None:
        """Write a picture for the report, by its caption."""
        (self.folder / PICTURES).mkdir(exist_ok=True)
        (self.folder / PICTURES / f"{name}.png").write_bytes(png)

    def pictures(self) -> dict[str, bytes]:
        """The report's pictures by their captions."""
        return {p.stem: p.read_bytes() for p in sorted((self.folder / PICTURES).glob("*.png"))}

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json, which makes the run a finished one."""
        write_whole(self.folder / RESULTS, json.dumps(results, indent=2) + "\n")

    def results(self) -> dict[str, Any]:
        """What the run measured.

        Raises:
            UserError: the directory holds no finished run.
        """
        if not self.is_finished:
            raise UserError(f"{self}: holds no finished run (no {RESULTS})")
        return json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))

    def base_digest(self) -> str | None:
        """sha256 of the weights that the run started from; None for runs of before it was kept."""
        return self.results()["checkpoint"].get("sha256")

    def write_report(self, html: str) -> None:
        """Write report.html."""
        write_whole(self.folder / REPORT, html)


def find(places: list[str]) -> list[Run]:
    """The finished runs at or below some folders, in order and each once.

    Raises:
        UserError: a folder does not exist, or nothing finished is there.
    """
    found: dict[Path, Run] = {}
    for place in places:
        path = Path(place)
        if not path.is_dir():
            raise UserError(f"{place}: no such run directory")
        for results in sorted(path.rglob(RESULTS)):
            found.setdefault(results.parent.resolve(), Run(results.parent))
    if not found:
        raise UserError(f"{', '.join(places)}: no finished run there (no {RESULTS})")
    return list(found.values())


def one(place: str) -> Run:
    """The one run meant by a folder: itself, or the only run below it.

    Raises:
        UserError: there is none, or more than one.
    """
    runs = find([place])
    if len(runs) > 1:
        listed = ", ".join(str(run) for run in runs[:5])
        raise UserError(f"{place}: holds {len(runs)} runs; name one of {listed}")
    return runs[0]
