"""Scores runs on the rows that users of a served model corrected."""

from dataclasses import replace
from typing import Any

import numpy
import pandas

from finetune import run_directory, tasks
from finetune.data import corrections, splits
from finetune.inference import prediction


def score(run: run_directory.Run, files: list[str]) -> dict[str, Any]:
    """Returns the run's headline metric on the newest correction of each text or image.

    Args:
        files: feedback.jsonl of runs with the same labels, oldest first.

    Raises:
        UserError: a file cannot be used, or has a label that the model does not know.
    """
    model, processor, recipe = prediction.load(run)
    results, task = run.results(), tasks.find(recipe.task)
    as_kept = replace(recipe, data=corrections.section(recipe.data))
    given = [task.labelled(file, as_kept, results["data"]) for file in files]
    contents = splits.contents(pandas.concat([part.frame for part in given], ignore_index=True))
    (newest,) = numpy.nonzero(~contents.duplicated(keep="last").to_numpy())
    rows = [row for part in given for row in part.rows]
    outputs = prediction.outputs(model, processor, recipe, [rows[i] for i in newest])
    labels = numpy.concatenate([part.labels for part in given])[newest]
    return given[0].score(outputs, labels)["metrics"][results["headline"]]
