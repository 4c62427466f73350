"""A finished run that answers requests: its model, loaded once, and what its task asks for."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from finetune import inference, tasks
from finetune.data import sources
from finetune.errors import UserError
from finetune.export.engine import Engine
from finetune.models import devices
from finetune.run_directory import Run
from finetune.serving import engines
from finetune.serving.generated import Generated

# Files with weights: of safetensors, ONNX and OpenVINO.
WEIGHTS = {".safetensors", ".onnx", ".data", ".bin"}


class Service:
    """The model of a run.

    Attributes:
        name: of the run's recipe, as clients name the model.
        digest: sha256 of the model's weights.
        engine: what computes the model: torch, or the name of an export of the run that is faster.
        measured: the seconds that the same rows took, by the engines that there are.
        notes: why an export cannot be used.
        fields: what a row to predict is made of, as ``Task.fields`` says; empty for a model that
            predicts nothing.
        generates: whether the model generates text, and ``chats`` whether from chats.
        data: the data section of results.json, with the label names and the problem type.

    Raises:
        UserError: the run cannot be loaded, or its task has no answers to serve.
    """

    def __init__(self, run: Run, base_folder: str | None = None) -> None:
        self.run = run
        self.model: Any
        self.model, self.processor, self.recipe = inference.load(run, base_folder=base_folder)
        self.task = tasks.find(self.recipe.task)
        results = run.results()
        self.name: str = results["name"]
        self.data: dict[str, Any] = results["data"]
        files = sorted(file for file in run.model.iterdir() if file.suffix in WEIGHTS)
        self.digest = sources.digest_of(files)
        self.fields = self.task.fields(self.recipe)
        self.generates = self.task.generates
        if not self.fields and not self.generates:
            raise UserError(f"{run}: {self.task.name} has no answers to serve")
        self.chats = self.generates and self.data.get("documents") == "messages"
        self.engine = self.model.name if isinstance(self.model, Engine) else "torch"
        self.measured, self.notes = dict[str, float](), list[str]()
        if self.fields:
            self._choose_engine()

    def _choose_engine(self) -> None:
        """Keeps the fastest of the run's model and its exports."""
        exports, self.notes = engines.find(self.run)
        models: dict[str, Any] = {self.engine: self.model, **exports}
        if len(models) > 1:
            for name, self.model in models.items():
                self.measured[name] = engines.seconds(self.predict, self.fields)
            self.engine = min(self.measured, key=lambda name: self.measured[name])
            self.model = models[self.engine]

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows (N) -> answers (N).

        Raises:
            UserError: a row cannot be used.
        """
        return inference.answer(self.model, self.processor, self.recipe, self.data, rows)

    def generate(
        self,
        prompt: str | list[dict[str, str]],
        write: Callable[[str], None],
        stop: threading.Event,
        **options: Any,
    ) -> Generated:
        """Generates from a prompt and hands each piece of text to ``write``.

        Args:
            stop: ends the generation when it is set.
            options: as ``Task.generate`` takes them.

        Raises:
            UserError: the prompt cannot be used.
        """
        pieces = _Pieces(self.processor, write)
        ends = self.model.generation_config.eos_token_id
        self.task.generate(
            self.model.to(devices.current()),
            self.processor,
            prompt,
            self.data,
            streamer=pieces,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
            **options,
        )
        finished = pieces.last in (ends if isinstance(ends, list) else [ends])
        return Generated(pieces.prompt_tokens, pieces.tokens, "stop" if finished else "length")


class _Stop(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)


class _Pieces(TextStreamer):
    """Hands on the generated text as its words are complete, and counts tokens."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.prompt_tokens, self.tokens, self.last = 0, 0, -1

    def put(self, value: Any) -> None:
        if self.next_tokens_are_prompt:
            self.prompt_tokens = value.shape[-1]
        else:
            self.tokens += 1
            self.last = int(value[-1])
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.write(text)
