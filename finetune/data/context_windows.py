"""Windows over long contexts: questions with contexts -> model inputs and the answers in them.

- A context that does not fit is divided into windows that share ``stride`` tokens, each behind the
  whole question. An answer of at most so many tokens is whole in one of them.
- A window without the answer has the null token as its answer: [CLS], or the first token.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data import token_cache
from finetune.errors import UserError
from finetune.recipe import Model

if TYPE_CHECKING:
    import pandas

    from finetune.data.corpus import Corpus

# In place of a character for tokens that are not of the context.
OUTSIDE = -1


def stride(model: Model) -> int:
    """Returns the tokens that two windows share."""
    return model.max_length // 4 if model.stride is None else model.stride


def least_room(tokenizer: PreTrainedTokenizerBase, model: Model) -> int:
    """Returns the tokens of a context that a window has beside the longest question."""
    return model.max_length - model.max_length // 2 - tokenizer.num_special_tokens_to_add(pair=True)


def encode(
    questions: list[str], contexts: list[str], tokenizer: PreTrainedTokenizerBase, model: Model
) -> dict[str, list[Any]]:
    """Questions (N) and contexts (N) -> windows (W) of at most ``max_length`` tokens.

    A question is cut to half of ``max_length``.

    Returns:
        Columns of W entries: the model's inputs, ``length``; ``number``, that of the
        question; ``null``, the place of the null token; ``starts`` and ``ends``, a character of the
        context for each token, or ``OUTSIDE``; ``cut``, whether the question was.
    """
    encoded = tokenizer(
        questions, contexts, truncation=False, verbose=False, return_offsets_mapping=True
    )
    names = [name for name in encoded if name in tokenizer.model_input_names]
    more = ("length", "number", "null", "starts", "ends", "cut")
    out: dict[str, list[Any]] = {name: [] for name in (*names, *more)}
    for number, ids in enumerate(encoded["input_ids"]):
        part = encoded.sequence_ids(number)
        asked = [p for p, s in enumerate(part) if s == 0]
        context = [p for p, s in enumerate(part) if s == 1]
        cut = asked[model.max_length // 2 :]
        room = model.max_length - (len(ids) - len(context) - len(cut))
        offsets = numpy.array(encoded["offset_mapping"][number]).reshape(-1, 2)
        left_out = {*cut, *context}
        for first in _starts(len(context), room, stride(model)):
            chosen = set(context[first : first + room])
            keep = [p for p in range(len(ids)) if p in chosen or p not in left_out]
            for name in names:
                values = encoded[name][number]
                out[name].append([values[p] for p in keep])
            places = numpy.where([[p in chosen] for p in keep], offsets[keep], OUTSIDE)
            kept = out["input_ids"][-1]
            null = tokenizer.cls_token_id
            out["length"].append(len(keep))
            out["number"].append(number)
            out["null"].append(kept.index(null) if null in kept else 0)
            out["starts"].append(places[:, 0].tolist())
            out["ends"].append(places[:, 1].tolist())
            out["cut"].append(bool(cut))
    return out


def _starts(length: int, room: int, shared: int) -> range:
    """Returns the first tokens of the windows over a context of ``length`` tokens."""
    return range(0, max(1, length - shared), room - shared) if length > room else range(1)


def target(
    starts: Sequence[int], ends: Sequence[int], null: int, answer: tuple[int, int] | None
) -> list[int]:
    """Returns the first and last token of an answer in a window, or twice the null token.

    Args:
        starts, ends, null: of the window, as ``encode`` returns them.
        answer: its characters; None if the context has none.
    """
    inside = numpy.flatnonzero(numpy.asarray(starts) != OUTSIDE)
    if answer is None or not len(inside):
        return [null, null]
    first, last = (numpy.asarray(side)[inside] for side in (starts, ends))
    if answer[0] < first[0] or answer[1] > last[-1]:
        return [null, null]
    # The token that the answer begins in, and the one that it ends in.
    begin, end = numpy.flatnonzero(last > answer[0]), numpy.flatnonzero(first < answer[1])
    if begin[0] > end[-1]:
        return [null, null]
    return [int(inside[begin[0]]), int(inside[end[-1]])]


def spans(labels: Iterable[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns where each question's first answer begins and ends; "" where there is none."""
    first = [label[0] if label else None for label in labels]
    return [
        f"{given['answer_start']} {given['answer_start'] + len(given['text'])}" if given else ""
        for given in first
    ]


def labelled(
    columns: Mapping[str, list[str]], tokenizer: Any, model: Model
) -> dict[str, list[Any]]:
    """Returns the windows of questions with the answers in them.

    Args:
        columns: ``question``, ``context``, and ``answer`` as ``spans`` gives it.

    Returns:
        The columns of ``encode``, ``labels``, as ``target`` returns them, and ``whole``: whether
        that is the whole answer to the question.
    """
    made = encode(columns["question"], columns["context"], tokenizer, model)
    answers = [tuple(map(int, cell.split())) if cell else None for cell in columns["answer"]]
    sides = zip(made["starts"], made["ends"], made["null"], made["number"], strict=True)
    made["labels"] = [
        target(starts, ends, null, answers[number]) for starts, ends, null, number in sides
    ]
    pairs = zip(made["labels"], made["null"], made["number"], strict=True)
    made["whole"] = [
        label != [null, null] or answers[number] is None for label, null, number in pairs
    ]
    return made


def dataset(frame: "pandas.DataFrame", tokenizer: Any, model: Model) -> Dataset:
    """Returns the windows of a split's rows with the answers in them, through the token cache.

    Columns are those of ``labelled``.
    """

    def made_of(columns: dict[str, list[str]], numbers: list[int]) -> dict[str, list[Any]]:
        made = labelled(columns, tokenizer, model)
        made["number"] = [numbers[number] for number in made["number"]]
        # As Python integers they would take twice the space on disk.
        for name in ("input_ids", "starts", "ends"):
            made[name] = [numpy.array(cell, "int32") for cell in made[name]]
        return made

    if not len(frame):
        return Dataset.from_dict({"input_ids": [], "labels": [], "length": []})
    rows = frame[["id", "question", "context"]].assign(answer=spans(frame["label"]))
    cut = (model.max_length, stride(model))
    return token_cache.once(rows, "", tokenizer, made_of, "answers", *cut, numbered=True)


def learnable(windows: Dataset, data: "Corpus", model: Model) -> Dataset:
    """Returns the training windows without those of answers that no window has whole.

    Notes in the report of the data count them, and what else cannot be learned or predicted.

    Raises:
        UserError: none is left.
    """
    numbers, whole = (numpy.array(windows[name]) for name in ("number", "whole"))
    learned = numpy.isin(numbers, numbers[whole])
    names = ("number", "whole", "cut", "labels")
    counted = unlearned({name: windows[name] for name in names}, model)
    notes = [f"{len(windows):,} windows of {len(data.train):,} training questions"]
    notes += [f"{len(found):,} {what}" for what, found in counted.items() if found]
    data.report["notes"] += notes
    if not learned.any():
        raise UserError(f"{data.source}: no training answer fits into a window; raise max_length")
    return windows if learned.all() else windows.select(numpy.flatnonzero(learned))


def unlearned(windows: Mapping[str, Any], model: Model) -> dict[str, list[int]]:
    """Returns the training questions that are not learned as they are, by what is wrong with them.

    Args:
        windows: columns ``number``, ``whole``, ``cut`` and ``labels`` of training windows.
    """
    numbers, whole, cut = (numpy.array(windows[name]) for name in ("number", "whole", "cut"))
    labels, most = numpy.array(windows["labels"]), model.max_answer_length
    found = {
        "training questions cut to half of max_length": cut,
        "training answers longer than a window, left out": ~numpy.isin(numbers, numbers[whole]),
        f"training answers above max_answer_length {most}, which is never predicted": (
            labels[:, 1] - labels[:, 0] >= most
        ),
    }
    return {what: sorted({*numbers[of].tolist()}) for what, of in found.items()}
