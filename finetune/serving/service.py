"""A finished run that answers requests: its model, loaded once, and what its task asks for."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from finetune import inference, tasks
from finetune.data import sources
from finetune.models import devices
from finetune.run_directory import Run
from finetune.serving.generating import Generated


class Service:
    """The model of a run.

    Attributes:
        name: as clients name the model, the run directory without ``runs/``.
        digest: sha256 of the model's weights.
        engine: what computes the model: torch, or the name of an export.
        fields: what a row to predict is made of, as ``Task.fields`` says; empty for a model that
            predicts nothing.
        generates: whether the model generates text, and ``chats`` whether from chats.
        data: the data section of results.json, with the label names and the problem type.

    Raises:
        UserError: the run cannot be loaded.
    """

    def __init__(self, run: Run, base_folder: str | None = None) -> None:
        self.run, self.engine = run, "torch"
        self.model, self.processor, self.recipe = inference.load(run, base_folder=base_folder)
        self.model.to(devices.current())
        self.task = tasks.find(self.recipe.task)
        self.data: dict[str, Any] = run.results()["data"]
        self.name = str(run).removeprefix("./").removeprefix("runs/")
        self.digest = sources.digest_of(sorted(run.model.glob("*.safetensors")))
        self.fields = self.task.fields(self.recipe)
        self.generates = self.task.generates
        self.chats = self.generates and self.data.get("documents") == "messages"

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
        model: Any = self.model
        ends = model.generation_config.eos_token_id
        self.task.generate(
            self.model,
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
