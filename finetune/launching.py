"""What `accelerate launch` leaves undone on CPUs."""

import os
import sys

import psutil

from finetune.errors import Refusal


def start_dropped_processes() -> None:
    """Start the processes that ``accelerate launch --cpu --num_processes N`` was asked for.

    Without an MPI host file accelerate 1.15 starts one process whatever N is, and tells it
    nothing but an address to meet the others at (huggingface/accelerate#2741). Where that is the
    case, this process becomes torch's own launcher of N; otherwise nothing happens.

    Raises:
        Refusal: N cannot be found out; names the command that says it directly.
    """
    asked = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ
    )
    if not asked or {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & set(os.environ):
        return
    words = [w for word in psutil.Process(os.getppid()).cmdline() for w in word.split("=", 1)]
    flags = [i for i, w in enumerate(words) if w in {"--num_processes", "--num-processes"}]
    count = words[flags[0] + 1] if flags else ""
    if not count.isdigit() or {"--num_machines", "--num-machines"} & set(words):
        raise Refusal(
            "accelerate starts one process where several CPU ones were asked for; use "
            "torchrun --nproc_per_node N finetune/sentiment.py"
        )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    os.execv(sys.executable, [*launcher, count, *sys.argv])
