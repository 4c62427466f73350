"""``finetune predict``."""

import argparse
import json
import sys
from typing import Any

from finetune import run_directory
from finetune.commands.base import Command
from finetune.errors import UserError


def _predict(options: argparse.Namespace) -> None:
    texts = list(options.text)
    if not options.adapter and not texts:
        raise UserError("predict needs a run directory, or --adapter RUN")
    places = options.adapter or [texts.pop(0)]
    if bool(texts) == bool(options.file):
        raise UserError(
            "predict needs texts or images, or --file FILE (- for standard input), and not both"
        )
    runs = [run_directory.one(place) for place in places]
    file = options.file
    if file == "-":
        file, texts = None, [line.rstrip("\n") for line in sys.stdin]

    from finetune import inference
    from finetune.inference import tabular

    base = inference.shared_base(runs) if options.adapter else None
    predictions: list[dict[str, Any]] = []
    for run, place in zip(runs, places, strict=True):
        rows = inference.read_rows(texts, file, run)
        named = {"adapter": place} if options.adapter else {}
        answers = inference.predict(run, rows, base)
        predictions += [{**row, **named, **each} for row, each in zip(rows, answers, strict=True)]
    if options.format == "jsonl":
        for row in predictions:
            print(json.dumps(row, ensure_ascii=False))
        return
    tabular.write_csv(predictions, sys.stdout)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", nargs="*", metavar="RUN TEXT", help="a run directory, then texts or image files"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="RUN",
        help="run directory of an adapter, instead of RUN; several share one base model in memory",
    )
    parser.add_argument(
        "--file",
        help="CSV, TSV, JSON lines or Parquet file, or a folder of images; - reads lines",
    )
    parser.add_argument("--format", choices=["jsonl", "csv"], default="jsonl", help="[jsonl]")


PREDICTING = Command(
    "predict", "label texts or images with a run's model", _add_arguments, _predict
)
