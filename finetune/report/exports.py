"""What is said of exports: on the terminal, in the model card, in the export's own README."""

import json
from collections.abc import Sequence
from typing import Any

from finetune import tasks
from finetune.recipe import Recipe
from finetune.report import wording

Manifest = dict[str, Any]
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}


def lines(manifest: Manifest) -> str:
    """Returns how an export compares with its run, for the terminal."""
    found, headline = manifest["checked"], manifest["run"]["headline"]
    return (
        f"{found['engine']}: {wording.size(found['bytes'])}, "
        f"torch {wording.size(found['torch_bytes'])}\n"
        f"{wording.title(headline)} {wording.measured(headline, found['metrics'][headline])} on "
        f"{wording.rows(found['rows'])} test rows, "
        f"{wording.signed(headline, found['difference'])} against torch; logits differ by at most "
        f"{found['largest_difference']:.2g}\n"
        f"{found['rows_per_second']:g} rows a second, torch {found['torch_rows_per_second']:g}, "
        f"on {found['threads']} CPU threads"
    )


def table(manifests: Sequence[Manifest]) -> str:
    """Returns a Markdown table with a row for each export."""
    headline = manifests[0]["run"]["headline"]
    rows = [
        f"| export | size | {wording.title(headline)} | against torch | largest difference of a "
        "logit | rows/s | torch, rows/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in manifests:
        found = each["checked"]
        rows.append(
            f"| {wording.plain(each['name'])}: {found['engine']} | {wording.size(found['bytes'])} "
            f"| {wording.measured(headline, found['metrics'][headline])} "
            f"| {wording.signed(headline, found['difference'])} "
            f"| {found['largest_difference']:.2g} | {found['rows_per_second']:g} "
            f"| {found['torch_rows_per_second']:g} |"
        )
    return "\n".join(rows)


def readme(manifest: Manifest, recipe: Recipe) -> str:
    """Returns README.md of an export: how to run it without this project, and how it compares."""
    run, component = manifest["run"], manifest["components"]["model"]
    names = run["data"]["label_names"]
    task = tasks.find(run["task"])
    versions = ", ".join(f"{k} {v}" for k, v in manifest["checked"]["versions"].items())
    sections = [
        f"# {run['name'].replace('/', '-')}, {manifest['checked']['engine']}",
        f"`{component['file']}`, with the weights beside it, in "
        f"{manifest['export_format']}; any number of rows of any length. Checked with {versions}.",
        "## Use\n\n```bash\nfinetune predict . --file new.csv\n```\n\nWithout this project "
        f"(`pip install {LIBRARIES[manifest['export_format']]} transformers`):\n\n"
        f"```python\n{_code(manifest, task, recipe)}\n```",
        "## Input and output\n\n" + "\n".join(f"- {line}" for line in task.exported(recipe, run)),
    ]
    if names:
        sections.append("## Labels\n\n" + "\n".join(f"{i}. {n}" for i, n in enumerate(names)))
    sections.append(f"## Against the torch model\n\n{table([manifest])}\n\n{NOTE}")
    return "\n\n".join(sections) + "\n"


NOTE = (
    "Brackets hold 95 % intervals over the run's test rows; differences are paired by row. Speed "
    "is that of the machine that exported, on the same batches and threads."
)


def _code(manifest: Manifest, task: Any, recipe: Recipe) -> str:
    """Returns Python code from the input to the logits."""
    file, outputs = manifest["components"]["model"]["file"], manifest["outputs"]
    logits = ", ".join(outputs) + "," * (len(outputs) == 1)
    processor = task.auto_processor.__name__
    texts = processor == "AutoTokenizer"
    # A question, for example, has its context beside it.
    given = ", ".join(['["A text."]'] * max(1, len(task.fields(recipe)))) + ", padding=True"
    if not texts:
        given = 'Image.open("image.png").convert("RGB")'
    head = [f"from transformers import {processor}"]
    if not texts:
        head = ["from PIL import Image", *head]
    load = f'processor = {processor}.from_pretrained(".")'
    inputs = f'inputs = dict(processor({given}, return_tensors="np"))'
    if manifest["export_format"] == "onnx":
        return "\n".join(
            [
                "import onnxruntime",
                *head,
                "",
                load,
                f'session = onnxruntime.InferenceSession("{file}")',
                inputs,
                "names = [put.name for put in session.get_inputs()]",
                "inputs = {name: inputs[name] for name in names}",
                f"{logits} = session.run({json.dumps(outputs)}, inputs)",
            ]
        )
    # Without it OpenVINO computes in bf16 on some processors.
    hint = '{"INFERENCE_PRECISION_HINT": "f32"}'
    return "\n".join(
        [
            "import openvino",
            *head,
            "",
            load,
            f'model = openvino.Core().compile_model("{file}", "CPU", {hint})',
            inputs,
            "names = [put.any_name for put in model.inputs]",
            "made = model({name: inputs[name] for name in names})",
            f"{logits} = (made[name] for name in {json.dumps(outputs)})",
        ]
    )
