"""Random numbers that belong to a row: functions of the seed, the epoch and the row alone.

- A row is a number from 0 up and whether it is a training row or an evaluation row.
- Its key is splitmix64 (Steele et al. 2014) applied to the seed, then the epoch, then the row.
- Draw number n of a row is the n-th output of splitmix64 started from the key.

The same row gets the same numbers in any batch, order, process or device. No global random state is
read or changed.
"""

import torch
from torch import Tensor

# The draws of ``noise`` have numbers from here up, which no augmentation uses.
NOISE_FROM = 1 << 20


def keys(rows: Tensor, training: bool | Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """Returns each row's key (B,) int64, on the CPU.

    An evaluation row i is hashed as -1 - i, so that it shares no numbers with training row i. This
    is the only place where a row number becomes negative.

    Args:
        rows: (B,) int64, row numbers from 0 up.
        training: whether these are training rows: one for all, or (B,) bool.
        epoch: one for all, or (B,).
    """
    rows = rows.cpu().long()
    rows = torch.where(torch.as_tensor(training).cpu(), rows, -1 - rows)
    state = torch.zeros((), dtype=torch.int64)
    for number in (torch.tensor(seed), torch.as_tensor(epoch), rows):
        state = splitmix64(state, number)
    return state


def noise(
    rows: Tensor, count: int, epoch: int | Tensor, seed: int, *, training: bool | Tensor
) -> Tensor:
    """Returns ``count`` random numbers for each row: (B, count) float32 in [0, 1), for masks.

    Args:
        rows, training, epoch, seed: as for ``keys``.
    """
    numbers = torch.arange(NOISE_FROM, NOISE_FROM + count)
    return uniform(keys(rows, training, epoch, seed), numbers)


def uniform(keys: Tensor, numbers: Tensor) -> Tensor:
    """Returns draws (B, N) float32 in [0, 1), multiples of 2^-24.

    Exact on every device: integers, then one division by a power of two.

    Args:
        keys: (B,) int64.
        numbers: (N,) int64, which draws of each row.
    """
    bits = splitmix64(keys[:, None], numbers)
    return ((bits >> 40) & ((1 << 24) - 1)).float() / (1 << 24)


def splitmix64(state: Tensor, number: Tensor) -> Tensor:
    """Returns output ``number`` of splitmix64 started from ``state``: int64 that broadcast."""
    # Constants above 2**63 and logical shifts, in torch's signed integers.
    bits = state + (number + 1) * (0x9E3779B97F4A7C15 - (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= (bits >> shift) & ((1 << (64 - shift)) - 1)
        bits *= factor - (1 << 64)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))
