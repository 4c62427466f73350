"""LoRA whose start is taken out of the base's weights: PiSSA and OLoRA.

- Base and adapter together start as the checkpoint, but the base alone is another model then.
- The adapter is saved as a plain LoRA for the checkpoint's own weights (Meng et al. 2024, appendix
  C): W + s (B A - B0 A0), of twice the rank, where A0 and B0 are the adapter's start.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# The attribute of a model that holds A0 and B0, by the names that peft saves.
START = "start_of_lora"


def is_changed(model: nn.Module) -> bool:
    """Returns whether the base of an adapted model is not the checkpoint's."""
    return START in vars(model)


def describe(model: nn.Module) -> list[str]:
    """Says how the adapter will be saved, if its base was changed."""
    return ["saved as a plain LoRA of twice the rank"] if is_changed(model) else []


def note_start(model: nn.Module, options: Any) -> None:
    """Keeps the start of an adapter that was just made, if its base was changed for it.

    Args:
        options: peft's config of the adapter.
    """
    kind = str(vars(options).get("init_lora_weights"))
    if kind.startswith("pissa") or kind == "olora":
        vars(model)[START] = {
            name.replace(".default.", "."): parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }


def save_for_checkpoint(model: nn.Module, folder: Path) -> None:
    """Rewrites a saved adapter in place, as a plain LoRA for the checkpoint's own weights."""
    if not is_changed(model):
        return
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    for name, start in vars(model)[START].items():
        start = start.to("cpu", tensors[name].dtype)
        if ".lora_A." in name:
            tensors[name] = torch.cat([tensors[name], start], 0)
        else:
            tensors[name] = torch.cat([tensors[name], -start], 1)
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads(settings.read_text(encoding="utf-8"))
    # peft scales by alpha / r, and with use_rslora by alpha / sqrt(r).
    factor = math.sqrt(2) if config["use_rslora"] else 2
    config["r"] *= 2
    config["lora_alpha"] *= factor
    for pattern, by in (("rank_pattern", 2), ("alpha_pattern", factor)):
        config[pattern] = {name: by * value for name, value in (config[pattern] or {}).items()}
    config["init_lora_weights"] = True
    settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
