"""``finetune predict``."""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from finetune import run_directory
from finetune.commands.base import Command, add_base
from finetune.errors import UserError

# Flags that name a column of --file, and the key of a recipe's data that each replaces.
COLUMNS = {
    "text": "the text",
    "text_pair": "the second text of a pair",
    "source": "the text that another is written for",
    "image": "the image",
    "query": "the query to search by",
    "question": "the question",
    "context": "the context, or a text file that all questions are about",
}


def _predict(options: argparse.Namespace) -> None:
    texts = list(options.words)
    if not options.adapter and not texts:
        raise UserError("predict needs a run directory, or --adapter RUN")
    places = options.adapter or [texts.pop(0)]
    if bool(texts) == bool(options.file):
        raise UserError(
            "predict needs texts or images, or --file FILE (- for standard input), and not both"
        )
    columns = {name: vars(options)[name] for name in COLUMNS if vars(options)[name]}
    of_table = [name for name in columns if name != "context"]
    if options.corpus:
        columns["corpus"] = options.corpus
    if of_table and options.file in {None, "-"}:
        raise UserError(f"--{of_table[0]} names a column of a table; add --file TABLE")
    output = Path(options.output) if options.output else None
    if output and options.file and output.resolve() == Path(options.file).resolve():
        raise UserError(f"--output {output}: is the file to read; name another")
    runs = [run_directory.one_or_export(place) for place in places]
    file = options.file
    if file == "-":
        file, texts = None, [line.rstrip("\n") for line in sys.stdin]

    from finetune import inference
    from finetune.inference import tabular

    base = inference.shared_base(runs, options.base) if options.adapter else None
    predictions: list[dict[str, Any]] = []
    for run, place in zip(runs, places, strict=True):
        rows = inference.read_rows(texts, file, run, columns)
        named = {"adapter": place} if options.adapter else {}
        answers = inference.predict(run, rows, base, options.base)
        shown = inference.printed(rows, run)
        predictions += [{**row, **named, **each} for row, each in zip(shown, answers, strict=True)]
    empty = sum(row["prediction"] is None for row in predictions)
    if empty:
        print(f"finetune: {empty} of {len(predictions)} rows are empty: null", file=sys.stderr)
    kind = options.format or ("csv" if output and output.suffix == ".csv" else "jsonl")
    text = io.StringIO()
    if kind == "csv":
        tabular.write_csv(predictions, text)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    if output is None:
        print(text.getvalue(), end="")
        return
    try:
        run_directory.write_whole(output, text.getvalue())
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    print(f"finetune: {len(predictions)} predictions in {output}", file=sys.stderr)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN TEXT",
        help="a run directory or an export, then texts or image files",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="RUN",
        help="run directory of an adapter, instead of RUN; several share one base model in memory",
    )
    parser.add_argument(
        "--file",
        help="CSV, TSV, JSON lines or Parquet file, .txt with a text on each line, or a folder of "
        "images; - reads lines",
    )
    for name, what in COLUMNS.items():
        parser.add_argument(
            f"--{name}", metavar="COLUMN", help=f"--file: column of {what}, if not the recipe's"
        )
    parser.add_argument(
        "--corpus", metavar="FILE", help="table of passages: the nearest to each query are found"
    )
    parser.add_argument("--output", metavar="FILE", help="write to FILE, .csv or .jsonl")
    parser.add_argument(
        "--format", choices=["jsonl", "csv"], help="[that of --output FILE, else jsonl]"
    )
    add_base(parser)


PREDICTING = Command(
    "predict", "label texts or images with a run's model", _add_arguments, _predict
)
