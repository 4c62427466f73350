"""Smaller models from larger ones: fewer layers, attention heads and feed-forward neurons.

- Layers are kept evenly spaced, the last one among them.
- Heads and neurons are kept by importance on training rows: by how much the loss would change
  without their output, to first order. That is the sum of weight times gradient over the weights
  that read the output, squared and added up over batches (Molchanov et al. 2019, Importance
  Estimation for Neural Network Pruning, equation 8, with a gate behind each head or neuron).
- Every layer keeps as many as any other, because a config has one number for all of them. So the
  result is an ordinary model, which ``from_pretrained`` loads.
- A model whose config ties the size of a head to their number, such as BERT, keeps its heads.
"""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from finetune.data.batching import within
from finetune.errors import UserError
from finetune.models import devices
from finetune.recipe import Recipe

# The recipe's keys and the config's.
SIZES = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}
# Training rows that importance is measured on, and the tokens of one of their batches.
ROWS, BUDGET = 512, 2048
NOT_INPUTS = {"length", "truncated"}


@dataclass(frozen=True)
class Group:
    """What becomes fewer in every layer: ``kept`` of units that have ``width`` features each."""

    key: str
    kept: int
    width: int


def is_asked(recipe: Recipe) -> bool:
    """Returns whether a recipe makes its checkpoint smaller."""
    return any(getattr(recipe.model, key) for key in SIZES)


def shrink(
    model: PreTrainedModel,
    recipe: Recipe,
    rows: Dataset,
    collator: Callable[..., dict[str, torch.Tensor]],
    loss: Callable[..., torch.Tensor],
) -> PreTrainedModel:
    """Returns the model in the size that the recipe asks for; itself where it asks for none.

    Args:
        rows: encoded training rows, which ``collator`` makes batches of.
        loss: (outputs, labels) -> the loss that importance is about.

    Raises:
        UserError: the model is not larger, or it cannot have another size.
    """
    if not is_asked(recipe):
        return model
    config, groups, layers = _smaller(model, recipe)
    path = _list_of_layers(model)
    plan = _plan(model, config, groups, (path, layers), recipe)
    readers = {name: cut[1] for name, cut in plan.values() if len(cut) == 2 and cut[1]}
    # Of each layer and group the numbers of the features to keep, in order.
    kept = {}
    if readers:
        scores = _importance(model, readers, rows, collator, loss, recipe)
        for name, group in readers.items():
            kept[_layer(name, path), group.key] = _features(scores[name], group)
    weights, smaller = model.state_dict(), {}
    for new, (name, cut) in plan.items():
        value = weights[name]
        for dimension, group in enumerate(cut):
            if group:
                chosen = kept[_layer(name, path), group.key]
                value = value.index_select(dimension, chosen.to(value.device))
        smaller[new] = value
    small = type(model)(config)
    small.load_state_dict(smaller)
    return small


def _smaller(
    model: PreTrainedModel, recipe: Recipe
) -> tuple[Any, dict[tuple[int, int], Group], list[int]]:
    """Returns the config of the size that is asked for.

    Also the groups by their features before and after, and the numbers of the layers that are kept.

    Raises:
        UserError: the checkpoint is not that large, or its config has no such size.
    """
    before: Any = model.config
    config, groups = copy.deepcopy(before), {}
    values: dict[str, Any] = before.to_dict()
    known = {*values, *before.attribute_map}
    for key, name in SIZES.items():
        size, where = getattr(recipe.model, key), recipe.where(f"model.{key}")
        if size is None:
            continue
        most = getattr(before, name) if name in known else None
        if not isinstance(most, int):
            raise UserError(f"{where}: {before.model_type} has no {name} that could be smaller")
        if size > most:
            raise UserError(f"{where}: {key} {size} is more than the checkpoint's {most}")
        setattr(config, name, size)
        width = 1
        if key == "heads":
            # By default a head is as wide as fits, so that fewer would be wider.
            width = values.get("head_dim") or before.hidden_size // most
            config.head_dim = width
            if values.get("num_key_value_heads", most) != most:
                raise UserError(f"{where}: {before.model_type} shares keys among its heads")
            if "num_key_value_heads" in values:
                config.num_key_value_heads = size
        if key != "layers" and size < most:
            change = most * width, size * width
            if change in groups:
                raise UserError(f"{where}: heads and neurons cannot be told apart by their number")
            groups[change] = Group(key, size, width)
    most, count = before.num_hidden_layers, config.num_hidden_layers
    layers = [(i + 1) * most // count - 1 for i in range(count)]
    if values.get("layer_types"):
        config.layer_types = [values["layer_types"][layer] for layer in layers]
    return config, groups, layers


def _plan(
    model: PreTrainedModel,
    config: Any,
    groups: dict[tuple[int, int], Group],
    kept: tuple[str, list[int]],
    recipe: Recipe,
) -> dict[str, tuple[str, list[Group | None]]]:
    """Returns where each weight of the smaller model comes from, by its name.

    That is the weight's name in the larger model, and for each of its dimensions the group by which
    it becomes smaller, if it does.

    Args:
        config: of the smaller model.
        kept: the name of the list of layers, and the numbers of those that stay.

    Raises:
        UserError: the two models differ in more than their size.
    """
    kind, (path, layers) = model.config.model_type, kept
    try:
        config.validate()
        with torch.device("meta"):
            wanted = type(model)(config).state_dict()
    except (ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{recipe.name}: {kind} has no such size: {reason}") from None
    weights, plan = model.state_dict(), {}
    for name, empty in wanted.items():
        layer, source = _layer(name, path), name
        if layer is not None and layer < len(layers):
            source = name.replace(f"{path}.{layer}.", f"{path}.{layers[layer]}.", 1)
        plan[name] = source, _cut(weights[source], empty, groups, f"{kind}'s {name}")
    used = {source for source, _ in plan.values()}
    for name in weights:
        if (name in used) != (_layer(name, path) in {None, *layers}):
            where = recipe.where("model.layers")
            raise UserError(f"{where}: {kind} has {name}, which does not allow fewer layers")
    found = {group.key for _, cut in plan.values() for group in cut if group}
    for key in {group.key for group in groups.values()} - found:
        raise UserError(
            f"{recipe.where(f'model.{key}')}: {kind} ties the size of a head to their number, so "
            "heads cannot be left out; use layers, or feed_forward"
        )
    return plan


def _list_of_layers(model: PreTrainedModel) -> str:
    """Returns the name of the model's list of layers.

    Raises:
        UserError: there is no such list, or more than one.
    """
    config: Any = model.config
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise UserError(f"{config.model_type}: its layers are not one list, so none can go")
    return lists[0]


def _layer(name: str, path: str) -> int | None:
    """Returns the number of the layer that a weight is in, None outside of the layers."""
    found = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _cut(
    weight: torch.Tensor, wanted: torch.Tensor, groups: dict[tuple[int, int], Group], what: str
) -> list[Group | None]:
    """Returns for each dimension of a weight the group by which it becomes smaller, if it does.

    Raises:
        UserError: a dimension differs in another way.
    """
    found = []
    for size, after in zip(weight.shape, wanted.shape, strict=True):
        if size != after and (size, after) not in groups:
            raise UserError(f"{what} has {size} features of several kinds, of which none can go")
        found.append(groups.get((size, after)) if size != after else None)
    return found


def _importance(
    model: PreTrainedModel,
    readers: dict[str, Group],
    rows: Dataset,
    collator: Callable[..., dict[str, torch.Tensor]],
    loss: Callable[..., torch.Tensor],
    recipe: Recipe,
) -> dict[str, torch.Tensor]:
    """Returns the importance (U,) of the units that each weight reads, by the weight's name.

    Args:
        readers: weights (out, U * width) by name.
    """
    weights = {name: each for name, each in model.named_parameters() if name in readers}
    scores = {
        name: torch.zeros(each.shape[1] // readers[name].width) for name, each in weights.items()
    }
    was_training = model.training
    model.eval()
    with devices.as_trained(model, recipe.training):
        for batch in _batches(rows, collator, model.device):
            labels = batch.pop("labels")
            with torch.enable_grad():
                value = loss(model(**batch), labels)
            gradients = torch.autograd.grad(value, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                gates = (weight.detach() * gradient).sum(0).view(-1, readers[name].width).sum(1)
                scores[name] += gates.float().cpu() ** 2
    model.train(was_training)
    return scores


def _batches(
    rows: Dataset, collator: Callable[..., dict[str, torch.Tensor]], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches of ``ROWS`` rows that are spread over all of them."""
    some = rows.select(range(0, len(rows), max(1, len(rows) // ROWS))[:ROWS])
    for chosen in within(some["length"], BUDGET):
        batch = collator([some[int(i)] for i in chosen])
        yield {name: each.to(device) for name, each in batch.items() if name not in NOT_INPUTS}


def _features(scores: torch.Tensor, group: Group) -> torch.Tensor:
    """Returns the numbers of the features of the most important units, in order."""
    units = scores.topk(group.kept).indices.sort().values
    return (units[:, None] * group.width + torch.arange(group.width)).flatten()
