"""Loads a corpus into memory: reads files, checks rows, encodes labels, chooses the splits."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pandas

from finetune.data import (
    corrections,
    image_files,
    labels,
    named_splits,
    pairs,
    questions,
    readers,
    retrieval,
    row_checks,
    splits,
    tagged_texts,
)
from finetune.data.retrieval import RETRIEVAL as RETRIEVAL
from finetune.data.row_checks import DOCUMENTS as DOCUMENTS
from finetune.data.row_checks import IMAGES as IMAGES
from finetune.data.row_checks import PAIRS as PAIRS
from finetune.data.row_checks import QUESTIONS as QUESTIONS
from finetune.data.row_checks import TEXTS as TEXTS
from finetune.data.tagged_texts import TAGGED as TAGGED
from finetune.errors import UserError
from finetune.recipe import Data

# The problem type of rows without labels.
UNLABELLED = "unlabelled"


@dataclass
class Corpus:
    """Checked splits. Each frame has columns id, text, label, and text_pair for pairs.

    Documents for a language model have prompt and completion instead of text, or messages: a chat
    as JSON. Images have image (a path, or the bytes of the file) and digest (of the pixels).
    Questions have question and context instead of text, and answers as ``questions.usable`` gives
    them for a label. Queries have query and negatives (a JSON list) instead of text, and as label
    the list of their passages, at least one. Pairs for an encoder-decoder have source, and as label
    the list of its targets, at least one.

    ``label`` is a class index (int), a 0/1 vector (list of K floats) or a target (float), as
    ``problem_type`` says; ``label_names`` has K names, or none for regression. Rows without labels
    have no such column, and ``problem_type`` is ``UNLABELLED``.

    Texts with entities have the columns of ``tagged_texts``; ``problem_type`` is ``TAGGED``, and
    ``label_names`` are the tags of their words.

    ``train`` is a ``Dataset`` for a corpus on disk (``streaming``), which ``train_digest`` hashes.
    ``test_is``, ``report`` and ``rejected`` are those of ``splits.Chosen``.
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
        """16 hex digits over every row of every split, in order; images count by their digest."""
        digest = hashlib.sha256(self.train_digest.encode())
        frames = [] if self.train_digest else [self.train]
        for frame in (*frames, self.validation, self.test):
            for row in frame.drop(columns="image", errors="ignore").itertuples(index=False):
                digest.update(repr(tuple(row)).encode())
            digest.update(b"|")
        return digest.hexdigest()[:16]


def load(data: Data, content: str = TEXTS, labelled: bool = True) -> Corpus:
    """Reads, checks and splits the recipe's data.

    Args:
        content: what a row is: ``TEXTS``, ``TAGGED``, ``IMAGES``, ``DOCUMENTS``, ``QUESTIONS``,
            ``PAIRS`` or ``RETRIEVAL``.
        labelled: whether the task needs labels. If it does not, but the rows have labels that a
            classifier could use, test and validation get the same rows as for that classifier,
            which may start from the model that is pretrained here.

    Raises:
        UserError: invalid or misleading data; see the messages.
    """
    if data.streaming:
        raise UserError(
            "streaming: works with text-generation and fill-mask; other rows are checked in memory"
        )
    corrections.check(data, labelled)
    if labelled or content == PAIRS:
        # The targets of a pair are its labels.
        return _load(data, content, content != PAIRS)
    try:
        found = _load(data, content, True)
    except UserError:
        return _load(data, content, False)
    frames = {name: getattr(found, name).drop(columns="label") for name in splits.SPLITS}
    return replace(found, **frames, label_names=[], problem_type=UNLABELLED)


def pairs_of(file: str, data: Data) -> tuple[pandas.DataFrame, readers.Table]:
    """Reads sources with targets for a model that is trained; returns what ``labelled`` does.

    Raises:
        UserError: the file cannot be used.
    """
    table = _read(file, data, False, False)
    frame = pairs.joined(row_checks.usable(table, "new", data, PAIRS, False), table)
    splits.check({"train": splits.Frame(frame, table.source)})
    return frame, table


def labelled(
    file: str, data: Data, content: str, label_names: list[str]
) -> tuple[pandas.DataFrame, readers.Table]:
    """Reads labelled rows for a model that is trained: all of them, none is taken out or sampled.

    Args:
        label_names: the model's, which the labels are encoded by; none for regression.

    Returns:
        The checked rows, as in a ``Corpus``, and the whole table by the same index.

    Raises:
        UserError: the file cannot be used, or has a label that the model does not know.
    """
    table = _read(file, data, content == IMAGES, True)
    frame = row_checks.usable(table, "new", data, content, True)
    splits.check({"train": splits.Frame(frame, table.source)})
    if content == TAGGED:
        types = [name.removeprefix("B-") for name in label_names if name.startswith("B-")]
        tagged_texts.check_types(frame, table, types)
    elif content != QUESTIONS:
        labels.encode_by(label_names, frame, table, data)
    return frame, table


def _load(data: Data, content: str, labelled: bool) -> Corpus:
    found = _find(data, content == IMAGES, labelled)
    frames = {
        split: row_checks.usable(table, split, data, content, labelled)
        for split, table in found.tables.items()
    }
    if content == PAIRS:
        frames = {name: pairs.joined(frame, found.tables[name]) for name, frame in frames.items()}
    kinds = {QUESTIONS: questions.Frame, RETRIEVAL: retrieval.Frame}
    rows = kinds.get(content, splits.Frame)
    given = {
        split: rows(frame, table.source, table.rejected, table.fixed, table.notes)
        for (split, frame), table in zip(frames.items(), found.tables.values(), strict=True)
    }
    splits.check(given)
    names, problem_type = [], UNLABELLED
    if content == TAGGED:
        given_names = data.label_names or found.tables["train"].label_names
        names = tagged_texts.label_names(frames, found.tables, given_names)
        problem_type = TAGGED
    elif content in kinds:
        problem_type = content if labelled else UNLABELLED
    elif labelled:
        names, problem_type = labels.encode(frames, found.tables, data), data.problem_type
    train = given.pop("train")
    policy = train, given, data, found.source, found.test_is, found.notes
    if data.add_feedback and labelled:
        corrected = corrections.load(
            data, content, names, lambda file, own: _read(file, own, content == IMAGES, True)
        )
        chosen = splits.choose(*policy, corrected.join)
        chosen.rejected += corrected.rejected
        chosen.report |= {**corrected.report, "rejected": len(chosen.rejected)}
    else:
        chosen = splits.choose(*policy)
    for note in chosen.report["notes"]:
        if note.startswith("warning: "):
            print(note)
    return Corpus(
        chosen.train.frame(),
        chosen.validation,
        chosen.test,
        label_names=names,
        problem_type=problem_type,
        source=found.source,
        revision=found.commit,
        test_is=chosen.test_is,
        report=chosen.report,
        rejected=chosen.rejected,
    )


def _find(data: Data, images: bool, labelled: bool) -> named_splits.Found:
    def dataset(data: Data) -> tuple[dict[str, readers.Table], str | None]:
        if images:
            return image_files.dataset(str(data.dataset), data, labelled)
        return readers.dataset(data)

    return named_splits.find(data, lambda files: _read(files, data, images, labelled), dataset)


def _read(files: str | list[str], data: Data, images: bool, labelled: bool) -> readers.Table:
    if images:
        return image_files.read(files, data, labelled)
    return readers.read_table(files, data)
