"""Whether the splits are alike: lengths, words, labels, and the languages of the texts."""

import re
from collections import Counter
from typing import Any

import numpy
import pandas

from finetune.checks.finding import Finding, Severity, example, joined, some
from finetune.checks.labels import counts, names
from finetune.data.corpus import Corpus

# Splits differ if chance alone would make them so different in one of a thousand cases, and if the
# difference is large enough to matter: the Kolmogorov-Smirnov statistic, points of a class's share.
CHANCE, LENGTHS, SHARES = 0.001, 0.2, 0.05
# Words that train does not have are too many at twice the share that is usual between its own rows,
# and this share more.
NEW_WORDS = 0.05
# Fewer rows tell nothing.
FEWEST = 20
# A language counts from this probability and this number of characters on. So many texts are looked
# at, and so many characters of each.
SURE, CHARACTERS, TEXTS, BEGINNING = 0.9, 20, 2000, 300
MIXED = 0.05


def lengths(corpus: Corpus) -> list[Finding]:
    """Finds evaluation splits whose texts are longer or shorter than train's."""
    from scipy.stats import ks_2samp

    train, found = [len(text) for text in joined(corpus.train)], []
    for name in ("validation", "test"):
        other = [len(text) for text in joined(getattr(corpus, name))]
        if len(other) < FEWEST:
            continue
        test: Any = ks_2samp(train, other)
        if test.statistic > LENGTHS and test.pvalue < CHANCE:
            typical = (
                f"{numpy.median(other):,.0f} characters long, in train {numpy.median(train):,.0f}"
            )
            what = f"{name} texts are typically {typical}"
            advice = "Check that the splits come from the same source."
            found.append(Finding(Severity.WARNING, what, len(other), advice))
    return found


def vocabulary(corpus: Corpus) -> list[Finding]:
    """Finds evaluation splits with words that train does not have.

    The usual share of such words is that between train's own rows: a fifth against the rest.
    """
    train, found = [_words(text) for text in joined(corpus.train)], []
    usual = _new(train[4::5], [words for i, words in enumerate(train) if i % 5 != 4])
    for name in ("validation", "test"):
        other = [_words(text) for text in joined(getattr(corpus, name))]
        share = _new(other, train)
        if len(other) >= FEWEST and share > max(2 * usual, usual + NEW_WORDS):
            what = f"{name} texts have {100 * share:.0f} % words that train does not have"
            what += f" (usual here: {100 * usual:.0f} %)"
            advice = "Check that the splits come from the same source."
            found.append(Finding(Severity.WARNING, what, len(other), advice))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _new(texts: list[list[str]], known: list[list[str]]) -> float:
    """Returns the share of the words of ``texts`` that do not occur in ``known``."""
    vocabulary = {word for words in known for word in words}
    total = sum(map(len, texts))
    return sum(word not in vocabulary for words in texts for word in words) / total if total else 0


def class_shares(corpus: Corpus) -> list[Finding]:
    """Finds evaluation splits whose classes have other shares than train's."""
    from scipy.stats import chi2_contingency

    train, found, (things, _) = counts(corpus.train, corpus), [], corpus.kind.counted
    for name in ("validation", "test"):
        frame = getattr(corpus, name)
        other = counts(frame, corpus)
        table = numpy.stack([train, other])[:, train + other > 0]
        if len(frame) < FEWEST or table.shape[1] < 2:
            continue
        shares = table / table.sum(1, keepdims=True)
        apart = shares[1] - shares[0]
        worst = int(numpy.abs(apart).argmax())
        test: Any = chi2_contingency(table)
        if abs(apart[worst]) > SHARES and test.pvalue < CHANCE:
            label = numpy.array(names(corpus))[train + other > 0][worst]
            what = f"{name} {things}: {100 * shares[1, worst]:.0f} % are {label}, in train "
            what += f"{100 * shares[0, worst]:.0f} %"
            advice = "Make the splits alike, or state which of the two is like the real use."
            found.append(Finding(Severity.WARNING, what, len(frame), advice))
    return found


def languages(rows: pandas.DataFrame) -> tuple[str, list[Finding]]:
    """Returns the languages of the texts in words, and what is odd about them.

    py3langid tells 100 languages apart; texts of which it is not sure are not counted.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    if len(rows) > TEXTS:
        rows = rows.sample(TEXTS, random_state=0)
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    told = {}
    for at, text in enumerate(joined(rows)):
        language, probability = identifier.classify(text[:BEGINNING])
        if probability >= SURE and len(text) >= CHARACTERS:
            told[at] = language
    if not told:
        return "", []
    (main, most), *others = Counter(told.values()).most_common()
    shown = f"{main} {100 * most / len(told):.1f} %"
    shown += "".join(f", {name} {100 * count / len(told):.1f} %" for name, count in others[:4])
    shown += f" of {len(told):,} texts whose language is clear"
    if not others:
        return shown, []
    odd = {at: name for at, name in told.items() if name != main}
    share = len(odd) / len(told)
    severity = Severity.WARNING if share > MIXED else Severity.NOTE
    what = f"texts are in another language than {main}"
    advice = "Remove them, or take a checkpoint that knows these languages."
    examples = some(example(rows, at, name) for at, name in odd.items())
    return shown, [Finding(severity, what, len(odd), advice, examples)]
