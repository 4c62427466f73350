"""Cuts rows into batches by their length."""

from collections.abc import Iterator, Sequence

import numpy


def within(lengths: Sequence[int], budget: int) -> Iterator[numpy.ndarray]:
    """Row numbers, longest rows first, cut so that rows x longest stays within ``budget`` tokens.

    A row that is longer than the budget stands alone.
    """
    order = numpy.argsort(numpy.negative(lengths), kind="stable")
    while len(order):
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
