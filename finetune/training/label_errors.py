"""Finds training rows whose labels are probably wrong, by models that did not learn from them.

- The rows are divided into ``FOLDS`` parts. For each part the recipe is trained on the others, and
  predicts it. Of texts that occur twice the first is judged. Classes with fewer rows than parts are
  learned in every part, and not judged.
- cleanlab ranks the rows by these probabilities, by the margin of the label over the likeliest
  other class, and counts those that are probably wrong (Northcutt et al. 2021, Confident Learning).
- These models are deleted when the list is written. A part that was trained before a kill is not
  trained again.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pandas

from finetune import run_directory
from finetune.data import corpus, splits
from finetune.errors import UserError
from finetune.recipe import Data, Recipe
from finetune.training import runner
from finetune.training.job import Job

FOLDS = 4
# The list has all rows that are probably wrong, and at least this share of those that were judged.
LISTED = 0.05
SINGLE = "single_label_classification"
# Training keys that need validation rows, or would publish a part.
LEFT_OUT = {
    *("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "push_to_hub", "eval_strategy", "eval_steps", "eval_delay"),
    *("save_strategy", "save_steps"),
}


def check(recipe: Recipe) -> None:
    """Checks that the labels of a recipe's rows can be judged.

    Raises:
        UserError: rows have no single label, or a teacher; cleanlab is not installed.
    """
    flag = "--find_label_errors"
    if recipe.data.problem_type != SINGLE:
        raise UserError(f"{flag}: needs one label a row; leave it out")
    if recipe.distillation.teacher:
        raise UserError(f"{flag}: a student learns from its teacher, too; leave it out")
    try:
        import cleanlab  # noqa: F401
    except ImportError:
        raise UserError(f"{flag}: needs `pip install 'finetune-recipes[labels]'`") from None


def find(recipe: Recipe, build: Callable[[Recipe], Job], run: run_directory.Run) -> str:
    """Writes label_errors.csv of a finished run; returns a line about it.

    Raises:
        UserError: fewer than two classes have a row for each part.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    data = corpus.load(recipe.data)
    rows, kept = _judged(data)
    probabilities = _probabilities(recipe, build, run, rows, kept, data.label_names)
    labels = rows["label"].to_numpy(int)
    # Only classes that were judged: cleanlab needs rows of each.
    classes, places = numpy.unique(labels, return_inverse=True)
    shares = probabilities[:, classes]
    shares = shares / shares.sum(1, keepdims=True)
    quality = get_label_quality_scores(places, shares, method="normalized_margin")
    wrong = find_label_issues(places, shares, n_jobs=1)
    order = numpy.argsort(quality, kind="stable")
    count = max(int(wrong.sum()), math.ceil(LISTED * len(rows)))
    names, suggested = data.label_names, classes[shares.argmax(1)]
    texts = [column for column in ("text", "text_pair") if column in rows]
    listed = [
        {
            "id": str(rows["id"].iloc[i]),
            **{column: str(rows[column].iloc[i]) for column in texts},
            "label": names[labels[i]],
            "suggested": names[suggested[i]],
            "quality": f"{quality[i]:.3f}",
            "probably_wrong": "yes" if wrong[i] else "no",
        }
        for i in order[:count]
    ]
    run.write_label_errors(listed)
    shutil.rmtree(run.folder / run_directory.PARTS)
    return (
        f"{int(wrong.sum()):,} of {len(rows):,} training labels are probably wrong; "
        f"{run.folder / run_directory.LABEL_ERRORS} lists {len(listed):,} rows, the worst first. "
        "Correct its column label, and train with --corrections FILE"
    )


def _judged(data: corpus.Corpus) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Returns the training rows to judge, and those that every part learns from.

    Raises:
        UserError: fewer than two classes are large enough.
    """
    train = data.train
    first = ~splits.contents(train).duplicated().to_numpy()
    labels = train["label"].to_numpy(int)
    counts = numpy.bincount(labels[first], minlength=len(data.label_names))
    large = counts[labels] >= FOLDS
    if (counts >= FOLDS).sum() < 2:
        raise UserError(f"--find_label_errors: two classes need {FOLDS} training rows or more each")
    judged, rare = train.loc[first & large], train.loc[first & ~large]
    return judged.reset_index(drop=True), rare


def _probabilities(
    recipe: Recipe,
    build: Callable[[Recipe], Job],
    run: run_directory.Run,
    rows: pandas.DataFrame,
    kept: pandas.DataFrame,
    names: list[str],
) -> numpy.ndarray:
    """Returns each row's probabilities (N, K) by the model that did not learn from it."""
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(FOLDS, shuffle=True, random_state=recipe.data.split_seed)
    found = numpy.zeros((len(rows), len(names)))
    for part, (others, own) in enumerate(parts.split(rows, rows["label"])):
        folder = run.folder / run_directory.PARTS / str(part)
        tables = {
            "train": pandas.concat([rows.iloc[others], kept]),
            "test": rows.iloc[own],
        }
        for split, table in tables.items():
            _write(_table(folder, split), table, names)
        print(f"finetune: labels, part {part + 1} of {FOLDS}", file=sys.stderr)
        begun = (folder / run_directory.RECIPE).is_file()
        trained = runner.train(_part_of(recipe, folder), build, resume=begun)
        assert trained is not None
        answers = trained.predictions()
        order = [names.index(name) for name in trained.results()["data"]["label_names"]]
        found[own[:, None], order] = numpy.stack(answers["probabilities"].tolist())
    return found


def _table(folder: Path, split: str) -> Path:
    """Returns the file of a part's training or test rows, beside its run."""
    return folder.with_name(f"{folder.name}-{split}.jsonl")


def _write(path: Path, rows: pandas.DataFrame, names: list[str]) -> None:
    """Writes rows with the names of their labels as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [column for column in ("text", "text_pair") if column in rows]
    lines = [
        json.dumps({**dict(zip(texts, row[1:], strict=True)), "label": names[row[0]]})
        for row in rows[["label", *texts]].itertuples(index=False)
    ]
    run_directory.write_whole(path, "\n".join(lines) + "\n")


def _part_of(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe for a part: its own rows, no validation, nothing decided on it."""
    data = Data(
        train=str(_table(folder, "train")),
        test=str(_table(folder, "test")),
        text_pair="text_pair" if recipe.data.text_pair else None,
        validation_size=0,
        max_rejected=0,
    )
    training: dict[str, Any] = {k: v for k, v in recipe.training.items() if k not in LEFT_OUT}
    training |= {"output_dir": str(folder), "save_strategy": "no", "eval_strategy": "no"}
    decided = {"threshold": None, "missed_cost": 1.0, "calibrate": False, "abstain": None}
    return replace(
        recipe,
        name=f"{recipe.name}-part",
        data=data,
        classes=replace(recipe.classes, **decided),
        training=training,
        reference=None,
        metrics=[],
    )
