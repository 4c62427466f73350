"""Documents packed into blocks of one length, such that none can tell that others are there.

Each document keeps its own positions from 0 up. transformers sees by them where one ends and lets
no attention cross that border (``masking_utils.find_packed_sequence_indices``), as long as no
attention mask says otherwise.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy
import torch

# What cross-entropy passes over.
IGNORED = -100


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which documents share a block of ``size`` tokens: their numbers, block by block.

    The longest go first, each into the fullest block that still has room (best fit decreasing),
    which leaves little empty where some documents are short.

    Args:
        lengths: tokens of each document, at most ``size``.
    """
    blocks: list[list[int]] = []
    # Blocks by the room they have left, and those rooms in order.
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
    """Documents with ``input_ids`` and ``labels``, one behind the other, with their positions."""
    out: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for document in documents:
        ids = document["input_ids"]
        out["input_ids"] += ids
        # The last token of the document before must not learn this one's first.
        out["labels"] += [IGNORED, *document["labels"][1:]]
        out["position_ids"] += range(len(ids))
    return out


class Collator:
    """Rows of ``block`` -> a batch. What fills up a row is a document of its own, never learned.

    Args:
        packs: whether rows hold several documents. Where each is one, its positions go without
            saying, and some models would not be told them.
    """

    def __init__(self, pad_token_id: int, packs: bool = True) -> None:
        self.pad_token_id, self.packs = pad_token_id, packs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``input_ids``, ``labels`` and ``position_ids``, each (B, T) int."""
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
        return batch | ({"position_ids": filled("position_ids", None)} if self.packs else {})


@torch.no_grad()
def is_kept_apart(model: torch.nn.Module) -> bool:
    """Whether the model really computes each document of a block as if it were alone.

    Tried on the model itself: recurrent layers, for one, carry a state across.
    """
    first, other, second = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [2, 4, 6, 8]])
    positions = torch.arange(4)
    training = model.training
    model.eval()

    def second_after(before: torch.Tensor) -> torch.Tensor:
        ids, places = torch.cat([before, second])[None], torch.cat([positions] * 2)[None]
        return model(input_ids=ids, position_ids=places).logits[0, 4:]

    try:
        alone = model(input_ids=second[None], position_ids=positions[None]).logits[0]
        pair = second_after(first), second_after(other)
    except TypeError:
        # It takes no positions.
        return False
    finally:
        model.train(training)
    return torch.equal(*pair) and torch.allclose(pair[0], alone, atol=1e-4, rtol=1e-4)
