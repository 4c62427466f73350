"""Rows -> checked splits: columns, label map, train/validation/test policy, fingerprint.

Train learns, validation chooses, test is read once, after the choice.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy
import pandas
from sklearn.model_selection import train_test_split

from finetune.data import chats, image_files, labels, readers
from finetune.errors import UserError, nearest
from finetune.recipe import Data

# Above this share of bad rows the file is broken, not the rows.
MOST_REJECTED = 0.01
# Above this share of test rows that also stand in train, a score no longer means anything.
MOST_OVERLAP = 0.001
# The problem type of rows without labels.
UNLABELLED = "unlabelled"
# Images that are looked at before the first of them is taken down.
WINDOW = 1000
# What a row is: a text or a pair of them; an image; or a document for a language model, which is a
# text, a prompt with its completion, or a chat.
TEXTS, IMAGES, DOCUMENTS = "texts", "images", "documents"


@dataclass
class Corpus:
    """Checked splits. Each frame has columns id, text, label, and text_pair for pairs.

    Documents for a language model may instead have prompt and completion, or messages: a chat as
    JSON. Of images, the columns are id, image (a path, or the bytes of its file), digest (of what
    it shows), label.

    ``label`` is a class index (int), a 0/1 vector (list of K floats) or a target (float), as
    ``problem_type`` says; ``label_names`` has K names, or none for regression. Rows that came
    without labels have no such column, and ``problem_type`` is ``UNLABELLED``.
    """

    train: Any
    validation: pandas.DataFrame
    test: pandas.DataFrame
    label_names: list[str]
    problem_type: str
    source: str
    revision: str | None
    test_is: str
    report: dict[str, Any] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    train_digest: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every row of every split, in order; an image counts by its digest."""
        digest = hashlib.sha256(self.train_digest.encode())
        frames = [] if self.train_digest else [self.train]
        for frame in (*frames, self.validation, self.test):
            for row in frame.drop(columns="image", errors="ignore").itertuples(index=False):
                digest.update(repr(tuple(row)).encode())
            digest.update(b"|")
        return digest.hexdigest()[:16]


# --- finding the splits ----------------------------------------------------------------------


def _is_file(value: str | None) -> bool:
    return value is not None and (Path(value).suffix in readers.SUFFIXES or Path(value).exists())


def splits(
    data: Data,
    read: Callable[[str], Any],
    dataset: Callable[[Data], tuple[dict[str, Any], str | None]],
) -> tuple[dict[str, Any], str, str | None]:
    """The tables of train and, where they exist, validation and test; their source; the commit.

    Args:
        read: reads a file or folder.
        dataset: reads the splits of ``data.dataset``, and says which commit of the hub's.

    Raises:
        UserError: there is no such split, or none to train on.
    """
    if data.dataset is None:
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        given = {split: file for split, file in named.items() if file}
        return {k: read(v) for k, v in given.items()}, ", ".join(given.values()), None
    tables, commit = dataset(data)
    chosen = {}
    for split in ("train", "validation", "test"):
        wanted = getattr(data, split)
        if wanted is not None and _is_file(wanted):
            chosen[split] = read(wanted)
        elif wanted is not None and wanted not in tables:
            refuse_name(data.dataset, "split", wanted, list(tables), split)
        elif (wanted or split) in tables:
            chosen[split] = tables[wanted or split]
    if "train" not in chosen:
        refuse_name(data.dataset, "split", "train", list(tables), "train")
    own = [
        str(getattr(data, s)) for s in chosen if tables.get(getattr(data, s) or s) is not chosen[s]
    ]
    return chosen, ", ".join([data.dataset, *own]), commit


def _tables(
    data: Data, images: bool, labelled: bool
) -> tuple[dict[str, readers.Table], str, str | None]:
    def read(file: str) -> readers.Table:
        if images:
            return image_files.read(Path(file), data, labelled)
        return readers.read_table(Path(file), data.encoding)

    def dataset(data: Data) -> tuple[dict[str, readers.Table], str | None]:
        name = str(data.dataset)
        if images:
            return image_files.dataset(name, data, labelled)
        return readers.dataset(
            name, data.dataset_config, data.dataset_revision, data.label, data.encoding
        )

    return splits(data, read, dataset)


def refuse_name(source: str, what: str, name: str, known: list[str], key: str) -> NoReturn:
    """Raise the ``UserError`` for a split or column that does not exist."""
    hint = f"set `{key}:`; {nearest(name, known)}".rstrip("; ")
    raise UserError(f"{source}: no {what} {name!r}; it has {', '.join(known)} ({hint})")


# --- checking rows ---------------------------------------------------------------------------


def _column(table: readers.Table, name: str, key: str) -> pandas.Series:
    if name not in table.rows.columns:
        refuse_name(table.source, "column", name, [str(c) for c in table.rows.columns], key)
    return table.rows.loc[:, name]


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _inspected(frame: pandas.DataFrame, table: readers.Table) -> pandas.DataFrame:
    """Add each image's digest; images that cannot be used go to ``table.rejected``."""

    def look(image: str | bytes) -> tuple[str, list[str]] | image_files.Unusable:
        try:
            return image_files.inspect(image)
        except image_files.Unusable as reason:
            return reason

    digests, keep, fixed = [], [], Counter(table.fixed)
    # Threads suffice: PIL decodes outside the interpreter's lock, and each holds one image.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A window at a time: what is asked for at once is held at once.
        windows = (frame["image"].iloc[i : i + WINDOW] for i in range(0, len(frame), WINDOW))
        looked = chain.from_iterable(pool.map(look, window) for window in windows)
        for line, image, found in zip(frame.index, frame["image"], looked, strict=True):
            keep.append(not isinstance(found, image_files.Unusable))
            if isinstance(found, image_files.Unusable):
                source, at = table.place(line)
                named = isinstance(image, str) and at is not None
                reason = f"{image} {found}" if named else str(found)
                table.rejected.append({"source": source, "line": at, "reason": reason})
            else:
                digests.append(found[0])
                fixed.update(found[1])
    table.fixed = dict(fixed)
    frame = frame.loc[keep].copy()
    frame.insert(1, "digest", pandas.Series(digests, index=frame.index, dtype=object))
    return frame


def content_columns(columns: Sequence[str], data: Data, content: str) -> dict[str, str]:
    """What makes up a row -> the name of the column that holds it, of those there are."""
    if content == IMAGES:
        return {"image": data.image}
    if content == DOCUMENTS:
        if data.messages in columns:
            return {"messages": data.messages}
        if {data.prompt, data.completion} <= set(columns):
            return {"prompt": data.prompt, "completion": data.completion}
        return {"text": data.text}
    return {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})


def rows_of(
    table: readers.Table, split: str, data: Data, kind: str, labelled: bool
) -> pandas.DataFrame:
    """Texts as str, chats as JSON, images with their digest, labels as read.

    Rows that cannot be used go to ``table.rejected``.
    """
    images = kind == IMAGES
    content = content_columns([str(c) for c in table.rows.columns], data, kind)
    columns = {key: _column(table, name, key) for key, name in content.items()}
    if labelled:
        columns["label"] = _column(table, data.label, "label")
    frame = pandas.DataFrame(columns)
    # What is set aside already was no row.
    read = len(frame) + len(table.rejected)
    several = data.problem_type == "multi_label_classification"

    def says_none(label: Any) -> bool:
        # An empty cell where several labels could stand means that none applies.
        return several and isinstance(label, str)

    keep = []
    for line, row in zip(frame.index, frame.itertuples(index=False), strict=True):
        empty = [
            data.label if c == "label" else getattr(data, c)
            for c in columns
            if _is_missing(getattr(row, c)) and not (c == "label" and says_none(getattr(row, c)))
        ]
        reason = f"empty {' and '.join(empty)}" if empty else None
        if "messages" in columns and not empty:
            wrong = chats.fault(getattr(row, "messages"))  # noqa: B009 - as above
            reason = f"{data.messages} {wrong}" if wrong else None
        keep.append(reason is None)
        if empty == [data.text] and not labelled:
            # Blank lines between texts are no mistakes: nothing is lost with them.
            table.fixed["blank row left out"] = table.fixed.get("blank row left out", 0) + 1
        elif reason:
            source, at = table.place(line)
            table.rejected.append({"source": source, "line": at, "reason": reason})
    frame = frame.loc[keep].copy()
    if "messages" in frame:
        frame["messages"] = [chats.as_text(cell) for cell in frame["messages"]]
    if images:
        frame = _inspected(frame, table)
    if len(table.rejected) > MOST_REJECTED * read:
        first = table.rejected[0]
        raise UserError(
            f"{readers.where(first['source'], first['line'])}: {first['reason']}; "
            f"{len(table.rejected)} of {read} rows cannot be used, mend "
            f"{'or remove them' if images else 'the file'}"
        )
    for column in content if not images else ():
        # dtype object keeps "NA" and "007" as written, and turns numbers of JSON into their text.
        frame[column] = [v if isinstance(v, str) else str(v) for v in frame[column]]
    if labelled:
        labels = [v.item() if isinstance(v, numpy.generic) else v for v in frame["label"]]
        frame["label"] = pandas.Series(labels, index=frame.index, dtype=object)
    frame.insert(0, "id", [f"{split}-{line}" for line in frame.index])
    return frame


# --- splits ----------------------------------------------------------------------------------


def _contents(frame: pandas.DataFrame) -> pandas.Series:
    """What makes two rows the same text or image."""
    if "digest" in frame:
        return frame.loc[:, "digest"]
    columns = [c for c in frame if c not in {"id", "label"}]
    parts = [frame[column].str.strip() for column in columns]
    return parts[0].str.cat(parts[1:], sep="\0") if parts[1:] else parts[0]


def _strata(frame: pandas.DataFrame, taken: int) -> Any:
    """Labels to stratify by, or None where too few rows of a class make that impossible."""
    if not len(frame) or "label" not in frame or isinstance(frame["label"].iloc[0], list | float):
        return None
    counts = frame["label"].value_counts()
    fits = counts.min() >= 2 and min(taken, len(frame) - taken) >= len(counts)
    return frame["label"] if fits else None


def _carve(
    frame: pandas.DataFrame, size: float, key: str, seed: int
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Take ``size`` rows (a count, or a share below 1): what stays, what was taken.

    Only texts and images that occur once are taken, so that none stands on both sides.

    Raises:
        UserError: that would leave too few rows.
    """
    taken = round(size * len(frame)) if size < 1 else round(size)
    if taken == 0 and size == 0:
        return frame, frame.iloc[:0]
    single = frame.loc[~_contents(frame).duplicated(keep=False)]
    if taken < 1 or taken > len(single) - 2 or taken > len(frame) * 0.9:
        raise UserError(
            f"{key}: {size:g} of {len(frame)} rows cannot be taken; write a share such as 0.2, "
            "or bring more rows"
        )
    _, chosen = train_test_split(
        single.index, test_size=taken, random_state=seed, stratify=_strata(single, taken)
    )
    inside = frame.index.isin(chosen)
    return frame.loc[~inside], frame.loc[inside]


def _sample(frame: pandas.DataFrame, most: int | None, seed: int) -> pandas.DataFrame:
    if most is None or most >= len(frame):
        return frame
    chosen, _ = train_test_split(
        frame.index, train_size=most, random_state=seed, stratify=_strata(frame, most)
    )
    return frame.loc[frame.index.isin(chosen)]


def _findings(train: pandas.DataFrame, test: pandas.DataFrame) -> dict[str, Any]:
    """Duplicates, contradictions and overlap, counted; the last two also listed by row id."""
    contents = _contents(train)
    repeated = train.loc[contents.duplicated(keep=False)]
    shared = _contents(test).isin(set(contents))
    contradictions = [
        list(rows["id"])
        for _, rows in repeated.groupby(_contents(repeated), sort=False)
        if "label" in rows and len(set(rows["label"].astype(str))) > 1
    ]
    return {
        "duplicates_in_train": int(contents.duplicated().sum()),
        "contradictions_in_train": len(contradictions),
        "contradicting_rows": contradictions[:20],
        "test_texts_in_train": int(shared.sum()),
        "overlapping_rows": list(test["id"][shared])[:20],
    }


def refuse_overlap(source: str, overlap: int, shown: list[str], rows: int, data: Data) -> None:
    """Raise the ``UserError`` of a test whose rows also stand in train, if that is not allowed.

    Args:
        overlap: how many of the test's ``rows``; the first of them is ``shown``.
    """
    if overlap > MOST_OVERLAP * rows and not data.allow_overlap:
        raise UserError(
            f"{source}: {overlap} of {rows} test rows also stand in train, the first is "
            f"{shown[0]}; remove them, or set `allow_overlap: true`"
        )


def load(data: Data, content: str = TEXTS, labelled: bool = True) -> Corpus:
    """Read, check and split what ``data`` names.

    Args:
        content: what a row is: ``TEXTS``, ``IMAGES`` or ``DOCUMENTS``.
        labelled: whether the task needs labels. Where it does not, those that a classifier could
            use still decide which rows are taken for test and validation: the same as for that
            classifier, which may start from what is learned here.

    Raises:
        UserError: anything of which a run would lie or fail: see the messages.
    """
    if data.streaming:
        raise UserError(
            "streaming: is for text-generation and fill-mask; other rows are all checked in memory"
        )
    if labelled:
        return _loaded(data, content, True)
    try:
        found = _loaded(data, content, True)
    except UserError:
        return _loaded(data, content, False)
    frames = {name: getattr(found, name) for name in ("train", "validation", "test")}
    frames = {name: frame.drop(columns="label") for name, frame in frames.items()}
    return replace(found, **frames, label_names=[], problem_type=UNLABELLED)


def _loaded(data: Data, content: str, labelled: bool) -> Corpus:
    tables, source, commit = _tables(data, content == IMAGES, labelled)
    frames = {
        split: rows_of(table, split, data, content, labelled) for split, table in tables.items()
    }
    for split, frame in frames.items():
        if not len(frame):
            raise UserError(f"{tables[split].source}: no usable rows")
        if list(frame.columns) != list(frames["train"].columns):
            raise UserError(
                f"{tables[split].source}: holds {', '.join(frame.columns[1:])} where train has "
                f"{', '.join(frames['train'].columns[1:])}; write all splits alike"
            )
    names = labels.encode(frames, tables, data) if labelled else []

    frames = {split: frame.reset_index(drop=True) for split, frame in frames.items()}
    train, seed = frames["train"], data.split_seed
    if "test" in frames:
        test, test_is = frames["test"], "official" if commit else "given"
    else:
        train, test = _carve(train, data.holdout, f"{source}: holdout", seed)
        test_is = "holdout"
        if not len(test):
            raise UserError(
                f"{source}: holdout: 0 leaves no test rows; write a share such as 0.2, or give "
                "`test`"
            )
    whole = len(test)
    test = _sample(test, data.max_test_samples, seed)
    if test_is == "official" and len(test) < whole:
        test_is = "sample of the official split"
    if "validation" in frames:
        validation = frames["validation"]
    else:
        train, validation = _carve(train, data.validation_size, f"{source}: validation_size", seed)
    train = _sample(train, data.max_train_samples, seed)

    report = _findings(train, test)
    refuse_overlap(
        source, report["test_texts_in_train"], report["overlapping_rows"], len(test), data
    )
    rejected = [row for table in tables.values() for row in table.rejected]
    fixed = sum((Counter(table.fixed) for table in tables.values()), Counter())
    report |= {"rejected": len(rejected), "fixed": dict(fixed)}
    return Corpus(
        *(frame.reset_index(drop=True) for frame in (train, validation, test)),
        label_names=names,
        problem_type=data.problem_type if labelled else UNLABELLED,
        source=source,
        revision=commit,
        test_is=test_is,
        report=report,
        rejected=rejected,
    )
