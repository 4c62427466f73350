"""``finetune compare``, ``finetune recipes`` and ``finetune report``."""

import argparse
from pathlib import Path
from typing import Any

from finetune import run_directory
from finetune.commands.base import Command


def _compare(options: argparse.Namespace) -> None:
    from finetune.report import comparison

    print(comparison.compare(run_directory.find(options.runs), _on_corrections))


def _on_corrections(run: run_directory.Run, files: list[str]) -> dict[str, Any]:
    # Loads torch, which other comparisons do not need.
    from finetune.inference import corrected

    return corrected.score(run, files)


def _recipes(options: argparse.Namespace) -> None:
    from finetune.report import listing

    print(listing.recipes(Path(options.folder) if options.folder else None))


def _report(options: argparse.Namespace) -> None:
    from finetune.report import files, tables

    run = run_directory.one(options.run)
    files.write(run)
    print(tables.summary(run))


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or their folders")


def _add_recipes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="[recipes, else the installed ones]"
    )


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")


COMPARING = Command(
    "compare", "compare runs in one table, best first", _add_compare_arguments, _compare
)
LISTING = Command(
    "recipes", "list recipes, with measured and published numbers", _add_recipes_arguments, _recipes
)
REPORTING = Command(
    "report", "show a run's results and rewrite its report.html", _add_report_arguments, _report
)
