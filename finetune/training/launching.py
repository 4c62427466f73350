"""Starts and ends the process of a command, which may be one of several that a launcher started.

- ``check_processes`` finds out whether the launcher started as many as it was asked for.
- ``guarded`` turns an error into one line, of one process, and an exit status.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

from finetune.errors import TrainingError, UserError


def check_processes() -> None:
    """Checks that ``accelerate launch --num_processes N`` did start N processes.

    On CPUs, without an MPI host file, accelerate 1.15 starts one, whatever N is. It then sets an
    address for N processes to meet at, and no ``WORLD_SIZE`` (huggingface/accelerate#2741).

    Raises:
        UserError: it started one; names the command that starts N.
    """
    asked = {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= set(os.environ)
    if asked and not {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & set(os.environ):
        raise UserError(
            "accelerate started 1 process although several were asked for (it set MASTER_PORT but "
            f"no WORLD_SIZE); write torchrun --nproc_per_node N {shlex.join(sys.argv)}"
        )


def guarded(action: Callable[..., None], *arguments: Any) -> None:
    """Calls ``action`` and turns the errors that it may end with into one line and an exit status.

    2 for a user's mistake, 1 for a run that broke, 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        action(*arguments)
    except (UserError, TrainingError) as error:
        _wait_for_the_first(foreseen=True)
        print(f"finetune: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # Ends at once. Unloading libraries takes seconds on a busy machine, in which the other
            # processes have lost the connection and the launcher does not know the reason yet.
            sys.stdout.flush()
            os._exit(status)
        sys.exit(status)
    except KeyboardInterrupt:
        print("finetune: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has closed it.
        sys.stderr.close()
    except Exception:
        _wait_for_the_first(foreseen=False)
        raise


def _wait_for_the_first(foreseen: bool) -> None:
    """Delays the report of an error so that only one of several processes prints it.

    When a process ends, the others fail because they lose the connection to it, and the launcher
    ends them within a tenth of a second. An error that all processes have is printed by rank 0.

    Args:
        foreseen: the error is this process's own, and cannot be a lost connection.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        time.sleep(3 * (not foreseen) + 3 * (os.environ["RANK"] != "0"))
