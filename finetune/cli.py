"""The ``finetune`` command: train, resume, predict, generate, merge, compare, recipes, report.

Commands import torch only when they need it, so that help and tables appear at once.
"""

import argparse
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune import recipe, run_directory
from finetune.data import sources
from finetune.errors import UserError, refuse_unknown
from finetune.recipe import command_line
from finetune.training import launching

# Warnings that a user can do nothing about: bitsandbytes looks for a kernel of the hub's at import;
# peft 0.21 calls transformers 5.23 by an old name and looks for the config of GGUF files; and
# transformers warns peft about positions whenever text is generated.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
warnings.filterwarnings("ignore", "Position ids are not supported for", UserWarning)

DESCRIPTION = """\
Fine-tune BERT, GPT and ViT checkpoints: a recipe in, a run directory out.

  finetune train recipes/imdb/minilm.yaml       writes runs/imdb/minilm/seed-0
  finetune train recipes/your-data/text.yaml --train mine.csv --label stars
  finetune resume runs/imdb/minilm/seed-0       continues a stopped run
  finetune predict runs/imdb/minilm "A waste of two hours."
  finetune generate runs/reviews/smollm2-lora "This film"
  finetune compare runs/imdb/*
  finetune recipes
"""
TRAIN = """\
Trains a recipe into a run directory, tests it once and prints the results.

Every key of a recipe is a flag, which takes precedence over the file.
"""
TRAINING_KEYS = """\
Every field of transformers.TrainingArguments, by its own name:
  --learning_rate 3e-5 --num_train_epochs 3 --per_device_train_batch_size 16
  --bf16 true --seed 1 --output_dir runs/mine --report_to tensorboard
and --early_stopping_patience 2: evaluations without a better value, then stop
"""
RESUME = """\
Continues RUN from its newest intact checkpoint, with the recipe in RUN. The
result is the same, bit for bit, as that of a run that was never stopped. A run
without a checkpoint starts from the beginning; a finished one is left alone.

Recipe, data, base weights, versions and number of processes have to be those
of the run. Any key of a recipe can be given as a flag, as for `finetune train`;
a difference is an error unless --allow-changed names it.
"""


def _train(options: argparse.Namespace) -> None:
    if options.recipe is None:
        raise UserError("train needs a recipe; `finetune recipes` lists them")
    if options.overwrite and options.resume:
        raise UserError("--overwrite and --resume contradict each other; keep one")
    if options.allow_changed and not options.resume:
        raise UserError("--allow-changed is for a run to resume; add --resume")
    read = recipe.read(options.recipe, options.overrides)

    # Mistakes that can be found before torch takes seconds to load.
    launching.check_processes()
    sources.checkpoint(read.model.checkpoint, read.model.revision)

    from finetune import tasks
    from finetune.training import runner

    resolved = recipe.resolve(read)
    build = tasks.find(resolved.task, resolved.where("task")).build
    run = runner.train(resolved, build, options.overwrite, options.resume, options.allow_changed)
    if run:
        finish(run, resolved)


def finish(run: run_directory.Run, read: recipe.Recipe) -> None:
    """Writes a finished run's card and report, uploads it if the recipe says so, prints a table.

    The run is complete without them: a report that fails is one line on stderr.
    """
    from finetune.report import files, tables

    try:
        files.write(run)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"finetune: {run}: complete, but its report failed ({reason}); "
            "`finetune report` writes it again",
            file=sys.stderr,
        )
    if read.training.get("push_to_hub"):
        from finetune.training import hub

        hub.push(read, run)
    print(tables.summary(run))


def _resume(options: argparse.Namespace) -> None:
    if options.run is None:
        raise UserError("resume needs a run directory, for example runs/imdb/minilm/seed-0")
    file = Path(options.run) / run_directory.RECIPE
    if not file.is_file():
        raise UserError(f"{options.run}: holds no run (no {run_directory.RECIPE})")
    if "output_dir" in options.overrides:
        raise UserError(f"--output_dir: resume continues in {options.run}; leave it out")
    options.recipe, options.overwrite, options.resume = str(file), False, True
    options.overrides["output_dir"] = options.run
    _train(options)


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
    from finetune.report import files, tables

    run = run_directory.one(options.run)
    files.write(run)
    print(tables.summary(run))


def _parser(default: str | None) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """Returns the parser of the command, and one parser per subcommand by its name."""
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
    parser = command_line.Parser(
        prog="finetune", description=DESCRIPTION, formatter_class=layout, allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], None], help: str, **more: Any
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=help,
            formatter_class=layout,
            allow_abbrev=False,
            **{"description": help[0].upper() + help[1:] + ".", **more},
        )
        made.set_defaults(go=run)
        return made

    recipe_word = "[RECIPE]" if default else "RECIPE"
    command = add(
        "train",
        _train,
        "train a recipe; `finetune train --help` lists every key",
        description=TRAIN,
        usage=f"finetune train {recipe_word} [--key value ...] [--overwrite | --resume]",
    )
    command.add_argument(
        "recipe",
        nargs="?",
        default=default,
        metavar="RECIPE",
        help="a recipe file" + (f" [{default}]" if default else "; `finetune recipes` lists them"),
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace the run that the directory holds"
    )
    command.add_argument(
        "--resume", action="store_true", help="continue the run that the directory holds"
    )
    _add_allow_changed(command)
    command_line.add_recipe_keys(command)
    command.add_argument_group("training", TRAINING_KEYS)

    command = add(
        "resume",
        _resume,
        "continue a stopped run",
        description=RESUME,
        usage="finetune resume RUN [--allow-changed KEY ...] [--key value ...]",
    )
    command.add_argument("run", nargs="?", metavar="RUN", help="a run directory")
    _add_allow_changed(command)
    command_line.add_recipe_keys(command, in_help=False)

    command = add("predict", _predict, "label texts or images with a run's model")
    command.add_argument(
        "text", nargs="*", metavar="RUN TEXT", help="a run directory, then texts or image files"
    )
    command.add_argument(
        "--adapter",
        action="append",
        metavar="RUN",
        help="run directory of an adapter, instead of RUN; several share one base model in memory",
    )
    command.add_argument(
        "--file",
        help="CSV, TSV, JSON lines or Parquet file, or a folder of images; - reads lines",
    )
    command.add_argument("--format", choices=["jsonl", "csv"], default="jsonl", help="[jsonl]")

    command = add("generate", _generate, "generate text, streamed")
    command.add_argument("run", metavar="RUN", help="the run directory of a causal LM")
    command.add_argument(
        "prompt", metavar="PROMPT", help="a text to continue; for a run on chats, a question"
    )
    command.add_argument(
        "--max_new_tokens", type=int, default=60, metavar="N", help="most tokens to generate [60]"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="sampling seed [0]")
    command.add_argument("--greedy", action="store_true", help="always take the likeliest token")

    command = add("merge", _merge, "merge an adapter into a plain checkpoint")
    command.add_argument("run", metavar="RUN", help="a run directory")
    command.add_argument(
        "--output", metavar="FOLDER", help="where to write it [merged/ in the run directory]"
    )

    command = add("compare", _compare, "compare runs in one table, best first")
    command.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or their folders")

    command = add("recipes", _recipes, "list recipes, with measured and published numbers")
    command.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="[recipes, else the installed ones]",
    )

    command = add("report", _report, "show a run's results and rewrite its report.html")
    command.add_argument("run", metavar="RUN", help="a run directory")
    return parser, dict(commands.choices)


def _add_allow_changed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although KEY differs: training.learning_rate or another key of the recipe, "
        "data, base, versions, processes; can be repeated",
    )


def _run(words: Sequence[str], default: str | None) -> None:
    """Parses a command line and runs its command.

    Args:
        default: the recipe that `train` takes if none is named.

    Raises:
        UserError: anything the user has to correct.
    """
    parser, commands = _parser(default)
    if not words or words[0] in {"-h", "--help"}:
        parser.parse_args(words)
    if words[0] not in commands:
        refuse_unknown(words[0], list(commands), "command")
    command = commands[words[0]]
    rest = list(words[1:])
    if words[0] in {"train", "resume"}:
        rest = command_line.accept_training_keys(command, rest)
    options, extra = command.parse_known_intermixed_args(rest, command_line.new_namespace())
    if extra and extra[0].startswith("-"):
        flags = re.findall(r"--[a-z_-]+", command.format_help())
        refuse_unknown(extra[0].partition("=")[0], sorted(set(flags)), f"{words[0]}: option")
    if extra:
        raise UserError(f"{words[0]}: {extra[0]!r} is one argument too many")
    options.go(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the console script."""
    launching.guarded(_run, sys.argv[1:] if arguments is None else arguments, None)


def launch(default: str) -> None:
    """Runs `finetune train` with the words of the command line, for a recipe module.

    Args:
        default: the recipe to train if none is named.
    """
    launching.guarded(_run, ["train", *sys.argv[1:]], default)
