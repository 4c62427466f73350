"""Use finished runs: load their models, predict, generate, merge adapters.

May import every package but report.
"""

from finetune.inference.prediction import (
    answer,
    generate,
    load,
    load_base,
    merge,
    outputs,
    predict,
    printed,
    read_rows,
    shared_base,
    whole,
)

__all__ = [
    "answer",
    "generate",
    "load",
    "load_base",
    "merge",
    "outputs",
    "predict",
    "printed",
    "read_rows",
    "shared_base",
    "whole",
]
