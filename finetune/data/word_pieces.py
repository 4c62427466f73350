"""Divides texts into windows of tokens, and finds the first piece of each word in them.

- Windows overlap. Each word belongs to the one where it has the most context, so that every word
  is learned and predicted exactly once.
- Words are given, or are those of transformers' pipeline for token classification.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from tokenizers.models import BPE, WordPiece

# Neighbouring windows share this part of their tokens.
OVERLAP = 0.25
# Where a word's first piece is in its window: it has none, or there is no word (padding).
NO_PIECE, NO_WORD = -1, -2
# Of a window's words: where their first pieces are in it, and the words in the text.
WORD_COLUMNS = ("first", "start", "end")


def windows(count: int, size: int) -> list[tuple[range, range]]:
    """Returns windows of at most ``size`` of ``count`` pieces, and the pieces predicted in each.

    Windows overlap, and each piece is predicted in the window where it is farther from the edge.
    """
    shared = int(size * OVERLAP)
    begins = range(0, max(count - shared, 1), size - shared)
    cuts = [0, *(begin + shared // 2 for begin in begins[1:]), count]
    return [
        (range(begin, min(begin + size, count)), range(cuts[i], cuts[i + 1]))
        for i, begin in enumerate(begins)
    ]


def encode(
    rows: Mapping[str, Sequence[Any]], tokenizer: Any, max_length: int
) -> dict[str, list[Any]]:
    """Texts -> windows of at most ``max_length`` tokens, as model inputs.

    Args:
        rows: ``text``, and ``words`` as in ``tagged_texts``, None where they are not known.

    Returns:
        Columns with one entry for each window: the model's inputs, ``length``, the number of its
        ``row``, and lists of its words: ``number`` in the text, ``first`` (where the first piece is
        in the window), ``start`` and ``end`` (in characters of the text).
    """
    texts = list(rows["text"])
    encoded = tokenizer(texts, truncation=False, return_offsets_mapping=True, verbose=False)
    names = [name for name in encoded if name in tokenizer.model_input_names]
    columns = (*names, "length", "row", "number", *WORD_COLUMNS)
    out: dict[str, list[Any]] = {name: [] for name in columns}
    for row, (content, known) in enumerate(zip(texts, rows["words"], strict=True)):
        at = [i for i, part in enumerate(encoded.sequence_ids(row)) if part is not None]
        ids = encoded["input_ids"][row]
        special = len(ids) - len(at)
        head = at[0] if at else special
        places = numpy.array([encoded["offset_mapping"][row][i] for i in at], int).reshape(-1, 2)
        if known:
            words = numpy.array(json.loads(known))
            pieces = first_pieces(words, places)
        else:
            own = tokenizer.convert_ids_to_tokens([ids[i] for i in at])
            pieces = pipeline_words(own, places, content, tokenizer)
            # A word ends before the next one begins.
            last = numpy.append(pieces[1:] - 1, len(at) - 1)[: len(pieces)]
            words = numpy.stack([places[pieces, 0], places[last, 1]], 1)
        # A word without a piece is in the window of the word before it.
        owner = numpy.maximum.accumulate(numpy.maximum(pieces, 0)) if len(pieces) else pieces
        for window, predicted in windows(len(at), max_length - special):
            stop = predicted.stop if window.stop < len(at) else len(at) + 1
            chosen = numpy.flatnonzero((owner >= predicted.start) & (owner < stop))
            keep = [*range(head), *at[window.start : window.stop]]
            keep += range(len(ids) - special + head, len(ids))
            for name in names:
                out[name].append([encoded[name][row][i] for i in keep])
            out["length"].append(len(keep))
            out["row"].append(row)
            own_pieces = pieces[chosen]
            inside = numpy.where(own_pieces < 0, NO_PIECE, own_pieces - window.start + head)
            out["number"].append(chosen.tolist())
            out["first"].append(inside.tolist())
            out["start"].append(words[chosen, 0].tolist())
            out["end"].append(words[chosen, 1].tolist())
    return out


def first_pieces(words: numpy.ndarray, pieces: numpy.ndarray) -> numpy.ndarray:
    """Returns the number of each word's first piece (W,), or ``NO_PIECE``.

    Args:
        words: (W, 2) int, where words are in a text.
        pieces: (P, 2) int, where pieces are in it.
    """
    found = numpy.searchsorted(pieces[:, 1], words[:, 0], side="right")
    starts = numpy.append(pieces[:, 0], numpy.iinfo(int).max)
    return numpy.where(starts[found] < words[:, 1], found, NO_PIECE)


def pipeline_words(
    pieces: list[str], places: numpy.ndarray, content: str, tokenizer: Any
) -> numpy.ndarray:
    """Returns the numbers of the pieces (P) that begin a word in transformers' pipeline.

    The rules of ``TokenClassificationPipeline.gather_pre_entities``: a piece continues a word if
    its token is longer than its text ("##ing"), or without such tokens, if no blank is before it.
    """
    model = tokenizer.backend_tokenizer.model
    by_prefix = isinstance(model, WordPiece | BPE) and bool(model.continuing_subword_prefix)
    begins = []
    for number, (piece, (start, end)) in enumerate(zip(pieces, places.tolist(), strict=True)):
        if by_prefix:
            inside = len(piece) != end - start
        else:
            inside = start > 0 and " " not in content[start - 1 : start + 1]
        if number == 0 or piece == tokenizer.unk_token or not inside:
            begins.append(number)
    return numpy.array(begins, int)
