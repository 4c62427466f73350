"""The routes of OpenAI's clients: chat completions, completions, the list of models.

What they may ask for and this service has not, such as tools, is an error, not ignored. The fields
are those of https://platform.openai.com/docs/api-reference.
"""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from finetune.serving.generated import Generated
from finetune.serving.generating import (
    MOST_SEED,
    MOST_TOKENS,
    Answer,
    Answers,
    Prompt,
    stream,
)
from finetune.serving.guards import Text

if TYPE_CHECKING:
    from finetune.serving.service import Service

STOPS = 4
# Compared with the end of the answer at every piece.
Stop = Annotated[Text, Field(max_length=100)]


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Returns it as chat templates read it."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(BaseModel):
    """What a stream has besides the answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of completions take."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, le=MOST_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Sent by clients with these values, which change nothing.
    n: Literal[1] = 1
    frequency_penalty: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    user: str | None = None

    def options(self) -> dict[str, Any]:
        """Returns the options of ``Task.generate``."""
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {
            "max_new_tokens": self.max_tokens or MOST_TOKENS,
            "seed": secrets.randbelow(MOST_SEED) if self.seed is None else self.seed,
            "do_sample": self.temperature > 0,
            **(sampled if self.temperature > 0 else {}),
        }

    def stops(self) -> list[str]:
        """Returns the texts at which the answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class ChatAsked(Asked):
    """The body of a chat completion."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)

    def options(self) -> dict[str, Any]:
        most = self.max_completion_tokens
        return super().options() | ({"max_new_tokens": most} if most else {})


class TextAsked(Asked):
    """The body of a completion."""

    prompt: Text = Field(min_length=1)


def router(service: "Service", answers: Answers) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(prefix="/v1")
    created = int(time.time())

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """Lists the one model."""
        known = {"id": service.name, "object": "model", "created": created, "owned_by": "finetune"}
        return {"object": "list", "data": [known]}

    @routes.post("/chat/completions", response_model=None)
    async def chat(given: ChatAsked) -> dict[str, Any] | StreamingResponse:
        """Answers the last message of a chat."""
        prompt = [message.plain() for message in given.messages]
        return await _complete(service, answers, given, prompt, _Chat)

    @routes.post("/completions", response_model=None)
    async def complete(given: TextAsked) -> dict[str, Any] | StreamingResponse:
        """Continues a text."""
        return await _complete(service, answers, given, given.prompt, _Text)

    return routes


class _Text:
    """How completions write an answer."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        return {"text": text}

    @staticmethod
    def piece(text: str, is_first: bool) -> dict[str, Any]:
        return {"text": text}


class _Chat:
    """How chat completions write an answer."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    @staticmethod
    def piece(text: str, is_first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if is_first else {}
        return {"delta": role | ({"content": text} if text else {})}


async def _complete(
    service: "Service", answers: Answers, given: Asked, prompt: Prompt, form: type[_Chat | _Text]
) -> dict[str, Any] | StreamingResponse:
    """Answers at once, or as a stream of chunks."""
    answer = answers.start(prompt, given.options(), given.stops())
    head = {"id": form.prefix + secrets.token_hex(12), "created": int(time.time())}
    head["model"] = service.name
    if not given.stream:
        text, ended = await answer.text()
        choice = {"index": 0, **form.whole(text), "finish_reason": ended.reason}
        return head | {"object": form.kind, "choices": [choice], "usage": _usage(ended)}
    head["object"] = form.chunk_kind
    with_usage = given.stream_options is not None and given.stream_options.include_usage
    return await stream(_chunks(answer, head, form, with_usage))


async def _chunks(
    answer: Answer, head: dict[str, Any], form: type[_Chat | _Text], with_usage: bool
) -> AsyncGenerator[Any, None]:
    def chunk(text: str, is_first: bool, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **form.piece(text, is_first), "finish_reason": reason}
        return head | {"choices": [choice]}

    is_first = True
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            yield chunk(piece, is_first)
            is_first = False
    ended = answer.generated
    assert ended is not None
    yield chunk("", is_first, ended.reason)
    if with_usage:
        yield head | {"choices": [], "usage": _usage(ended)}
    yield "[DONE]"


def _usage(ended: Generated) -> dict[str, int]:
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.tokens,
        "total_tokens": ended.prompt_tokens + ended.tokens,
    }
