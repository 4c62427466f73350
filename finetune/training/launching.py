"""What `accelerate launch` leaves undone on CPUs."""

import logging
import os
import signal
import sys
import time

import psutil

from finetune.errors import UserError


def start_dropped_processes() -> None:
    """Start the processes that ``accelerate launch --cpu --num_processes N`` was asked for.

    Without an MPI host file accelerate 1.15 starts one process whatever N is, and tells it
    nothing but an address to meet the others at (huggingface/accelerate#2741). Where that is the
    case, this process becomes torch's own launcher of N; otherwise nothing happens.

    Raises:
        UserError: N cannot be found out; names the command that says it directly.
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
        raise UserError(
            "accelerate starts one process where several CPU ones were asked for; use "
            "torchrun --nproc_per_node N finetune/sentiment.py"
        )
    launcher = [
        sys.executable,
        "-m",
        "finetune.training.launching",
        "--standalone",
        "--nproc_per_node",
    ]
    os.execv(sys.executable, [*launcher, count, *sys.argv])


def wait_for_the_first(foreseen: bool) -> None:
    """Of several processes, let the one whose error it is say so, and the others say nothing.

    When one process ends, the others lose their connection to it, which is an error of theirs;
    the launcher ends them within a tenth of a second. What all find alike, the first one says.

    Args:
        foreseen: it is an error of this process's own, not maybe a lost connection.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        time.sleep(3 * (not foreseen) + 3 * (os.environ["RANK"] != "0"))


def main() -> None:
    """torch's own launcher, ending as its first process that failed: no traceback of its own."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        status = first.exitcode
        if status < 0:
            name = signal.Signals(-status).name
            print(f"finetune: process {rank} was ended by {name}", file=sys.stderr)
            status = 128 - status
        sys.exit(status)
    except SignalException as stop:
        # Its processes heard it too, and have saved.
        sys.exit(128 + stop.sigval)


if __name__ == "__main__":
    main()
