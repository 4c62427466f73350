"""A cache of tensors on disk: computed once for what determines them, by one process."""

import os
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.data import sources


def once(name: str, digest: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Returns the tensor of a digest from the cache folder's ``name``, or computes and keeps it.

    Other processes wait while one computes it. A file that cannot be read is replaced.
    """
    file = sources.cache(name) / f"{digest}.safetensors"
    with sources.filling(file):
        try:
            return load_file(file)["states"]
        except (FileNotFoundError, SafetensorError):
            states = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        save_file({"states": states}, part)
        part.replace(file)
    return states
