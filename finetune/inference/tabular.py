"""Predictions as a CSV table."""

import csv
import json
from typing import Any, TextIO


def write_csv(predictions: list[dict[str, Any]], file: TextIO) -> None:
    """Writes one line a prediction, with a column for each label's probability."""
    flat = [_flat(row) for row in predictions]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    writer = csv.writer(file)
    writer.writerow([name for _, name in columns])
    writer.writerows([[row.get(column, "") for column in columns] for row in flat])


def _flat(row: dict[str, Any]) -> dict[tuple[bool, str], Any]:
    """Returns a prediction as CSV cells by (is it a probability, name).

    The pair keeps a label named "text" apart from the column of that name.
    """
    prediction = row["prediction"]
    cells = {(False, k): v for k, v in row.items() if k != "probabilities"}
    if isinstance(prediction, list):
        names = all(isinstance(each, str) for each in prediction)
        written = ",".join(prediction) if names else json.dumps(prediction, ensure_ascii=False)
        cells[False, "prediction"] = written
    # Such as the candidates of an answer, which are objects.
    cells |= {k: json.dumps(v, ensure_ascii=False) for k, v in cells.items() if type(v) is list}
    return cells | {(True, k): v for k, v in row.get("probabilities", {}).items()}
