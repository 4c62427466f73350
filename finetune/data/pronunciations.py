"""Reads the CMU Pronouncing Dictionary: a word and its phonemes on each line."""

import re
from pathlib import Path

import pandas

from finetune.data.tables import Table

# A further pronunciation of a word is numbered: read(2).
NUMBER = re.compile(r"\(\d+\)$")
# Words as published experiments have them: letters and apostrophes.
WORD = re.compile(r"[a-z']*[a-z][a-z']*")
STRESS = re.compile(r"\d")


def read_dictionary(file: Path, name: str) -> Table:
    """Returns ``word`` and ``phonemes``, a row for each pronunciation.

    As in published experiments (Bisani & Ney 2008), phonemes have no stress, and words are those
    of letters and apostrophes.
    """
    rows, lines = [], []
    table = Table(pandas.DataFrame(), name)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = NUMBER.sub("", word)
        if WORD.fullmatch(word):
            rows.append((word, STRESS.sub("", phonemes)))
            lines.append(number)
        else:
            reason = "word with other characters than letters and apostrophes, left out"
            table.fixed[reason] = table.fixed.get(reason, 0) + 1
    table.rows = pandas.DataFrame(rows, columns=["word", "phonemes"], index=lines, dtype=object)
    return table
