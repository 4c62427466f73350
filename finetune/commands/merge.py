"""``finetune merge``."""

import argparse
from pathlib import Path

from finetune import run_directory
from finetune.commands.base import Command, add_base


def _merge(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune import inference

    folder = Path(options.output) if options.output else run.folder / run_directory.MERGED
    inference.merge(run, folder, options.base)
    print(f"{folder}: a plain checkpoint; pipeline() and from_pretrained() load it without peft")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write it [merged/ in the run directory]"
    )
    add_base(parser)


MERGING = Command("merge", "merge an adapter into a plain checkpoint", _add_arguments, _merge)
