"""``finetune serve``."""

import argparse
from pathlib import Path

from finetune import run_directory
from finetune.commands.base import Command, add_base
from finetune.errors import UserError

DESCRIPTION = """\
Answers over HTTP with a run's model: a page at /, POST /predict or /generate,
for language models also the routes of OpenAI's clients under /v1; /health,
/metrics, and /openapi.json describes them all. SIGTERM answers what was
accepted and ends.
"""


def _serve(options: argparse.Namespace) -> None:
    run = run_directory.one_or_export(options.run)
    if options.dockerfile:
        from finetune.serving import container

        written = container.write(run, Path(options.dockerfile), options.base)
        print(f"finetune: wrote {' and '.join(map(str, written))}")
        return
    try:
        from finetune.serving import app, server
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name}: pip install 'finetune-recipes[serve]'"
        ) from None
    server.check_address(options.host, options.token)
    if not options.deadline > 0:
        raise UserError(f"--deadline {options.deadline:g}: has to be above 0")

    from finetune.serving.limits import Limits
    from finetune.serving.service import Service

    service, limits = Service(run, options.base), Limits(deadline=options.deadline)
    for note in service.notes:
        print(f"finetune: {note}")
    times = ", ".join(f"{name} {1000 * took:.0f} ms" for name, took in service.measured.items())
    chosen = f"{service.engine}, the fastest here: {times}" if times else service.engine
    print(f"finetune: {service.name} ({service.task.name}) computed by {chosen}")
    server.run(app.create_app(service, limits, options.token), options.host, options.port, limits)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or an export of one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to answer at; all but this machine's own need --token [127.0.0.1]",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="[8000]")
    parser.add_argument(
        "--token", help="what clients have to send as bearer token, and browsers as password"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="until a request is read and answered; generation stops then [10]",
    )
    parser.add_argument(
        "--dockerfile",
        nargs="?",
        const=".",
        metavar="FOLDER",
        help="write a Dockerfile and a compose.yaml that serve the run into FOLDER instead [.]",
    )
    add_base(parser)


SERVING = Command(
    "serve", "answer over HTTP with a run's model", _add_arguments, _serve, description=DESCRIPTION
)
