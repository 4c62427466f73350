"""Rows that occur twice: word for word, or nearly so, within a split and across splits."""

import re
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import numpy
import pandas

from finetune.checks.finding import Example, Finding, Severity, example, some
from finetune.data.corpus import Corpus
from finetune.data.splits import MOST_OVERLAP

# Two texts are near duplicates from this Jaccard similarity of their shingles on: about one word in
# twenty differs. MinHash estimates it by so many hash functions; what it finds is compared exactly.
SIMILAR, HASHES = 0.7, 128
SHINGLE = 3
# More repeated training rows than this share of all are a warning.
MOST_REPEATED = 0.05
# Shorter texts share most of their shingles by chance.
FEWEST_SHINGLES = 5

Pairs = list[tuple[int, int]]


def repeated(corpus: Corpus, allowed: bool) -> list[Finding]:
    """Finds rows that are the same word for word, or pixel for pixel.

    Args:
        allowed: the recipe's ``allow_overlap``.
    """
    report, rows = corpus.report, pandas.concat([corpus.train, corpus.test], ignore_index=True)
    places = {name: at for at, name in enumerate(rows["id"])}
    found = []
    if count := report["test_texts_in_train"]:
        too_many = count > MOST_OVERLAP * len(corpus.test) and not allowed
        severity = Severity.ERROR if too_many else Severity.WARNING
        advice = "Remove them from one of the two: a score on them measures memory."
        examples = some(example(rows, places[name]) for name in report["overlapping_rows"])
        found.append(Finding(severity, "test rows are also in train", count, advice, examples))
    if count := report["contradictions_in_train"]:
        advice = "Give each of them one label, or remove it."
        what = "training texts or images occur with different labels"
        first = [places[name] for name in report["contradicting_rows"][0]]
        examples = some(example(rows, at, label(rows, at, corpus)) for at in first)
        found.append(Finding(Severity.WARNING, what, count, advice, examples))
    if count := report["duplicates_in_train"]:
        many = count > MOST_REPEATED * len(corpus.train)
        severity = Severity.WARNING if many else Severity.NOTE
        what = "training rows repeat an earlier one"
        advice = "Remove them, unless they should count more than others."
        found.append(Finding(severity, what, count, advice))
    return found


def label(rows: pandas.DataFrame, at: int, corpus: Corpus) -> str:
    """Returns the label of the row at a position as a text; empty where rows have none."""
    if "label" not in rows:
        return ""
    return corpus.kind.label_text(rows["label"].to_list()[at], corpus.label_names)


# --- near duplicates -------------------------------------------------------------------------


def similar_texts(texts: list[str]) -> Pairs:
    """Returns pairs (i, j), i < j, of texts that are nearly the same, but not word for word.

    Candidates come from MinHash with locality-sensitive hashing (Broder 1997).
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILAR, num_perm=HASHES)
    shingles = [_shingles(text) for text in texts]
    hashes = MinHash.generator(shingles, num_perm=HASHES, hashfunc=crc32)
    pairs = []
    for j, sketch in enumerate(hashes):
        if len(shingles[j]) < FEWEST_SHINGLES:
            continue
        candidates: Any = index.query(sketch)
        for i in candidates:
            a, b = shingles[i], shingles[j]
            if len(a & b) >= SIMILAR * len(a | b) and texts[i].strip() != texts[j].strip():
                pairs.append((i, j))
        index.insert(j, sketch)
    return sorted(pairs)


def _shingles(text: str) -> set[bytes]:
    """Returns each run of three words; of characters, where a script does not divide words."""
    parts = re.findall(r"\w+", text.lower())
    if len(parts) * 20 < len(text):
        parts = list("".join(parts))
    return {" ".join(parts[i : i + SHINGLE]).encode() for i in range(len(parts) - SHINGLE + 1)}


def near(corpus: Corpus, rows: pandas.DataFrame, pairs: Pairs, kind: str) -> list[Finding]:
    """Describes near duplicates.

    Args:
        rows: rows of all splits, with a column ``split``.
        pairs: the near duplicates among them, by position.
        kind: what a row is, in the plural.
    """
    splits = rows["split"].to_numpy()
    across: dict[str, dict[int, int]] = {"test": {}, "validation": {}, "train": {}}
    labelled: Pairs = []
    for i, j in pairs:
        between = {splits[i]: i, splits[j]: j}
        if splits[i] == splits[j] == "train":
            across["train"].setdefault(j, i)
        for name in ("test", "validation"):
            if between.keys() == {"train", name}:
                across[name].setdefault(between[name], between["train"])
        labels = [str(rows["label"].iloc[at]) for at in (i, j)] if "label" in rows else []
        if corpus.kind.alike and len({*labels}) > 1:
            labelled.append((i, j))

    def shown(found: Pairs) -> Iterator[Example]:
        for i in [i for pair in found for i in pair]:
            yield example(
                rows, i, ", ".join(filter(None, [f"in {splits[i]}", label(rows, i, corpus)]))
            )

    out = []
    for name, found in across.items():
        if not found:
            continue
        beside = "an earlier one" if name == "train" else "a training row"
        what = f"{name if name != 'train' else 'training'} {kind} are nearly the same as {beside}"
        advice = "Remove them, or keep rows of one origin in one split: the score is too good."
        most = MOST_OVERLAP
        if name == "train":
            advice, most = "Remove them, unless they should count more than others.", MOST_REPEATED
        many = len(found) > most * (splits == name).sum()
        severity = Severity.WARNING if many else Severity.NOTE
        first = list(found.items())[:1]
        out.append(Finding(severity, what, len(found), advice, some(shown(first))))
    if labelled:
        what = f"pairs of nearly the same {kind} have different labels"
        advice = "Read them, and give both the right label."
        examples = some(shown(labelled[:1]))
        out.append(Finding(Severity.WARNING, what, len(labelled), advice, examples))
    return out


def all_rows(corpus: Corpus, most: int) -> pandas.DataFrame:
    """Returns the rows of all splits with a column ``split``: all, or a random ``most`` of them."""
    frames = [getattr(corpus, name).assign(split=name) for name in ("train", "validation", "test")]
    rows = pandas.concat([frame for frame in frames if len(frame)], ignore_index=True)
    if len(rows) <= most:
        return rows
    chosen = numpy.random.default_rng(0).choice(len(rows), most, replace=False)
    return rows.iloc[numpy.sort(chosen)].reset_index(drop=True)
