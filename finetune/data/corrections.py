"""Corrections, which join the training rows: a table with the text or image, and ``label``.

They are of a served model's answers (``finetune serve`` writes them, ``add_feedback`` names runs),
or of labels of the training rows (``corrections`` names files, such as a run's label_errors.csv).

- A correction is never in validation or test. One of a row there is a leak and is rejected.
- The newest correction of a text or image counts.
- It replaces the training rows with the same text or image, whatever their labels were.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas

from finetune.data import row_checks, splits
from finetune.data.row_kinds import RowKind
from finetune.errors import UserError
from finetune.recipe import Data

# In a run's directory; the images are named by the hash of their file.
FILE, IMAGES = "feedback.jsonl", "feedback"
# A file of which the first lines are read: corrections that are added later change no run.
PART = re.compile(r"(.*)\[:(\d+)\]")


def pinned(given: list[str] | str | None) -> list[str] | None:
    """Returns ``add_feedback`` with runs as the first lines of files: FILE[:N].

    Raises:
        UserError: a run has no corrections, or a folder has several runs with some.
    """
    if given is None:
        return None
    return [f"{file}[:{lines}]" for file, lines in map(_part, _listed(given))]


def _listed(given: list[str] | str | None) -> list[str]:
    return [name.strip() for name in given.split(",")] if isinstance(given, str) else given or []


def files(given: list[str] | str | None) -> list[str]:
    """Returns the files that ``add_feedback`` names."""
    return [_part(name)[0] for name in pinned(given) or []]


def _part(name: str) -> tuple[str, int]:
    """Returns a file, and how many of its lines are read."""
    if part := PART.fullmatch(name):
        return part[1], int(part[2])
    found = [Path(name)] if Path(name).is_file() else sorted(Path(name).rglob(FILE))
    if len(found) != 1:
        what = ", ".join(map(str, found)) or f"no {FILE}; `finetune serve {name}` collects it"
        raise UserError(f"add_feedback: {name}: needs one run with corrections and has {what}")
    # A line that is being written is not one yet.
    return str(found[0]), found[0].read_bytes().count(b"\n")


def section(data: Data) -> Data:
    """Returns the data section for a file of corrections, whose columns have the default names."""
    pair = "text_pair" if data.text_pair else None
    return Data(text_pair=pair, problem_type=data.problem_type, label_case=data.label_case)


def check(data: Data, labelled: bool) -> None:
    """Checks that corrections can be used at all.

    Raises:
        UserError: there are some, and the rows have no labels.
    """
    if (data.add_feedback or data.corrections) and not labelled:
        key = "add_feedback" if data.add_feedback else "corrections"
        raise UserError(f"{key}: corrections are labels, and this task learns none")


def load(data: Data, kind: RowKind, label_names: list[str]) -> "Corrections":
    """Reads the corrections that the recipe names.

    Args:
        label_names: of the training rows; none where labels have no names.

    Raises:
        UserError: a file cannot be read, or has a label that the training rows do not have.
    """
    own, frames, rejected = section(data), [], []
    named = [_part(name) for name in pinned(data.add_feedback) or []]
    for file, lines in [*((file, None) for file in _listed(data.corrections)), *named]:
        table = kind.read(file, own, True)
        if lines is not None:
            table.rows = table.rows.loc[table.rows.index <= lines]
            table.rejected = [row for row in table.rejected if row["line"] <= lines]
        frame = row_checks.usable(table, "feedback", own, kind, True)
        kind.encode_by(label_names, frame, table, own)
        frame["id"] = [table.at(line) for line in frame.index]
        frames.append(frame)
        rejected += table.rejected
    return Corrections(pandas.concat(frames, ignore_index=True), rejected)


class Corrections:
    """Corrected rows, oldest first, as in a ``Corpus``; their ids are files and lines.

    ``report`` counts what ``join`` did.
    """

    def __init__(self, rows: pandas.DataFrame, rejected: list[dict[str, Any]]) -> None:
        self.rows, self.rejected = rows, rejected
        self.report: dict[str, int] = {}

    def newest(self) -> pandas.DataFrame:
        """Returns the last correction of each text or image."""
        return self.rows.loc[~splits.contents(self.rows).duplicated(keep="last")]

    def join(self, train: splits.Frame, others: Mapping[str, pandas.DataFrame]) -> splits.Frame:
        """Returns the training rows with the corrections.

        Args:
            others: the rows of validation and test.
        """
        new = self.newest()
        self.report["corrections_superseded"] = len(self.rows) - len(new)
        for split, held_out in others.items():
            leaks = splits.contents(new).isin(set(splits.contents(held_out)))
            self.report[f"corrections_of_{split}_rows"] = int(leaks.sum())
            for name in new.loc[leaks, "id"]:
                source, _, line = name.rpartition(":")
                reason = f"corrects a row of {split}, so training on it would leak"
                self.rejected.append({"source": source, "line": int(line), "reason": reason})
            new = new.loc[~leaks]
        labels_of = dict(zip(splits.contents(new), new["label"].map(str), strict=True))
        now = splits.contents(train.rows).map(labels_of)
        old, same = now.notna(), now == train.rows["label"].map(str)
        self.report["corrections_repeating_train"] = int(same.sum())
        self.report["corrections_contradicting_train"] = int((old & ~same).sum())
        self.report["corrections"] = len(new)
        return replace(train, rows=pandas.concat([train.rows.loc[~old], new], ignore_index=True))
