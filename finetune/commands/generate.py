"""``finetune generate``."""

import argparse

from finetune import run_directory
from finetune.commands.base import Command, add_base


def _generate(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune import inference

    inference.generate(
        run, options.prompt, options.seed, options.max_new_tokens, options.greedy, options.base
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory of a causal LM")
    parser.add_argument(
        "prompt", metavar="PROMPT", help="a text to continue; for a run on chats, a question"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=60, metavar="N", help="most tokens to generate [60]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="sampling seed [0]")
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    add_base(parser)


GENERATING = Command("generate", "generate text, streamed", _add_arguments, _generate)
