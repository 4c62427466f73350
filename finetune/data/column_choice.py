"""Chooses the columns of a table for a task: by name first, then by kind.

A column that a flag gives is taken as it is. Two that are equally good are an error that names both
and the flag that decides.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from finetune.data import column_kinds, readers, tags
from finetune.data.column_kinds import Column
from finetune.errors import UserError

KEYS = ("text", "text_pair", "label", "image", "messages", "prompt", "completion")
# Usual names, as the last word of a column's name without "text", "name", "id" after it.
TEXTS = {
    *("text", "review", "sentence", "content", "comment", "body", "tweet", "message", "post"),
    *("document", "article", "utterance", "abstract", "description", "question", "query"),
    *("premise", "feedback", "narrative", "complaint", "email", "passage", "paragraph"),
}
CHATS = {"message", "conversation", "chat", "dialog", "dialogue"}
LABELS = {"label", "target", "class", "y", "gold"}
USUAL_LABELS = {
    *("star", "rating", "score", "sentiment", "category", "topic", "genre", "tag", "emotion"),
    *("intent", "polarity", "grade", "toxicity", "toxic", "spam", "type", "stance", "severity"),
    *("priority", "department", "outcome", "verdict", "subject"),
}
# These describe a row's origin more often than they are to be predicted.
METADATA = {
    *("author", "user", "username", "source", "title", "headline", "url", "link", "country"),
    *("city", "location", "language", "lang", "domain", "publisher", "dataset", "name"),
}
# Says in which split a row was, which is never a label.
SPLIT = "split"
PAIRS = [
    *(("premise", "hypothesis"), ("question", "sentence"), ("question", "answer")),
    *(("question", "context"), ("query", "passage"), ("query", "document"), ("query", "title")),
]
NUMBERED = (("1", "2"), ("a", "b"), ("A", "B"))
PROMPTS = ["prompt", "instruction", "question", "query", "input", "document", "article", "text"]
COMPLETIONS = ["completion", "response", "answer", "output", "reply", "summary", "highlight"]
# A text column this much longer than the next one is the text: a body beside its title.
LONGER = 3.0


@dataclass(frozen=True)
class Columns:
    """The columns of a table, and the flags by key."""

    source: str
    every: list[Column]
    given: Mapping[str, str]

    @classmethod
    def of(cls, table: readers.Table, given: Mapping[str, str]) -> "Columns":
        """Looks at every column of a table.

        Raises:
            UserError: a flag names a column that does not exist.
        """
        names = [str(name) for name in table.rows.columns]
        for key in KEYS:
            if key in given and given[key] not in names:
                raise readers.unknown_name(table.source, "column", given[key], names, key)
        every = [column_kinds.of(str(name), table.rows[name]) for name in table.rows.columns]
        return cls(table.source, every, given)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.every if column.name == name)

    def chats(self) -> Column | None:
        """Returns the column of chats, if there is one."""
        return self._choose("messages", self._tiers(CHATS, column_kinds.CHATS))

    def entities(self) -> tuple[Column, Column] | None:
        """Returns the columns of words and their tags, or of texts and the spans in them."""
        for column in self.every:
            if self.given.get("label", column.name) != column.name:
                continue
            if _all_in_lists(column, _is_span):
                text = self.text()
                return (text, column) if text else None
            if _all_in_lists(column, _is_tag):
                sizes = column.values.map(len)
                words = [c for c in self.every if c != column and _all_in_lists(c, _is_word)]
                found = [c for c in words if sizes.equals(c.values.map(len))]
                return (found[0], column) if found else None
        return None

    def images(self) -> Column | None:
        """Returns the column of images, if there is one."""
        return self._choose("image", self._tiers({"image"}, column_kinds.IMAGES))

    def text(self) -> Column | None:
        """Returns the column of the text, if there is one."""
        tiers = self._tiers(TEXTS, column_kinds.TEXTS, column_kinds.NAMES)
        # A few short texts that occur again and again look like classes; their name decides.
        tiers.append([c for c in self.every if c.head in TEXTS and c.kind == column_kinds.CLASSES])
        return self._choose("text", tiers, {self.given.get(key) for key in ("label", "text_pair")})

    def pair(self) -> tuple[Column, Column] | None:
        """Returns two text columns whose names say that they are a pair: premise and hypothesis."""
        texts = [c for c in self.every if c.is_text and c.name != self.given.get("label")]
        by_head, by_name = {c.head: c for c in texts}, {c.name: c for c in texts}
        for first, second in PAIRS:
            if {first, second} <= by_head.keys():
                return by_head[first], by_head[second]
        for name, column in by_name.items():
            for one, two in NUMBERED:
                if name.endswith(one) and name[: -len(one)] + two in by_name:
                    return column, by_name[name[: -len(one)] + two]
        return None

    def prompts(self) -> tuple[Column, Column] | None:
        """Returns the columns of prompts and of completions, if there are such."""
        texts = [c for c in self.every if c.is_text or c.kind == column_kinds.CLASSES]

        def first(key: str, heads: list[str]) -> Column | None:
            if key in self.given:
                return self[self.given[key]]
            return next((c for head in heads for c in texts if c.head == head), None)

        prompt, completion = first("prompt", PROMPTS), first("completion", COMPLETIONS)
        if prompt is None or completion is None or prompt is completion:
            return None
        return prompt, completion

    def has_usual_label(self, taken: Iterable[Column]) -> bool:
        """Returns whether a column is named as labels are, and can be one."""
        usual = LABELS | USUAL_LABELS
        return any(c.is_label and c.head in usual and c not in taken for c in self.every)

    def label(self, taken: Iterable[str], regression: bool) -> Column | None:
        """Returns the column of the label, if there is one.

        Args:
            taken: names of columns that have another role.
            regression: whether it has to be numbers.
        """
        kinds = {column_kinds.CLASSES, column_kinds.SETS}
        fit = [c for c in self.every if c.is_label and c.head != SPLIT]
        if regression:
            fit = [c for c in fit if c.number or c.kind == column_kinds.NUMBERS]
        described = [c for c in fit if c.head not in METADATA]
        tiers = [
            [c for c in fit if c.head in LABELS],
            [c for c in fit if c.head in USUAL_LABELS],
            [c for c in described if c.kind in kinds],
            described,
            [c for c in fit if c.kind in kinds],
        ]
        return self._choose("label", tiers, taken)

    def check_constant_label(self, task: str | None) -> None:
        """Checks that no column is named as labels are and has a single value.

        Raises:
            UserError: there is one; its rows are not to be taken for texts without labels.
        """
        for column in self.every:
            if column.kind == column_kinds.CONSTANT and column.head in LABELS:
                value = textwrap.shorten(str(column.values.iloc[0]), 40, placeholder="…")
                instead = "" if task else ", or --task text-generation to learn the texts alone"
                raise UserError(
                    f"{self.source}: every {column.name!r} is {value!r}, and a classifier needs at "
                    f"least two classes; add rows of another one{instead}"
                )

    def _tiers(self, heads: set[str], *kinds: str) -> list[list[Column]]:
        """Returns candidates, the best first: of the kinds with a usual name, then kind by kind."""
        fit = [c for c in self.every if c.kind in kinds]
        named = [c for c in fit if c.head in heads]
        return [named, *([c for c in fit if c.kind == kind] for kind in kinds)]

    def _choose(
        self, key: str, tiers: list[list[Column]], taken: Iterable[str | None] = ()
    ) -> Column | None:
        """Returns the given column, or the only one of the first tier that has any.

        Raises:
            UserError: that tier has several.
        """
        if key in self.given:
            return self[self.given[key]]
        taken = {*taken}
        for tier in tiers:
            left = _without_copies([c for c in tier if c.name not in taken])
            if key == "text":
                left = _longest(left)
            if len(left) == 1:
                return left[0]
            if left:
                a, b = left[0].name, left[1].name
                more = f" (and {len(left) - 2} more)" if len(left) > 2 else ""
                raise UserError(
                    f"{self.source}: columns {a!r} and {b!r}{more} could both be the {key}; add "
                    f"--{key} {a} or --{key} {b}"
                )
        return None

    def none(self, what: str, flags: str) -> NoReturn:
        """Raises the ``UserError`` for a table without a column of some kind."""
        kinds = ", ".join(f"{c.name} ({c.kind})" for c in self.every)
        raise UserError(
            f"{self.source}: no column looks like {what}: "
            f"{textwrap.shorten(kinds, 120, placeholder='…')}; name one with {flags}"
        )


def _longest(columns: list[Column]) -> list[Column]:
    """Returns the one whose texts are several times as long as those of the next, or all."""
    ranked = sorted(columns, key=lambda c: -c.length)
    if len(ranked) > 1 and ranked[0].length >= LONGER * ranked[1].length:
        return ranked[:1]
    return columns


def _without_copies(columns: list[Column]) -> list[Column]:
    """Returns the columns without those that only rename another's classes; words are kept."""
    left: list[Column] = []
    for column in sorted(columns, key=lambda c: c.number):
        if not any(column.renames(other) for other in left):
            left.append(column)
    return [c for c in columns if c in left]


def _all_in_lists(column: Column, test: Callable[[Any], bool]) -> bool:
    """Returns whether all cells are lists, of which not all are empty, and their items pass."""
    cells = list(column.values)
    items = [item for cell in cells if isinstance(cell, list) for item in cell]
    return bool(items) and all(isinstance(c, list) for c in cells) and all(map(test, items))


def _is_word(item: Any) -> bool:
    return isinstance(item, str)


def _is_tag(item: Any) -> bool:
    return isinstance(item, str) and tags.parse(item) is not None


def _is_span(item: Any) -> bool:
    return isinstance(item, dict) and {"start", "end", "label"} <= item.keys()
