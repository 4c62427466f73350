"""``finetune export``."""

import argparse
from pathlib import Path

from finetune import run_directory
from finetune.commands.base import Command, add_base

DESCRIPTION = """\
Writes a run's model for ONNX Runtime or OpenVINO and compares it with the run on
the run's test rows: logits, the main metric with its interval, size, speed. An
export that is not as good as the run is not kept.
"""


def _export(options: argparse.Namespace) -> None:
    run = run_directory.one(options.run)

    from finetune import inference
    from finetune.export import exporting, formats
    from finetune.report import exports, files

    formats.check(options.to, options.precision)
    whole, processor, recipe = inference.whole(run, options.base)
    model, _, _ = inference.load(run, base_folder=options.base)
    name = f"{options.to}-{options.precision}"
    own = run.folder / run_directory.EXPORTS / name
    made = exporting.export(
        run,
        whole,
        model,
        processor,
        recipe,
        options.to,
        options.precision,
        Path(options.output) if options.output else own,
        accept_loss=options.accept_loss,
        base_folder=options.base,
    )
    if not options.output:
        files.write_card(run)
    print(f"{options.output or own}: `finetune predict` reads it like a run\n{exports.lines(made)}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--to", choices=["onnx", "openvino"], required=True, help="the format")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8", "int4"],
        default="fp32",
        help="int8 for CPUs, fp16 for GPUs, int4 for language models [fp32]",
    )
    parser.add_argument(
        "--accept_loss",
        action="store_true",
        help="keep it even if it is clearly worse than the run by more than one point",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write it [export/FORMAT-PRECISION in the run directory]",
    )
    add_base(parser)


EXPORTING = Command(
    "export",
    "write a run's model for ONNX Runtime or OpenVINO",
    _add_arguments,
    _export,
    description=DESCRIPTION,
)
