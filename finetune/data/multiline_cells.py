"""Tells a quoted cell that spans lines from rows that a stray quote swallowed.

The lines are rows if each of them, read by itself, has the right number of cells with values like
those of the other rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Rows that show what the values of a column look like, and the most values of one that repeats.
ENOUGH_ROWS, MOST_VALUES = 20, 50


@dataclass
class Column:
    """What the values of a column have in common: numbers, few values, no blank before them.

    A comma with a blank after it is one of prose where the rows have none.
    """

    numbers: bool
    values: set[str] | None
    rows: int
    spaces: bool

    @property
    def tells(self) -> bool:
        return self.numbers or self.values is not None

    def has(self, value: str) -> bool:
        if value[:1] == " " and not self.spaces:
            return False
        if self.values is not None:
            return value.strip().strip('"') in self.values
        return not self.numbers or _is_number(value.strip().strip('"'))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def columns(rows: Sequence[Sequence[str]], width: int) -> list[Column]:
    """Returns what the values of each column have in common."""
    out = []
    for at in range(width):
        written = [row[at] for row in rows[:10_000] if len(row) > at]
        cells = [cell.strip() for cell in written]
        values, spaces = set(cells), any(cell[:1] == " " for cell in written)
        few = len(cells) >= ENOUGH_ROWS and len(values) <= min(MOST_VALUES, len(cells) // 4)
        numbers = len(cells) >= 2 and all(map(_is_number, values))
        out.append(Column(numbers, values if few else None, len(cells), spaces))
    return out


def verdict(lines: Sequence[str], sign: str, kinds: Sequence[Column]) -> str:
    """Returns what a quoted cell that spans lines is: "cell", "rows" it swallowed, or "unclear".

    Args:
        lines: from the one where the cell's row begins to the one where it ends.
        kinds: the table's columns, by its other rows.
    """
    for line in lines:
        cells = line.rstrip("\r\n").split(sign)
        if len(cells) != len(kinds):
            return "cell"
        if not all(column.has(cell) for column, cell in zip(kinds, cells, strict=True)):
            return "cell"
    telling = any(column.tells and column.rows >= ENOUGH_ROWS for column in kinds)
    return "rows" if telling else "unclear"
