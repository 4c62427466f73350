"""Which rows train, validate and test: one policy for rows in memory and rows on disk.

- ``find``: a split is a file of its own, or else the split of that name in the named dataset.
- ``choose``: a missing split is taken from train, first test (``holdout``), then validation
  (``validation_size``). Only rows whose content occurs once are taken, so that nothing is on both
  sides.
- ``max_test_samples`` then samples test, and ``max_train_samples`` what is left of train.
- At last the test rows are compared with the training rows that are used.

Train fits the model, validation chooses a checkpoint, and test is read once, after the choice.

The policy needs a few operations on rows (``Rows``): ``Frame`` has them for rows in memory,
``streaming.OnDisk`` for rows on disk.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy
import pandas
from sklearn.model_selection import train_test_split

from finetune.data import readers
from finetune.errors import UserError
from finetune.recipe import Data

SPLITS = ("train", "validation", "test")
# Above this share of test rows that are also in train, a score no longer means anything.
MOST_OVERLAP = 0.001
# No more than this share of train is taken for another split.
MOST_TAKEN = 0.9
# Of rows that the report lists by their ids, so many.
LISTED = 20


# --- finding the splits ----------------------------------------------------------------------


@dataclass
class Found:
    """What the recipe names: a table for train and, where they exist, validation and test.

    ``commit`` is that of the hub dataset, if it is one. ``official`` says that test is the hub
    dataset's own split.
    """

    tables: dict[str, Any]
    source: str
    commit: str | None = None
    official: bool = False


def find(
    data: Data,
    read: Callable[[str], Any],
    dataset: Callable[[Data], tuple[dict[str, Any], str | None]],
) -> Found:
    """Finds the tables of the splits.

    Args:
        read: reads a file or folder.
        dataset: reads all splits of ``data.dataset`` and returns them with the hub commit, if any.

    Raises:
        UserError: a split does not exist, or there is none to train on.
    """
    if data.dataset is None:
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        files = {split: file for split, file in named.items() if file}
        tables = {split: read(file) for split, file in files.items()}
        return Found(tables, ", ".join(files.values()))
    known, commit = dataset(data)
    tables, own_files = {}, []
    for split in SPLITS:
        name = getattr(data, split)
        if name is not None and _is_file(name):
            tables[split] = read(name)
            own_files.append(name)
        elif name is not None and name not in known:
            raise readers.unknown_name(data.dataset, "split", name, list(known), split)
        elif (name or split) in known:
            tables[split] = known[name or split]
    if "train" not in tables:
        raise readers.unknown_name(data.dataset, "split", "train", list(known), "train")
    official = bool(commit) and "test" in tables and not _is_file(data.test)
    return Found(tables, ", ".join([data.dataset, *own_files]), commit, official)


def _is_file(value: str | None) -> bool:
    return value is not None and (Path(value).suffix in readers.SUFFIXES or Path(value).exists())


# --- rows ------------------------------------------------------------------------------------


class Rows(Protocol):
    """The usable rows of a split, and what was found when they were read.

    ``source`` names them in messages; ``rejected`` and ``fixed`` are those of ``readers.Table``.
    Two rows have the same content if their texts (without blanks at either end) or images are the
    same, whatever their labels.
    """

    source: str
    rejected: list[dict[str, Any]]
    fixed: dict[str, int]

    def __len__(self) -> int: ...

    @property
    def columns(self) -> list[str]:
        """The columns that make up a row."""
        ...

    def unique(self) -> int:
        """Counts the rows whose content no other row has."""
        ...

    def take(self, count: int, seed: int) -> tuple[Self, "Rows"]:
        """Takes ``count`` of the unique rows at random: the rows left, and those taken."""
        ...

    def sample(self, count: int, seed: int) -> Self:
        """Returns ``count`` of the rows, chosen at random, in their order."""
        ...

    def duplicates(self) -> int:
        """Counts the rows whose content an earlier row has."""
        ...

    def contradictions(self) -> list[list[str]]:
        """Returns the ids of rows with the same content and different labels, group by group."""
        ...

    def shared(self, other: pandas.DataFrame) -> list[str]:
        """Returns the ids of the rows of ``other`` whose content is among these rows."""
        ...

    def frame(self) -> pandas.DataFrame:
        """Returns the rows in memory, with a column ``id``."""
        ...


R = TypeVar("R", bound=Rows)


@dataclass
class Frame:
    """Rows in memory: columns id, those of their content, and label where rows have one."""

    rows: pandas.DataFrame
    source: str
    rejected: list[dict[str, Any]] = field(default_factory=list)
    fixed: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return [str(column) for column in self.rows.columns[1:]]

    def unique(self) -> int:
        return len(self._unique)

    def take(self, count: int, seed: int) -> tuple[Self, Self]:
        unique = self._unique
        labels = _strata(self.rows.iloc[unique], count)
        _, chosen = train_test_split(unique, test_size=count, random_state=seed, stratify=labels)
        taken = numpy.zeros(len(self), bool)
        taken[chosen] = True
        return self._only(~taken), self._only(taken)

    def sample(self, count: int, seed: int) -> Self:
        places, labels = numpy.arange(len(self)), _strata(self.rows, count)
        chosen, _ = train_test_split(places, train_size=count, random_state=seed, stratify=labels)
        return self._only(numpy.sort(chosen))

    def duplicates(self) -> int:
        return int(_contents(self.rows).duplicated().sum())

    def contradictions(self) -> list[list[str]]:
        if "label" not in self.rows:
            return []
        repeated = self.rows.loc[_contents(self.rows).duplicated(keep=False)]
        groups = repeated.groupby(_contents(repeated), sort=False)
        return [list(rows["id"]) for _, rows in groups if len(set(rows["label"].astype(str))) > 1]

    def shared(self, other: pandas.DataFrame) -> list[str]:
        return list(other["id"][_contents(other).isin(set(_contents(self.rows)))])

    def frame(self) -> pandas.DataFrame:
        return self.rows.reset_index(drop=True)

    @cached_property
    def _unique(self) -> numpy.ndarray:
        return numpy.flatnonzero(~_contents(self.rows).duplicated(keep=False))

    def _only(self, chosen: numpy.ndarray) -> Self:
        return replace(self, rows=self.rows.iloc[chosen])


def _contents(frame: pandas.DataFrame) -> pandas.Series:
    """Returns what makes two rows the same text or image."""
    if "digest" in frame:
        return frame.loc[:, "digest"]
    columns = [c for c in frame if c not in {"id", "label"}]
    parts = [frame[column].str.strip() for column in columns]
    return parts[0].str.cat(parts[1:], sep="\0") if parts[1:] else parts[0]


def _strata(frame: pandas.DataFrame, taken: int) -> Any:
    """Returns the labels to stratify by, or None if a class has too few rows for that."""
    if not len(frame) or "label" not in frame or isinstance(frame["label"].iloc[0], list | float):
        return None
    counts = frame["label"].value_counts()
    fits = counts.min() >= 2 and min(taken, len(frame) - taken) >= len(counts)
    return frame["label"] if fits else None


# --- the policy ------------------------------------------------------------------------------


@dataclass
class Chosen(Generic[R]):
    """The rows of each split, what test is, and what the checks found (see ``findings``).

    ``test_is`` is "official" (the hub dataset's own test split), "sample of the official split",
    "given" (by the user) or "holdout" (taken from train).
    """

    train: R
    validation: pandas.DataFrame
    test: pandas.DataFrame
    test_is: str
    report: dict[str, Any]
    rejected: list[dict[str, Any]]


def check(given: Mapping[str, Rows]) -> None:
    """Checks that every split has rows, and that all have the same columns.

    Raises:
        UserError: one has not.
    """
    columns = given["train"].columns
    for rows in given.values():
        if not len(rows):
            raise UserError(f"{rows.source}: no usable rows")
        if rows.columns != columns:
            raise UserError(
                f"{rows.source}: has {', '.join(rows.columns)} where train has "
                f"{', '.join(columns)}; give all splits the same columns"
            )


def choose(
    train: R, others: Mapping[str, Rows], data: Data, source: str, official: bool
) -> Chosen[R]:
    """Decides which rows train, validate and test.

    Args:
        others: the rows of validation and test, where they are given.
        source: names the data in messages.
        official: whether a given test is the hub dataset's own split.

    Raises:
        UserError: there are too few rows to take a split from, or test rows are also in train.
    """
    given: list[Rows] = [train, *others.values()]
    if "test" in others:
        test, test_is = others["test"], "official" if official else "given"
    else:
        if not data.holdout:
            raise UserError(
                f"{source}: holdout: 0 leaves no test rows; write a share such as 0.2, or give "
                "`test`"
            )
        train, test = _taken(train, "holdout", data.holdout, source, data.split_seed)
        test_is = "holdout"
    whole = len(test)
    test = _sampled(test, data.max_test_samples, data.split_seed)
    if test_is == "official" and len(test) < whole:
        test_is = "sample of the official split"
    tested = test.frame()
    if "validation" in others:
        validation = others["validation"].frame()
    elif data.validation_size:
        train, taken = _taken(
            train, "validation_size", data.validation_size, source, data.split_seed
        )
        validation = taken.frame()
    else:
        validation = tested.iloc[:0]
    train = _sampled(train, data.max_train_samples, data.split_seed)

    shared, contradictions = train.shared(tested), train.contradictions()
    if len(shared) > MOST_OVERLAP * len(tested) and not data.allow_overlap:
        raise UserError(
            f"{source}: {len(shared)} of {len(tested)} test rows are also in train, the first is "
            f"{shared[0]}; remove them, or set `allow_overlap: true`"
        )
    rejected = [row for rows in given for row in rows.rejected]
    return Chosen(
        train,
        validation,
        tested,
        test_is,
        {
            "duplicates_in_train": train.duplicates(),
            "contradictions_in_train": len(contradictions),
            "contradicting_rows": contradictions[:LISTED],
            "test_texts_in_train": len(shared),
            "overlapping_rows": shared[:LISTED],
            "rejected": len(rejected),
            "fixed": dict(sum((Counter(rows.fixed) for rows in given), Counter())),
        },
        rejected,
    )


def _taken(rows: R, key: str, size: float, source: str, seed: int) -> tuple[R, Rows]:
    """Takes ``size`` rows (a count, or a share below 1): the rows left, and those taken.

    Raises:
        UserError: too few rows would be left.
    """
    count = round(size * len(rows)) if size < 1 else round(size)
    if count < 1 or count > rows.unique() - 2 or count > len(rows) * MOST_TAKEN:
        raise UserError(
            f"{source}: {key}: {size:g} of {len(rows)} rows cannot be taken from train; write a "
            "share such as 0.2, or add more rows"
        )
    return rows.take(count, seed)


def _sampled(rows: R, most: int | None, seed: int) -> R:
    return rows if most is None or most >= len(rows) else rows.sample(most, seed)
