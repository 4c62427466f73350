"""Which rows make up which optimizer step, and who computes them."""

from collections.abc import Generator, Sequence

import numpy
from transformers.trainer_pt_utils import BatchRebalanceSampler

from finetune.errors import UserError

# Rows are sorted by length inside windows of so many batches: long enough to make batches of one
# length, short enough that every epoch still mixes. The same figure as transformers'.
WINDOW = 50


class StepSampler(BatchRebalanceSampler):
    """This process's micro-batches, such that a step's rows depend on the seed and epoch alone.

    However many processes and accumulation steps share an optimizer batch, it holds the same
    rows: one process at batch 32, two at 16 and four times 8 see the same loss. Nothing is
    repeated to fill the last batch; a rest of fewer rows than processes joins the batch before.

    A subclass of ``BatchRebalanceSampler`` because that is the Trainer's sign for a sampler that
    deals rows to processes by itself.

    Args:
        lengths: tokens of each row. Those of a step are dealt longest first, so that the
            micro-batches that share it are padded little.
        grouped: whether steps, too, are made of rows of about one length, or at random.
        step_rows: rows of an optimizer step over all processes and accumulation steps.
        accumulation: micro-batches of a step.
        rank: this process among ``processes``.

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
    ) -> None:
        if rows < processes:
            raise UserError(f"{rows} training rows cannot feed {processes} processes; start fewer")
        self.rows, self.lengths, self.grouped = rows, numpy.asarray(lengths), grouped
        self.step_rows, self.accumulation = step_rows, accumulation
        self.processes, self.rank, self.seed = processes, rank, seed
        self.epoch = 0

    def rows_of(self, epoch: int, step: int) -> numpy.ndarray:
        """The row indices, over all processes, of a step of an epoch; both count from 0."""
        before, self.epoch = self.epoch, epoch
        rows = self._steps()[step]
        self.epoch = before
        return rows

    def _steps(self) -> list[numpy.ndarray]:
        """The row indices of each optimizer step of this epoch, in order."""
        generator = numpy.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.rows)
        cuts = range(self.step_rows, self.rows, self.step_rows)
        if not self.grouped:
            return self._without_sliver(numpy.split(order, cuts))
        window = WINDOW * self.step_rows
        parts = [order[i : i + window] for i in range(0, self.rows, window)]
        order = numpy.concatenate([self._longest_first(p) for p in parts])
        steps = numpy.split(order, cuts)
        # The rest keeps its place at the end, so that every other step is full.
        shuffled = generator.permutation(len(steps) - 1)
        return self._without_sliver([*(steps[i] for i in shuffled), steps[-1]])

    def _longest_first(self, rows: numpy.ndarray) -> numpy.ndarray:
        return rows[numpy.argsort(-self.lengths[rows], kind="stable")]

    def _without_sliver(self, steps: list[numpy.ndarray]) -> list[numpy.ndarray]:
        """``steps`` with a rest too small for every process to get a row joined to the last."""
        if len(steps) > 1 and len(steps[-1]) < self.processes:
            return [*steps[:-2], numpy.concatenate(steps[-2:])]
        return steps

    def _micro_batches(self, count: int) -> int:
        """How many micro-batches a step of ``count`` rows is cut into, none too small to deal."""
        size = -(-self.step_rows // self.accumulation)
        return min(self.accumulation, -(-count // size), count // self.processes)

    def __iter__(self) -> Generator[list[int], None, None]:
        for step in map(self._longest_first, self._steps()):
            for part in numpy.array_split(step, self._micro_batches(len(step))):
                yield part[self.rank :: self.processes].tolist()

    def __len__(self) -> int:
        return sum(self._micro_batches(len(step)) for step in self._steps())
