"""Parses delimited text (CSV, TSV): every cell stays the text that was written.

Whether quotes enclose cells is decided by the whole file, because a quote that is part of a text
must not swallow the lines up to the next one:

- With quoting, every quoted cell has to close and every row to have the header's number of cells.
- If not, the file is tried with backslash-escaped quotes, with a space after the delimiter, and
  without quoting, where each line is a row.
- A cell that spans lines is only accepted if those lines, read by themselves, could not be rows.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from finetune.data import dialects, multiline_cells, tables
from finetune.data.tables import Table
from finetune.errors import UserError
from finetune.recipe import Data

SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")
# \" that is no escaped backslash before a closing quote.
ESCAPED = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
SPACES = ": blanks after the delimiter left out"


@dataclass
class Reading:
    """Rows of cells, and the line that each starts at, from 0; ``ends`` is the line after it."""

    rows: list[list[str]]
    starts: list[int]
    ends: list[int]
    width: int = 0
    # The place of the first row with a wrong number of cells, or the line that cannot be parsed.
    ragged: int | None = None
    error: tuple[int, str] | None = None

    @property
    def fits(self) -> bool:
        """Returns whether all of it was parsed, into rows of one width."""
        return self.error is None and self.ragged is None


def read(text: str, default: str, data: Data, path: Path, table: Table) -> pandas.DataFrame:
    """Returns a file's rows with the names of its columns, indexed by line number.

    Args:
        default: the delimiter that the file's suffix stands for.

    Raises:
        UserError: a row has the wrong number of cells, or a quote does not close.
    """
    csv.field_size_limit(2**31 - 1)
    first = 1
    sign = dialects.delimiter(data.delimiter) if data.delimiter else None
    if match := SEPARATOR_LINE.match(text):
        text, first, sign = text[match.end() :], 2, sign or match[1]
    lines = io.StringIO(text, newline="").readlines()
    if sign is None:
        sign = dialects.sniff(lines, default)
    if sign != default and not data.delimiter:
        name = dialects.name(sign)
        table.note(f"{path.name} read with {name} as delimiter, `--delimiter` insists on another")
    found = _decide(_File(path, lines, sign, data.header == "none", first, table, '"' in text))
    return _frame(found, data.header == "none", first, path, table)


# --- readings --------------------------------------------------------------------------------


def _parse(lines: list[str], sign: str, numbered: bool, **options: Any) -> Reading:
    reader = csv.reader(lines, delimiter=sign, strict=True, **options)
    out = Reading([], [], [])
    rows, starts, ends, start = out.rows, out.starts, out.ends, 0
    try:
        for row in reader:
            if row:
                rows.append(row)
                starts.append(start)
                ends.append(reader.line_num)
            start = reader.line_num
    except csv.Error as error:
        out.error = (start, str(error))
    if rows:
        out.width = max(map(len, rows)) if numbered else len(rows[0])
        out.ragged = _ragged(rows, numbered)
    return out


def _ragged(rows: list[list[str]], numbered: bool) -> int | None:
    """Returns the place of the first row that has not as many cells as the others."""
    most = len(rows[0])
    if numbered:
        return next((i for i, row in enumerate(rows) if len(row) != most), None)
    names = [cell for cell in rows[0] if cell.strip()]
    # Names may end before the delimiters do: text,label,,,
    least = max(1, max((i + 1 for i, cell in enumerate(rows[0]) if cell.strip()), default=1))
    if all(least <= width <= most for width in set(map(len, rows))):
        return None
    unlike = [i for i, row in enumerate(rows) if not least <= len(row) <= most]
    if len(names) == most and _has_row_names(rows):
        return None
    for i in unlike:
        # A trailing delimiter; a text alone in its line may end with one by itself.
        if len(rows[i]) < least or most == 1 or any(cell.strip() for cell in rows[i][most:]):
            return i
    return None


def _has_row_names(rows: list[list[str]]) -> bool:
    """Returns whether every row starts with its number, for which the header has no name (R)."""
    body = rows[1:]
    if not body or any(len(row) != len(rows[0]) + 1 for row in body):
        return False
    numbers = [row[0] for row in body]
    return any(numbers == [str(i + start) for i in range(len(body))] for start in (0, 1))


@dataclass
class _File:
    """What is being read, and where notes and errors about it go."""

    path: Path
    lines: list[str]
    sign: str
    numbered: bool
    first: int
    table: Table
    quotes: bool

    def parse(self, lines: list[str] | None = None, **options: Any) -> Reading:
        return _parse(self.lines if lines is None else lines, self.sign, self.numbered, **options)

    def note(self, text: str) -> None:
        self.table.note(f"{self.path.name}{text}")

    def error(self, line: int, text: str) -> UserError:
        return UserError(f"{self.path}:{line + self.first}: {text}")


def _decide(file: _File) -> Reading:
    """Returns the first reading of a file that fits, see the module.

    Raises:
        UserError: none does, or it cannot be told which is right.
    """
    plain_space = file.sign not in "\t "
    if not file.quotes:
        found = file.parse(quoting=csv.QUOTE_NONE)
        names = found.rows[0][1:] if found.rows and not file.numbered else []
        if plain_space and names and all(cell[:1] == " " for cell in names):
            file.note(SPACES)
            found = file.parse(quoting=csv.QUOTE_NONE, skipinitialspace=True)
        return _checked(found, file)
    quoted = file.parse()
    spaced = plain_space and _spaced(file, quoted)
    escaped = None
    if any('\\"' in line for line in file.lines):
        lines = [ESCAPED.sub(r'\1""', line) for line in file.lines]
        escaped = file.parse(lines, skipinitialspace=spaced)
    if quoted.fits and not spaced:
        if escaped and escaped.fits and escaped.rows != quoted.rows:
            pairs = enumerate(zip(quoted.rows, escaped.rows, strict=False))
            at = next((i for i, (ours, theirs) in pairs if ours != theirs), 0)
            raise file.error(
                quoted.starts[at],
                'here \\" can be an escaped quote or end a cell; save the file as JSON lines',
            )
        return _without_swallowed(quoted, file)
    if escaped and escaped.fits:
        file.note(" read with backslash-escaped quotes")
        return escaped
    if spaced:
        found = file.parse(skipinitialspace=True)
        if found.fits:
            file.note(SPACES)
            return found
    plain = file.parse(quoting=csv.QUOTE_NONE)
    if plain.fits and not _quotes(plain, file.sign):
        at = quoted.error[0] if quoted.error else quoted.starts[quoted.ragged or 0]
        file.note(f" read without quoting: a quote in line {at + file.first} encloses no cell")
        return plain
    return _checked(quoted, file)


def _quotes(plain: Reading, sign: str) -> bool:
    """Returns whether cells are enclosed in quotes after all; in TSV those are quotations."""
    names = plain.rows[0] if plain.rows else []
    if any('"' in name for name in names):
        return True
    whole = (len(c) > 1 and c[0] == c[-1] == '"' for row in plain.rows for c in row if c)
    return sign != "\t" and any(whole)


def _spaced(file: _File, quoted: Reading) -> bool:
    """Returns whether a quoted cell follows a delimiter and a space, which strict CSV has not."""
    mark = re.compile(re.escape(file.sign) + ' +"')
    if not any(mark.search(line) for line in file.lines):
        return False
    if not quoted.fits:
        return True
    return any(cell[:1] == " " and cell.strip()[:1] == '"' for row in quoted.rows for cell in row)


def _checked(found: Reading, file: _File) -> Reading:
    """Returns a reading that fits.

    Raises:
        UserError: it does not.
    """
    if found.error and (found.ragged is None or found.error[0] < found.starts[found.ragged]):
        line, reason = found.error
        raise file.error(line, f"not CSV: {reason}")
    if found.ragged is not None:
        row, name = found.rows[found.ragged], dialects.name(file.sign)
        raise file.error(
            found.starts[found.ragged],
            f"{len(row)} cells where the header has {len(found.rows[0])}; quote texts that contain "
            f"a {name}, or name the `--delimiter`",
        )
    return found


# --- cells that span lines -------------------------------------------------------------------


def _without_swallowed(quoted: Reading, file: _File) -> Reading:
    """Returns the quoted reading, or the one without quoting if quotes swallowed rows.

    Raises:
        UserError: it cannot be told which of the two is right.
    """
    spans = [i for i, start in enumerate(quoted.starts) if quoted.ends[i] - start > 1]
    if not spans and file.sign != "\t":
        return quoted
    lines, sign = file.lines, file.sign
    singles = [i for i, start in enumerate(quoted.starts) if quoted.ends[i] - start == 1]
    # A quote inside a cell that is not quoted: whoever wrote it does not quote.
    bare = any(
        '"' in (line := lines[quoted.starts[i]])
        and line.rstrip("\r\n").split(sign) == quoted.rows[i]
        for i in singles
    )
    others = [quoted.rows[i] for i in singles if i or file.numbered]
    kinds = multiline_cells.columns(others, quoted.width)
    verdicts = {
        i: multiline_cells.verdict(lines[quoted.starts[i] : quoted.ends[i]], sign, kinds)
        for i in spans
    }
    head = lines[0].strip()
    proven = "cell" in verdicts.values() or head[:1] == head[-1:] == '"'
    doubtful = [i for i, verdict in verdicts.items() if verdict != "cell"]
    swallowed = [i for i in doubtful if verdicts[i] == "rows"]
    settled = not swallowed and (proven or not doubtful)
    if settled and not (bare and sign == "\t" and not proven):
        return quoted
    if not proven and (swallowed or bare):
        plain = file.parse(quoting=csv.QUOTE_NONE)
        if plain.fits:
            file.note(" read without quoting: its quotes enclose no cells")
            return plain
    if not doubtful:
        return quoted
    at = (swallowed or doubtful)[0]
    raise file.error(
        quoted.starts[at],
        f"a quote opens here and closes in line {quoted.ends[at] + file.first - 1}, but the lines "
        "in between could be rows; close the quote, or save the file as JSON lines",
    )


# --- columns ---------------------------------------------------------------------------------


def _frame(
    found: Reading, numbered: bool, first: int, path: Path, table: Table
) -> pandas.DataFrame:
    rows, lines = found.rows, [start + first for start in found.starts]
    if not rows:
        return pandas.DataFrame()
    if numbered:
        header = [str(i + 1) for i in range(found.width)]
        table.note(f"{path.name} read without a header, its columns are named 1 to {found.width}")
    else:
        written, rows, lines = rows[0], rows[1:], lines[1:]
        header = [name.strip() for name in written]
        table.header = True
        if header != written:
            table.note(f"{path.name}: blanks around names of columns left out")
        if rows and len(rows[0]) == len(header) + 1 and _has_row_names([header, *rows]):
            rows = [row[1:] for row in rows]
            table.note(f"{path.name}: numbers of rows left out, they have no column name")
    return tables.tidy(header, rows, lines, path.name, table)
