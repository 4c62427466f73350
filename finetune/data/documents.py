"""Tokenizes documents for language models, and marks the tokens that have a loss.

- A text: all tokens.
- A prompt with its completion: the completion.
- A chat: the assistant's messages.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import pandas
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.data import chats
from finetune.data.chat_templates import ChatTemplate, Refused, is_learned
from finetune.data.packing import IGNORED

# The end-of-document token of tokenizers that are trained here.
END = "<|endoftext|>"
# What is said of chats that a template does not write as they are.
REWRITTEN = "earlier answer that the chat template rewrites, not learned (turns: each learns it)"
WRITES_REASONING = re.compile(r"reasoning_content|[.\"']thinking\b")
NO_REASONING = "chat with reasoning, which the chat template does not write"
NO_TOOLS = "chat with tools, which the chat template does not write"
JOINED = "system message joined to the user's, for a chat template without one"


@dataclass
class Document:
    """``ids`` (T) of the tokens, whether each is ``learned``, and where in ``text`` it ``ends``."""

    text: str
    ids: list[int]
    learned: list[bool]
    ends: list[int]

    def labels(self) -> list[int]:
        """Returns the ids (T), with ``IGNORED`` for tokens that are not learned."""
        return [
            i if learned else IGNORED for i, learned in zip(self.ids, self.learned, strict=True)
        ]

    def pieces(self) -> list[tuple[str, bool]]:
        """Returns the text in pieces, and whether each is learned."""
        ends = [0, *self.ends]
        spans = zip(pairwise(ends), self.learned, strict=True)
        return [
            ("".join(self.text[a:b] for (a, b), _ in same), learned)
            for learned, same in groupby(spans, lambda span: span[1])
        ]

    def scored(self, most: int, special: set[int]) -> dict[str, Any]:
        """Returns the first ``most`` tokens as a row to score, without labels for special tokens.

        ``input_ids`` and ``labels`` are (T,); nothing is predicted at position 0. ``bytes`` is how
        many bytes of UTF-8 the scored tokens stand for.
        """
        labels = [i if i not in special else IGNORED for i in self.labels()[:most]]
        count, start = 0, None
        for t in range(1, len(labels) + 1):
            scored = t < len(labels) and labels[t] != IGNORED
            if scored and start is None:
                start = self.ends[t - 1]
            elif not scored and start is not None:
                count += len(self.text[start : self.ends[t - 1]].encode())
                start = None
        return {"input_ids": self.ids[:most], "labels": [IGNORED, *labels[1:]], "bytes": count}


# The columns of a frame, or of some rows on disk, by the part of a document that each has.
Columns = pandas.DataFrame | dict[str, list[Any]]


def kind(rows: Columns) -> str:
    """Returns the kind of document: ``messages``, ``prompt`` (with its completion) or ``text``."""
    return next(name for name in ("messages", "prompt", "text") if name in rows)


def new_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer (Radford et al. 2019) of at most ``size`` tokens."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, size, special_tokens=[END], show_progress=False)
    learned = Tokenizer.from_str(learner.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=learned, eos_token=END, pad_token=END)


@dataclass
class Encoded:
    """A row as documents: one, of a chat perhaps several, or none and the ``fault`` of the row.

    ``notes`` are phrases for the report.
    """

    documents: list[Document]
    fault: str | None = None
    notes: list[str] = field(default_factory=list)


def encode(
    rows: Columns,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None = None,
    each: bool = False,
) -> list[Encoded]:
    """Tokenizes rows as documents of any length.

    Args:
        template: of chats.
        each: whether each answer of a chat is learned in a document of its own.

    Raises:
        UserError: the rows are chats, and the template does not show where the assistant's
            messages are.
    """
    found = kind(rows)
    if found == "messages":
        assert template is not None
        return [chat(chats.read(cell), template, each) for cell in rows["messages"]]
    if found == "prompt":
        pairs = zip(rows["prompt"], rows["completion"], strict=True)
        made = [completion(str(prompt), str(answer), tokenizer) for prompt, answer in pairs]
    else:
        made = texts([str(cell) for cell in rows["text"]], tokenizer)
    return [Encoded([document]) for document in made]


def texts(cells: list[str], tokenizer: Any) -> list[Document]:
    """Tokenizes texts with the tokenizer's own special tokens and an end-of-document token."""
    # Tokenizers fail on an empty list.
    encoded = tokenizer(cells, return_offsets_mapping=True, verbose=False) if cells else {}
    out = []
    for i, text in enumerate(cells):
        ids = list(encoded["input_ids"][i])
        ends = [end for _, end in encoded["offset_mapping"][i]]
        out.append(_ended(text, ids, [True] * len(ids), ends, tokenizer))
    return out


def completion(prompt: str, answer: str, tokenizer: Any) -> Document:
    """Tokenizes a prompt and its completion separately, as when the model generates."""
    first = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    second = tokenizer(answer, return_offsets_mapping=True, verbose=False, add_special_tokens=False)
    before: list[int] = [*first["input_ids"]]
    if len(before) > 1 and before[-1] == tokenizer.eos_token_id:
        before.pop()
    ends = [end for _, end in first["offset_mapping"]][: len(before)]
    ends[-1:] = [len(prompt)]
    ends += [len(prompt) + end for _, end in second["offset_mapping"]]
    ids = [*before, *second["input_ids"]]
    learned = [False] * len(before) + [True] * (len(ids) - len(before))
    return _ended(prompt + answer, ids, learned, ends, tokenizer)


def _ended(
    text: str,
    ids: list[int],
    learned: list[bool],
    ends: list[int],
    tokenizer: Any,
) -> Document:
    """Adds the end-of-document token, if there is one and it is not there already."""
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids, learned, ends = [*ids, end], [*learned, True], [*ends, len(text)]
    return Document(text, ids, learned, ends)


# --- chats -----------------------------------------------------------------------------------


def chat(given: chats.Chat, template: ChatTemplate, each: bool = False) -> Encoded:
    """Tokenizes a chat by its template; the assistant's words and their end marks are learned.

    Args:
        each: whether each answer is learned in a document of its own, which ends with it.

    Raises:
        UserError: the template does not show where the assistant's messages are.
    """
    text = template.text(given.tools)
    if "tool_calls" not in text and any("tool_calls" in message for message in given.messages):
        return Encoded([], "has tool calls, which the chat template does not write")
    messages = template.fitted(given.messages)
    notes = [JOINED] if messages is not given.messages else []
    notes += [NO_TOOLS] if given.tools and "tools" not in text else []
    reasoning = any(name in message for name in chats.REASONING for message in messages)
    if reasoning and not WRITES_REASONING.search(text):
        notes.append(NO_REASONING)
    learned = [i for i, message in enumerate(messages) if is_learned(message)]
    last = learned if each else learned[-1:]
    found = []
    try:
        for i in last:
            document, rewritten = _chat(messages[: i + 1], given.tools, template, each)
            found.append(document)
            notes += [REWRITTEN] * (0 if each else rewritten)
    except Refused as reason:
        return Encoded([], f"is rejected by the chat template: {reason}")
    return Encoded(found, notes=notes)


def _chat(
    messages: Any, tools: Any, template: ChatTemplate, only_last: bool
) -> tuple[Document, int]:
    """Returns a chat that ends with an answer, and how many answers before it are left out."""
    if template.is_marked:
        text, made = template.write(messages, tools), template.marked(messages, tools)
        learned, rewritten = _of_weight(made["assistant_masks"], messages), 0
    else:
        if only_last:
            messages = [
                {**message, "weight": 0} if is_learned(message) else message
                for message in messages[:-1]
            ] + [messages[-1]]
        text, spans, rewritten = template.answers(messages, tools)
        made = template.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        # A token that words and what stands before them share is learned.
        learned = [
            start < end and any(first < end and start < last for first, last in spans)
            for start, end in made["offset_mapping"]
        ]
    if only_last:
        learned = _last_run(learned)
    if not any(learned):
        raise template.unmarked()
    ends = [end for _, end in made["offset_mapping"]]
    return Document(text, list(made["input_ids"]), learned, ends), rewritten


def _of_weight(masks: list[int], messages: Any) -> list[bool]:
    """Returns which tokens that a template marks (T) belong to answers to learn.

    Raises:
        Refused: some answers are not to be learned, and the marks do not tell them apart.
    """
    runs = [(bool(mask), len(list(same))) for mask, same in groupby(masks)]
    answers = [is_learned(m) for m in messages if m["role"] == "assistant"]
    if all(answers):
        return [bool(mask) for mask in masks]
    if sum(marked for marked, _ in runs) != len(answers):
        raise Refused("its marks do not show which answer has weight 0")
    wanted = iter(answers)
    return [on for marked, count in runs for on in [marked and next(wanted)] * count]


def _last_run(learned: list[bool]) -> list[bool]:
    """Returns only the last of the runs of learned tokens (T)."""
    end = max((i for i, on in enumerate(learned) if on), default=-1) + 1
    start = max((i for i in range(end) if not learned[i]), default=-1) + 1
    return [start <= i < end for i in range(len(learned))]
