"""Runs exported models on ONNX Runtime or OpenVINO, through one call."""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch

from finetune.errors import UserError
from finetune.run_directory import EXPORT

Array = numpy.ndarray


class Engine:
    """An exported model on its runtime. Threads may call one engine at the same time.

    Attributes:
        name: the runtime and the precision, for example ``ONNX Runtime, int8``.
        inputs: the element type of each input that the model reads, by name.
        outputs: the names of its logits, as the model in transformers has them.
    """

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Iterable[str],
        run: Callable[[dict[str, Array], list[str]], Iterable[Array]],
    ) -> None:
        self.name, self.inputs, self._run = name, dict(inputs), run
        # A causal model also gives the keys and values of its attention.
        self.outputs = [output for output in outputs if output.endswith("logits")]

    def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """Returns an object with the logits by their names, as a model of transformers does.

        They are float32 (B, K) for a row, (B, T, V) or (B, T) for tokens.

        Args:
            inputs: a padded batch of B rows, as the folder's tokenizer or image processor makes it;
                what the model does not read is ignored.
        """
        given = {n: inputs[n].numpy().astype(kind, copy=False) for n, kind in self.inputs.items()}
        found = [torch.from_numpy(each).float() for each in self._run(given, self.outputs)]
        return SimpleNamespace(**dict(zip(self.outputs, found, strict=True)))


def load(folder: str | Path) -> Engine:
    """Loads an export on the CPU, or ONNX on a GPU where the installed runtime can use one.

    As many threads compute as torch would use.

    Raises:
        UserError: it is not an export, or its runtime is not installed.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder}: holds no export (no {EXPORT})") from None
    loaders = {"onnx": _onnx, "openvino": _openvino}
    file = folder / manifest["components"]["model"]["file"]
    return loaders[manifest["export_format"]](file, manifest["precision"])


def runtime(package: str) -> Any:
    """Imports a package of the extra ``export``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{package} is not installed: pip install 'finetune-recipes[export]'"
        ) from None


def _onnx(file: Path, precision: str) -> Engine:
    onnxruntime = runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    # By itself it would take every core of the machine, whatever the process may use.
    options.intra_op_num_threads = torch.get_num_threads()
    # 3: errors only. Shapes that it infers later are no news.
    options.log_severity_level = 3
    usable = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in usable]
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    kinds = {"tensor(int64)": numpy.int64, "tensor(float)": numpy.float32}
    kinds["tensor(float16)"] = numpy.float16
    inputs = {put.name: kinds[put.type] for put in session.get_inputs()}
    outputs = [put.name for put in session.get_outputs()]
    return Engine(
        f"ONNX Runtime, {precision}",
        inputs,
        outputs,
        lambda given, names: session.run(names, given),
    )


def _openvino(file: Path, precision: str) -> Engine:
    openvino = runtime("openvino")
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    # By itself it takes bf16 where the processor has it: other logits than were checked, and with
    # 2026.4 a small ViT's convolution ended the process.
    options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    inputs = {put.any_name: put.get_element_type().to_dtype() for put in compiled.inputs}
    outputs = [put.any_name for put in compiled.outputs]

    def run(given: dict[str, Array], names: list[str]) -> list[Array]:
        found = compiled.infer_new_request(given)
        return [found[name] for name in names]

    return Engine(f"OpenVINO, {precision}", inputs, outputs, run)
