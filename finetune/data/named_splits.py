"""Finds the tables of train, validation and test: files, or splits of a named dataset.

- A split is a file of its own, or else the split of that name in the named dataset, or a part of
  one (``train[:50%]``).
- No row of a dataset serves two splits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from finetune.data import readers, table_files
from finetune.data.splits import SAMPLE, SPLITS
from finetune.errors import UserError
from finetune.recipe import Data

# Of several files, so many are named.
MOST_FILES = 3


@dataclass
class Found:
    """What the recipe names: a table for train and, where they exist, validation and test.

    ``commit`` is that of the hub dataset, if it is one. ``test_is`` says whether a test is the hub
    or embedded dataset's own, see ``splits.Chosen``. ``unread``: there is a test that is not
    read.
    """

    tables: dict[str, Any]
    source: str
    commit: str | None = None
    test_is: str = "given"
    notes: list[str] = field(default_factory=list)
    unread: bool = False


def find(
    data: Data,
    read: Callable[[str | list[str]], Any],
    dataset: Callable[[Data], tuple[dict[str, Any], str | None]],
) -> Found:
    """Finds the tables of the splits.

    Args:
        read: reads a file, files, or a folder.
        dataset: reads all splits of ``data.dataset`` and returns them with the hub commit, if any.

    Raises:
        UserError: a split does not exist, or there is none to train on.
    """
    if data.dataset is None:
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        unread = data.untested and bool(data.test)
        files = {s: file for s, file in named.items() if file and not (unread and s == "test")}
        tables = {split: read(file) for split, file in files.items()}
        source = ", ".join(_written(file) for file in files.values())
        return Found(tables, source, unread=unread)
    known, commit = dataset(data)
    tables, own_files, notes = {}, [], []
    parts = {}
    for split in SPLITS:
        name = getattr(data, split)
        if table_files.is_file(name):
            tables[split] = None if data.untested and split == "test" else read(name)
            own_files.append(_written(name))
        elif name is not None:
            parts[split] = _part(str(name), known, data, split)
    for split in SPLITS:
        if split in known and split not in tables and split not in parts:
            user = next((s for s, (base, _) in parts.items() if base == split), None)
            if user is None or split == "train":
                parts[split] = (split, range(len(_rows_of(known[split]))))
            else:
                notes.append(f"split {split} serves as {user}, {split} is taken from train")
    parts = {split: parts[split] for split in SPLITS if split in parts}
    _check_apart(parts, data.dataset)
    for split, (base, places) in parts.items():
        whole = len(places) == len(_rows_of(known[base]))
        tables[split] = known[base] if whole else known[base].select(places)
    if "train" not in tables:
        raise readers.unknown_name(data.dataset, "split", "train", list(known), "train")
    tables = {split: tables[split] for split in SPLITS if split in tables}
    test_is = "given"
    published = commit or data.dataset.startswith("embedded:")
    if published and "test" in parts:
        base, places = parts["test"]
        whole = len(places) == len(_rows_of(known[base]))
        test_is = "official" if whole else SAMPLE
    unread = data.untested and "test" in tables
    if unread:
        del tables["test"]
    return Found(tables, ", ".join([data.dataset, *own_files]), commit, test_is, notes, unread)


def _rows_of(table: Any) -> Any:
    """Returns the rows of a ``readers.Table``, or a ``Dataset`` as it is."""
    return table.rows if isinstance(table, readers.Table) else table


def _written(files: str | list[str]) -> str:
    names = files.split(",") if isinstance(files, str) else files
    if len(names) > MOST_FILES:
        return f"{', '.join(names[:MOST_FILES])}, … ({len(names)} files)"
    return files if isinstance(files, str) else ", ".join(files)


def _part(name: str, known: dict[str, Any], data: Data, key: str) -> tuple[str, range]:
    """Returns the split that ``train[:50%]`` or ``train`` is a part of, and the places of its rows.

    Raises:
        UserError: there is no such split, or the part is written wrong or empty.
    """
    dataset = str(data.dataset)
    base, bracket, _ = name.partition("[")
    if base not in known:
        raise readers.unknown_name(dataset, "split", base, list(known), key)
    rows = len(_rows_of(known[base]))
    if not bracket or base == table_files.unread(data):
        return base, range(rows)
    from datasets import ReadInstruction

    try:
        (found,) = ReadInstruction.from_spec(name).to_absolute({base: rows})
    except (ValueError, AssertionError):
        raise UserError(
            f"{dataset}: {key}: {name!r} is no part of a split; write for example {base}[:50%] or "
            f"{base}[:1000]"
        ) from None
    places = range(found.from_ or 0, rows if found.to is None else found.to)
    if not places:
        raise UserError(f"{dataset}: {key}: {name!r} has no rows; {base} has {rows}")
    return base, places


def _check_apart(parts: Mapping[str, tuple[str, range]], dataset: str) -> None:
    """Checks that no row of a dataset is in two splits.

    Raises:
        UserError: one is.
    """
    for (a, (base, ours)), (b, (other, theirs)) in combinations(parts.items(), 2):
        if base == other and max(ours.start, theirs.start) < min(ours.stop, theirs.stop):
            raise UserError(
                f"{dataset}: {a} and {b} both use rows of {base}; give {b} another split or part, "
                f"such as {base}[80%:], or leave it out"
            )
