"""The ``finetune`` command: train, resume, predict, generate, merge, compare, recipes, report.

Imports torch only when a command needs it, so that help and tables are there at once.
"""

import argparse
import csv
import json
import logging
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from finetune import recipe, run_directory
from finetune.data import sources
from finetune.errors import TrainingError, UserError
from finetune.training import launching

# What a user can do nothing about: bitsandbytes asks for a kernel of the hub's at import and
# complains; peft 0.21 asks transformers 5.23 by an old name, looks for the config of GGUF files,
# and is told of positions by transformers wherever something is written.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
warnings.filterwarnings("ignore", "Position ids are not supported for", UserWarning)

DESCRIPTION = """\
Fine-tune BERT, GPT and ViT checkpoints. A recipe goes in, a run directory comes out.

  finetune train recipes/imdb/minilm.yaml                 train a recipe into runs/imdb/minilm
  finetune train recipes/your-data/text.yaml --train mine.csv --text review --label stars
  finetune resume runs/imdb/minilm/seed-0                 go on with a run that was stopped
  finetune predict runs/imdb/minilm "A waste of two hours."
  finetune generate runs/reviews/smollm2-lora "This film"
  finetune compare runs/imdb/*
  finetune recipes
"""

RESUME_HELP = """\
usage: finetune resume RUN [--allow-changed KEY ...] [--key value ...]

Goes on from the newest checkpoint of RUN whose every byte is as it was written, with RUN's own
recipe, and ends with the weights, history.jsonl and metrics that the run would have had without
the stop. A run without a checkpoint starts from its beginning; a finished one is left alone.

Data, recipe, base weights, versions and number of processes have to be those of the run. What
differs is shown; --allow-changed KEY goes on all the same: a recipe's key (training.learning_rate),
data, base, versions or processes.
"""


def train(arguments: Sequence[str], default: str | None = None) -> None:
    """``[RECIPE] [--key value ...] [--overwrite | --resume]``: train a recipe and show its results.

    Args:
        default: the recipe where none is named: what a recipe module is launched with.

    Raises:
        UserError: anything the user has to mend.
    """
    words = list(arguments)
    if {"-h", "--help"} & set(words):
        print(train_help(default))
        return
    path = words.pop(0) if words and not words[0].startswith("--") else default
    if path is None:
        raise UserError("train needs a recipe; `finetune recipes` lists what there is")
    allowed = _taken(words, "--allow-changed")
    said = [word for word in ("--overwrite", "--resume") if word in words]
    if len(said) == 2:
        raise UserError("--overwrite and --resume contradict each other; keep one")
    if allowed and "--resume" not in said:
        raise UserError("--allow-changed is for a run to resume; say --resume with it")
    read = recipe.load(path, [word for word in words if word not in said])

    launching.start_dropped_processes()
    # What cannot be found is said before torch takes its seconds to load.
    sources.checkpoint(read.model.checkpoint, read.model.revision)

    from finetune import tasks
    from finetune.training import runner

    build = tasks.find(read).build
    run = runner.train(read, build, "--overwrite" in said, "--resume" in said, allowed)
    if run:
        from finetune.report import tables

        print(tables.summary(run))


def resume(arguments: Sequence[str]) -> None:
    """``RUN [--allow-changed KEY ...] [--key value ...]``: go on with a run that was stopped.

    Raises:
        UserError: anything the user has to mend.
    """
    words = list(arguments)
    if {"-h", "--help"} & set(words):
        print(RESUME_HELP)
        return
    if not words or words[0].startswith("--"):
        raise UserError("resume needs a run directory, for example runs/imdb/minilm/seed-0")
    folder = Path(words.pop(0))
    if not (folder / run_directory.RECIPE).is_file():
        raise UserError(f"{folder}: holds no run (no {run_directory.RECIPE})")
    train([str(folder / run_directory.RECIPE), "--resume", "--output_dir", str(folder), *words])


def _taken(words: list[str], flag: str) -> list[str]:
    """The values of a flag that may be said more than once, taken out of ``words``."""
    values = []
    while flag in words:
        place = words.index(flag)
        if words[place + 1 : place + 2] in ([], *([w] for w in words if w.startswith("--"))):
            raise UserError(f"{flag} needs a value, for example training.learning_rate")
        values.append(words.pop(place + 1))
        words.pop(place)
    return values


def train_help(default: str | None) -> str:
    """Every key a recipe may have, as a flag, with its help."""
    lines = [
        f"usage: finetune train {'[RECIPE]' if default else 'RECIPE'} [--key value ...] "
        "[--overwrite | --resume]",
        *([f"RECIPE is {default} unless named."] if default else []),
        "",
        "Every key of a recipe is a flag, and a flag wins over the file.",
    ]
    for section in recipe.SETTINGS:
        lines += ["", f"{section}:"]
        for f in fields(recipe.SECTIONS[section]):
            if not f.metadata.get("hidden"):
                said = f.metadata["help"] + _default(f)
                flag = f"  --{f.name:<20} "
                lines.append(
                    textwrap.fill(said, 79, initial_indent=flag, subsequent_indent=" " * 25)
                )
    lines += [
        "",
        "training: every field of transformers.TrainingArguments by its own name:",
        "  --learning_rate 3e-5 --num_train_epochs 3 --per_device_train_batch_size 16",
        "  --bf16 true --seed 1 --output_dir runs/mine --report_to tensorboard",
        "",
        "  --overwrite              start anew in a directory that holds a run",
        "  --resume                 go on with the run that the directory holds",
        "  --allow-changed KEY      resume though KEY differs: training.learning_rate, data,",
        "                           versions, ...; may be said again",
    ]
    return "\n".join(lines)


def _default(f: Field[Any]) -> str:
    """The value a key has when a recipe is silent, as `--help` shows it."""
    return f" [{f.default}]" if isinstance(f.default, str | int | float) and f.default != "" else ""


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

    base = inference.shared_base(runs) if options.adapter else None
    said: list[dict[str, Any]] = []
    for run, place in zip(runs, places, strict=True):
        rows = inference.read_rows(texts, file, run)
        named = {"adapter": place} if options.adapter else {}
        answers = inference.predict(run, rows, base)
        said += [{**row, **named, **each} for row, each in zip(rows, answers, strict=True)]
    if options.format == "jsonl":
        for row in said:
            print(json.dumps(row, ensure_ascii=False))
        return
    flat = [_flat(row) for row in said]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    writer = csv.writer(sys.stdout)
    writer.writerow([name for _, name in columns])
    writer.writerows([[row.get(column, "") for column in columns] for row in flat])


def _flat(row: dict[str, Any]) -> dict[tuple[bool, str], Any]:
    """A prediction as cells of CSV by (is it a probability, name): a label may be named `text`."""
    said = row["prediction"]
    cells = {(False, k): v for k, v in row.items() if k != "probabilities"}
    cells[False, "prediction"] = ",".join(said) if isinstance(said, list) else said
    return cells | {(True, k): v for k, v in row.get("probabilities", {}).items()}


def _generate(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune import inference

    inference.generate(run, options.prompt, options.seed, options.max_new_tokens, options.greedy)


def _merge(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune import inference

    folder = Path(options.output) if options.output else run.folder / run_directory.MERGED
    inference.merge(run, folder)
    print(f"{folder}: a plain checkpoint; pipeline() and from_pretrained() load it without peft")


def _compare(options: argparse.Namespace) -> None:
    from finetune.report import comparison

    print(comparison.compare(run_directory.find(options.runs)))


def _recipes(options: argparse.Namespace) -> None:
    from finetune.report import listing

    print(listing.recipes(Path(options.folder) if options.folder else None))


def _report(options: argparse.Namespace) -> None:
    from finetune.report import page, tables

    run = run_directory.one(options.run)
    run.write_report(page.render(run))
    print(tables.summary(run))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    commands.add_parser("train", help="train a recipe; `finetune train --help` lists every key")
    commands.add_parser("resume", help="go on with a run that was stopped")

    command = commands.add_parser("predict", help="label texts or images with a run's model")
    command.add_argument(
        "text", nargs="*", metavar="RUN TEXT", help="a run directory, then texts, or image files"
    )
    command.add_argument(
        "--adapter",
        action="append",
        metavar="RUN",
        help="a run directory instead of the first word; several share one base in memory",
    )
    command.add_argument(
        "--file",
        help="CSV, TSV, JSON lines or Parquet, or a folder of images; - reads lines",
    )
    command.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
    command.set_defaults(go=_predict)

    command = commands.add_parser("generate", help="go on with a text, or answer, word by word")
    command.add_argument("run", help="the run directory of a language model")
    command.add_argument("prompt", help="a text to go on with; for a run on chats, a question")
    command.add_argument("--max_new_tokens", type=int, default=60, help="most to write [60]")
    command.add_argument("--seed", type=int, default=0, help="another seed, another text [0]")
    command.add_argument("--greedy", action="store_true", help="the likeliest token every time")
    command.set_defaults(go=_generate)

    command = commands.add_parser("merge", help="fold an adapter into a plain checkpoint")
    command.add_argument("run", help="a run directory")
    command.add_argument("--output", help="where to write it; merged/ in the run unless named")
    command.set_defaults(go=_merge)

    command = commands.add_parser("compare", help="one table of runs, best first")
    command.add_argument("runs", nargs="+", help="run directories, or folders of them")
    command.set_defaults(go=_compare)

    command = commands.add_parser(
        "recipes", help="what there is, with measured and published numbers"
    )
    command.add_argument("folder", nargs="?", help="recipes/, else those installed, unless named")
    command.set_defaults(go=_recipes)

    command = commands.add_parser(
        "report", help="show a run's results and write its report.html anew"
    )
    command.add_argument("run", help="a run directory")
    command.set_defaults(go=_report)
    return parser


def guarded(action: object, *arguments: object) -> None:
    """Call ``action``; one line and a status for what ends it early.

    2 for a user's mistake, 1 for a run that broke, 130 for Ctrl-C, 143 for SIGTERM.
    """
    assert callable(action)
    try:
        action(*arguments)
    except (UserError, TrainingError) as error:
        launching.wait_for_the_first(foreseen=True)
        print(f"finetune: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        print("finetune: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        sys.stderr.close()
    except Exception:
        launching.wait_for_the_first(foreseen=False)
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:
        guarded(train, words[1:])
    elif words[:1] == ["resume"]:
        guarded(resume, words[1:])
    else:
        options = _parser().parse_args(words)
        guarded(options.go, options)
