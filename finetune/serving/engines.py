"""Chooses what computes predictions, torch or an export of the run, by measuring them."""

import io
import time
from collections.abc import Callable
from typing import Any

import torch

from finetune.errors import UserError
from finetune.export import engine
from finetune.run_directory import EXPORT, EXPORTS, Run

Row = dict[str, Any]
# Rows of a batch that is measured, and how often it is, each time with a row alone.
ROWS, ROUNDS = 8, 3
# The words of the longest text, and the side in pixels of an image.
WORDS, SIDE = 60, 128


class Exported(torch.nn.Module):
    """An export, called as the run's model is."""

    def __init__(self, made: engine.Engine) -> None:
        super().__init__()
        self.made = made

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.made(**{name: value.cpu() for name, value in inputs.items()})


def find(run: Run) -> tuple[dict[str, Exported], list[str]]:
    """Returns the run's exports by name, and why one cannot be used."""
    found, notes = {}, []
    for file in sorted((run.folder / EXPORTS).glob(f"*/{EXPORT}")):
        try:
            made = engine.load(file.parent)
        except UserError as error:
            notes.append(str(error))
        else:
            found[made.name] = Exported(made)
    return found, notes


def seconds(predict: Callable[[list[Row]], Any], fields: dict[str, type]) -> float:
    """Returns the seconds for a batch and a row alone, the least of some rounds after a first.

    Args:
        fields: what a row is made of, as ``Task.fields`` says. The rows are made up.
    """
    rows = [{name: _made_up(kind, i) for name, kind in fields.items()} for i in range(1, ROWS + 1)]
    taken = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        predict(rows)
        predict(rows[-1:])
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _made_up(kind: type, number: int) -> str | bytes:
    if kind is str:
        return "the film was good " * (number * WORDS // ROWS // 4 + 1)
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (20 * number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()
