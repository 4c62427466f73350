"""Reads CoNLL columns: a token a line with its tag in the last column, blank lines between rows."""

from pathlib import Path

import pandas

from finetune.data.tables import Table

# The columns of the table that is made of a file.
TOKENS, TAGS = "tokens", "tags"
# Marks the start of a document in the files of CoNLL-2003.
DOCUMENT = "-DOCSTART-"


def read(text: str, path: Path, table: Table) -> pandas.DataFrame:
    """Returns the sentences of a file, each with lists of tokens and tags, by their first lines.

    The first column is the token and the last its tag; there may be others between them. Columns
    are separated by tabs if the file has any, otherwise by blanks. Sentences with a line of another
    number of columns go to ``table.rejected``.
    """
    separator = "\t" if "\t" in text else None
    rows: list[tuple[list[str], list[str]]] = []
    starts: list[int] = []
    sentence: list[list[str]] = []
    # A blank line ends the last sentence, too.
    # Not splitlines(), which also splits at characters that are part of a token.
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        cells = [cell.strip() for cell in line.split(separator)] if line.strip() else []
        if cells and cells[0] != DOCUMENT:
            sentence.append(cells)
        elif sentence:
            first, widths = number - len(sentence), [len(cells) for cells in sentence]
            odd = next((i for i, n in enumerate(widths) if n < 2 or n != widths[0]), None)
            if odd is None:
                rows.append(([c[0] for c in sentence], [c[-1] for c in sentence]))
                starts.append(first)
            else:
                reason = f"{widths[odd]} columns"
                reason += f" after {widths[0]}" if odd else "; a token and its tag are needed"
                table.rejected.append({"source": str(path), "line": first + odd, "reason": reason})
            sentence = []
    return pandas.DataFrame(rows, index=starts, columns=[TOKENS, TAGS], dtype=object)
