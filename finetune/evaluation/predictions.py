"""The table of predicted rows, as predictions.parquet has it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


def table(
    frame: "pandas.DataFrame", answers: list[dict[str, Any]], data: Mapping[str, Any]
) -> "pandas.DataFrame":
    """Returns rows with their answers: id, content, label, prediction, probabilities.

    Args:
        frame: N rows of a corpus; labels, where it has any, are encoded.
        answers: N dicts, as the task gives them.
        data: the data section of results.json: label names, problem type.

    Returns:
        Labels by their names, and probabilities as lists in the order of the label names.
    """
    rows = frame.drop(columns="digest", errors="ignore")
    if "label" in rows:
        rows = rows.assign(label=[_name(label, data) for label in rows["label"]])
    for column in dict.fromkeys(name for answer in answers for name in answer):
        values = [answer[column] for answer in answers]
        if column == "probabilities":
            values = [list(value.values()) for value in values]
        rows[column] = values
    return rows


def _name(label: Any, data: Mapping[str, Any]) -> Any:
    names = data["label_names"]
    if data["problem_type"] == "single_label_classification":
        return names[label]
    if data["problem_type"] == "multi_label_classification":
        return [name for name, on in zip(names, label, strict=True) if on]
    return label
