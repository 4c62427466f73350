"""One module a task; each says how a row is encoded, which head it gets, how it is scored."""

from importlib import import_module
from types import ModuleType

from finetune.errors import refuse_unknown
from finetune.recipe import Recipe

TASKS = {
    "text-classification": "text_classification",
    "image-classification": "image_classification",
    "masked-image-modeling": "masked_image_modeling",
    "text-generation": "causal_lm",
    "fill-mask": "masked_lm",
}


def find(recipe: Recipe) -> ModuleType:
    """The module of the recipe's task, imported only now because it needs torch.

    Raises:
        UserError: there is no such task.
    """
    if recipe.task not in TASKS:
        refuse_unknown(recipe.task, list(TASKS), f"{recipe.where('task')}: task")
    return import_module(f"finetune.tasks.{TASKS[recipe.task]}")
