"""Questions about a context that has the answer: SQuAD's JSON or flat tables -> checked rows.

- Nested files (SQuAD 1.1 and 2.0) have articles with paragraphs with questions.
- Flat ones have a row for each question, with ``answers`` as on the hub, or an answer and
  ``answer_start`` in columns of their own.
- A row without an answer is a question that the context does not answer.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas

from finetune.data import readers, splits
from finetune.data.readers import is_missing
from finetune.data.row_kinds import RowKind
from finetune.data.tables import Table, find_column, shown
from finetune.errors import UserError
from finetune.recipe import Data

FOUND, MENDED = "answer_start found in the context", "wrong answer_start corrected"
TRIMMED = "blanks around an answer"
# The name of a column with one answer a row, where the recipe names no other.
ANSWER = "answer"
IMPOSSIBLE = "is_impossible"


class Unusable(Exception):  # noqa: N818
    """Why a row cannot be used."""


def flat(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each question of SQuAD's nested JSON; other rows as they are.

    The new index numbers the questions of each file from 1.
    """
    if not {"paragraphs", "qas"} & set(rows.columns):
        return rows
    made, index, count = [], [], Counter()
    for at, article in zip(rows.index, rows.to_dict("records"), strict=True):
        file = str(at).rpartition(":")[0]
        for paragraph in _objects(article.get("paragraphs", [article])):
            for question in _objects(paragraph.get("qas")):
                count[file] += 1
                made.append(question | {"context": paragraph.get("context")})
                index.append(f"{file}:{count[file]}" if file else count[file])
    columns = dict.fromkeys(name for row in made for name in row)
    values = {name: [row.get(name) for row in made] for name in columns}
    return pandas.DataFrame(values, index=index, dtype=object)


def _objects(value: Any) -> list[dict[str, Any]]:
    """Returns a list's objects; what is none in their place is an empty one."""
    given = value if isinstance(value, list) else []
    return [item if isinstance(item, dict) else {} for item in given]


def usable(table: Table, data: Data) -> pandas.DataFrame:
    """Returns the usable rows: question, context, and as label the answers in SQuAD's form.

    A label is a list of ``{"text", "answer_start"}``, empty for a question that the context does
    not answer. Rows have the file's own ids, where it has some. The others are appended to
    ``table.rejected``.

    Raises:
        UserError: a column is missing, or there is no question.
    """
    table.rows = flat(table.rows)
    if not len(table.rows):
        raise UserError(f"{table.source}: no paragraph has a question under `qas`")
    columns = {key: table.column(name, key) for key, name in _columns(table, data).items()}
    known = [str(name) for name in table.rows]
    for name in (data.answer_start, IMPOSSIBLE):
        if name in known:
            columns[name] = table.column(name, name)
    made, index = [], []
    fixed = Counter(table.fixed)
    rows = zip(*columns.values(), strict=True)
    for line, cells in zip(table.rows.index, rows, strict=True):
        row = dict(zip(columns, cells, strict=True))
        start, impossible = row.get(data.answer_start), row.get(IMPOSSIBLE)
        try:
            question, context = (_text(row[part], part) for part in ("question", "context"))
            label = _label(row["answers"], start, impossible, context, fixed)
        except Unusable as reason:
            source, at = table.place(line)
            table.rejected.append({"source": source, "line": at, "reason": str(reason)})
            continue
        made.append({"question": question.strip(), "context": context, "label": label})
        index.append(line)
    table.fixed = dict(fixed)
    names = ["question", "context", "label"]
    values = {name: [row[name] for row in made] for name in names}
    frame = pandas.DataFrame(values, index=pandas.Index(index, dtype=object), dtype=object)
    if "id" in known:
        ids = table.column("id", "id").loc[frame.index]
        if ids.is_unique and not any(map(is_missing, ids)):
            frame.insert(0, "id", ids.astype(str))
    return frame


def _columns(table: Table, data: Data) -> dict[str, str]:
    """Returns the columns of question, context and answers."""
    answers, known = data.answers, [str(name) for name in table.rows]
    if answers == Data().answers and not find_column(answers, known):
        answers = find_column(ANSWER, known) or answers
    return {"question": data.question, "context": data.context, "answers": answers}


def _text(cell: Any, part: str) -> str:
    """Returns a cell as a text.

    Raises:
        Unusable: it is blank, or no text.
    """
    if isinstance(cell, list | dict):
        raise Unusable(f"the {part} is {'a list' if isinstance(cell, list) else 'an object'}")
    text = "" if _missing(cell) else str(cell)
    if not text.strip():
        raise Unusable(f"empty {part}")
    return text


def _missing(cell: Any) -> bool:
    """Returns whether there is nothing in a cell; blanks are something."""
    return is_missing(cell) and (not isinstance(cell, str) or cell == "")


def _label(
    cell: Any, start: Any, impossible: Any, context: str, fixed: Counter[str]
) -> list[dict[str, Any]]:
    """Returns a question's answers with the place of each in the context.

    Raises:
        Unusable: an answer is blank or not at one known place, or contradicts ``is_impossible``.
    """
    label = [_placed(text, at, context, fixed) for text, at in _pairs(cell, start)]
    if isinstance(impossible, bool) and impossible == bool(label):
        has = "has an answer" if label else "has no answer"
        raise Unusable(f"{has}, and {IMPOSSIBLE} is {json.dumps(impossible)}")
    return label


def _pairs(cell: Any, start: Any) -> list[tuple[Any, Any]]:
    """Returns answers and where they start, of a cell in any of its forms.

    Raises:
        Unusable: it is in none of them.
    """
    if isinstance(cell, str) and cell.lstrip()[:1] in {"[", "{"}:
        cell = _parsed(cell)
    if _missing(cell):
        return []
    if isinstance(cell, dict):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if not isinstance(texts, list):
            return [(texts, starts)]
        starts = starts if isinstance(starts, list) else [starts] * len(texts)
        if len(starts) != len(texts):
            raise Unusable(f"{len(texts)} answers, and {len(starts)} answer_start")
        return list(zip(texts, starts, strict=True))
    if isinstance(cell, list):
        return [
            (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (item, None)
            for item in cell
        ]
    return [(str(cell), start)]


def _parsed(cell: str) -> Any:
    """Returns the answers that a cell of CSV has as JSON; a text that is none stays a text."""
    try:
        found = json.loads(cell)
    except ValueError:
        return cell
    is_label = isinstance(found, dict) or all(isinstance(item, dict | str) for item in found)
    return found if is_label else cell


def _placed(given: Any, start: Any, context: str, fixed: Counter[str]) -> dict[str, Any]:
    """Returns an answer with its place, without blanks around it.

    Raises:
        Unusable: it is blank, not in the context, or there more than once and not where it should.
    """
    if not isinstance(given, str):
        raise Unusable("an answer is not a text")
    text = given.strip()
    if not text:
        raise Unusable("a blank answer; leave the answers empty where the context has none")
    at = None if _missing(start) else _number(start)
    if at is not None:
        at += len(given) - len(given.lstrip())
    fixed[TRIMMED] += text != given
    if at is not None and at >= 0 and context.startswith(text, at):
        return {"text": text, "answer_start": at}
    count = context.count(text)
    if count == 1:
        # There is only one place that can be meant.
        fixed[FOUND if at is None else MENDED] += 1
        return {"text": text, "answer_start": context.index(text)}
    if not count:
        raise Unusable(f"the answer {shown(text)} is not in the context")
    if at is None:
        raise Unusable(f"the answer {shown(text)} is {count} times in the context: no answer_start")
    raise Unusable(f"at answer_start {start} is not {shown(text)}, which is there {count} times")


def _number(start: Any) -> int:
    try:
        return int(float(start))
    except (TypeError, ValueError, OverflowError):
        raise Unusable(f"answer_start {shown(start)} is not a number") from None


def read(file: Path, data: Data, whole: str | None = None) -> list[dict[str, str]]:
    """Returns the questions of a table or of SQuAD's JSON with contexts, and ids where it has some.

    Answers are not read. A missing cell is "".

    Args:
        whole: the context of all questions, where it is not in the table.

    Raises:
        UserError: a column is missing.
    """
    table = readers.read_table(file, data)
    table.rows = flat(table.rows)
    names = {"question": data.question} | ({} if whole is not None else {"context": data.context})
    columns = {key: table.column(name, key).tolist() for key, name in names.items()}
    if whole is not None:
        columns["context"] = [whole] * len(table.rows)
    if "id" in table.rows:
        columns = {"id": table.rows["id"].tolist(), **columns}
    texts = [["" if is_missing(c) else str(c) for c in column] for column in columns.values()]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*texts, strict=True)]


@dataclass
class Frame(splits.Frame):
    """Rows of questions; those about the same context stay in one split."""

    def take(self, count: int, seed: int) -> tuple[Self, Self]:
        """Takes the questions of whole contexts, together about ``count``.

        Where there are too few contexts, single questions are taken, and a note says so.
        """
        codes, _ = pandas.factorize(self.rows["context"])
        return self._take_whole(codes, "questions about one context", count, seed)


class Questions(RowKind):
    """A question about a context, whose answers are its label."""

    name = "questions"
    classes = False
    rows = Frame
    alike = False

    def usable(self, table: Table, split: str, data: Data, labelled: bool) -> pandas.DataFrame:
        return usable(table, data)

    def label_text(self, label: Any, label_names: list[str]) -> str:
        return " | ".join(answer["text"] for answer in label) or "no answer"


QUESTIONS = Questions()
