"""Groups rows into batches of similar length."""

from collections.abc import Iterator, Sequence

import numpy


def within(lengths: Sequence[int], budget: int) -> Iterator[numpy.ndarray]:
    """Yields the row numbers of batches of at most ``budget`` tokens, padding included.

    The longest rows come first. A row that is longer than the budget is a batch of its own.
    """
    order = numpy.argsort(numpy.negative(lengths), kind="stable")
    while len(order):
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
