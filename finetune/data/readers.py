"""Reads tables from files, folders and the hub, and keeps the line number of every row."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas

from finetune.data import (
    conll,
    delimited,
    dialects,
    excel,
    json_tables,
    orange_tables,
    sources,
    table_files,
)
from finetune.data.headlines import read_articles
from finetune.data.pronunciations import read_dictionary
from finetune.data.table_files import SUFFIXES as SUFFIXES
from finetune.data.table_files import split_files as split_files
from finetune.data.tables import Table as Table
from finetune.data.tables import listed
from finetune.data.tables import unknown_name as unknown_name
from finetune.data.tables import where as where
from finetune.errors import UserError
from finetune.recipe import Data

# The files of a hub dataset that are downloaded: no code.
PATTERNS = ["*.parquet", "*.csv", "*.json", "*.jsonl", "README.md"]


def _decode(path: Path, data: Data, table: Table) -> str:
    content = table_files.read_bytes(path)
    text, notes = dialects.decode(content, data.encoding, str(path))
    for note in notes:
        table.note(note)
    if content.startswith(b"\xef\xbb\xbf"):
        table.fixed["byte-order mark"] = table.fixed.get("byte-order mark", 0) + 1
    return text


def _read_file(path: Path, kind: str, data: Data, table: Table, alone: bool) -> pandas.DataFrame:
    if kind in table_files.DELIMITED or (data.delimiter and kind not in SUFFIXES):
        default = "," if kind == ".csv" else "\t"
        return delimited.read(_decode(path, data, table), default, data, path, table)
    if kind in table_files.JSON:
        return json_tables.read(_decode(path, data, table), path, table)
    if kind in table_files.CONLL:
        return conll.read(_decode(path, data, table), path, table)
    if kind in table_files.TEXT:
        return _read_text(path, data, table, alone)
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".arrow":
        return _read_arrow(path)
    if kind == ".xlsx":
        return excel.read(path, data, table)
    read = ", ".join(sorted({*SUFFIXES, *table_files.TEXT}))
    old = "; save it as .xlsx or .csv" if kind in {".xls", ".ods"} else ""
    raise UserError(f"{path}: {kind or 'no suffix'} is not read{old or f'; {read} are'}")


def read_table(given: str | Path | Sequence[str | Path], data: Data | None = None) -> Table:
    """Reads a file, several files, or a folder of files with the same columns.

    Args:
        given: a path, a list of paths, paths with commas between them, or a pattern with ``*``.
        data: says how files are written, where that is not to be detected.

    Raises:
        UserError: missing, empty, of an unknown kind, not in the encoding, or a ragged row.
    """
    data = data or Data()
    paths = table_files.expand(given)
    if len(paths) == 1 and paths[0].is_dir():
        return _read_folder(paths[0], data)
    if len(paths) == 1:
        table = Table(pandas.DataFrame(), str(paths[0]))
        return _joined(paths, [str(paths[0])], data, table)
    files = [f for path in paths for f in (table_files.inside(path) if path.is_dir() else [path])]
    source = given if isinstance(given, str) else ", ".join(str(path) for path in paths)
    table = Table(pandas.DataFrame(), source if len(source) <= 100 else f"{source[:100]}…")
    folders = {file.parent for file in files}
    one = len(folders) == 1
    table.folder = str(folders.pop()) if one else ""
    return _joined(files, [file.name if one else str(file) for file in files], data, table)


def _read_folder(folder: Path, data: Data) -> Table:
    table = Table(pandas.DataFrame(), str(folder))
    if (folder / "dataset_dict.json").is_file():
        raise UserError(f"{folder}: has several splits; give it as `dataset:`")
    if (folder / "state.json").is_file():
        table.rows, table.label_names = _read_saved(folder, data)
        return table
    if len(split_files(folder)) > 1:
        raise UserError(f"{folder}: has files of several splits; give it as `dataset:`")
    files = table_files.inside(folder)
    return _joined(files, [file.name for file in files], data, table)


def _joined(files: list[Path], names: list[str], data: Data, table: Table) -> Table:
    """Reads files into one table; the columns may be in another order in each."""
    parts, several = [], len(files) > 1 or names != [table.source]
    for file in files:
        kind = table_files.kind(file)
        if not kind and file.suffix.lower() == ".zip":
            kind = table_files.zipped_kind(file)
        parts.append(_read_file(file, kind, data, table, not several))
    if sum(len(part) for part in parts) == 0:
        if table.rejected:
            first = table.rejected[0]
            raise UserError(
                f"{first['source']}:{first['line']}: {first['reason']}, and no row can be used; "
                "fix the file"
            )
        raise UserError(
            f"{table.source}: has no rows; a header and at least one row of each class are needed"
        )
    columns = list(parts[0].columns)
    for at, (file, name) in enumerate(zip(files, names, strict=True)):
        ours = list(parts[at].columns)
        if sorted(ours) != sorted(columns):
            raise UserError(
                f"{file}:1: columns {listed(ours)} differ from {files[0].name}'s "
                f"{listed(columns)}; give all files the same columns"
            )
        if ours != columns and len(set(columns)) == len(columns):
            parts[at] = parts[at][columns]
            table.note("columns in another order between files")
        if several:
            index = [name if line is None else f"{name}:{line}" for line in parts[at].index]
            parts[at].index = pandas.Index(index, dtype=object)
    table.rows = pandas.concat(parts)
    return table


def read_columns(path: Path, names: list[str], data: Data) -> list[list[str]]:
    """Reads some columns of a table as text, in the order of ``names``; a missing cell is empty.

    Raises:
        UserError: a column is missing, or as ``read_table`` does.
    """
    table = read_table(path, data)
    for name in names:
        if name not in table.rows:
            known = listed([str(column) for column in table.rows])
            raise UserError(
                f"{path}: no column {name!r}; it has {known}; `finetune predict` takes another by "
                "--text, --text_pair, --source or --image COLUMN"
            )
    columns = [table.column(name, name) for name in names]
    return [["" if is_missing(v) else str(v) for v in column] for column in columns]


def is_missing(value: Any) -> bool:
    """Returns whether a cell is empty: blank, None or not a number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


# --- kinds of files --------------------------------------------------------------------------


def _read_text(path: Path, data: Data, table: Table, alone: bool) -> pandas.DataFrame:
    """Reads plain text: a row for each line, paragraph, or the whole document."""
    text = _decode(path, data, table)
    by = data.sample_by or ("line" if alone else "document")
    table.note(f"each {by} of a text file is a row, `--sample_by` says otherwise")
    if by == "document":
        return pandas.DataFrame({"text": [text]}, index=[1], dtype=object)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if by == "line":
        return pandas.DataFrame({"text": lines}, index=range(1, len(lines) + 1), dtype=object)
    rows, starts = [], []
    for number, line in enumerate(lines, 1):
        if line.strip() and starts and rows[-1]:
            rows[-1].append(line)
        elif line.strip():
            rows[-1:] = [[line]] if rows and not rows[-1] else [*rows[-1:], [line]]
            starts.append(number)
        elif rows and rows[-1]:
            rows.append([])
    paragraphs = ["\n".join(row) for row in rows if row]
    return pandas.DataFrame({"text": paragraphs}, index=starts, dtype=object)


def _read_parquet(path: Path) -> pandas.DataFrame:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(io.BytesIO(table_files.read_bytes(path))).read()
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not Parquet: {str(error).splitlines()[0][:120]}") from None
    return _from_arrow(table)


def _read_arrow(path: Path) -> pandas.DataFrame:
    """Reads Arrow's file or stream format."""
    from pyarrow import ArrowInvalid, ipc

    content = table_files.read_bytes(path)
    try:
        opened = ipc.open_file if content.startswith(b"ARROW1") else ipc.open_stream
        table = opened(content).read_all()
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not Arrow: {str(error).splitlines()[0][:120]}") from None
    return _from_arrow(table)


def _from_arrow(table: Any) -> pandas.DataFrame:
    """Makes a frame of Python values: a missing label does not turn integers into floats."""
    values = [column.to_pylist() for column in table.columns]
    frame = pandas.DataFrame(dict(enumerate(values)), dtype=object)
    frame.columns = table.column_names
    frame.index = pandas.RangeIndex(1, len(frame) + 1)
    return frame


def _read_saved(folder: Path, data: Data) -> tuple[pandas.DataFrame, list[str] | None]:
    """Reads a folder that ``Dataset.save_to_disk`` wrote, and its label names, if it has any."""
    from datasets import load_from_disk

    try:
        return _from_dataset(load_from_disk(str(folder)), data)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a saved data set: {str(error)[:120]}") from None


# --- datasets --------------------------------------------------------------------------------


def from_snapshot(folder: Path, config: str | None, name: str) -> Any:
    """Loads the splits of a hub dataset's folder by their names, each a ``Dataset`` on disk.

    Raises:
        UserError: datasets cannot read it without running code.
    """
    from datasets import load_dataset

    try:
        return load_dataset(str(folder), config)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0][:200]}") from None


def saved_splits(folder: Path, unread: str | None = None) -> Any:
    """Returns the splits that ``save_to_disk`` wrote, or None; one of them may stay empty."""
    parts = folder / "dataset_dict.json"
    if not parts.is_file() and not (folder / "state.json").is_file():
        return None
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        if unread and parts.is_file():
            names = json.loads(parts.read_text(encoding="utf-8"))["splits"]
            empty = Dataset.from_dict({})
            return DatasetDict(
                {n: empty if n == unread else load_from_disk(str(folder / n)) for n in names}
            )
        found = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a saved data set: {str(error)[:120]}") from None
    return found if isinstance(found, DatasetDict) else DatasetDict({"train": found})


def _from_dataset(rows: Any, data: Data) -> tuple[pandas.DataFrame, list[str] | None]:
    """Returns the rows of a ``Dataset``, images as files, and the names of its label column."""
    from datasets import ClassLabel, Image, List

    feature = rows.features.get(data.label) if isinstance(data.label, str) else None
    inner = feature.feature if isinstance(feature, List) else feature
    names = inner.names if isinstance(inner, ClassLabel) else None
    for column, kind in rows.features.items():
        if isinstance(kind, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return _from_arrow(rows.with_format("arrow")[:]), names


def _from_datasets(splits: Any, name: str, data: Data) -> dict[str, Table]:
    tables = {}
    for split, rows in splits.items():
        frame, names = _from_dataset(rows, data)
        tables[str(split)] = Table(frame, f"{name} [{split}]", label_names=names)
    return tables


def dataset(
    data: Data, read: Callable[[Any, Data], Table] = read_table
) -> tuple[dict[str, Table], str | None]:
    """Reads all splits of ``data.dataset``; also returns the hub commit, if any.

    A split that ``untested`` leaves unread has no rows.

    Args:
        read: reads a split's files or folder.

    Raises:
        UserError: it cannot be found or read.
    """
    name, unread = str(data.dataset), table_files.unread(data)
    if name.startswith("embedded:"):
        return _embedded(name, unread), None
    folder = Path(name)
    if folder.is_file():
        raise UserError(
            f"{name}: is a file; give it as `train:`, a dataset is a folder or a hub id"
        )
    if folder.is_dir():
        if (saved := saved_splits(folder, unread)) is not None:
            return _from_datasets(saved, name, data), None
        files = split_files(folder)
        if not files:
            raise UserError(f"{name}: has no train.csv (or .tsv, .jsonl, .parquet) and no train/")
        one = {split: found[0] if len(found) == 1 else found for split, found in files}
        empty = Table(pandas.DataFrame(), name)
        return {
            split: empty if split == unread else read(found, data) for split, found in one.items()
        }, None
    commit = sources.snapshot(name, data.dataset_revision, "dataset", PATTERNS)
    splits = from_snapshot(commit, data.dataset_config, name)
    if unread in splits:
        # datasets has converted its files; none of its rows is looked at.
        splits[unread] = splits[unread].select([])
    return _from_datasets(splits, name, data), commit.name


def _embedded(name: str, unread: str | None) -> dict[str, Table]:
    short = name.removeprefix("embedded:")
    file = sources.embedded(short, sources.EMBEDDED_DATASETS, "dataset")
    if file.is_dir():
        return {"train": read_articles(file, name)}
    if file.suffix == ".txt":
        table = Table(pandas.DataFrame(), name)
        table.rows = _read_file(file, ".conll", Data(), table, True)
        return {"train": table}
    if file.suffix == ".dict":
        return {"train": read_dictionary(file, name)}
    if file.suffix == ".tab":
        return orange_tables.splits(file, name, unread)
    if table_files.kind(file) != ".csv" or file.suffix == ".gz":
        raise UserError(f"{name}: has images, not texts; embedded:imdb has texts")
    table = read_table(file)
    rows = table.rows.loc[table.rows["source"] == short].astype({"label": int})
    return {"train": Table(rows.drop(columns="source"), name, label_names=["negative", "positive"])}
