"""Which rows train, validate and test: one policy for rows in memory and rows on disk.

- ``choose``: a missing split is taken from train, first test (``holdout``), then validation
  (``validation_size``). Only rows whose content occurs once are taken, so that nothing is on both
  sides.
- ``max_test_samples`` then samples test, and ``max_train_samples`` what is left of train.
- At last the rows of the three splits that are used are compared.
- ``untested`` scores the rows of validation instead of those of test.

Train fits the model, validation chooses a checkpoint, and test is read once, after the choice.

The policy needs a few operations on rows (``Rows``): ``Frame`` has them for rows in memory,
``streaming.OnDisk`` for rows on disk. It is one file because they change together.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy
import pandas

from finetune.errors import UserError
from finetune.recipe import Data

SPLITS = ("train", "validation", "test")
SAMPLE = "sample of the official split"
VALIDATION = "validation"
# Above this share of test rows that are also in train, a score no longer means anything.
MOST_OVERLAP = 0.001
# No more than this share of train is taken for another split.
MOST_TAKEN = 0.9
LISTED = 20  # ids of rows that the report lists at most


# --- rows ------------------------------------------------------------------------------------


class Rows(Protocol):
    """The usable rows of a split, and what was found when they were read.

    ``source`` names them in messages; ``rejected``, ``fixed`` and ``notes`` are those of
    ``readers.Table``.
    Two rows have the same content if their texts (without blanks at either end) or images are the
    same, whatever their labels.
    """

    source: str
    rejected: list[dict[str, Any]]
    fixed: dict[str, int]
    notes: list[str]

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
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return [str(column) for column in self.rows.columns[1:]]

    def unique(self) -> int:
        return len(self._unique)

    def take(self, count: int, seed: int) -> tuple[Self, Self]:
        return self._take_rows(count, seed)

    def _take_rows(self, count: int, seed: int) -> tuple[Self, Self]:
        unique = self._unique
        rare = self._rare(unique)
        if len(rare) and count <= len(unique) - len(rare):
            unique = numpy.setdiff1d(unique, rare, assume_unique=True)
            self._say(f"{len(rare):,} classes with a single row: it stays in train")
        labels = _strata(self.rows.iloc[unique], count)
        if count == len(unique):
            chosen = unique
        else:
            _, chosen = divided(unique, labels, count, seed)
        taken = numpy.zeros(len(self), bool)
        taken[chosen] = True
        return self._only(~taken), self._only(taken)

    def _take_whole(
        self, groups: numpy.ndarray, members: str, count: int, seed: int
    ) -> tuple[Self, Self]:
        """Takes whole groups of rows, together about ``count`` rows.

        Where there are too few groups, single rows are taken, and a note says so.

        Args:
            groups: (N,) of each row, from 0.
            members: what the rows of a group are, for the note.
        """
        sizes, left = numpy.bincount(groups), count
        taken = numpy.zeros(len(sizes), bool)
        for group in numpy.random.default_rng(seed).permutation(len(sizes)):
            if sizes[group] <= left:
                taken[group] = True
                left -= sizes[group]
        if left > count / 2 or taken.all():
            self._say(
                f"{members} are in two splits: there are {len(sizes):,} groups of them, the "
                f"largest with {sizes.max():,} rows"
            )
            return self._take_rows(count, seed)
        return self._only(~taken[groups]), self._only(taken[groups])

    def sample(self, count: int, seed: int) -> Self:
        places = numpy.arange(len(self))
        rare = self._rare(places)
        if not len(rare) or len(rare) > count // 2:
            rare = places[:0]
        places = numpy.setdiff1d(places, rare, assume_unique=True)
        count -= len(rare)
        labels = _strata(self.rows.iloc[places], count)
        chosen, _ = divided(places, labels, len(places) - count, seed)
        return self._only(numpy.sort(numpy.concatenate([rare, chosen])))

    def duplicates(self) -> int:
        return int(contents(self.rows).duplicated().sum())

    def contradictions(self) -> list[list[str]]:
        if "label" not in self.rows:
            return []
        repeated = self.rows.loc[contents(self.rows).duplicated(keep=False)]
        groups = repeated.groupby(contents(repeated), sort=False)
        return [list(rows["id"]) for _, rows in groups if len(set(rows["label"].astype(str))) > 1]

    def shared(self, other: pandas.DataFrame) -> list[str]:
        return list(other["id"][contents(other).isin(set(contents(self.rows)))])

    def frame(self) -> pandas.DataFrame:
        return self.rows.reset_index(drop=True)

    @cached_property
    def _unique(self) -> numpy.ndarray:
        return numpy.flatnonzero(~contents(self.rows).duplicated(keep=False))

    def _rare(self, places: numpy.ndarray) -> numpy.ndarray:
        """Returns those of the rows that are the only one of their class."""
        if not _has_classes(self.rows):
            return places[:0]
        labels = self.rows["label"].iloc[places]
        return places[(labels.map(labels.value_counts()) == 1).to_numpy()]

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _only(self, chosen: numpy.ndarray) -> Self:
        return replace(self, rows=self.rows.iloc[chosen])


def contents(frame: pandas.DataFrame) -> pandas.Series:
    """Returns what makes two rows the same text or image."""
    if "digest" in frame:
        return frame.loc[:, "digest"]
    columns = [c for c in frame if c not in {"id", "label"}]
    parts = [frame[column].str.strip() for column in columns]
    return parts[0].str.cat(parts[1:], sep="\0") if parts[1:] else parts[0]


def _has_classes(frame: pandas.DataFrame) -> bool:
    if not len(frame) or "label" not in frame:
        return False
    return not isinstance(frame["label"].iloc[0], list | float)


def divided(
    places: numpy.ndarray, labels: Any, count: int, seed: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Divides rows as scikit-learn's ``train_test_split`` does, with ``count`` in the second part.

    Args:
        places: (N,) of the rows.
        labels: (N,) by which to stratify; None to draw from all rows alike.
    """
    if labels is None:
        # The same rows, without an import of a second.
        order = numpy.random.RandomState(seed).permutation(len(places))
        return places[order[count:]], places[order[:count]]
    from sklearn.model_selection import train_test_split

    parts = train_test_split(places, test_size=count, random_state=seed, stratify=labels)
    rest, taken = map(numpy.asarray, parts)
    return rest, taken


def _strata(frame: pandas.DataFrame, taken: int) -> Any:
    """Returns the labels to stratify by, or None if a class has too few rows for that."""
    if not _has_classes(frame):
        return None
    counts = frame["label"].value_counts()
    fits = counts.min() >= 2 and min(taken, len(frame) - taken) >= len(counts)
    return frame["label"] if fits else None


# --- the policy ------------------------------------------------------------------------------


@dataclass
class Chosen(Generic[R]):
    """The rows of each split, what test is, and what the checks found (see ``findings``).

    ``test_is`` is "official" (the hub or embedded dataset's own test split), "sample of the
    official split", "given" (by the user), "holdout" (taken from train), or "validation": the rows
    of validation serve as test, too (``untested``).
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
    train: R,
    others: Mapping[str, Rows],
    data: Data,
    source: str,
    test_is: str,
    notes: Sequence[str] = (),
    join: Callable[[R, Mapping[str, pandas.DataFrame]], R] | None = None,
    unread: bool = False,
) -> Chosen[R]:
    """Decides which rows train, validate and test.

    Args:
        others: the rows of validation and test, where they are given.
        source: names the data in messages.
        test_is: what a given test is, see ``Chosen``.
        notes: what finding the splits has to say.
        join: (training rows, rows of the other splits) -> training rows with more among them.
        unread: there is a test that is not read, and none has to be taken from train.

    Raises:
        UserError: there are too few rows to take a split from, or two splits share rows.
    """
    given: list[Rows] = [train, *others.values()]
    if "test" in others or unread:
        test = others.get("test", Frame(pandas.DataFrame(), source))
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
        test_is = SAMPLE
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
    if data.untested and not len(validation):
        raise UserError(f"{source}: untested needs validation rows; raise validation_size")
    if unread:
        tested = validation.iloc[:0]
    sample_seed = data.split_seed if data.sample_seed is None else data.sample_seed
    train = _sampled(train, data.max_train_samples, sample_seed)
    if join:
        train = join(train, {"validation": validation, "test": tested})

    contradictions = train.contradictions()
    shared = _shared(train, tested, "test", "train", source, data)
    validated = _shared(train, validation, "validation", "train", source, data)
    both = _shared(Frame(validation, source), tested, "test", "validation", source, data)
    if data.untested:
        tested, test_is = validation, VALIDATION
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
            "validation_texts_in_train": len(validated),
            "test_texts_in_validation": len(both),
            "overlapping_rows": [*shared, *validated, *both][:LISTED],
            "rejected": len(rejected),
            "fixed": dict(sum((Counter(rows.fixed) for rows in given), Counter())),
            "notes": list(dict.fromkeys([*notes, *(n for rows in given for n in rows.notes)])),
        },
        rejected,
    )


def _shared(
    rows: Rows, others: pandas.DataFrame, split: str, other: str, source: str, data: Data
) -> list[str]:
    """Returns the ids of ``others``, rows of ``split``, whose content is in ``rows`` of ``other``.

    Raises:
        UserError: they are more than ``MOST_OVERLAP`` of them.
    """
    if not len(rows) or not len(others):
        return []
    found = rows.shared(others)
    if len(found) > MOST_OVERLAP * len(others) and not data.allow_overlap:
        raise UserError(
            f"{source}: {len(found)} of {len(others)} {split} rows are also in {other}, the first "
            f"is {found[0]}; remove them, or set `allow_overlap: true`"
        )
    return found


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
