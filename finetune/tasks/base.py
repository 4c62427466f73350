"""The contract of a task.

A task is one module of this package with one subclass of ``Task`` and an instance named ``TASK``.
Inference, the model card and the report ask that object; none of them switches on a task's name.
Outputs of a model are the task's own business: arrays of any shape, or tuples of them. What every
task promises is that their first axis, or their list, has one entry for each row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy
import torch

from finetune.data import text_augmentation
from finetune.errors import UserError
from finetune.recipe import Augmentation, Classes, Recipe
from finetune.tasks import usage
from finetune.training.job import Job

if TYPE_CHECKING:
    import pandas

    from finetune.data.row_kinds import RowKind

Row = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A wrongly predicted test row as the report shows it.

    ``confidence`` is a probability, or a text that says how wrong the prediction is. ``text`` and
    ``image`` (a PNG file) are what the model was given, either may be empty. ``marked`` shows the
    text again for each of its names, in parts with their labels, empty outside of spans.
    """

    id: str
    label: str
    prediction: str
    confidence: float | str
    text: str = ""
    image: bytes = b""
    marked: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """Rows with labels, and how a model's outputs for them are scored.

    Attributes:
        content: what a row is, as ``corpus.load`` takes it.
        rows: as ``Task.batches`` takes them.
        frame: id, content and label (as its name) of the rows, in their order.
        table: every column of the file, for the same rows.
        rejected: how many rows of the file cannot be used.
        labels: (N, ...) as the scores take them.
        score: (outputs, labels) -> the sections of results.json that scores make up.
        values: (frame with ``prediction``) -> a number for each row, by name: what is compared
            between rows. The first says how well the row was predicted.
    """

    content: "RowKind"
    rows: list[Row]
    frame: "pandas.DataFrame"
    table: "pandas.DataFrame"
    rejected: int
    labels: numpy.ndarray
    score: Callable[[Any, numpy.ndarray], Row]
    values: Callable[["pandas.DataFrame"], dict[str, numpy.ndarray]]


def refuse(recipe: Recipe, section: str, asked: Any, default: Any, why: str) -> None:
    """Checks that a section of a recipe has its defaults.

    Raises:
        UserError: a key differs.
    """
    for key, value in vars(asked).items():
        if value != vars(default)[key]:
            raise UserError(f"{recipe.where(f'{section}.{key}')}: {key} {why}; leave it out")


class Task(ABC):
    """Everything that differs between tasks.

    Attributes:
        name: the recipe's ``task``, and the name of transformers' pipeline where there is one.
        auto_model: the class that loads the model, for example ``AutoModelForCausalLM``.
        auto_processor: the class that loads its tokenizer or image processor.
        hub_tag: the hub's name of the task, where it is not ``name``.
        generates: whether `finetune generate` applies.
        not_exported: why `finetune export` does not apply; empty where it does.
        is_labelled: whether its rows have labels, which ``check_label`` knows.
        judges_labels: whether `finetune train --find_label_errors` applies.
    """

    name: ClassVar[str]
    auto_model: ClassVar[Any]
    auto_processor: ClassVar[Any]
    hub_tag: ClassVar[str | None] = None
    generates: ClassVar[bool] = False
    not_exported: ClassVar[str] = ""
    is_labelled: ClassVar[bool] = False
    judges_labels: ClassVar[bool] = False

    # --- training ------------------------------------------------------------------------------

    def check(self, recipe: Recipe) -> None:
        """Checks sections of a recipe that only some tasks have a use for, before data is read.

        Raises:
            UserError: the recipe sets a key that would have no effect, or keys that contradict.
        """
        refuse(recipe, "classes", recipe.classes, Classes(), "is for classification")
        self.check_texts(recipe)

    def check_texts(self, recipe: Recipe) -> None:
        """Checks that training texts are not changed, unless the task can."""
        asked = Augmentation(**{k: vars(recipe.augmentation)[k] for k in text_augmentation.KEYS})
        why = "changes texts, and only text-classification does so"
        refuse(recipe, "augmentation", asked, Augmentation(), why)

    @abstractmethod
    def build(self, recipe: Recipe) -> Job:
        """Returns the recipe's model and data, ready for the runner.

        Raises:
            UserError: the data, the checkpoint and the recipe do not fit each other.
        """

    def finish(self, recipe: Recipe, folder: Path) -> None:
        """Writes what else a saved model's folder needs, for a library beside transformers."""
        return

    # --- prediction ----------------------------------------------------------------------------

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        """Changes a loaded model in place before it predicts, for example to skip padding."""
        return

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        """Returns the rows to predict, from the command line or a file.

        Args:
            given: texts or paths, one by one.
            file: a table or folder, instead of ``given``.

        Raises:
            UserError: there are no rows, they are of another kind, or the task predicts nothing.
        """
        other = "; use `finetune generate`" if self.generates else ""
        raise UserError(f"{recipe.name}: {self.name} gives no labels{other}")

    def fields(self, recipe: Recipe) -> dict[str, type]:
        """Returns what a row to predict is made of, by name, as a service asks its clients for it.

        ``str`` is a text, ``bytes`` an image file. Empty where the task predicts nothing.
        """
        return {}

    def is_empty(self, row: Row) -> bool:
        """Returns whether a row has nothing to predict: its first part is missing or blank."""
        first = next(iter(row.values()))
        return first is None or (isinstance(first, str) and not first.strip())

    def printed(self, row: Row) -> Row:
        """Returns what `finetune predict` prints of a row beside its prediction."""
        return {name: cell for name, cell in row.items() if not isinstance(cell, bytes)}

    def labelled(self, file: str, recipe: Recipe, data: Mapping[str, Any]) -> "Labelled":
        """Returns rows with labels, for `finetune evaluate`.

        Args:
            data: as in ``answers``.

        Raises:
            UserError: the file cannot be used, or the task scores its runs only.
        """
        raise UserError(
            f"{recipe.name}: `finetune evaluate` does not score {self.name}; a run does, on the "
            "rows of its --test file"
        )

    def check_label(self, label: Any, data: Mapping[str, Any]) -> None:
        """Checks that a label could be the true one of a row.

        Args:
            label: as ``answers`` gives predictions.
            data: as in ``answers``.

        Raises:
            UserError: it could not; names what it can be.
        """
        raise NotImplementedError

    def batches(
        self, rows: list[Row], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        """Yields batches of at most about ``size`` rows: row numbers (B,) and the model's inputs.

        A row may occur several times: test-time augmentation, windows of a long text.
        """
        raise NotImplementedError

    def outputs(
        self,
        model: Any,
        processor: Any,
        recipe: Recipe,
        rows: list[Row],
        size: int,
        device: torch.device,
        forward: Callable[..., list[Any]] | None = None,
    ) -> Any:
        """Returns the model's outputs for N rows, in their order, as ``answers`` takes them.

        Args:
            model: a model, or an exported one.
            size: of batches, as ``batches`` takes it.
            device: which the model takes its inputs on.
            forward: (model, inputs of a batch) -> an output for each entry, instead of the task's.
        """
        parts: list[list[Any]] = [[] for _ in rows]
        for numbers, batch in self.batches(rows, processor, recipe, size):
            inputs = {name: value.to(device) for name, value in batch.items()}
            for number, part in zip(numbers, (forward or self.forward)(model, inputs), strict=True):
                parts[number].append(part)
        return self.decode(self.join(parts, rows), processor)

    def forward(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
        """Returns the model's output for each of the B entries of a batch."""
        return list(model(**inputs).logits.float().cpu().numpy())

    def join(self, parts: list[list[Any]], rows: list[Row]) -> Any:
        """Returns the outputs of N rows, given the outputs of each row's occurrences in batches.

        The mean over the occurrences, unless a task says otherwise: (N, ...).

        Args:
            rows: the N rows, as ``batches`` took them.
        """
        return numpy.stack([numpy.mean(part, axis=0) for part in parts])

    def decode(self, outputs: Any, processor: Any) -> Any:
        """Returns outputs as ``answers`` takes them: token ids, for example, become texts."""
        return outputs

    @abstractmethod
    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[Row]:
        """Returns one dict a row with at least ``prediction``.

        Args:
            outputs: of N rows, as ``decode`` and the job's ``collect`` return them.
            data: the ``data`` section of the run's results.json: label names, problem type.
        """

    def generate(
        self,
        model: Any,
        processor: Any,
        prompt: str | list[dict[str, str]],
        data: Mapping[str, Any],
        **options: Any,
    ) -> str:
        """Generates text from a prompt; prints it as it is generated, unless given a ``streamer``.

        Args:
            prompt: a text, or messages with ``role`` and ``content``.
            data: as in ``answers``.
            options: ``seed``, ``max_new_tokens``, and what the model's ``generate`` takes.

        Raises:
            UserError: the prompt cannot be used.
        """
        raise NotImplementedError

    # --- model card and report -----------------------------------------------------------------

    def example(self, recipe: Recipe, results: Row) -> usage.Example:
        """Returns the call of ``pipeline()`` that the model card shows."""
        raise NotImplementedError

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        """Returns the model card's section on how to use the model, as Markdown.

        Args:
            folder: the model folder, as the code names it.
        """
        models, processors = self.auto_model.__name__, self.auto_processor.__name__
        example = self.example(recipe, results)
        return usage.markdown(self.name, models, processors, example, results, folder)

    def exported(self, recipe: Recipe, results: Row) -> list[str]:
        """Returns sentences on what an exported model takes and gives, for its README.

        Args:
            results: at least the ``data`` section of the run's results.json.
        """
        return ["Output: `logits`, as the model in transformers gives them."]

    def limits(self, recipe: Recipe, results: Row) -> list[str]:
        """Returns sentences for the model card's section on limits."""
        return []

    def statistic(
        self, metric: str, rows: "pandas.DataFrame", data: Mapping[str, Any]
    ) -> Callable[[numpy.ndarray], float] | None:
        """Returns a metric as a function of row indices, for intervals over several seeds.

        None where predictions.parquet does not have all that it needs.

        Args:
            rows: the run's predictions.parquet.
            data: as in ``answers``.
        """
        return None

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """Returns the worst mistakes among the predicted test rows, worst first.

        None where a prediction is neither right nor wrong.

        Args:
            rows: the run's predictions.parquet.
            data: as in ``answers``.
            most: how many are shown.
        """
        return None
