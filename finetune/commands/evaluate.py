"""``finetune evaluate``."""

import argparse
import json

from finetune import run_directory
from finetune.commands.base import Command

DESCRIPTION = """\
Scores a run's model on rows that were labelled later: every metric with its
interval, what differs from the run's own test rows, rows that were trained on.

Columns are those of the run's recipe; --text, --label, --image and the other
keys of its data section name others.
"""


def _evaluate(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune.inference import evaluation

    found = evaluation.evaluate(run, options.file, options.overrides, options.by)
    if options.format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from finetune.report import evaluation as shown

    print(shown.text(found))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument(
        "file", metavar="FILE", help="a table with labels, or a folder of images in class folders"
    )
    parser.add_argument(
        "--by", metavar="COLUMN", help="also score the rows of each value of a column"
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="[table]")


EVALUATING = Command(
    "evaluate",
    "score a run's model on new labelled rows",
    _add_arguments,
    _evaluate,
    description=DESCRIPTION,
    usage="finetune evaluate RUN FILE [--by COLUMN] [--label COLUMN ...] [--format json]",
    takes_recipe_keys=True,
)
