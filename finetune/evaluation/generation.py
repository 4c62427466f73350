"""Scores generated texts: BLEU, chrF, ROUGE, edit distance and exact match, with 95 % intervals.

- A row may have several targets, each of which is right.
- Texts are compared once. What is compared adds up over rows, so that a corpus metric of resampled
  rows is computed from sums.
- BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018), between 0 and
  100, and their signatures are kept.
- ROUGE (Lin 2004) is the mean F-measure of rouge-score, with stemming. It sees only the letters a
  to z and digits.
- The token error rate divides the edits from the closest target by that target's tokens, which are
  what stands between blanks: the phoneme error rate of pronunciations.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from finetune.evaluation import intervals
from finetune.evaluation.intervals import Array, Metric, Statistic

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougel": "rougeL"}
# Tokens of the pieces whose repetition is counted.
PIECE = 3

Targets = Sequence[Sequence[str]]


class Expected(NamedTuple):
    """A source, and its targets, at least one."""

    source: str
    targets: list[str]


def score(texts: Sequence[str], expected: Sequence[Expected], resamples: int) -> dict[str, Any]:
    """Scores N generated texts.

    Args:
        resamples: of the bootstrap; 0 gives intervals of zero width.

    Returns:
        ``metrics``, sacrebleu's ``signatures``, and in ``generated`` what the texts look like.
    """
    targets = [each.targets for each in expected]
    bleu, chrf = _sacrebleu(texts, targets)
    metrics = {
        "chrf": intervals.bootstrap(_corpus(chrf), len(texts), resamples),
        "bleu": intervals.bootstrap(_corpus(bleu), len(texts), resamples),
    }
    rouge = _rouge(texts, targets)
    metrics |= {name: intervals.bootstrap(_mean(v), len(v), resamples) for name, v in rouge.items()}
    edits = _ratio(_edits(texts, targets))
    metrics["token_error_rate"] = intervals.bootstrap(edits, len(texts), resamples)
    right = _exact(texts, targets)
    metrics["exact_match"] = intervals.wilson(int(right.sum()), len(right))
    return {
        "metrics": metrics,
        "signatures": {
            "bleu": str(bleu[0].get_signature()),
            "chrf": str(chrf[0].get_signature()),
        },
        "generated": describe(texts, expected),
    }


def difference(
    name: str, ours: Sequence[str], theirs: Sequence[str], expected: Sequence[Expected]
) -> Metric:
    """Returns by how much a metric of ``ours`` exceeds that of ``theirs``, on the same rows."""
    targets = [each.targets for each in expected]
    return intervals.difference(
        statistic(name, ours, targets), statistic(name, theirs, targets), len(targets)
    )


def statistic(name: str, texts: Sequence[str], targets: Targets) -> Statistic:
    """Returns a metric as a function of row numbers."""
    makers: dict[str, Callable[[], Statistic]] = {
        "bleu": lambda: _corpus(_sacrebleu(texts, targets)[0]),
        "chrf": lambda: _corpus(_sacrebleu(texts, targets)[1]),
        "token_error_rate": lambda: _ratio(_edits(texts, targets)),
        "exact_match": lambda: _mean(_exact(texts, targets)),
        **{rouge: lambda rouge=rouge: _mean(_rouge(texts, targets)[rouge]) for rouge in ROUGE},
    }
    return makers[name]()


def sentences(texts: Sequence[str], targets: Targets) -> Array:
    """Returns the chrF of each text by itself (N,)."""
    metric, pairs = CHRF(), zip(texts, targets, strict=True)
    return numpy.array([metric.sentence_score(text, list(row)).score for text, row in pairs])


def describe(texts: Sequence[str], expected: Sequence[Expected]) -> dict[str, float]:
    """Returns statistics of N generated texts; words are what stands between blanks.

    - ``words`` and ``target_words``: the mean number, of the first target.
    - ``repeated``: the share of pieces of three words that the same text has had before.
    - ``empty`` and ``copies``: the shares of texts without words, and of texts equal to the source.
    """
    words = [text.split() for text in texts]
    pieces = [list(zip(*(row[i:] for i in range(PIECE)), strict=False)) for row in words]
    total = sum(map(len, pieces))
    repeated = sum(len(row) - len(set(row)) for row in pieces)
    same = [a.strip() == row.source.strip() for a, row in zip(texts, expected, strict=True)]
    return {
        "words": float(numpy.mean([len(row) for row in words])),
        "target_words": float(numpy.mean([len(row.targets[0].split()) for row in expected])),
        "repeated": repeated / total if total else 0.0,
        "empty": float(numpy.mean([not row for row in words])),
        "copies": float(numpy.mean(same)),
    }


def _sacrebleu(texts: Sequence[str], targets: Targets) -> list[tuple[Any, Array]]:
    """Returns BLEU and chrF, each with the counts of every row (N, K) int."""
    # sacrebleu takes the first targets of all rows, then the second ones, with None for none.
    references = list(zip_longest(*targets))
    # force: texts that end in " ." are not warned of.
    metrics: list[Any] = [BLEU(force=True), CHRF()]
    return [(m, numpy.array(m._extract_corpus_statistics(texts, references))) for m in metrics]


def _corpus(scorer: tuple[Any, Array]) -> Statistic:
    metric, counts = scorer
    return lambda rows: metric._compute_score_from_stats(counts[rows].sum(0).tolist()).score


def _rouge(texts: Sequence[str], targets: Targets) -> dict[str, Array]:
    """Returns each row's F-measures (N,), with the target that is closest by each."""
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = [scorer.score_multi(t, text) for t, text in zip(targets, texts, strict=True)]
    return {
        name: numpy.array([row[theirs].fmeasure for row in scores])
        for name, theirs in ROUGE.items()
    }


def _edits(texts: Sequence[str], targets: Targets) -> Array:
    """Returns each row's edits from the closest target, and the tokens of that target: (N, 2)."""
    rows = []
    for text, row in zip(texts, targets, strict=True):
        tokens = text.split()
        rows.append(min((Levenshtein.distance(tokens, t.split()), len(t.split())) for t in row))
    return numpy.array(rows)


def _exact(texts: Sequence[str], targets: Targets) -> Array:
    """Returns whether each text is one of its targets (N,), apart from outer blanks."""
    pairs = zip(texts, targets, strict=True)
    return numpy.array([text.strip() in {t.strip() for t in row} for text, row in pairs])


def _mean(values: Array) -> Statistic:
    return lambda rows: float(values[rows].mean())


def _ratio(counts: Array) -> Statistic:
    def ratio(rows: Array) -> float:
        edits, tokens = counts[rows].sum(0)
        return float(edits / tokens)

    return ratio
