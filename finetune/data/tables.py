"""A table of rows as it was read, and the names of its columns and places in messages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import pandas

from finetune.errors import UserError

# Names that a message lists, and characters of a value or name that it shows.
MOST_NAMES, MOST_SHOWN = 8, 24


@dataclass
class Table:
    """Rows as they were read; the index is the line number (or row number), from 1.

    If ``source`` is a folder of files, the index is ``FILE:LINE``, or ``FILE`` if each file is a
    row. ``folder`` is where the files are, if not in ``source``.

    ``fixed`` counts what was normalized, ``rejected`` has the rejected rows (source, line, reason),
    and ``notes`` say what was guessed, left out or looks wrong. ``header`` says that the names of
    the columns are the first line of a text file.
    """

    rows: pandas.DataFrame
    source: str
    label_names: list[str] | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folder: str | None = None
    header: bool = False

    def place(self, index: object) -> tuple[str, int | None]:
        """Returns the file and line of a row; no line if the file is the row."""
        file, _, line = str(index).rpartition(":")
        folder = Path(self.source if self.folder is None else self.folder)
        if not line.isdecimal():
            return str(folder / str(index)), None
        return (str(folder / file) if file else self.source), int(line)

    def at(self, index: object) -> str:
        """Returns the file and line of a row, for messages."""
        return where(*self.place(index))

    def note(self, text: str) -> None:
        """Adds a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def select(self, places: range) -> Self:
        """Returns the rows at ``places``, counted from 0, as ``Dataset.select`` does."""
        return replace(self, rows=self.rows.iloc[places.start : places.stop])

    def column(self, name: str, key: str) -> pandas.Series:
        """Returns a column by its name; upper and lower case may differ if only one name matches.

        Args:
            key: the key of the recipe that has the name, for messages.

        Raises:
            UserError: there is none, or there are two.
        """
        known = [str(c) for c in self.rows.columns]
        found = find_column(name, known)
        if found is None:
            if self.header and _looks_like_data(known, self.rows):
                raise UserError(
                    f"{self.source}: the first line looks like data, not like names of columns; "
                    f"write `--header none`, then the columns are named 1 to {len(known)} "
                    f"(--{key} 1)"
                )
            raise unknown_name(self.source, "column", name, known, key)
        if known.count(found) > 1:
            raise UserError(
                f"{self.source}: column {found!r} occurs twice in the header; rename one"
            )
        if found != name:
            self.note(f"column {found!r} taken for {name!r}")
        return self.rows.iloc[:, known.index(found)]


def find_column(name: str, known: list[str]) -> str | None:
    """Returns the column of that name, or the only one that differs in case or outer blanks."""
    if name in known:
        return name
    close = [c for c in known if c.strip().casefold() == name.strip().casefold()]
    return close[0] if len(close) == 1 else None


def _looks_like_data(names: list[str], rows: pandas.DataFrame) -> bool:
    def is_number(name: str) -> bool:
        return name.strip().replace(".", "", 1).lstrip("+-").isdecimal()

    if any(is_number(name) or len(name) > 40 for name in names):
        return True
    # A label in the first line that other lines have, too.
    return any(name in set(rows.iloc[:1000, i]) for i, name in enumerate(names))


def where(file: str, line: int | None) -> str:
    """Formats the place of a row for messages."""
    return file if line is None else f"{file}:{line}"


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Returns a value as a message shows it, cut to ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most + 2 else f"{text[:most]}…"


def listed(names: list[str]) -> str:
    """Returns names for a message: a few of them, each cut."""
    short = [n if len(n) <= MOST_SHOWN else f"{n[:MOST_SHOWN]}…" for n in names[:MOST_NAMES]]
    more = f", … ({len(names)})" if len(names) > MOST_NAMES else ""
    return ", ".join(short) + more


def unknown_name(source: str, what: str, name: str, known: list[str], key: str) -> UserError:
    """Returns the error for a split or column that does not exist, with the ``key`` to set."""
    close = get_close_matches(name, [k for k in known if len(k) <= MOST_SHOWN], n=1)
    hint = f"set `{key}:`" + (f"; did you mean {close[0]!r}?" if close else "")
    return UserError(f"{source}: no {what} {shown(name)}; it has {listed(known)} ({hint})")


def tidy(
    header: list[str],
    rows: Sequence[Sequence[object]],
    lines: list[int],
    name: str,
    table: Table,
) -> pandas.DataFrame:
    """Returns rows as a frame, without empty rows, empty columns, and columns without a name."""
    width = len(header)

    def is_empty(row: Sequence[object]) -> bool:
        for cell in row:
            if cell is not None and (not isinstance(cell, str) or cell.strip()):
                return False
        return True

    # One column's empty cells are its blank lines, and counted where they are left out.
    keep = [width == 1 or not is_empty(row) for row in rows]
    if dropped := keep.count(False):
        table.note(f"{name}: {dropped:,} empty rows left out")
        rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
        lines = [line for line, kept in zip(lines, keep, strict=True) if kept]
    widths = Counter(map(len, rows))
    longer = sum(count for cells, count in widths.items() if cells > width)
    if longer:
        table.note(f"{name}: trailing delimiters of {longer:,} rows left out")
    if widths.keys() - {width}:
        rows = [[*row[:width], *[""] * (width - len(row))] for row in rows]
    frame = pandas.DataFrame(rows, index=lines, dtype=object)
    frame = frame if len(rows) else pandas.DataFrame(columns=range(width), dtype=object)
    frame.columns = header
    unnamed = [i for i, column in enumerate(header) if not column]
    if unnamed:
        bare = [i for i in unnamed if is_empty(list(frame.iloc[:, i]))]
        if bare:
            table.note(f"{name}: {len(bare)} empty columns left out")
        if len(bare) < len(unnamed):
            at = next(i for i in unnamed if i not in bare)
            example = shown(frame.iloc[0, at]) if len(frame) else ""
            table.note(
                f"{name}: column {at + 1}, which has no name (it begins with {example}), left out"
            )
        frame = frame.iloc[:, [i for i in range(width) if i not in unnamed]]
    return frame
