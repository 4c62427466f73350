"""Queries with the passages that answer them: tables -> checked rows.

- A row has a query, a relevant passage or a list of them, and perhaps ``negative`` ones: passages
  that look relevant and are not.
- With ``corpus: FILE`` rows name passages by the ids of that table, and all its passages are
  candidates of a search. Otherwise these are the passages of all rows.
- Rows of one query are joined. Queries that share a passage stay in one split.
"""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy
import pandas

from finetune.data import readers, splits
from finetune.data.readers import is_missing
from finetune.data.row_kinds import RowKind
from finetune.data.tables import Table, shown
from finetune.errors import UserError
from finetune.recipe import Data

REPEATED = "pair of query and passage that occurred before, left out"
JOINED = "further passage of a query, joined to its row"
RELEVANT = "negative passage that is relevant to its query, left out"


class Unusable(Exception):  # noqa: N818
    """Why a row cannot be used."""


def read_corpus(file: str | Path, data: Data) -> dict[str, str]:
    """Returns the passages of a table by their ids; without a column ``id`` that is the line.

    Raises:
        UserError: the file has no column of passages, a blank one, or an id twice.
    """
    table = readers.read_table(file, data)
    cells = table.column(data.passage, "passage")
    named = "id" in table.rows
    ids = table.column("id", "id") if named else [str(line) for line in table.rows.index]
    found: dict[str, str] = {}
    for line, key, cell in zip(table.rows.index, map(str, ids), cells, strict=True):
        if is_missing(cell):
            raise UserError(f"{table.at(line)}: the passage is empty; remove the line")
        if key in found:
            raise UserError(f"{table.at(line)}: the id {shown(key)} occurred before; rename one")
        found[key] = str(cell).strip()
    return found


def usable(table: Table, data: Data) -> pandas.DataFrame:
    """Returns a row for each query: query, negatives (a JSON list), and as label its passages.

    Rows have the file's own ids, where these are unique. Unusable ones are appended to
    ``table.rejected``.

    Raises:
        UserError: a column is missing.
    """
    corpus = read_corpus(data.corpus, data) if data.corpus else None
    columns = {key: table.column(name, key) for key, name in _columns(data).items()}
    known: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    fixed = Counter(table.fixed)
    for line, *cells in zip(table.rows.index, *columns.values(), strict=True):
        given = dict(zip(columns, cells, strict=True))
        try:
            query = _text(given["query"], "query")
            relevant = _passages(given["passage"], "passage", corpus)
            if not relevant:
                raise Unusable("empty passage")
            if query in relevant:
                raise Unusable("the passage is the query itself")
            negatives = _passages(given.get("negative"), "negative", corpus)
        except Unusable as reason:
            source, at = table.place(line)
            table.rejected.append({"source": source, "line": at, "reason": str(reason)})
            continue
        if query not in known:
            known[query] = len(rows)
            rows.append({"line": line, "query": query, "negatives": [], "label": []})
        else:
            fixed[JOINED] += len(set(relevant) - set(rows[known[query]]["label"]))
        row = rows[known[query]]
        new = [each for each in dict.fromkeys(relevant) if each not in row["label"]]
        fixed[REPEATED] += len(relevant) - len(new)
        row["label"] += new
        row["negatives"] += [each for each in negatives if each not in row["negatives"]]
    for row in rows:
        kept = [each for each in row["negatives"] if each not in row["label"]]
        fixed[RELEVANT] += len(row["negatives"]) - len(kept)
        row["negatives"] = json.dumps(kept, ensure_ascii=False)
    table.fixed = {name: count for name, count in fixed.items() if count}
    index = pandas.Index([row["line"] for row in rows], dtype=object)
    names = ["query", "negatives", "label"]
    values = {name: [row[name] for row in rows] for name in names}
    frame = pandas.DataFrame(values, index=index, dtype=object)
    if "id" in table.rows:
        ids = table.column("id", "id").loc[frame.index]
        if ids.is_unique and not any(map(is_missing, ids)):
            frame.insert(0, "id", ids.astype(str))
        else:
            table.note("the ids of queries are not unique; rows are named by their line")
    return frame


def _columns(data: Data) -> dict[str, str]:
    names = {"query": data.query, "passage": data.passage}
    return names | ({"negative": data.negative} if data.negative else {})


def _text(cell: Any, part: str) -> str:
    """Returns a cell as a text without outer blanks.

    Raises:
        Unusable: it is blank, or no text.
    """
    if isinstance(cell, list | dict):
        raise Unusable(f"the {part} is {'a list' if isinstance(cell, list) else 'an object'}")
    if is_missing(cell):
        raise Unusable(f"empty {part}")
    return str(cell).strip()


def _passages(cell: Any, part: str, corpus: dict[str, str] | None) -> list[str]:
    """Returns the passages of a cell: a text, a list of them, or JSON's list; none if it is empty.

    Args:
        corpus: what ids in place of texts stand for.

    Raises:
        Unusable: one is blank, no text, or an id that the corpus does not have.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        # A text may begin with a bracket.
        with suppress(ValueError):
            cell = json.loads(cell)
    if not isinstance(cell, list) and is_missing(cell):
        return []
    texts = [_text(each, part) for each in (cell if isinstance(cell, list) else [cell])]
    if corpus is None:
        return texts
    for key in texts:
        if key not in corpus:
            raise Unusable(f"the {part} {shown(key)} is no id of the corpus")
    return [corpus[key] for key in texts]


def candidates(frames: Iterable[pandas.DataFrame], data: Data) -> list[str]:
    """Returns all different passages that a search may find, in a fixed order."""
    found = dict.fromkeys(read_corpus(data.corpus, data).values() if data.corpus else ())
    for frame in frames:
        for relevant, negatives in zip(frame["label"], frame["negatives"], strict=True):
            found |= dict.fromkeys([*relevant, *json.loads(negatives)])
    return list(found)


@dataclass
class Frame(splits.Frame):
    """Rows of queries; those that share a passage stay in one split."""

    def take(self, count: int, seed: int) -> tuple[Self, Self]:
        """Takes whole groups of queries that share passages, together about ``count`` queries.

        Where there are too few groups, single queries are taken, and a note says so.
        """
        return self._take_whole(self._groups, "queries that share a passage", count, seed)

    def shared(self, other: pandas.DataFrame) -> list[str]:
        """Returns the ids of the rows of ``other`` whose query or a passage is among these rows."""
        queries, passages = set(self.rows["query"]), {p for row in self.rows["label"] for p in row}
        return [
            str(name)
            for name, query, row in zip(other["id"], other["query"], other["label"], strict=True)
            if query in queries or passages.intersection(row)
        ]

    @cached_property
    def _groups(self) -> numpy.ndarray:
        """The group (N,) of each query: those that share a passage, if only through others."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        queries = numpy.repeat(numpy.arange(len(self.rows)), self.rows["label"].str.len())
        passages, _ = pandas.factorize(
            pandas.Series([p for row in self.rows["label"] for p in row])
        )
        count = len(self.rows)
        size = count + int(passages.max(initial=-1)) + 1
        links = coo_array((numpy.ones(len(queries)), (queries, count + passages)), (size, size))
        return connected_components(links, directed=False)[1][:count]


class Retrieval(RowKind):
    """A query whose relevant passages are its label."""

    name = "queries with passages"
    classes = False
    rows = Frame
    alike = False

    def usable(self, table: Table, split: str, data: Data, labelled: bool) -> pandas.DataFrame:
        return usable(table, data)

    def beside(self, data: Data) -> list[str]:
        return list(read_corpus(data.corpus, data).values()) if data.corpus else []

    def label_text(self, label: Any, label_names: list[str]) -> str:
        return " | ".join(label)


RETRIEVAL = Retrieval()
