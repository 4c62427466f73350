"""Packs documents into blocks of one length without attention between documents.

- ``pack`` chooses the documents of each block (best fit decreasing), ``block`` concatenates them.
- Each document has its own positions, from 0 up. By these, transformers finds where a document ends
  and masks attention across that border (``masking_utils.find_packed_sequence_indices``), unless it
  is given an attention mask.
- ``is_kept_apart`` tests on the model itself that this works.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy
import torch

# The label that cross-entropy ignores.
IGNORED = -100


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Returns the numbers of the documents in each block of ``size`` tokens.

    Best fit decreasing: the longest documents go first, each into the fullest block that still has
    room. If some documents are short, little room is left empty.

    Args:
        lengths: tokens of each document, at most ``size``.
    """
    blocks: list[list[int]] = []
    # Blocks by the room that they have left, and the sorted list of those rooms.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for document in numpy.argsort(-numpy.asarray(lengths), kind="stable"):
        length = int(lengths[document])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            block, room = len(blocks), size
            blocks.append([])
        else:
            room = rooms[at]
            block = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        blocks[block].append(int(document))
        left = room - length
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(block)
    return blocks


def block(documents: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Concatenates documents with ``input_ids`` and ``labels``, and adds ``position_ids``."""
    out: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for document in documents:
        ids = document["input_ids"]
        out["input_ids"] += ids
        # The last token of a document must not learn to predict the first one of the next.
        out["labels"] += [IGNORED, *document["labels"][1:]]
        out["position_ids"] += range(len(ids))
    return out


class Collator:
    """Pads rows of ``block`` to a batch. Padding is a document of its own, without labels.

    Args:
        packs: whether rows have several documents. If not, the batch has no ``position_ids``, which
            some models do not accept.
    """

    def __init__(self, pad_token_id: int, packs: bool = True) -> None:
        self.pad_token_id, self.packs = pad_token_id, packs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns ``input_ids``, ``labels`` and ``position_ids``, each (B, T) int, of B rows.

        If rows have ``bytes`` (see ``documents.Document.scored``), also ``bytes`` (B,) int.
        """
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, fill: int | None) -> torch.Tensor:
            out = []
            for row in rows:
                missing = longest - len(row[name])
                out.append([*row[name], *(range(missing) if fill is None else [fill] * missing)])
            return torch.tensor(out)

        batch = {
            "input_ids": filled("input_ids", self.pad_token_id),
            "labels": filled("labels", IGNORED),
        }
        if self.packs:
            batch["position_ids"] = filled("position_ids", None)
        if "bytes" in rows[0]:
            batch["bytes"] = torch.tensor([row["bytes"] for row in rows])
        return batch


@torch.no_grad()
def is_kept_apart(model: Any, tolerance: float = 1e-4) -> bool:
    """Returns whether the model computes each document of a block as if it were alone.

    Tested with the model itself, on its device and in the precision of the caller's autocast:
    recurrent layers, for example, carry a state across. The batches are the collator's, of one row
    and of two, because some attention functions tell documents apart in batches of one row only.

    Args:
        tolerance: by how much a document's logits may differ from those that it has alone,
            relative to the largest; other documents may not change them at all.
    """
    first, other, last, alone = [[1, 2, 3, 4], [5, 6, 7, 8], [2, 4, 6, 8], [3, 5, 7]]
    training, device = model.training, model.device

    def logits(*rows: list[list[int]]) -> torch.Tensor:
        packed = [block([{"input_ids": ids, "labels": ids} for ids in row]) for row in rows]
        batch = Collator(0)(packed)
        inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        return model(**inputs).logits

    def is_unchanged(*others: list[list[int]]) -> bool:
        one, two = (logits([before, last], *others) for before in (first, other))
        expected = logits([last])[0]
        near = (one[0, 4:] - expected).abs().max() <= tolerance * expected.abs().max()
        return torch.equal(one[0, 4:], two[0, 4:]) and torch.equal(one[1:], two[1:]) and bool(near)

    model.eval()
    try:
        return is_unchanged() and is_unchanged([alone])
    except TypeError:
        # It does not accept positions.
        return False
    finally:
        model.train(training)
