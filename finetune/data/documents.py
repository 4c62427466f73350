"""Tokenizes documents for language models, and marks the tokens that have a loss.

- A text: all tokens.
- A prompt with its completion: the completion.
- A chat: the assistant's messages.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas
from jinja2 import TemplateError
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.data import chats
from finetune.data.packing import IGNORED
from finetune.errors import UserError

# The end-of-document token of tokenizers that are trained here.
END = "<|endoftext|>"
# What marks the assistant's messages in a chat template.
MARKS = re.compile(r"{%-?\s*generation\s*-?%}")


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


def encode(rows: Columns, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Tokenizes rows as documents of any length.

    Raises:
        UserError: the rows are chats, and the tokenizer has no chat template, or one that does not
            show where the assistant's messages are.
    """
    found = kind(rows)
    if found == "messages":
        return [chat(json.loads(chats.as_text(c)), tokenizer) for c in rows["messages"]]
    if found == "prompt":
        pairs = zip(rows["prompt"], rows["completion"], strict=True)
        return [completion(str(prompt), str(answer), tokenizer) for prompt, answer in pairs]
    return texts([str(cell) for cell in rows["text"]], tokenizer)


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


def chat(messages: list[dict[str, str]], tokenizer: Any) -> Document:
    """Tokenizes a chat by the tokenizer's template; the assistant's messages are learned.

    - If the template marks them ({% generation %}), the marks decide.
    - Otherwise, a message is what rendering it adds to the chat before it. This requires that no
      message changes the text before it.

    Raises:
        UserError: there is no template, or neither way shows the assistant's messages.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: has no chat template; take a checkpoint that was made for "
            "chats, or give prompt and completion"
        )
    if MARKS.search(str(tokenizer.chat_template)):
        made: Any = _rendered(messages, tokenizer, return_assistant_tokens_mask=True)
        text = _rendered(messages, tokenizer, tokenize=False)
        learned = [bool(mask) for mask in made["assistant_masks"]]
    else:
        text, turns = _turns(messages, tokenizer)
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        learned = [
            any(first <= start and end <= last for first, last in turns)
            for start, end in made["offset_mapping"]
        ]
    if not any(learned):
        raise _unmarked(tokenizer)
    return Document(
        text, list(made["input_ids"]), learned, [end for _, end in made["offset_mapping"]]
    )


def _rendered(messages: list[dict[str, str]], tokenizer: Any, **options: Any) -> Any:
    more = {} if options.get("tokenize") is False else {"return_offsets_mapping": True}
    try:
        return tokenizer.apply_chat_template(
            messages, return_dict=bool(more), tokenizer_kwargs=more or None, **options
        )
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template rejects a chat: {reason}"
        ) from None


def _turns(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """Returns a chat as one text, and the first and last place of each of the assistant's turns."""
    whole, turns = _rendered(messages, tokenizer, tokenize=False), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = ""
        if i:
            before = _rendered(messages[:i], tokenizer, tokenize=False, add_generation_prompt=True)
        after = _rendered(messages[: i + 1], tokenizer, tokenize=False)
        turn = after[len(before) :].rstrip()
        # A turn without any marks around it could be anyone's, and would never end.
        bare = turn.strip() == message["content"].strip()
        if not after.startswith(before) or not whole.startswith(after.rstrip()) or bare:
            raise _unmarked(tokenizer)
        turns.append((len(before), len(before) + len(turn)))
    return whole, turns


def _unmarked(tokenizer: PreTrainedTokenizerBase) -> UserError:
    return UserError(
        f"{tokenizer.name_or_path}: its chat template does not show where the assistant's messages "
        "are; put {% generation %} and {% endgeneration %} around them in a copy of the "
        "checkpoint, or give prompt and completion"
    )
