"""Loads a corpus into memory: reads files, checks rows, encodes labels, chooses the splits."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pandas

from finetune.data import corrections, named_splits, readers, row_checks, splits
from finetune.data.document_rows import DOCUMENTS as DOCUMENTS
from finetune.data.image_rows import IMAGES as IMAGES
from finetune.data.pairs import PAIRS as PAIRS
from finetune.data.questions import QUESTIONS as QUESTIONS
from finetune.data.retrieval import RETRIEVAL as RETRIEVAL
from finetune.data.row_kinds import UNLABELLED as UNLABELLED
from finetune.data.row_kinds import RowKind
from finetune.data.tagged_texts import TAGGED as TAGGED
from finetune.data.texts import TEXTS as TEXTS
from finetune.errors import UserError
from finetune.recipe import Data


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

    Texts with entities have the columns of ``tagged_texts``, and ``label_names`` are the tags of
    their words. The ``problem_type`` of those and of questions is the name of their kind.

    ``train`` is a ``Dataset`` for a corpus on disk (``streaming``), which ``train_digest`` hashes.
    ``beside`` has the kind's texts beside the rows.
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
    kind: RowKind = TEXTS
    beside: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every row of every split, in order, and the texts beside them.

        Images count by their digest.
        """
        digest = hashlib.sha256(self.train_digest.encode())
        frames = [] if self.train_digest else [self.train]
        for frame in (*frames, self.validation, self.test):
            for row in frame.drop(columns="image", errors="ignore").itertuples(index=False):
                digest.update(repr(tuple(row)).encode())
            digest.update(b"|")
        for text in self.beside:
            digest.update(repr(text).encode())
        return digest.hexdigest()[:16]


def load(data: Data, kind: RowKind = TEXTS, labelled: bool = True) -> Corpus:
    """Reads, checks and splits the recipe's data.

    Args:
        kind: what a row is: ``TEXTS``, ``TAGGED``, ``IMAGES``, ``DOCUMENTS``, ``QUESTIONS``,
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
    corrections.check(data, labelled and kind.labels)
    if labelled or not kind.labels:
        return _load(data, kind, True)
    try:
        found = _load(data, kind, True)
    except UserError:
        return _load(data, kind, False)
    frames = {name: getattr(found, name).drop(columns="label") for name in splits.SPLITS}
    return replace(found, **frames, label_names=[], problem_type=UNLABELLED)


def labelled(
    file: str, data: Data, kind: RowKind, label_names: list[str]
) -> tuple[pandas.DataFrame, readers.Table]:
    """Reads labelled rows for a model that is trained: all of them, none is taken out or sampled.

    Args:
        label_names: the model's, which the labels are encoded by; none where labels have no names.

    Returns:
        The checked rows, as in a ``Corpus``, and the whole table by the same index.

    Raises:
        UserError: the file cannot be used, or has a label that the model does not know.
    """
    table = kind.read(file, data, True)
    frame = row_checks.usable(table, "new", data, kind, True)
    splits.check({"train": splits.Frame(frame, table.source)})
    kind.encode_by(label_names, frame, table, data)
    return frame, table


def _load(data: Data, kind: RowKind, labelled: bool) -> Corpus:
    found = named_splits.find(
        data,
        lambda files: kind.read(files, data, labelled),
        lambda data: kind.dataset(data, labelled),
    )
    frames = {
        split: row_checks.usable(table, split, data, kind, labelled)
        for split, table in found.tables.items()
    }
    given = {
        split: kind.rows(frame, table.source, table.rejected, table.fixed, table.notes)
        for (split, frame), table in zip(frames.items(), found.tables.values(), strict=True)
    }
    splits.check(given)
    names, problem_type = kind.encode(frames, found.tables, data, labelled)
    train = given.pop("train")
    policy = train, given, data, found.source, found.test_is, found.notes
    if (data.add_feedback or data.corrections) and labelled:
        corrected = corrections.load(data, kind, names)
        chosen = splits.choose(*policy, corrected.join, found.unread)
        chosen.rejected += corrected.rejected
        chosen.report |= {**corrected.report, "rejected": len(chosen.rejected)}
    else:
        chosen = splits.choose(*policy, unread=found.unread)
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
        kind=kind,
        beside=kind.beside(data),
    )
