"""Labels: how many rows each class has, and rows whose label looks wrong."""

from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from finetune.checks.duplicates import label
from finetune.checks.finding import Finding, Severity, example, joined, some
from finetune.data.corpus import Corpus
from finetune.evaluation import baselines, intervals

# Half the width in points of the recall's interval, above which a class's score says little: 20
# points are about 20 test rows.
WIDE = 20.0
# A class with fewer rows than this share of the largest one's is neglected by accuracy.
RARE = 0.1
FOLDS = 5
# From this probability on, the linear model counts as sure. Labels that it contradicts are a
# warning if it is right on this share of the rows that it is sure of, and they are so many of all.
SURE, RIGHT, MANY, FEWEST = 0.8, 0.95, 0.01, 3


def counts(frame: pandas.DataFrame, corpus: Corpus) -> numpy.ndarray:
    """Returns how many rows of a split each class has, or entities each type, (K,) int."""
    return numpy.array([*corpus.kind.counts(frame["label"], corpus.label_names).values()], int)


def names(corpus: Corpus) -> list[str]:
    """Returns the names of what ``counts`` counts."""
    return [*corpus.kind.counts([], corpus.label_names)]


def half_width(rows: int) -> float:
    """Returns half the width of a recall's 95 % interval (Wilson) on so many rows, in points.

    Of a recall near 50 %, where it is widest.
    """
    if not rows:
        return 100.0
    interval = intervals.wilson(rows // 2, rows)
    return 50 * (interval["high"] - interval["low"])


def balance(corpus: Corpus) -> list[Finding]:
    """Finds classes that are too rare to learn, or to measure on the test split."""
    known, found = names(corpus), []
    things, sort = corpus.kind.counted
    train, test = counts(corpus.train, corpus), counts(corpus.test, corpus)
    rarest = int(train.argmin())
    if train[rarest] < RARE * train.max():
        what = (
            f"training {things} have the rarest {sort}, {known[rarest]}, and {train.max():,} the "
            "largest"
        )
        advice = "Compare runs by macro F1, not accuracy, or add rows of the rare ones."
        found.append(Finding(Severity.WARNING, what, int(train[rarest]), advice))
    least = int(test.argmin())
    width = half_width(int(test[least]))
    if width > WIDE:
        what = (
            f"test {things} have the {sort} {known[least]}: its recall is known to ±{width:.0f} "
            "points"
        )
        enough = _rows_for(WIDE / 2)
        advice = f"Add rows: {enough} test {things} of a {sort} give ±{WIDE / 2:.0f} points."
        found.append(Finding(Severity.WARNING, what, int(test[least]), advice))
    return found


def _rows_for(points: float) -> int:
    """Returns how many rows give an interval of at most ``points`` to either side, in tens."""
    return next(rows for rows in range(10, 100_000, 10) if half_width(rows) <= points)


# --- wrong labels ----------------------------------------------------------------------------


@dataclass
class OutOfFold:
    """What a linear model says of rows that it did not learn from.

    Attributes:
        rows: N rows, of all splits.
        probabilities: (N, K) float.
        labels: (N,) int, as the rows have them.
    """

    rows: pandas.DataFrame
    probabilities: numpy.ndarray
    labels: numpy.ndarray

    @property
    def accuracy(self) -> float:
        return float((self.probabilities.argmax(1) == self.labels).mean())


def out_of_fold(rows: pandas.DataFrame, classes: int) -> OutOfFold | None:
    """Predicts each row by the baseline that was fitted on the other folds: TF-IDF, linear.

    Returns:
        None where fewer than two classes have a row in each fold. Rows of smaller classes, and rows
        that repeat an earlier one, which would be known from another fold, are left out.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    rows = rows.loc[~pandas.Series(joined(rows)).str.strip().duplicated().to_numpy()]
    labels = rows["label"].to_numpy(int)
    large = numpy.bincount(labels, minlength=classes)[labels] >= FOLDS
    rows, labels = rows.loc[large].reset_index(drop=True), labels[large]
    if len(set(labels)) < 2:
        return None
    # The weights of words are not learned from labels, so they may see all rows.
    features = baselines.word_features(len(rows)).fit_transform(joined(rows))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = baselines.linear_classifier()
    # On sparse rows several threads of BLAS wait for each other: five times the time on two cores.
    with threadpool_limits(1):
        known: Any = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    probabilities = numpy.zeros((len(rows), classes))
    probabilities[:, numpy.unique(labels)] = known
    return OutOfFold(rows, probabilities, labels)


def suspects(found: OutOfFold, corpus: Corpus) -> list[Finding]:
    """Finds labels that the linear model contradicts although it is sure.

    A model that is often wrong when it is sure says nothing about the labels, so that is a note.
    """
    said, sure = found.probabilities.argmax(1), found.probabilities.max(1)
    is_sure, wrong = sure >= SURE, said != found.labels
    count = int((is_sure & wrong).sum())
    if not count:
        return []
    right = 1 - wrong[is_sure].mean()
    names = corpus.label_names
    order = numpy.argsort(-sure, kind="stable")
    examples = some(
        example(
            found.rows,
            i,
            f"{label(found.rows, i, corpus)}; linear model: {names[said[i]]}, "
            f"{100 * sure[i]:.0f} %",
        )
        for i in order[(is_sure & wrong)[order]].tolist()
    )
    many = count >= max(FEWEST, MANY * len(found.labels))
    severity = Severity.WARNING if right >= RIGHT and many else Severity.NOTE
    what = f"labels are contradicted by a linear model that is {100 * SURE:.0f} % sure or more (it "
    what += f"is right on {100 * right:.0f} % of such rows)"
    return [Finding(severity, what, count, "Read them: the labels may be wrong.", examples)]
