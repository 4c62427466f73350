"""Writes the job of a recipe for a scheduler.

All jobs run ``finetune train --resume``, which starts a run that is not there yet and continues one
that was stopped, so a job that is started again goes on from its last checkpoint.

- Slurm: a batch file; ``srun`` starts one process for each GPU. Before the time limit the job saves
  and puts itself back into the queue. Seeds are the tasks of an array.
- SkyPilot: a task; ``torchrun`` starts the processes of each machine.
- Ray: a command; ``torchrun`` starts the processes of the machine that Ray chooses.
"""

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2

from finetune import DISTRIBUTION
from finetune.errors import UserError

# How long before the time limit a Slurm job saves, in seconds: a step, and writing a checkpoint.
MARGIN = 300
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Request:
    """What to run, and where.

    Attributes:
        name: of the recipe.
        recipe: as ``finetune train`` takes it.
        flags: the recipe's keys by name.
        nodes: machines.
        gpus: GPUs of each machine; 0 for one process on its CPU.
        kind: of GPU, as the scheduler calls it; empty if it does not matter.
        time: the limit, as Slurm takes it; None for the cluster's own.
        seeds: a run for each; none for the recipe's.
    """

    name: str
    recipe: str
    flags: Mapping[str, str]
    nodes: int
    gpus: int
    kind: str = ""
    time: str | None = None
    seeds: tuple[int, ...] = ()

    @property
    def job_name(self) -> str:
        """The name without slashes and dots."""
        return re.sub(r"[^\w-]+", "-", self.name)

    @property
    def typed_gpus(self) -> str:
        """GPUs of a machine as Slurm and SkyPilot write them: ``H100:8``."""
        return f"{self.kind}:{self.gpus}" if self.kind else str(self.gpus)

    def words(self, flags: Mapping[str, str]) -> list[str]:
        """Returns the words after ``-m`` that train the recipe, or go on with it."""
        given = [f"--{key}={value}" for key, value in flags.items()]
        return ["finetune", "train", self.recipe, "--resume", *given]


@dataclass(frozen=True)
class Job:
    """What starts a job.

    Attributes:
        command: submits it, from the working directory.
        file: name of the file that it needs; None if it needs none.
        text: of the file.
    """

    command: list[str]
    file: str | None = None
    text: str = ""


def slurm(request: Request) -> Job:
    """Returns the batch file of a run, or of a run for each seed."""
    flags = dict(request.flags)
    own = ""
    if request.seeds:
        folder = flags.pop("output_dir", f"runs/{request.name}")
        # Of each task of the array.
        seed = '"$SLURM_ARRAY_TASK_ID"'
        own = f" --seed={seed} --output_dir={shlex.quote(f'{folder}/seed-')}{seed}"
    text = TEMPLATES.get_template("slurm.sbatch.j2").render(
        name=request.job_name,
        nodes=request.nodes,
        processes=max(1, request.gpus),
        gpus=request.gpus and request.typed_gpus,
        time=request.time,
        seeds=",".join(map(str, request.seeds)),
        margin=MARGIN,
        command=shlex.join([sys.executable, "-m", *request.words(flags)]) + own,
    )
    file = f"{request.job_name}.sbatch"
    return Job(["sbatch", file], file, text)


def skypilot(request: Request) -> Job:
    """Returns the task of a run.

    Raises:
        UserError: the request has something that SkyPilot has not, or lacks what it needs.
    """
    _check_copied(request, "skypilot")
    if not (request.kind and request.gpus):
        raise UserError("--on skypilot needs the kind of GPU, for example --gpus H100:8")
    text = TEMPLATES.get_template("skypilot.yaml.j2").render(
        # Names of clouds are lower case, without underscores.
        name=request.job_name.lower().replace("_", "-"),
        nodes=request.nodes,
        gpus=request.typed_gpus,
        package=f"{DISTRIBUTION}=={version(DISTRIBUTION)}",
        command=shlex.join(["-m", *request.words(request.flags)]),
    )
    file = f"{request.job_name}.sky.yaml"
    return Job(["sky", "launch", "--yes", file], file, text)


def ray(request: Request) -> Job:
    """Returns the job of a run.

    Raises:
        UserError: the request has something that a Ray job has not, or lacks what it needs.
    """
    _check_copied(request, "ray")
    if request.nodes > 1:
        raise UserError("--on ray: the command of a Ray job runs on one machine; leave --nodes out")
    submit = ["ray", "job", "submit", "--working-dir", "."]
    if request.gpus:
        submit += ["--entrypoint-num-gpus", str(request.gpus)]
    if request.kind:
        submit += ["--entrypoint-resources", f'{{"accelerator_type:{request.kind}": 0.001}}']
    start = ["torchrun", "--standalone", "--nproc_per_node", str(max(1, request.gpus)), "-m"]
    return Job([*submit, "--", *start, *request.words(request.flags)])


def _check_copied(request: Request, on: str) -> None:
    """Checks a request for a scheduler that copies the working directory.

    Raises:
        UserError: it has seeds or a time limit, or the run would be lost with the copy.
    """
    if request.seeds:
        raise UserError(f"--seeds is for --on slurm; submit a job for each --seed to {on}")
    if request.time:
        raise UserError(f"--time is for --on slurm; {on} has no time limit")
    if not Path(request.flags.get("output_dir", "")).is_absolute():
        raise UserError(
            f"--on {on} copies the working directory, and a run in the copy would be lost; name an "
            "absolute --output_dir, on a file system that all machines share"
        )


SCHEDULERS: dict[str, Callable[[Request], Job]] = {
    "slurm": slurm,
    "skypilot": skypilot,
    "ray": ray,
}
