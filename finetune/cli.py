"""The ``finetune`` command: parses a command line and runs one of ``finetune.commands``."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from finetune.commands import (
    check,
    cluster,
    evaluate,
    export,
    forecast,
    generate,
    merge,
    predict,
    results,
    serve,
    smaller,
    sweep,
    train,
)
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

  finetune check mine.csv                       what is wrong with the data
  finetune train mine.csv                       guesses the recipe and prints it
  finetune train recipes/imdb/minilm.yaml       writes runs/imdb/minilm/seed-0
  finetune train recipes/your-data/text.yaml --train mine.csv --label stars
  finetune resume runs/imdb/minilm/seed-0       continues a stopped run
  finetune launch imdb/minilm --on slurm --gpus 8 --dry_run
  finetune sweep imdb/minilm --search 'learning_rate=loguniform(1e-5,1e-3)'
  finetune predict runs/imdb/minilm "A waste of two hours."
  finetune evaluate runs/imdb/minilm new.csv    scores rows labelled later
  finetune generate runs/reviews/smollm2-lora "This film"
  finetune export runs/imdb/minilm --to onnx    for ONNX Runtime, checked
  finetune serve runs/imdb/minilm               answers over HTTP
  finetune compare runs/imdb/*
  finetune recipes
"""
# In the order in which --help lists them.
COMMANDS = {
    command.name: command
    for command in (
        check.CHECKING,
        forecast.FORECASTING,
        train.TRAINING,
        train.RESUMING,
        cluster.LAUNCHING,
        sweep.SWEEPING,
        predict.PREDICTING,
        evaluate.EVALUATING,
        generate.GENERATING,
        smaller.DISTILLING,
        smaller.PRUNING,
        merge.MERGING,
        export.EXPORTING,
        serve.SERVING,
        results.COMPARING,
        results.LISTING,
        results.REPORTING,
    )
}


def _parsers(default: str | None) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """Returns the parser of the command, and one parser per subcommand by its name."""
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
    parser = command_line.Parser(
        prog="finetune", description=DESCRIPTION, formatter_class=layout, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        made = subparsers.add_parser(
            name,
            help=command.help,
            description=command.description or command.help[0].upper() + command.help[1:] + ".",
            usage=command.usage,
            formatter_class=layout,
            allow_abbrev=False,
        )
        command.add_arguments(made)
        if default and name == "train":
            made.set_defaults(recipe=default)
            made.epilog = f"Without RECIPE, it trains {default}."
    return parser, dict(subparsers.choices)


def _run(words: Sequence[str], default: str | None) -> None:
    """Parses a command line and runs its command.

    Args:
        default: the recipe that `train` takes if none is named.

    Raises:
        UserError: anything the user has to correct.
    """
    # oneDNN keeps compiled code for 1,024 shapes, and without padding nearly every batch has
    # another number of tokens. It reads this once, when torch first computes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    parser, parsers = _parsers(default)
    if not words or words[0] in {"-h", "--help"}:
        parser.parse_args(words)
    name, *rest = words
    if name not in COMMANDS:
        refuse_unknown(name, list(COMMANDS), "command")
    if COMMANDS[name].takes_recipe_keys:
        rest = command_line.accept_training_keys(parsers[name], rest)
    options, extra = parsers[name].parse_known_intermixed_args(rest, command_line.new_namespace())
    if extra and extra[0].startswith("-"):
        flags = re.findall(r"--[a-z_-]+", parsers[name].format_help())
        refuse_unknown(extra[0].partition("=")[0], sorted(set(flags)), f"{name}: option")
    if extra:
        raise UserError(f"{name}: {extra[0]!r} is one argument too many")
    COMMANDS[name].run(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the console script."""
    launching.guarded(_run, sys.argv[1:] if arguments is None else arguments, None)


def launch(default: str) -> None:
    """Runs `finetune train` with the words of the command line, for a recipe module.

    Args:
        default: the recipe to train if none is named.
    """
    launching.guarded(_run, ["train", *sys.argv[1:]], default)
