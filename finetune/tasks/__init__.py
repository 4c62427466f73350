"""The tasks: ``base`` states the contract, each task is one module that fulfils it.

``text``, ``images``, ``pairs``, ``searches``, ``encoders`` and ``classification`` hold what tasks
of one kind share; no task imports another. May import every package but inference and report.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from finetune.errors import refuse_unknown

if TYPE_CHECKING:
    from finetune.tasks.base import Task

# Modules, imported only when they are needed because they import torch.
MODULES = {
    "text-classification": "finetune.tasks.text_classification",
    "token-classification": "finetune.tasks.token_classification",
    "image-classification": "finetune.tasks.image_classification",
    "masked-image-modeling": "finetune.tasks.masked_image_modeling",
    "question-answering": "finetune.tasks.question_answering",
    "text-generation": "finetune.tasks.causal_lm",
    "fill-mask": "finetune.tasks.masked_lm",
    "text2text-generation": "finetune.tasks.sequence_to_sequence",
    "embedding": "finetune.tasks.embedding",
    "sentence-similarity": "finetune.tasks.sentence_similarity",
    "reranking": "finetune.tasks.reranking",
}
REGISTERED: dict[str, "Task"] = {}


def register(task: "Task") -> None:
    """Adds a task from outside of this package, by its name."""
    REGISTERED[task.name] = task


def find(name: str, place: str = "") -> "Task":
    """Returns the task of a name.

    Args:
        place: the file and line, or the flag, that named it, for the message.

    Raises:
        UserError: there is no such task; names the nearest.
    """
    if name in REGISTERED:
        return REGISTERED[name]
    if name not in MODULES:
        refuse_unknown(name, [*MODULES, *REGISTERED], f"{place}: task" if place else "task")
    return import_module(MODULES[name]).TASK
