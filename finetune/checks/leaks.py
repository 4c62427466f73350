"""What gives the label away: a word, another column, or a task that a word count solves."""

import re
from collections import Counter
from typing import Any

import numpy

from finetune.checks.finding import Example, Finding, Severity, joined, some
from finetune.checks.labels import OutOfFold
from finetune.data import readers
from finetune.data.corpus import Corpus
from finetune.recipe import Data

# A word gives a class away if so many of the rows with it are of that class, if it is in so many of
# the class's rows, and in at least so many rows.
PRECISION, RECALL, LEAST_ROWS = 0.99, 0.5, 10
# A column, or the linear model, gives the label away if it gets so many rows right.
ACCURACY = 0.99
# A column of more different values than this share of the rows is no category.
MOST_VALUES = 0.2


def words(corpus: Corpus) -> list[Finding]:
    """Finds words that alone tell one class from all others."""
    from sklearn.feature_extraction.text import CountVectorizer

    labels = corpus.train["label"].to_numpy(int)
    vectorizer = CountVectorizer(binary=True, lowercase=False, token_pattern=r"\S+")
    present: Any = vectorizer.fit_transform(joined(corpus.train))
    is_class = numpy.eye(len(corpus.label_names))[labels]
    # (V, K): rows of each class that have the word.
    having = present.T @ is_class
    total = having.sum(1, keepdims=True)
    size = numpy.maximum(is_class.sum(0), 1)
    given = (having >= PRECISION * total) & (having >= RECALL * size) & (total >= LEAST_ROWS)
    vocabulary = vectorizer.get_feature_names_out()
    places = sorted(numpy.argwhere(given).tolist(), key=lambda at: -having[at[0], at[1]])
    if not places:
        return []
    examples = some(
        Example(
            str(vocabulary[word]),
            f"in {having[word, k]:,.0f} of {size[k]:,.0f} rows of {corpus.label_names[k]}, and in "
            f"{total[word, 0] - having[word, k]:,.0f} others",
        )
        for word, k in places
    )
    what = "words that alone give the label away"
    advice = "If new texts will not have it, take it out: the model would learn nothing else."
    return [Finding(Severity.WARNING, what, len(places), advice, examples)]


def columns(table: readers.Table, data: Data) -> list[Finding]:
    """Finds columns other than the text's and label's whose values alone give the label."""
    if not isinstance(data.label, str) or data.label not in table.rows:
        return []
    labels = [str(cell) for cell in table.rows[data.label]]
    guess = max(Counter(labels).values()) / len(labels)
    used = {data.label, data.text, data.text_pair, data.image}
    examples = []
    for name in table.rows.columns:
        if name in used or guess >= ACCURACY:
            continue
        cells = [str(cell) for cell in table.rows[name]]
        kinds = [re.sub(r"\d+", "0", cell) for cell in cells]
        # "neg_17" and "neg_18" are one kind of value.
        for values, how in ((cells, "its value"), (kinds, "the kind of its value")):
            if 1 < len(set(values)) <= MOST_VALUES * len(values):
                right = _right(values, labels)
                if right >= ACCURACY:
                    text = f"{how} tells the label of {100 * right:.0f} % of the rows"
                    examples.append(Example(str(name), text))
                    break
    if not examples:
        return []
    what = "other columns that alone give the label away"
    advice = "No input itself, but texts of different origin may differ in more than their label."
    return [Finding(Severity.WARNING, what, len(examples), advice, some(examples))]


def _right(values: list[str], labels: list[str]) -> float:
    """Returns the share of rows that have the most frequent label of their value."""
    most: dict[str, int] = {}
    for (value, _), count in Counter(zip(values, labels, strict=True)).items():
        most[value] = max(most.get(value, 0), count)
    return sum(most.values()) / len(labels)


def too_easy(found: OutOfFold) -> list[Finding]:
    """Says so if the linear model is hardly ever wrong."""
    if found.accuracy < ACCURACY:
        return []
    what = f"word counts and a linear model get {100 * found.accuracy:.1f} % right"
    advice = "Look for what gives the label away; if nothing does, no language model is needed."
    return [Finding(Severity.WARNING, what, None, advice)]
