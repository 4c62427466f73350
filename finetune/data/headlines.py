"""Reads news articles with their headlines: a folder for each section, a file for each article."""

from pathlib import Path

import pandas

from finetune.data import dialects
from finetune.data.tables import Table


def read_articles(folder: Path, name: str) -> Table:
    """Returns ``headline`` (the first line of a file), ``article`` (the rest), and ``section``."""
    files = sorted(folder.glob("*/*.txt"))
    rows = []
    for file in files:
        text, _ = dialects.decode(file.read_bytes(), None, str(file))
        headline, _, article = text.partition("\n")
        rows.append((headline.strip(), article.strip(), file.parent.name))
    frame = pandas.DataFrame(rows, columns=["headline", "article", "section"], dtype=object)
    # A file is a row.
    frame.index = pandas.Index([f"{file.parent.name}/{file.name}" for file in files], dtype=object)
    return Table(frame, name, folder=str(folder))
