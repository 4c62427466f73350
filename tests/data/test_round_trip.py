"""Random tables in random dialects and encodings are read back equal, or refused in one line."""

# ruff: noqa: RUF001 - some cells have the dashes and quotes of typesetting.

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data import readers
from finetune.errors import UserError
from finetune.recipe import Data

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1"]
# Prose, what delimits and quotes, line ends, blanks, and letters beyond ASCII. Without \r, which
# Python's csv.writer leaves bare.
LETTERS = "abc xyz,;|\t\"'\\\néßñ“”’–€.0-"


@dataclass
class Written:
    content: bytes
    suffix: str
    rows: list[list[str]]
    shown: str


def plain(cell: str) -> str:
    """A cell that needs no quotes, as files without quoting have them."""
    return "".join(c for c in cell if c not in ",;|\t\n\r").strip() or "x"


@st.composite
def tables(draw: st.DrawFn) -> Written:
    """A table whose columns are each of one kind, as some program would write it."""
    width = draw(st.integers(1, 4))
    kinds = [draw(st.sampled_from(["text", "text", "number", "class"])) for _ in range(width)]
    cells = {
        "text": st.text(LETTERS, min_size=1, max_size=12).filter(str.strip),
        "number": st.integers(-5, 30).map(str),
        "class": st.sampled_from(["good", "bad"]),
    }
    count = draw(st.integers(1, 30))
    rows = [[draw(cells[kind]) for kind in kinds] for _ in range(count)]
    encoding = draw(st.sampled_from(ENCODINGS))
    if encoding in {"cp1252", "latin-1"}:
        # Not a text of accents only, which could be of another script.
        pairs = [list(zip(kinds, row, strict=True)) for row in rows]
        rows = [
            [f"a long tale {c} of words" if k == "text" else c for k, c in row] for row in pairs
        ]
    names = [f"{kind}{'abcd'[i]}" for i, kind in enumerate(kinds)]
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
    style = draw(st.sampled_from(["minimal", "all", "backslash", "none", "json"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    suffix = {"\t": ".tsv"}.get(delimiter, ".csv")
    if style == "json":
        suffix = draw(st.sampled_from([".json", ".jsonl"]))
        text = json.dumps([dict(zip(names, row, strict=True)) for row in rows])
        if suffix == ".jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
            text = "\n".join(lines)
    elif style == "none":
        rows = [[plain(cell) for cell in row] for row in rows]
        # Quotes around the whole of a cell are quoting, whoever reads it.
        rows = [[c.strip('"') or "x" if c[:1] == c[-1:] == '"' else c for c in row] for row in rows]
        text = end.join(delimiter.join(row) for row in [names, *rows]) + end
    elif style == "backslash":
        rows = [[cell.replace("\\", "") or "x" for cell in row] for row in rows]
        rows = [[cell if cell.strip() else "x" for cell in row] for row in rows]
        quoted = [['"' + c.replace('"', '\\"') + '"' for c in row] for row in rows]
        text = end.join(delimiter.join(row) for row in [names, *quoted]) + end
    else:
        stream = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
        writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([names, *rows])
        text = stream.getvalue()
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        content, encoding = text.encode(), "utf-8"
    return Written(content, suffix, rows, f"{style} {delimiter!r} {encoding}\n{text}")


def check(table: Written, folder: Path) -> None:
    file = folder / f"a{table.suffix}"
    file.write_bytes(table.content)
    try:
        found = readers.read_table(file, Data())
    except UserError as error:
        message = str(error)
    else:
        read: list[list[Any]] = found.rows.to_numpy().tolist()
        assert read == table.rows, table.shown
        return
    assert "\n" not in message
    assert len(message) <= 300 + len(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


CHECKS = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "database": None,
}


@settings(max_examples=50, derandomize=True, **CHECKS)
@given(table=tables())
def test_a_table_is_read_back_or_refused(folder: Path, table: Written) -> None:
    check(table, folder)


@pytest.mark.slow
@settings(max_examples=5000, **CHECKS)
@given(table=tables())
def test_5000_tables_are_read_back_or_refused(folder: Path, table: Written) -> None:
    check(table, folder)
