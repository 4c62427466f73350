"""Images with labels."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pandas

from finetune.data import image_decoding, image_files, plain_rows, readers
from finetune.data.document_columns import Layout
from finetune.recipe import Data

# Images that are decoded before the first of them is released.
WINDOW = 1000


class Images(plain_rows.NamedRows):
    """Images, as paths or as the bytes of files, with the digest of their pixels."""

    name = "images"
    mend = "or remove them"

    def read(self, files: str | list[str], data: Data, labelled: bool) -> readers.Table:
        return image_files.read(files, data, labelled)

    def dataset(self, data: Data, labelled: bool) -> tuple[dict[str, readers.Table], str | None]:
        return image_files.dataset(str(data.dataset), data, labelled)

    def columns(self, data: Data) -> dict[str, str]:
        return {"image": data.image}

    def finished(
        self, frame: pandas.DataFrame, table: readers.Table, parts: Layout, data: Data
    ) -> pandas.DataFrame:
        return _inspected(super().finished(frame, table, parts, data), table)


IMAGES = Images()


def _inspected(frame: pandas.DataFrame, table: readers.Table) -> pandas.DataFrame:
    """Adds each image's digest; unusable images go to ``table.rejected``."""

    def inspect(image: str | bytes) -> tuple[str, list[str]] | image_decoding.Unusable:
        try:
            return image_decoding.inspect(image)
        except image_decoding.Unusable as reason:
            return reason

    digests, keep, fixed = [], [], Counter(table.fixed)
    # Threads suffice: PIL decodes outside the interpreter's lock, and each thread has one image.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # One window at a time, because all images submitted at once are in memory.
        windows = (frame["image"].iloc[i : i + WINDOW] for i in range(0, len(frame), WINDOW))
        inspected = chain.from_iterable(pool.map(inspect, window) for window in windows)
        for line, image, found in zip(frame.index, frame["image"], inspected, strict=True):
            keep.append(not isinstance(found, image_decoding.Unusable))
            if isinstance(found, image_decoding.Unusable):
                source, at = table.place(line)
                named = isinstance(image, str) and at is not None
                reason = f"{image} {found}" if named else str(found)
                table.rejected.append({"source": source, "line": at, "reason": reason})
            else:
                digests.append(found[0])
                fixed.update(found[1])
    table.fixed = dict(fixed)
    frame = frame.loc[keep].copy()
    frame.insert(1, "digest", pandas.Series(digests, index=frame.index, dtype=object))
    return frame
