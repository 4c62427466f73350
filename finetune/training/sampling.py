"""Divides the rows into optimizer steps, and each step between processes and micro-batches."""

from collections.abc import Generator, Sequence
from typing import Any

import datasets
import numpy
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import BatchRebalanceSampler

from finetune.errors import UserError

# Rows are sorted by length within windows of so many steps: large enough for steps of equal
# lengths, small enough to shuffle every epoch. The same number as in transformers.
WINDOW = 50


class MicroBatch(list[int]):
    """The row numbers of a micro-batch, and the epoch that they are drawn for."""

    epoch = 0


class EpochRows(Dataset[Any]):
    """Training rows, each with the ``epoch`` of the micro-batch that it is read for.

    So a collator that draws random numbers has the right epoch in every worker process, however
    long the workers live.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], "epoch": 0}

    def __getitems__(self, batch: MicroBatch) -> list[dict[str, Any]]:
        return [{**row, "epoch": batch.epoch} for row in self.rows.__getitems__(list(batch))]


class StepSampler(BatchRebalanceSampler):
    """Yields this process's micro-batches; a step's rows depend on the seed and epoch only.

    - A step has the same rows for any number of processes and accumulation steps: one process at
      batch 32, two at 16 and two at 8 with two accumulation steps have the same loss.
    - No row is repeated to fill the last step. If it has fewer rows than there are processes, they
      join the step before.
    - Every row is in an epoch once, unless its classes are balanced.

    It is a subclass of ``BatchRebalanceSampler`` because the Trainer takes those for samplers that
    divide rows between processes by themselves.

    Args:
        lengths: number of tokens of each row. The rows of a step are sorted longest first, so that
            its micro-batches have little padding.
        grouped: whether a step consists of rows of similar lengths, or of random rows.
        step_rows: rows of an optimizer step over all processes and accumulation steps.
        accumulation: micro-batches of a step.
        rank: index of this process among ``processes``.
        only: the steps of each epoch to yield, in this order, instead of all.
        classes: (rows,) the class of each row, for epochs with equally many rows of each class.

    Raises:
        UserError: there are fewer rows than processes.
    """

    def __init__(
        self,
        rows: int,
        lengths: Sequence[int],
        grouped: bool,
        step_rows: int,
        accumulation: int,
        processes: int,
        rank: int,
        seed: int,
        only: Sequence[int] | None = None,
        classes: numpy.ndarray | None = None,
    ) -> None:
        if rows < processes:
            raise UserError(
                f"{rows} training rows are too few for {processes} processes; start fewer processes"
            )
        self.rows, self.lengths, self.grouped = rows, numpy.asarray(lengths), grouped
        self.step_rows, self.accumulation = step_rows, accumulation
        self.processes, self.rank, self.seed = processes, rank, seed
        self.only, self.classes, self.epoch = only, classes, 0

    def rows_of(self, epoch: int, step: int) -> numpy.ndarray:
        """Returns the rows of a step over all processes; ``epoch`` and ``step`` count from 0."""
        return self._steps(epoch)[step]

    def tokens_of(self, epoch: int) -> list[int]:
        """Returns the number of tokens of each step over all processes."""
        return [int(tokens) for tokens in self.sums_of(epoch, self.lengths)]

    def sums_of(self, epoch: int, values: numpy.ndarray) -> list[float]:
        """Returns the sum of a value of the rows (N,) in each step over all processes."""
        return [float(values[rows].sum()) for rows in self._yielded(epoch)]

    def _steps(self, epoch: int) -> list[numpy.ndarray]:
        """Returns the rows of each optimizer step of an epoch, in order."""
        generator = numpy.random.default_rng([self.seed, epoch])
        order = self._order(generator)
        cuts = range(self.step_rows, self.rows, self.step_rows)
        if not self.grouped:
            return self._merge_small_rest(numpy.split(order, cuts))
        window = WINDOW * self.step_rows
        windows = [order[i : i + window] for i in range(0, self.rows, window)]
        order = numpy.concatenate([self._longest_first(w) for w in windows])
        steps = numpy.split(order, cuts)
        # The incomplete step stays last, so that all others are full.
        shuffled = generator.permutation(len(steps) - 1)
        return self._merge_small_rest([*(steps[i] for i in shuffled), steps[-1]])

    def _order(self, generator: numpy.random.Generator) -> numpy.ndarray:
        """Returns the rows of an epoch in random order: each once, unless classes are balanced.

        A balanced epoch has as many rows. Those of a rare class are repeated equally often, to one;
        those of a large class are left out, others in each epoch.
        """
        if self.classes is None:
            return generator.permutation(self.rows)
        names, parts = generator.permutation(numpy.unique(self.classes)), []
        for place, name in enumerate(names):
            own = numpy.flatnonzero(self.classes == name)
            count = self.rows // len(names) + (place < self.rows % len(names))
            times = -(-count // len(own))
            drawn = numpy.concatenate([generator.permutation(own) for _ in range(times)])
            parts.append(drawn[:count])
        return generator.permutation(numpy.concatenate(parts))

    def _yielded(self, epoch: int) -> list[numpy.ndarray]:
        steps = self._steps(epoch)
        return steps if self.only is None else [steps[i] for i in self.only]

    def _longest_first(self, rows: numpy.ndarray) -> numpy.ndarray:
        return rows[numpy.argsort(-self.lengths[rows], kind="stable")]

    def _merge_small_rest(self, steps: list[numpy.ndarray]) -> list[numpy.ndarray]:
        """Joins a last step with fewer rows than processes to the step before."""
        if len(steps) > 1 and len(steps[-1]) < self.processes:
            return [*steps[:-2], numpy.concatenate(steps[-2:])]
        return steps

    def _micro_batches(self, count: int) -> int:
        """Returns the number of micro-batches of a step of ``count`` rows.

        Each has a row for every process.
        """
        size = -(-self.step_rows // self.accumulation)
        return min(self.accumulation, -(-count // size), count // self.processes)

    def __iter__(self) -> Generator[MicroBatch, None, None]:
        for step in map(self._longest_first, self._yielded(self.epoch)):
            for part in numpy.array_split(step, self._micro_batches(len(step))):
                micro_batch = MicroBatch(part[self.rank :: self.processes].tolist())
                micro_batch.epoch = self.epoch
                yield micro_batch

    def __len__(self) -> int:
        return sum(self._micro_batches(len(step)) for step in self._yielded(self.epoch))
