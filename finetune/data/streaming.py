"""Loads a corpus larger than memory: documents stay on disk and are read when they are needed.

- The files are converted to Arrow tables once, in the cache of datasets, and memory-mapped.
- One pass over the documents computes a digest of each (8 bytes a row in memory), by which
  duplicates are found and splits are taken.
- Every row can be reached directly: training shuffles over the whole corpus, and a resumed run
  continues without reading what came before.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy
import pandas
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from finetune.data import (
    chats,
    corpus,
    corrections,
    dialects,
    document_columns,
    document_rows,
    named_splits,
    plain_rows,
    readers,
    row_checks,
    sources,
    splits,
    table_files,
)
from finetune.data.corpus import Corpus
from finetune.data.document_columns import Layout
from finetune.data.plain_rows import PlainRows
from finetune.errors import UserError
from finetune.recipe import Data

# The names that datasets has for the kinds of files.
BUILDERS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "json"),
    **{".parquet": "parquet", ".arrow": "arrow", ".txt": "text", ".md": "text"},
}
# Bytes of a file by which its encoding and delimiter are found.
HEAD = 1 << 20
# Rows that are read together.
WINDOW = 1000


@dataclass
class OnDisk:
    """Usable documents on disk, as ``splits.Rows``.

    ``digests`` (N,) uint64 has one for each row of ``rows``, by which equal documents are found;
    ``exact`` (N,) uint64 one that counts blanks, too. ``places`` (M,) says which of them these are,
    in random order if ``shuffled``; ``singles`` which of those have a digest that no other row has,
    in random order.
    """

    rows: Dataset
    source: str
    digests: numpy.ndarray
    places: numpy.ndarray
    singles: numpy.ndarray
    draw: numpy.random.Generator
    rejected: list[dict[str, Any]] = field(default_factory=list)
    fixed: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    exact: numpy.ndarray = field(default_factory=lambda: numpy.zeros(0, dtype=numpy.uint64))
    shuffled: bool = False

    def __len__(self) -> int:
        return len(self.places)

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    def unique(self) -> int:
        return len(self.singles)

    def take(self, count: int, seed: int) -> tuple[Self, Self]:
        taken, singles = self.singles[:count], self.singles[count:]
        places = numpy.setdiff1d(self.places, taken, assume_unique=True)
        return replace(self, places=places, singles=singles), replace(
            self, places=taken, singles=taken, shuffled=True
        )

    def sample(self, count: int, seed: int) -> Self:
        if self.shuffled:
            return replace(self, places=self.places[:count])
        return replace(self, places=numpy.sort(self.draw.choice(self.places, count, replace=False)))

    def duplicates(self) -> int:
        found = self.digests[self.places]
        return len(found) - len(numpy.unique(found))

    def contradictions(self) -> list[list[str]]:
        return []

    def shared(self, other: pandas.DataFrame) -> list[str]:
        cells = other.drop(columns="id").itertuples(index=False)
        found = numpy.array([_digest([str(c) for c in row]) for row in cells], numpy.uint64)
        return list(other["id"][numpy.isin(found, self.digests[self.places])])

    def frame(self) -> pandas.DataFrame:
        places = numpy.sort(self.places)
        columns = as_text(self.rows.select(places)[:])
        return pandas.DataFrame({"id": [f"train-{i}" for i in places], **columns}, dtype=object)


def load(data: Data, kind: PlainRows = corpus.TEXTS, labelled: bool = False) -> Corpus:
    """Loads rows without labels as ``corpus.load`` does, but leaves the training rows on disk.

    ``train`` is a ``Dataset`` with a column for each part of a document. Validation and test rows
    are read into memory.

    Raises:
        UserError: invalid or misleading data; see the messages.
    """
    assert not labelled
    corrections.check(data, labelled)
    if data.sample_seed is not None:
        raise UserError("streaming: split_seed draws the training rows; leave sample_seed out")
    notes: list[str] = []
    found = named_splits.find(
        data, lambda files: _read(files, data, notes), lambda data: _dataset(data, notes)
    )
    notes += found.notes
    train = _usable(found.tables.pop("train"), found.source, data, kind)
    others: dict[str, splits.Rows] = {}
    for split, rows in found.tables.items():
        frame = pandas.DataFrame(rows[:], dtype=object)
        frame.index += 1
        table = readers.Table(frame, f"{found.source} [{split}]")
        usable = row_checks.usable(table, split, data, kind, False)
        others[split] = splits.Frame(usable, table.source, table.rejected, table.fixed, table.notes)
    splits.check({"train": train, **others})
    chosen = splits.choose(
        train, others, data, found.source, found.test_is, notes, unread=found.unread
    )
    places = chosen.train.places
    return Corpus(
        train.rows.select(places) if len(places) < len(train.rows) else train.rows,
        chosen.validation,
        chosen.test,
        label_names=[],
        problem_type=corpus.UNLABELLED,
        source=found.source,
        revision=found.commit,
        test_is=chosen.test_is,
        report=chosen.report,
        rejected=chosen.rejected,
        train_digest=hashlib.sha256(train.exact[places].tobytes()).hexdigest(),
    )


def batches(rows: Dataset | pandas.DataFrame) -> Iterator[list[list[str]]]:
    """Yields the columns of ``WINDOW`` rows at a time, each cell as text."""
    for start in range(0, len(rows), WINDOW):
        if isinstance(rows, Dataset):
            columns = as_text(rows[start : start + WINDOW])
        else:
            columns = rows.drop(columns="id").iloc[start : start + WINDOW].to_dict("list")
        yield list(columns.values())


def as_text(columns: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Returns cells as ``Corpus`` has them: texts, and chats as JSON."""
    return {
        name: [chats.read(c).as_text() if name == "messages" else str(c) for c in cells]
        for name, cells in columns.items()
    }


def _read(given: str | Sequence[str | Path], data: Data, notes: list[str]) -> Dataset:
    """Reads a file, several files, or all files of a folder, as rows on disk.

    What was detected is added to ``notes``.

    Raises:
        UserError: it does not exist, is of an unknown kind, or cannot be read.
    """
    paths = table_files.expand(given)
    path = paths[0] if len(paths) == 1 else given
    inside = [f for p in paths for f in (table_files.inside(p) if p.is_dir() else [p])]
    kinds = {table_files.kind(f) for f in inside}
    if len(kinds) != 1 or not kinds <= set(BUILDERS):
        raise UserError(
            f"{path}: has {', '.join(sorted(kinds)) or 'no tables'}; give files of one kind: "
            f"{', '.join(BUILDERS)}"
        )
    suffix = kinds.pop()
    kind = BUILDERS[suffix]
    options: dict[str, Any] = {}
    head = b""
    if kind not in {"parquet", "arrow"}:
        head = table_files.read_start(inside[0], HEAD)
        head = head[: head.rfind(b"\n") + 1] or head
        found = dialects.known(data.encoding) if data.encoding else dialects.detect(head)
        options["encoding"] = found
        if found != "utf-8" and not data.encoding:
            notes.append(f"{inside[0]} read as {found}, `--encoding` insists on another")
    if kind == "csv":
        # All cells stay text: "NA" and "007" are what the user wrote.
        lines = io.StringIO(head.decode(options["encoding"], "replace"), newline="").readlines()
        default = "," if suffix == ".csv" else "\t"
        sign = data.delimiter and dialects.delimiter(data.delimiter)
        sign = sign or dialects.sniff(lines, default)
        if sign != default and not data.delimiter:
            notes.append(
                f"{inside[0].name} read with {dialects.name(sign)} as delimiter, `--delimiter` "
                "insists on another"
            )
        options |= {"sep": sign, "keep_default_na": False}
        header = next(csv.reader(lines, delimiter=sign), [])
        # A column of texts may be longer than 2 GiB, the most that offsets of 32 bits reach.
        options["features"] = Features(
            {name.removeprefix("\ufeff"): Value("large_string") for name in header}
        )
    if kind == "text":
        options["sample_by"] = data.sample_by or ("line" if len(inside) == 1 else "document")
    names = [str(f.resolve()) for f in inside]
    try:
        # Of several processes one converts the files, under a lock; the others use its result.
        return load_dataset(kind, data_files=names, split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path}: cannot be read as {kind}: {cause[:200]}") from None


def _dataset(data: Data, notes: list[str]) -> tuple[dict[str, Dataset], str | None]:
    """Returns all splits of a named dataset, and the hub commit they came from, if any."""
    name = str(data.dataset)
    if name.startswith("embedded:"):
        tables, commit = readers.dataset(data)
        return {k: Dataset.from_pandas(t.rows, preserve_index=False) for k, t in tables.items()}, (
            commit
        )
    if Path(name).is_dir():
        unread = table_files.unread(data)
        if saved := readers.saved_splits(Path(name), unread):
            return dict(saved), None
        return {
            split: Dataset.from_dict({}) if split == unread else _read(files, data, notes)
            for split, files in readers.split_files(Path(name))
        }, None
    folder = sources.snapshot(name, data.dataset_revision, "dataset", readers.PATTERNS)
    loaded = readers.from_snapshot(folder, data.dataset_config, name)
    return {str(split): rows for split, rows in loaded.items()}, folder.name


def _usable(rows: Dataset, source: str, data: Data, kind: PlainRows) -> OnDisk:
    """Checks the training rows, and keeps the columns of their content.

    Raises:
        UserError: a column is missing, or too many rows are unusable.
    """
    layout = kind.layout(source, rows[: document_columns.SAMPLE], data)
    rows = _documents(rows.select_columns(layout.columns), layout)
    found = _digests(rows, layout)
    digests, rejected = found.contents, found.rejected
    if len(rejected) > row_checks.most_rejected(len(rows), data):
        raise UserError(
            f"{source}: {rejected[0]['reason']} (row {rejected[0]['line']}); {len(rejected)} of "
            f"{len(rows)} rows cannot be used, fix the file"
        )
    places, draw = numpy.flatnonzero(digests), numpy.random.default_rng(data.split_seed)
    _, first, counts = numpy.unique(digests[places], return_index=True, return_counts=True)
    singles = draw.permutation(numpy.sort(places[first[counts == 1]]))
    blank = len(rows) - len(places) - len(rejected)
    fixed = dict.fromkeys(layout.notes, len(rows)) | found.fixed
    if blank:
        fixed[plain_rows.BLANK] = blank
    return OnDisk(rows, source, digests, places, singles, draw, rejected, fixed, exact=found.exact)


def _documents(rows: Dataset, layout: Layout) -> Dataset:
    """Returns the parts of documents; where several columns make one, as a copy on disk."""
    if all(len(names) == 1 for names in layout.parts.values()):
        return rows.rename_columns({names[0]: part for part, names in layout.parts.items()})

    def made(batch: dict[str, list[Any]]) -> dict[str, list[str | None]]:
        return {
            part: [
                cell if cell is None or isinstance(cell, str) else json.dumps(cell)
                for cell in cells
            ]
            for part, cells in layout.documents(batch).items()
        }

    return rows.map(made, batched=True, remove_columns=rows.column_names)


@dataclass
class Digests:
    """Of each row: ``contents`` (N,) uint64, without blanks at either end; ``exact`` (N,) uint64.

    A row that cannot be used has ``contents`` 0. A blank text is no mistake, and so is not among
    the ``rejected`` rows.
    """

    contents: numpy.ndarray
    exact: numpy.ndarray
    rejected: list[dict[str, Any]] = field(default_factory=list)
    fixed: Counter[str] = field(default_factory=Counter)


def _digests(rows: Dataset, layout: Layout) -> Digests:
    """Reads each document once."""
    empty_digests = numpy.zeros(len(rows), dtype=numpy.uint64)
    found = Digests(empty_digests, empty_digests.copy())
    at = 0
    for batch in rows.iter(WINDOW):
        assert isinstance(batch, dict)
        for cells in zip(*batch.values(), strict=True):
            empty = [p for p, c in zip(batch, cells, strict=True) if readers.is_missing(c)]
            read = [
                ("", None, []) if empty else document_rows.document(part, layout.name(part), cell)
                for part, cell in zip(batch, cells, strict=True)
            ]
            reason = next((fault for _, fault, _ in read if fault), None)
            if empty and empty != ["text"]:
                reason = f"empty {' and '.join(layout.name(part) for part in empty)}"
            if reason:
                found.rejected.append({"source": "train", "line": at + 1, "reason": reason})
            elif not empty:
                texts = [text for text, _, _ in read]
                found.contents[at], found.exact[at] = _digest(texts), _hash("\0".join(texts))
                found.fixed.update(change for _, _, changes in read for change in changes)
            at += 1
    return found


def _digest(cells: list[str]) -> int:
    """Returns 64 bits of a hash of a document's parts without blanks at either end, never 0."""
    return _hash("\0".join(cell.strip() for cell in cells)) | 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
