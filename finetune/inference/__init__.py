"""Use finished runs: load their models, predict, generate, merge adapters.

May import every package but report.
"""

from finetune.inference.prediction import (
    generate,
    load,
    load_base,
    merge,
    outputs,
    predict,
    printed,
    read_rows,
    shared_base,
)

__all__ = [
    "generate",
    "load",
    "load_base",
    "merge",
    "outputs",
    "predict",
    "printed",
    "read_rows",
    "shared_base",
]
