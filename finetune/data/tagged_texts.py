"""Rows of texts with entities: words with tags, or a text with character spans.

What a row becomes:

- ``text``: as it was given, or its tokens with blanks between them
- ``words``: where its words are, [[start, end], ...] as JSON
- ``label``: its entities, [{"start", "end", "label"}, ...] in characters of the text
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy
import pandas

from finetune.data import conll, tags
from finetune.data.row_kinds import UNLABELLED, RowKind
from finetune.data.tables import Table, shown
from finetune.errors import UserError, nearest
from finetune.recipe import Data

# A letter of a script that writes no blanks between words is a word of its own.
ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+|[^\w\s]")
WIDENED = "span widened to whole words"

Place = tuple[int, int]


class Unusable(ValueError):  # noqa: N818 - a row's fault, not an error of the program
    """Why a row cannot be used."""


def read(table: Table, data: Data, labelled: bool) -> pandas.DataFrame:
    """Returns the usable rows with text, words and, if they are labelled, label.

    Which of the two kinds a row is follows from its text: a list of tokens, or a text. Unusable
    rows go to ``table.rejected``; so do rows with broken tags unless the recipe has them mended.

    Raises:
        UserError: a column is missing, or tags are numbers without names.
    """
    data = named(table, data)
    if list(table.rows.columns) == ["text"] and data.text != "text":
        raise UserError(
            f"{table.source}: is read as plain text; call a file of CoNLL columns .conll, or give "
            "JSON lines with tokens and tags"
        )
    texts = table.column(data.text, "text")
    if not isinstance(data.label, str):
        raise UserError("label: tags are one column; name that")
    labels = table.column(data.label, "label") if labelled else [None] * len(texts)
    names = data.label_names or table.label_names
    counts = Counter(table.fixed)
    rows: dict[Any, tuple[str, list[Place], list[tags.Entity]]] = {}
    tagged: dict[Any, list[str]] = {}
    for line, given, label in zip(table.rows.index, texts, labels, strict=True):
        try:
            if not isinstance(given, str) and _is_list(given):
                text, places = of_tokens(given)
                if labelled:
                    tagged[line] = _tags(label, len(places), names, table.at(line))
                rows[line] = text, places, []
            else:
                text = "" if given is None else str(given)
                places = [match.span() for match in WORD.finditer(text)]
                if not places:
                    raise Unusable("no words")
                found, widened = _of_spans(label, text, places) if labelled else ([], 0)
                counts[WIDENED] += widened
                rows[line] = text, places, found
        except Unusable as reason:
            _reject(table, line, str(reason))
    if tagged:
        used = tags.scheme(tagged.values())
        if used != tags.IOB2:
            table.note(f"{used} tags read, IOB2 kept")
        for line, each in tagged.items():
            broken = tags.is_broken(each, used)
            if broken and data.broken_tags == "reject":
                _reject(table, line, f"tags break {used}; `broken_tags: mend` repairs them")
                del rows[line]
                continue
            counts["broken tags mended"] += broken
            rows[line] = *rows[line][:2], tags.entities(each)
    table.fixed = {name: count for name, count in counts.items() if count}
    made: dict[str, list[Any]] = {
        "text": [text for text, _, _ in rows.values()],
        "words": [json.dumps(places) for _, places, _ in rows.values()],
    }
    if labelled:
        made["label"] = [spans(found, places) for _, places, found in rows.values()]
    return pandas.DataFrame(made, index=pandas.Index(list(rows)), dtype=object)


def label_names(
    frames: Mapping[str, pandas.DataFrame],
    tables: Mapping[str, Table],
    known: Sequence[str] | None,
) -> list[str]:
    """Returns the tags of the types in train: O, B-TYPE, I-TYPE, …; types sorted by name.

    Args:
        known: the names of tags in another order, which is kept.

    Raises:
        UserError: train has no entity, or another split has a type that train has not.
    """
    train = frames["train"]
    types = sorted({each["label"] for row in train["label"] for each in row})
    if known:
        types = list(dict.fromkeys(name.partition("-")[2] for name in known if "-" in name))
    if not types:
        raise UserError(f"{tables['train'].source}: no row has an entity; nothing can be learned")
    for split, frame in frames.items():
        check_types(frame, tables[split], types)
    return [tags.OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def named(table: Table, data: Data) -> Data:
    """Returns the data section with the columns of a CoNLL file, which names none itself.

    Without names in the recipe, the default ones stand for them.
    """
    known = [str(name) for name in table.rows.columns]
    if known == [conll.TOKENS, conll.TAGS] and (data.text, data.label) == ("text", "label"):
        return replace(data, text=conll.TOKENS, label=conll.TAGS)
    return data


def check_types(frame: pandas.DataFrame, table: Table, types: Sequence[str]) -> None:
    """Checks that entities have only known types.

    Raises:
        UserError: one has another.
    """
    for line, row in frame["label"].items():
        for each in row:
            if each["label"] not in types:
                raise UserError(
                    f"{table.at(line)}: entity type {shown(each['label'])} does not occur in "
                    f"train; {nearest(each['label'], list(types))}".rstrip("; ")
                )


def word_tags(words: str, label: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the IOB2 tags of a row's words."""
    places = json.loads(words)
    starts = {start: i for i, (start, _) in enumerate(places)}
    ends = {end: i + 1 for i, (_, end) in enumerate(places)}
    found = [(each["label"], starts[each["start"]], ends[each["end"]]) for each in label]
    return tags.iob2(found, len(places))


def spans(found: Sequence[tags.Entity], places: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Returns entities of words, whose places are given, as spans of characters."""
    return [
        {"start": int(places[first][0]), "end": int(places[end - 1][1]), "label": kind}
        for kind, first, end in found
    ]


def of_tokens(tokens: Any) -> tuple[str, list[Place]]:
    """Returns tokens as one text, and where in it each is.

    Raises:
        Unusable: there are none, or one is blank or no text.
    """
    if not len(tokens):
        raise Unusable("no words")
    places, at = [], 0
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str) or not token.strip():
            raise Unusable(f"token {number} is {shown(token)}, not a word")
        places.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), places


def _types(label_names: list[str]) -> list[str]:
    return [name.removeprefix("B-") for name in label_names if name.startswith("B-")]


def _reject(table: Table, line: Any, reason: str) -> None:
    source, at = table.place(line)
    table.rejected.append({"source": source, "line": at, "reason": reason})


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | numpy.ndarray)


def _tags(label: Any, count: int, names: list[str] | None, where: str) -> list[str]:
    """Returns the tags of ``count`` tokens in the prefixes of IOBES."""
    if not _is_list(label):
        raise Unusable(f"tags are {shown(label)}, not a list")
    if len(label) != count:
        raise Unusable(f"{count} tokens and {len(label)} tags")
    out = []
    for tag in label:
        name = tag
        if isinstance(tag, int | numpy.integer):
            if names is None:
                raise UserError(f"{where}: tags are numbers; name them: `label_names: [O, B-…]`")
            if not 0 <= tag < len(names):
                raise Unusable(f"tag {tag} is outside 0 to {len(names) - 1}")
            name = names[int(tag)]
        parsed = tags.parse(name) if isinstance(name, str) else None
        if parsed is None:
            raise Unusable(f"tag {shown(name)} is neither O nor B-, I-, E- or S- with a type")
        out.append(parsed)
    return out


def _of_spans(label: Any, text: str, places: list[Place]) -> tuple[list[tags.Entity], int]:
    """Returns the entities of words in a text's spans, and how many spans end inside of a word."""
    if isinstance(label, str):
        try:
            label = json.loads(label)
        except ValueError:
            raise Unusable(f"spans are {shown(label)}, not a list") from None
    if not _is_list(label):
        raise Unusable(f"spans are {shown(label)}, not a list")
    found: list[tags.Entity] = []
    given, widened = sorted((_span(each, text) for each in label), key=lambda s: s[:2]), 0
    for one, other in pairwise(given):
        if other[0] < one[1]:
            raise Unusable(f"spans {one[0]} to {one[1]} and {other[0]} to {other[1]} overlap")
    for start, end, kind in given:
        inside = [i for i, (a, b) in enumerate(places) if a < end and start < b]
        if not inside:
            raise Unusable(f"span {start} to {end} has no word")
        first, last = inside[0], inside[-1]
        if found and first < found[-1][2]:
            raise Unusable(f"span {start} to {end} is in the same word as the one before it")
        widened += places[first][0] < start or places[last][1] > end
        found.append((kind, first, last + 1))
    return found, widened


def _span(each: Any, text: str) -> tuple[int, int, str]:
    if not isinstance(each, dict) or not {"start", "end", "label"} <= each.keys():
        raise Unusable(f"span {shown(each)} has to have start, end and label")
    start, end, kind = each["start"], each["end"], each["label"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (start, end))
    if not whole or not isinstance(kind, str) or not kind.strip():
        raise Unusable(f"span {shown(each)} has to have numbers for start and end, a text as label")
    if not 0 <= start < end:
        raise Unusable(f"span {start} to {end} is empty or before the text")
    if end > len(text):
        raise Unusable(f"span {start} to {end} is beyond the text's {len(text)} characters")
    return start, end, kind


class Tagged(RowKind):
    """A text with entities, which are its label."""

    name = "tagged texts"
    alike = False
    counted = ("entities", "type")

    def usable(self, table: Table, split: str, data: Data, labelled: bool) -> pandas.DataFrame:
        return read(table, data, labelled)

    def encode(
        self,
        frames: dict[str, pandas.DataFrame],
        tables: Mapping[str, Table],
        data: Data,
        labelled: bool,
    ) -> tuple[list[str], str]:
        if not labelled:
            return [], UNLABELLED
        known = data.label_names or tables["train"].label_names
        return label_names(frames, tables, known), self.name

    def encode_by(
        self, label_names: list[str], frame: pandas.DataFrame, table: Table, data: Data
    ) -> None:
        check_types(frame, table, _types(label_names))

    def label_text(self, label: Any, label_names: list[str]) -> str:
        spans = [f"{each['label']} {each['start']} to {each['end']}" for each in label]
        return ", ".join(spans) or "no entity"

    def counts(self, labels: Iterable[Any], label_names: list[str]) -> dict[str, int]:
        found = Counter(each["label"] for label in labels for each in label)
        return {name: found[name] for name in _types(label_names)}


TAGGED = Tagged()
