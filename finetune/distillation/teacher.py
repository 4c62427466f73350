"""A teacher: the model of a finished run, and its outputs for the rows of a student."""

import hashlib
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy
import pandas
import torch

from finetune import inference, run_directory
from finetune.data import corpus, sources, splits, tensor_cache
from finetune.errors import UserError
from finetune.models import heads
from finetune.recipe import Recipe
from finetune.tasks.classification import Classifier


class Teacher:
    """The model of a finished run that a student learns from.

    Args:
        recipe: the student's.
        task: of both.
        data: the student's.

    Raises:
        UserError: the run has another task or other labels, or was trained on the student's test
            rows.
    """

    def __init__(self, recipe: Recipe, task: Classifier, data: corpus.Corpus) -> None:
        self.run, self.task = run_directory.one(str(recipe.distillation.teacher)), task
        where, record = recipe.where("distillation.teacher"), self.run.results()
        if record["task"] != recipe.task:
            raise UserError(f"{where}: {self.run} is for {record['task']}, not {recipe.task}")
        before, names = record["data"]["label_names"], data.label_names
        # Where each of the student's classes stands among the teacher's.
        order = heads.order(before, names) if names else [0]
        if record["data"]["problem_type"] != data.problem_type or order is None:
            theirs, ours = (", ".join(each[:8]) or "numbers" for each in (before, names))
            raise UserError(f"{where}: {self.run} predicts {theirs}, and the data has {ours}")
        self.order = order
        self.model, self.processor, self.recipe = inference.load(self.run)
        own = sources.Checkpoint(str(self.run), self.run.model, None).digest()
        # An adapter's weights are those of its base, too.
        self.digest = f"{own} {self.run.base_digest() or ''}".strip()
        if self.recipe.data != recipe.data:
            train = corpus.load(self.recipe.data, task.content).train
            if shared := splits.Frame(train, "").shared(data.test):
                raise UserError(
                    f"{where}: {self.run} was trained on {len(shared)} of the test rows, for "
                    f"example {shared[0]}; test on rows that both models have not learned"
                )

    @property
    def width(self) -> int | None:
        """Features of a hidden state; None for a model that has none of one width."""
        config: Any = self.model.config
        return config.to_dict().get("hidden_size")

    def outputs(self, rows: pandas.DataFrame, layers: int = 0) -> numpy.ndarray:
        """Returns the logits (N, K) of N rows, in the order of the student's classes.

        Args:
            rows: as in a ``Corpus``; labels are not read.
            layers: of a student. If it has any, each row's logits are followed by the first token's
                hidden states after so many of the teacher's layers, evenly spaced: (N, K + L * H).
        """
        content = rows.drop(columns=["id", "label"], errors="ignore")
        found = tensor_cache.once(
            "teachers", self._digest(content, layers), partial(self._computed, content, layers)
        ).numpy()
        classes = len(self.order)
        return numpy.concatenate([found[:, self.order], found[:, classes:]], 1)

    def _digest(self, content: pandas.DataFrame, layers: int) -> str:
        """Returns a hash of everything that the outputs depend on; images count by their pixels."""
        settings = [self.digest, self.recipe.dump(), layers]
        settings += [version("torch"), version("transformers")]
        digest = hashlib.sha256(repr(settings).encode())
        for row in content.drop(columns="image", errors="ignore").itertuples(index=False):
            digest.update(repr(tuple(row)).encode())
        return digest.hexdigest()

    def _computed(self, content: pandas.DataFrame, layers: int) -> torch.Tensor:
        print(f"finetune: {self.run} labels {len(content):,} rows, once", file=sys.stderr)
        rows = content.drop(columns="digest", errors="ignore").to_dict(orient="records")
        forward = partial(_with_states, layers) if layers else None
        found = inference.outputs(self.model, self.processor, self.recipe, rows, forward)
        return torch.from_numpy(found.astype(numpy.float32))


def _with_states(layers: int, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
    """Returns for each row of a batch its logits and first tokens' states (K + layers * H,)."""
    found = model(**inputs, output_hidden_states=True)
    every = found.hidden_states[1:]
    chosen = [every[(i + 1) * len(every) // layers - 1][:, 0] for i in range(layers)]
    return list(torch.cat([found.logits, *chosen], 1).float().cpu().numpy())
