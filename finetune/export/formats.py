"""Converts models by transformers' exporters.

These are experimental in transformers 5.23, so ``proof`` checks every export.

- Batch and length stay free: one export takes any number of rows of any length.
- int8 on ONNX Runtime: weights ahead of time and activations while running for texts (dynamic);
  for images both ahead of time (static), because their values have one scale.
- int8 on OpenVINO is static for both: it has no dynamic kernels.
- int4 by NNCF for both: the weights of matrix products in groups with a scale each, computed in
  float32. Embeddings and the last layer keep 8 bits. For language models, whose time on a CPU is
  that of reading their weights.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.exporters.configs import OnnxConfig, OpenVINOConfig
from transformers.exporters.exporter_onnx import OnnxExporter
from transformers.exporters.exporter_openvino import OpenVINOExporter
from transformers.exporters.quantizers.quantizer_nncf import (
    NNCFOnnxQuantizer,
    NNCFOpenVINOQuantizer,
    NNCFQuantizationConfig,
    NNCFWeightCompressionConfig,
)
from transformers.exporters.quantizers.quantizer_onnxruntime import (
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
    OnnxRuntimeStaticConfig,
)

from finetune.errors import UserError
from finetune.export.engine import runtime

# Tensors by the names of the model's inputs.
Batch = dict[str, Any]
LIBRARIES = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}
# What int8 stands for on a CPU: the matrix products, which take nearly all of the time.
PRODUCTS = ["MatMul", "Gemm", "Conv"]
# Weights that share a scale in int4; fewer where a layer's width is no multiple.
GROUP = 64


def check(to: str, precision: str) -> None:
    """Checks that what a format needs is installed, before a model is loaded.

    Raises:
        UserError: it is not.
    """
    for package in LIBRARIES[to]:
        runtime(package)
    if precision == "int4" or (to, precision) == ("openvino", "int8"):
        runtime("nncf")


def convert(
    model: PreTrainedModel,
    sample: Batch,
    calibration: list[Batch],
    to: str,
    precision: str,
    folder: Path,
) -> None:
    """Writes a model and transformers' manifest of it, export.json, into a folder.

    Args:
        model: in evaluation mode; fp16 changes it in place.
        sample: model inputs of at least two rows.
        calibration: model inputs by which int8 activations are scaled.

    Raises:
        UserError: the exporter cannot convert the model.
    """
    with _quiet():
        try:
            exporter = _onnx if to == "onnx" else _openvino
            exported = exporter(model, sample, calibration, precision)
        # Whatever an exporter that is experimental fails with, it is the model that does not fit.
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(
                f"{type(model).__name__} cannot be exported to {to} in {precision}: {reason}"
            ) from error
        exported.save_pretrained(folder)


def _onnx(model: PreTrainedModel, sample: Batch, calibration: list[Batch], precision: str) -> Any:
    if precision == "fp16":
        model = model.half()
        sample = {k: v.half() if v.is_floating_point() else v for k, v in sample.items()}
    quantizer = None
    if precision == "int8" and model.main_input_name == "pixel_values":
        static = OnnxRuntimeStaticConfig(per_channel=True, op_types_to_quantize=PRODUCTS)
        quantizer = OnnxRuntimeQuantizer(static, calibration)
    elif precision == "int8":
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True))
    elif precision == "int4":
        quantizer = NNCFOnnxQuantizer(_four_bits())
    return OnnxExporter().export(model, sample, OnnxConfig(dynamic=True, quantizer=quantizer))


def _openvino(
    model: PreTrainedModel, sample: Batch, calibration: list[Batch], precision: str
) -> Any:
    quantizer = None
    if precision == "int8":
        config = NNCFQuantizationConfig(subset_size=len(calibration))
        quantizer = NNCFOpenVINOQuantizer(config, calibration)
    elif precision == "int4":
        quantizer = NNCFOpenVINOQuantizer(_four_bits())
    half = precision == "fp16"
    return OpenVINOExporter().export(
        model, sample, OpenVINOConfig(dynamic=True, compress_to_fp16=half, quantizer=quantizer)
    )


def _four_bits() -> NNCFWeightCompressionConfig:
    nncf = runtime("nncf")
    adjust = nncf.GroupSizeFallbackMode.ADJUST
    return NNCFWeightCompressionConfig(
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP,
        advanced_parameters=nncf.AdvancedCompressionParameters(group_size_fallback_mode=adjust),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporters print: progress, and notes on other versions and other models."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)
