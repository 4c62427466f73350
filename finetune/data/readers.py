"""Reads tables from files, folders and the hub, and keeps the line number of every row."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from finetune.data import sources
from finetune.errors import UserError, nearest

SUFFIXES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
# The files of a hub dataset that are downloaded: no code.
PATTERNS = ["*.parquet", "*.csv", "*.json", "*.jsonl", "README.md"]
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass
class Table:
    """Rows as they were read; the index is the line number (or row number), from 1.

    If ``source`` is a folder of files, the index is ``FILE:LINE``, or ``FILE`` if each file is a
    row. ``fixed`` counts what was normalized, ``rejected`` has the rejected rows (source, line,
    reason), and ``notes`` say what was guessed.
    """

    rows: pandas.DataFrame
    source: str
    label_names: list[str] | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Adds a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def place(self, index: object) -> tuple[str, int | None]:
        """Returns the file and line of a row; no line if the file is the row."""
        file, _, line = str(index).rpartition(":")
        if not line.isdecimal():
            return f"{self.source}/{index}", None
        return (f"{self.source}/{file}" if file else self.source), int(line)

    def at(self, index: object) -> str:
        """Returns the file and line of a row, for messages."""
        return where(*self.place(index))


def where(file: str, line: int | None) -> str:
    """Formats the place of a row for messages."""
    return file if line is None else f"{file}:{line}"


def unknown_name(source: str, what: str, name: str, known: list[str], key: str) -> UserError:
    """Returns the error for a split or column that does not exist, with the ``key`` to set."""
    hint = f"set `{key}:`; {nearest(name, known)}".rstrip("; ")
    return UserError(f"{source}: no {what} {name!r}; it has {', '.join(known)} ({hint})")


def _decode(path: Path, encoding: str, table: Table) -> str:
    data, mark = path.read_bytes(), b"\xef\xbb\xbf"
    start = len(mark) if data.startswith(mark) else 0
    if start:
        table.fixed["byte-order mark"] = table.fixed.get("byte-order mark", 0) + 1
    try:
        return data[start:].decode(encoding)
    except LookupError:
        raise UserError(f"encoding {encoding!r} is unknown; for example utf-8 or latin-1") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {encoding} at byte {start + error.start}; say what it is, "
            "for example `encoding: latin-1`"
        ) from None


def _check_columns(columns: list[str], path: Path) -> None:
    """Checks that no column name occurs twice."""
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise UserError(f"{path}:1: column {twice[0]!r} occurs twice in the header; rename one")


def _read_csv(path: Path, encoding: str, table: Table) -> pandas.DataFrame:
    """Reads CSV or TSV. All cells stay text: "NA" and "007" are what the user wrote."""
    csv.field_size_limit(2**31 - 1)
    text = _decode(path, encoding, table)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    rows, lines, line = [], [], 1
    try:
        header: list[str] = next(reader, [])
        _check_columns(header, path)
        line = reader.line_num + 1
        for row in reader:
            if len(row) != len(header) and row:
                raise UserError(
                    f"{path}:{line}: {len(row)} cells where the header has {len(header)}; "
                    "quote texts that contain a comma"
                )
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV: {error}") from None
    return pandas.DataFrame(rows, columns=header, index=lines, dtype=object)


def _read_json_lines(path: Path, encoding: str, table: Table) -> pandas.DataFrame:
    rows, lines = [], []
    for line, text in enumerate(_decode(path, encoding, table).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            reason = None if isinstance(row, dict) else "not a JSON object"
        except ValueError as error:
            row, reason = None, f"not JSON: {error}"
        if reason:
            table.rejected.append({"source": str(path), "line": line, "reason": reason})
        else:
            rows.append(row)
            lines.append(line)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    values = {c: [row.get(c) for row in rows] for c in columns}
    return pandas.DataFrame(values, index=lines, dtype=object)


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Reads a CSV, TSV, JSON lines or Parquet file, or a folder of files of one kind.

    Raises:
        UserError: missing, empty, of an unknown kind, not in ``encoding``, a ragged row or a
            duplicated column.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    table = Table(pandas.DataFrame(), str(path))
    files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path]
    if path.is_dir() and len({split for split, _ in split_files(path)}) > 1:
        raise UserError(f"{path}: has files of several splits; give it as `dataset:`")
    parts = []
    for file in files:
        if file.suffix in {".csv", ".tsv"}:
            parts.append(_read_csv(file, encoding, table))
        elif file.suffix in {".jsonl", ".json"}:
            parts.append(_read_json_lines(file, encoding, table))
        elif file.suffix == ".parquet":
            parts.append(_read_parquet(file))
        else:
            read = ", ".join(sorted(SUFFIXES))
            raise UserError(f"{file}: {file.suffix or 'no suffix'} is not read; {read} are")
    if sum(len(part) for part in parts) == 0:
        if table.rejected:
            first = table.rejected[0]
            raise UserError(
                f"{first['source']}:{first['line']}: {first['reason']}, and no row can be used; "
                "fix the file"
            )
        raise UserError(
            f"{path}: has no rows; a header and at least one row of each class are needed"
        )
    for file, part in zip(files, parts, strict=True):
        if list(part.columns) != list(parts[0].columns):
            raise UserError(
                f"{file}:1: columns {', '.join(part.columns)} differ from {files[0].name}'s "
                f"{', '.join(parts[0].columns)}; give all files the same columns"
            )
        if path.is_dir():
            part.index = pandas.Index([f"{file.name}:{line}" for line in part.index], dtype=object)
    table.rows = pandas.concat(parts)
    return table


def read_columns(path: Path, names: list[str], encoding: str) -> list[list[str]]:
    """Reads some columns of a table as text, in the order of ``names``; a missing value is empty.

    Raises:
        UserError: a column is missing, or as ``read_table`` does.
    """
    rows = read_table(path, encoding).rows
    for name in names:
        if name not in rows.columns:
            known = ", ".join(rows.columns)
            raise UserError(
                f"{path}: no column {name!r}; it has {known}; `finetune predict` takes another by "
                "--text, --text_pair or --image COLUMN"
            )
    return [
        ["" if value is None or value != value else str(value) for value in rows[name]]
        for name in names
    ]


def _read_parquet(path: Path) -> pandas.DataFrame:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not Parquet: {str(error).splitlines()[0]}") from None
    _check_columns(table.column_names, path)
    return _frame(table.to_pydict())


def _frame(columns: dict[str, list[Any]]) -> pandas.DataFrame:
    """Makes a frame of Python values: a missing label does not turn integers into floats."""
    rows = pandas.DataFrame(columns, dtype=object)
    rows.index = pandas.RangeIndex(1, len(rows) + 1)
    return rows


def from_snapshot(folder: Path, config: str | None, name: str) -> Any:
    """Loads the splits of a hub dataset's folder by their names, each a ``Dataset`` on disk.

    Raises:
        UserError: datasets cannot read it without running code.
    """
    from datasets import load_dataset

    try:
        return load_dataset(str(folder), config)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from None


def _from_datasets(folder: Path, config: str | None, name: str, label: str) -> dict[str, Table]:
    from datasets import ClassLabel, Image

    tables = {}
    for split, rows in from_snapshot(folder, config, name).items():
        feature = rows.features.get(label)
        names = feature.names if isinstance(feature, ClassLabel) else None
        for column, kind in rows.features.items():
            if isinstance(kind, Image):
                rows = rows.cast_column(column, Image(decode=False))
        tables[str(split)] = Table(_frame(rows[:]), f"{name} [{split}]", label_names=names)
    return tables


def split_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the splits of a folder and the file or folder of each, found by its name."""
    for split, stems in SPLIT_NAMES.items():
        for file in sorted(folder.iterdir()):
            if file.stem in stems and (file.suffix in SUFFIXES or file.is_dir()):
                yield split, file


def dataset(
    name: str,
    config: str | None,
    revision: str | None,
    label: str,
    encoding: str,
    read: Callable[[Path, str], Table] = read_table,
) -> tuple[dict[str, Table], str | None]:
    """Reads all splits of a named dataset; also returns the hub commit, if any.

    Args:
        read: reads a split's file or folder, given its encoding.

    Raises:
        UserError: it cannot be found or read.
    """
    if name.startswith("embedded:"):
        short = name.removeprefix("embedded:")
        file = sources.embedded(short, sources.EMBEDDED_DATASETS, "dataset")
        if file.suffix not in SUFFIXES:
            raise UserError(f"{name}: has images, not texts; embedded:imdb has texts")
        table = read_table(file)
        rows = table.rows.loc[table.rows["source"] == short].drop(columns="source")
        rows["label"] = rows["label"].astype(int)
        named = Table(rows, name, label_names=["negative", "positive"])
        return {"train": named}, None
    if Path(name).is_file():
        raise UserError(
            f"{name}: is a file; give it as `train:`, a dataset is a folder or a hub id"
        )
    if Path(name).is_dir():
        files = dict(split_files(Path(name)))
        if not files:
            raise UserError(f"{name}: has no train.csv (or .tsv, .jsonl, .parquet) and no train/")
        return {split: read(file, encoding) for split, file in files.items()}, None
    folder = sources.snapshot(name, revision, "dataset", PATTERNS)
    return _from_datasets(folder, config, name, label), folder.name
