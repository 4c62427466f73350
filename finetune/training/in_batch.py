"""Losses of embeddings that compare the rows of a step: queries find their passages among all.

- The loss is sentence-transformers' multiple negatives ranking loss (InfoNCE; Henderson et al.
  2017): cross-entropy of the cosines, times 20, over the passages of the step.
- A training row is a query. In each epoch it draws one of its passages, and one of its hard
  negatives if it has any, by the seed, the epoch and the row alone.
- Pairs of texts with scores have sentence-transformers' CoSENT loss: of two pairs of the step the
  one with the higher score should have the higher cosine.
- The embeddings of all processes are one batch, so that the loss does not depend on their number.
- A passage that occurs twice in a step would be a wrong negative: the query of the second is left
  out of this step.
"""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from finetune.data import row_random
from finetune.evaluation.ranking import Ranked

# In place of a passage: there is none.
NONE = -1
# Mined negatives have at most this share of the score of the query's own passage, because those
# above are often relevant (Moreira et al. 2024, NV-Retriever, TopK-PercPos).
MOST_OF_POSITIVE = 0.95


class PassageCollator:
    """Rows (B) -> token ids of their queries, passages and negatives: (2 B, T) or (3 B, T).

    ``labels`` (B, 2) are the numbers of the passages and negatives, ``NONE`` where there is none.
    Evaluation rows, which have no column ``epoch``, take their first passage and no negative.

    Args:
        pad: columns of model inputs -> a batch.
        texts: what rows name by number, as model inputs.
        negatives: whether any training row has negatives.
    """

    def __init__(
        self,
        pad: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
        texts: Dataset,
        seed: int,
        negatives: bool,
    ) -> None:
        self.pad, self.texts, self.seed, self.negatives = pad, texts, seed, negatives

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = self.drawn(rows)
        numbers = [row["query"] for row in rows] + labels[:, 0].tolist()
        if self.negatives and "epoch" in rows[0]:
            # A row without negatives is padded by its query, which the loss leaves out.
            pairs = zip(rows, labels[:, 1].tolist(), strict=True)
            numbers += [row["query"] if number == NONE else number for row, number in pairs]
        return {**_batch(self.pad, self.texts, numbers), "labels": labels}

    def drawn(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """Returns ``labels`` of a batch."""
        if "epoch" not in rows[0]:
            return torch.tensor([[row["positives"][0], NONE] for row in rows])
        numbers, epochs = (torch.tensor([row[name] for row in rows]) for name in ("row", "epoch"))
        draws = row_random.noise(numbers, 2, epochs, self.seed, training=True).double().tolist()
        return torch.tensor(
            [
                [
                    each[int(draw * len(each))] if each else NONE
                    for each, draw in zip((row["positives"], row["negatives"]), two, strict=True)
                ]
                for row, two in zip(rows, draws, strict=True)
            ]
        )


class PairCollator:
    """Rows (B) -> token ids of their first texts, then of their second ones: (2 B, T).

    ``labels`` (B, 1) float are their scores.

    Args:
        pad, texts: as for ``PassageCollator``.
    """

    def __init__(
        self, pad: Callable[[dict[str, Any]], dict[str, torch.Tensor]], texts: Dataset
    ) -> None:
        self.pad, self.texts = pad, texts

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [row[part] for part in ("first", "second") for row in rows]
        labels = torch.tensor([row["labels"] for row in rows])
        return {**_batch(self.pad, self.texts, numbers), "labels": labels}


def _batch(
    pad: Callable[[dict[str, Any]], dict[str, torch.Tensor]], texts: Dataset, numbers: list[int]
) -> dict[str, torch.Tensor]:
    chosen = texts.__getitems__(numbers)
    return pad({name: [text[name] for text in chosen] for name in texts.column_names})


def cosines(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the cosines (B, 1) of a ``PairCollator``'s batch of embeddings (2 B, H)."""
    first, second = embeddings.split(len(labels))
    return (first * second).sum(1, keepdim=True)


class ScoreLoss:
    """The CoSENT loss of a step, as the Trainer's ``compute_loss_func``."""

    def __init__(self, model: Any) -> None:
        from sentence_transformers.sentence_transformer.losses import CoSENTLoss

        self.of_embeddings = CoSENTLoss(model).compute_loss_from_embeddings

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of a batch; in training of those of all processes, together.

        Args:
            outputs: ``logits`` are the embeddings (2 B, H) of a ``PairCollator``'s batch.
            labels: (B, 1).
        """
        *parts, labels, processes = _of_step(outputs, labels, num_items_in_batch)
        return self.of_embeddings(parts, labels) / processes


class InBatchLoss:
    """The multiple negatives ranking loss of a step, as the Trainer's ``compute_loss_func``."""

    def __init__(self, model: Any) -> None:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        self.of_embeddings = MultipleNegativesRankingLoss(model).compute_loss_from_embeddings

    def __call__(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of a batch; in training of those of all processes, together.

        Args:
            outputs: ``logits`` are the embeddings (2 B, H) or (3 B, H) of a ``PassageCollator``'s
                batch.
            labels: (B, 2).
        """
        *parts, labels, processes = _of_step(outputs, labels, num_items_in_batch)
        query, passage = _kept(labels)
        positives = parts[1][query]
        columns = [parts[0][query], positives]
        if len(parts) > 2 and len(passage):
            columns.append(parts[2][passage])
        return self.of_embeddings(columns, labels[query]) / processes


def _of_step(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None
) -> list[Any]:
    """Returns the columns of embeddings, the labels, and what to divide the loss by.

    In training these are the rows of all processes. Each then has the whole loss, and the Trainer
    multiplies it by the number of processes.
    """
    columns = [*outputs["logits"].float().split(len(labels)), labels]
    processes = PartialState().num_processes
    if num_items_in_batch is None or processes == 1:
        return [*columns, 1]
    return [*_gathered(columns), processes]


def _gathered(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the rows of all processes, (B, ...) each, with gradients; B differs between them."""
    from sentence_transformers.util import all_gather, all_gather_with_grad

    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = all_gather(count).tolist()
    most, found = max(counts), []
    for tensor in tensors:
        padded = functional.pad(tensor, (0, 0, 0, most - len(tensor)))
        gather = all_gather_with_grad if tensor.is_floating_point() else all_gather
        blocks = gather(padded).split(most)
        found.append(torch.cat([b[:c] for b, c in zip(blocks, counts, strict=True)]))
    return found


def _kept(labels: torch.Tensor) -> tuple[list[int], list[int]]:
    """Returns the rows whose passage, and those whose negative, is the first of its kind."""
    seen: set[int] = {NONE}
    found: list[list[int]] = []
    for column in labels.T.tolist():
        found.append([])
        for row, number in enumerate(column):
            if number not in seen:
                found[-1].append(row)
            seen.add(number)
    return found[0], found[1]


def mined(ranked: Ranked, own: list[int], similarity: numpy.ndarray, count: int) -> list[int]:
    """Returns the best ``count`` passages of a query that are wrong and not nearly right.

    Args:
        own: the query's relevant passages.
        similarity: (len(own),) the query's scores of them.
    """
    limit = MOST_OF_POSITIVE * float(similarity.max())
    pairs = zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)
    return [item for item, score in pairs if item not in own and score < limit][:count]
