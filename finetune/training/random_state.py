"""Saving and restoring the state of all random number generators of a process."""

import random
from typing import Any

import numpy
import torch


def capture(device: torch.device) -> dict[str, Any]:
    """Returns the generator states of Python, numpy, torch and an accelerator."""
    state = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if device.type == "xla":
        import torch_xla.core.xla_model as xm  # pyright: ignore[reportMissingImports]

        state["device"] = xm.get_rng_state()
    elif device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Sets the states that ``capture`` returned."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "xla":
        import torch_xla.core.xla_model as xm  # pyright: ignore[reportMissingImports]

        xm.set_rng_state(state["device"])
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
