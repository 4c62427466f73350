"""``finetune launch``."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

from finetune import recipe, run_directory
from finetune.clusters import jobs
from finetune.commands.base import Command
from finetune.errors import UserError
from finetune.recipe import command_line

DESCRIPTION = """\
Writes the job that trains a recipe on a cluster: a batch file of Slurm, a task
of SkyPilot, or a command of Ray. The recipe is checked first. A job that is
started again goes on from its last checkpoint; one of Slurm saves and goes back
into the queue by itself before its time limit.

Every key of a recipe is a flag, as for `finetune train`.
"""
TIME = re.compile(r"(\d+-)?\d{1,2}:[0-5]\d:[0-5]\d")
GPUS = re.compile(r"(?:([\w.-]+):)?(\d+)")


def _launch(options: argparse.Namespace) -> None:
    if options.nodes < 1:
        raise UserError(f"--nodes {options.nodes} has to be at least 1")
    gpus = GPUS.fullmatch(options.gpus)
    if not gpus:
        raise UserError(f"--gpus {options.gpus}: takes a number, or a kind with one: H100:8")
    if options.time and not TIME.fullmatch(options.time):
        raise UserError(f"--time {options.time}: takes hours, minutes, seconds: 04:00:00")
    if options.seeds is not None and "seed" in options.overrides:
        raise UserError("--seeds and --seed contradict each other; keep one")
    read = recipe.read(options.recipe, options.overrides)
    # A mistake would otherwise show only when the job has waited in a queue.
    recipe.resolve(read)

    from finetune.studies import seeds

    request = jobs.Request(
        name=read.name,
        recipe=options.recipe,
        flags=options.overrides,
        nodes=options.nodes,
        gpus=int(gpus[2]),
        kind=gpus[1] or "",
        time=options.time,
        seeds=tuple(seeds.parse(options.seeds)) if options.seeds is not None else (),
    )
    job = jobs.SCHEDULERS[options.on](request)
    command = shlex.join(job.command)
    if options.dry_run:
        print(job.text or command, end="" if job.text else "\n")
        return
    if job.file:
        run_directory.write_whole(Path(job.file), job.text)
    if not options.submit:
        print(f"finetune: {'wrote ' + job.file + '; ' if job.file else ''}submit it: {command}")
        return
    try:
        done = subprocess.run(job.command)
    except FileNotFoundError:
        raise UserError(f"{job.command[0]} is not installed here; where it is: {command}") from None
    if done.returncode:
        raise UserError(f"{job.command[0]} ended with {done.returncode}: {command}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    parser.add_argument(
        "--on", required=True, choices=list(jobs.SCHEDULERS), help="what runs the job"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines [1]")
    parser.add_argument(
        "--gpus",
        default="1",
        metavar="[KIND:]N",
        help="GPUs of each machine, and their kind: 8, H100:8; 0 for one process on its CPU [1]",
    )
    parser.add_argument("--time", metavar="HH:MM:SS", help="time limit, for Slurm [the cluster's]")
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="an array of runs, for Slurm, with how many seeds, or a list (0,7,42); afterwards "
        "`finetune train RECIPE --seeds N` aggregates them",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry_run", action="store_true", help="print the job and write nothing")
    how.add_argument("--submit", action="store_true", help="submit it, too")
    command_line.add_recipe_keys(parser, in_help=False)


LAUNCHING = Command(
    "launch",
    "write or submit the job that trains a recipe on a cluster",
    _add_arguments,
    _launch,
    description=DESCRIPTION,
    usage="finetune launch RECIPE --on slurm|skypilot|ray [--nodes N] [--gpus [KIND:]N] [--key X]",
    takes_recipe_keys=True,
)
