"""A step has the same rows for any number of processes and micro-batches."""

import itertools

import numpy
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from finetune.data.batching import within
from finetune.errors import UserError
from finetune.training.sampling import EpochRows, StepSampler

# rows, rows a device, accumulation, processes
SHAPES = [
    (100, 8, 1, 2),
    (103, 8, 2, 2),
    (97, 4, 3, 4),
    (64, 4, 4, 4),
    (37, 1, 4, 4),
    (21, 1, 4, 4),
    (17, 1, 2, 8),
    (9, 2, 2, 3),
    (5, 4, 4, 4),
    (50, 32, 1, 1),
    (33, 16, 2, 1),
    (8, 1, 1, 8),
]


def sampler(rows, device, accumulation, processes, rank=0, lengths=True, seed=0, epoch=0):
    found = StepSampler(
        rows=rows,
        lengths=numpy.random.default_rng(1).integers(1, 60, rows).tolist(),
        grouped=lengths,
        step_rows=device * accumulation * processes,
        accumulation=accumulation,
        processes=processes,
        rank=rank,
        seed=seed,
    )
    found.set_epoch(epoch)
    return found


def micro_batches(shape, **kwargs):
    """Per micro-batch, the rows that each rank gets."""
    ranks = [list(sampler(*shape, rank=rank, **kwargs)) for rank in range(shape[3])]
    return list(zip(*ranks, strict=True))


@pytest.mark.parametrize("lengths", [True, False], ids=["by length", "at random"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_once_an_epoch_and_work_for_every_rank(shape, lengths):
    dealt = micro_batches(shape, lengths=lengths)
    assert all(part for parts in dealt for part in parts)
    rows = [row for parts in dealt for part in parts for row in part]
    assert sorted(rows) == list(range(shape[0]))
    for rank in range(shape[3]):
        assert len(sampler(*shape, rank=rank, lengths=lengths)) == len(dealt)


@pytest.mark.parametrize("lengths", [True, False], ids=["by length", "at random"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_has_the_rows_of_one_process(shape, lengths):
    rows, device, accumulation, processes = shape
    alone = list(sampler(rows, device * accumulation * processes, 1, 1, lengths=lengths))
    if len(alone) > 1 and len(alone[-1]) < processes:
        # Too few rows for every process: the rest joins the step before it.
        alone[-2:] = [alone[-2] + alone[-1]]
    dealt = iter(micro_batches(shape, lengths=lengths))
    for step in alone:
        together: list[int] = []
        parts = 0
        while len(together) < len(step):
            together += itertools.chain(*next(dealt))
            parts += 1
        assert sorted(together) == sorted(step)
        # The Trainer counts micro-batches: only the last step may have fewer.
        assert parts == accumulation or step is alone[-1]
    assert next(dealt, None) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranks_differ_by_one_row_at_most(shape):
    dealt = list(micro_batches(shape))
    assert dealt
    for parts in dealt:
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("lengths", [True, False], ids=["by length", "at random"])
def test_the_order_follows_from_seed_and_epoch(lengths):
    def order(**kwargs):
        return list(sampler(200, 8, 1, 1, lengths=lengths, **kwargs))

    first = order(seed=3, epoch=0)
    numpy.random.seed(99)
    assert order(seed=3, epoch=0) == first
    assert order(seed=3, epoch=1) != first
    assert order(seed=4, epoch=0) != first


def test_rows_of_one_length_stand_together():
    rows, lengths = 400, numpy.random.default_rng(1).integers(1, 60, 400)
    spread = {}
    for grouped in (True, False):
        batches = list(sampler(rows, 8, 1, 1, lengths=grouped))
        spread[grouped] = numpy.mean([numpy.ptp(lengths[batch]) for batch in batches])
    assert spread[True] < spread[False] / 5


@pytest.mark.parametrize("grouped", [True, False])
def test_micro_batches_that_share_a_step_hold_rows_of_about_one_length(grouped):
    lengths = numpy.random.default_rng(1).integers(1, 60, 400)
    steps = list(zip(*[iter(sampler(400, 4, 4, 1, lengths=grouped))] * 4, strict=True))
    assert len(steps) == 25
    for step in steps:
        sizes = [lengths[part] for part in step]
        assert all(a.min() >= b.max() for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_have_the_epoch_of_their_batch_in_every_worker(workers):
    loader = DataLoader(
        EpochRows(Dataset.from_dict({"row": range(9), "epoch": [0] * 9})),
        batch_sampler=(batches := sampler(9, 4, 1, 1)),
        collate_fn=list,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for epoch in range(3):
        batches.set_epoch(epoch)
        rows = [row for batch in loader for row in batch]
        assert sorted(row["row"] for row in rows) == list(range(9))
        assert {row["epoch"] for row in rows} == {epoch}


def test_fewer_rows_than_processes_are_rejected():
    with pytest.raises(UserError, match="3 training rows are too few for 4 processes"):
        sampler(3, 1, 1, 4)


def test_batches_stay_within_their_tokens() -> None:
    lengths = [3, 90, 5, 41, 40, 3, 7, 64]
    cut = list(within(lengths, 80))
    assert [part.tolist() for part in cut] == [[1], [7], [3], [4, 6], [2, 0, 5]]


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_balanced_epochs_have_as_many_rows_of_each_class(shape):
    rows = shape[0]
    classes = (numpy.arange(rows) % 10 == 0).astype(int) + 2 * (numpy.arange(rows) % 10 == 1)

    def dealt(epoch, *shape):
        parts = []
        for rank in range(shape[2]):
            found = sampler(rows, *shape, rank=rank, epoch=epoch)
            found.classes = classes
            parts.append([row for batch in found for row in batch])
        return [row for part in parts for row in part]

    first, second = (numpy.array(dealt(epoch, *shape[1:])) for epoch in (0, 1))
    assert len(first) == rows
    counts = numpy.bincount(classes[first])
    assert counts.max() - counts.min() <= 1
    for kind in range(3):
        # Rows are repeated equally often, to one; those of the large class not at all.
        times = numpy.bincount(first, minlength=rows)[classes == kind]
        assert times.max() - times.min() <= 1
    assert sorted(first) != sorted(second)
    # Neither processes nor micro-batches change which rows an epoch has.
    whole = dealt(0, shape[1] * shape[2] * shape[3], 1, 1)
    assert sorted(whole) == sorted(first)
