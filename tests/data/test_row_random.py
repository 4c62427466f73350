"""Random numbers of a row: uniform, fixed by seed, epoch and row, other ones for evaluation."""

import pytest
import torch

from finetune.data import row_random
from finetune.data.row_random import keys


@pytest.mark.parametrize("axis", ["rows", "epochs", "seeds", "draws"])
def test_draws_are_uniform_along(axis):
    count, one = 20_000, torch.tensor([7])
    if axis == "draws":
        drawn = row_random.uniform(keys(one, True, 0, 0), torch.arange(count))[0]
    else:
        drawn_keys = {
            "rows": lambda: keys(torch.arange(count), True, 3, 1),
            "epochs": lambda: torch.cat([keys(one, True, e, 1) for e in range(count // 8)]),
            "seeds": lambda: torch.cat([keys(one, True, 3, s) for s in range(count // 8)]),
        }[axis]()
        drawn = row_random.uniform(drawn_keys, torch.tensor([2]))[:, 0]
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    seen = torch.histc(drawn, 20, 0, 1)
    expected = len(drawn) / 20
    # Chi-square with 19 degrees of freedom: above 43.8 once in a thousand.
    assert ((seen - expected) ** 2 / expected).sum() < 43.8
    neighbours = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
    assert neighbours.abs() < 3.3 / len(drawn) ** 0.5


def test_splitmix64_is_the_published_one():
    # The first outputs for the seed 1234567, as Rosetta Code and the C reference give them.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = row_random.splitmix64(torch.tensor(1234567), torch.arange(3))
    assert [number % (1 << 64) for number in found.tolist()] == outputs


def test_the_numbers_of_a_row_are_fixed():
    rows = torch.tensor([5, 5])
    training = torch.tensor([True, False])
    found = keys(rows, training, 2, 7)
    assert found.tolist() == [-2119146762627519964, 5252213956280174724]
    drawn = row_random.noise(rows, 3, 2, 7, training=training) * (1 << 24)
    assert drawn.tolist() == [[15308697, 15926835, 9243788], [12075586, 5630292, 9771798]]


def test_one_flag_is_that_of_all_rows():
    rows = torch.arange(50)
    for training in (True, False):
        each = torch.full((50,), training)
        assert torch.equal(keys(rows, training, 1, 2), keys(rows, each, 1, 2))


def test_training_and_evaluation_rows_share_no_key():
    rows = torch.arange(5000)
    both = torch.cat([keys(rows, training, 0, 0) for training in (True, False)])
    assert len(both.unique()) == 10_000
