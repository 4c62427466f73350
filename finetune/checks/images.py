"""Images: sizes, nearly the same images, images of one colour."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy
import pandas

from finetune.checks.duplicates import Pairs
from finetune.checks.finding import Finding, Severity, example, some
from finetune.data import image_decoding

# Two images are near duplicates if at most so many of the 64 bits of their hashes differ and their
# thumbnails correlate so closely.
BITS, CORRELATION = 3, 0.995
THUMBNAIL = 16
# Hashes that are compared with all others at once.
BATCH = 512
# A longer side of so many shorter ones is squeezed into a square.
LONG = 2.0


@dataclass
class Looks:
    """What N images look like.

    Attributes:
        sizes: (N, 2) int, width and height in pixels.
        hashes: (N,) uint64, the difference hash of each: whether grey grows brighter from pixel to
            pixel, on a 9 x 8 thumbnail.
        thumbnails: (N, THUMBNAIL ** 2) float, grey, mean 0 and length 1; 0 for one colour.
    """

    sizes: numpy.ndarray
    hashes: numpy.ndarray
    thumbnails: numpy.ndarray


def look(rows: pandas.DataFrame) -> Looks:
    """Decodes the images of some rows, which have been checked before."""

    def one(file: str | bytes) -> tuple[tuple[int, int], numpy.ndarray, numpy.ndarray]:
        image = image_decoding.decode(file, 1)
        small = numpy.asarray(image.resize((9, 8)), int)
        thumbnail = numpy.asarray(image.resize((THUMBNAIL, THUMBNAIL)), float).ravel()
        return image.size, numpy.packbits(small[:, 1:] > small[:, :-1]), thumbnail

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes, bits, thumbnails = zip(*pool.map(one, rows["image"]), strict=True)
    centred = numpy.stack(thumbnails)
    centred -= centred.mean(1, keepdims=True)
    lengths = numpy.linalg.norm(centred, axis=1, keepdims=True)
    centred = numpy.divide(centred, lengths, out=numpy.zeros_like(centred), where=lengths > 0)
    hashes = numpy.stack(bits).view(numpy.uint64).ravel()
    return Looks(numpy.array(sizes), hashes, centred)


def similar(looks: Looks, digests: list[str]) -> Pairs:
    """Returns pairs (i, j), i < j, of images that look the same and differ in some pixel.

    Finds copies of another size, quality or brightness, not crops or mirror images.
    """
    pairs = []
    for start in range(0, len(looks.hashes), BATCH):
        batch = looks.hashes[start : start + BATCH]
        apart = numpy.bitwise_count(batch[:, None] ^ looks.hashes)
        for at, j in numpy.argwhere(apart <= BITS).tolist():
            i = start + at
            alike = i < j and looks.thumbnails[i] @ looks.thumbnails[j] >= CORRELATION
            if alike and digests[i] != digests[j]:
                pairs.append((i, j))
    return pairs


def sizes(rows: pandas.DataFrame, looks: Looks, side: int | None) -> list[Finding]:
    """Finds images that are enlarged or squeezed to the model's size.

    Args:
        side: the recipe's ``image_size``.
    """
    found = []
    small = looks.sizes.max(1) < (side or 0)
    if small.any():
        what = f"images are smaller than image_size {side}, and enlarged"
        advice = "A smaller --image_size costs less and shows the model as much."
        found.append(_finding(rows, looks, small, what, advice))
    long = looks.sizes.max(1) > LONG * looks.sizes.min(1)
    if long.any():
        what = f"images are more than {LONG:g} times as long as wide, or as wide as long"
        advice = "Most models squeeze them into a square: crop them, if that matters."
        found.append(_finding(rows, looks, long, what, advice))
    return found


def blank(rows: pandas.DataFrame, looks: Looks) -> list[Finding]:
    """Finds images of one colour."""
    empty = numpy.abs(looks.thumbnails).max(1) == 0
    if not empty.any():
        return []
    advice = "Remove them, if they show nothing."
    return [_finding(rows, looks, empty, "images have one colour", advice, Severity.WARNING)]


def describe(looks: Looks) -> str:
    """Describes the sizes of images in pixels."""
    low, high = looks.sizes[looks.sizes.prod(1).argsort()[[0, -1]]]
    middle = numpy.median(looks.sizes, axis=0).astype(int)
    if (looks.sizes == low).all():
        return f"{low[0]} x {low[1]} pixels, all"
    return (
        f"{low[0]} x {low[1]} to {high[0]} x {high[1]} pixels, typically {middle[0]} x {middle[1]}"
    )


def _finding(
    rows: pandas.DataFrame,
    looks: Looks,
    which: numpy.ndarray,
    what: str,
    advice: str,
    severity: Severity = Severity.NOTE,
) -> Finding:
    places = numpy.flatnonzero(which).tolist()
    examples = some(example(rows, i, f"{looks.sizes[i, 0]} x {looks.sizes[i, 1]}") for i in places)
    return Finding(severity, what, len(places), advice, examples)
