"""Documents for a language model: which tokens they are, and which of them are learned.

A text is learned whole, of a prompt with its completion only the completion, of a chat only what
the assistant says.
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

# What ends a document for a tokenizer of our own.
END = "<|endoftext|>"
MARKS = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass
class Document:
    """Tokens (T), whether each is learned, and where in ``text`` it ends."""

    text: str
    ids: list[int]
    learned: list[bool]
    ends: list[int]

    def labels(self) -> list[int]:
        """The tokens themselves where they are learned."""
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


# Texts by the parts of a document: a frame's columns, or those of a part of a larger corpus.
Columns = pandas.DataFrame | dict[str, list[Any]]


def kind(rows: Columns) -> str:
    """What the rows are: ``messages``, ``prompt`` (with its completion) or ``text``."""
    return next(name for name in ("messages", "prompt", "text") if name in rows)


def new_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al. 2019) of at most ``size`` tokens."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, size, special_tokens=[END], show_progress=False)
    learned = Tokenizer.from_str(learner.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=learned, eos_token=END, pad_token=END)


def encode(rows: Columns, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Rows as documents, whole.

    Raises:
        UserError: chats, and the tokenizer has no chat template, or one that does not show what the
            assistant says.
    """
    found = kind(rows)
    if found == "messages":
        return [chat(json.loads(chats.as_text(c)), tokenizer) for c in rows["messages"]]
    if found == "prompt":
        pairs = zip(rows["prompt"], rows["completion"], strict=True)
        return [completion(str(prompt), str(said), tokenizer) for prompt, said in pairs]
    return texts([str(cell) for cell in rows["text"]], tokenizer)


def texts(said: list[str], tokenizer: Any) -> list[Document]:
    """Texts with what the tokenizer itself puts around them, and their end."""
    # Tokenizers fail on no text at all.
    encoded = tokenizer(said, return_offsets_mapping=True, verbose=False) if said else {}
    out = []
    for i, text in enumerate(said):
        ids = list(encoded["input_ids"][i])
        ends = [end for _, end in encoded["offset_mapping"][i]]
        out.append(_ended(text, ids, [True] * len(ids), ends, tokenizer))
    return out


def completion(prompt: str, said: str, tokenizer: Any) -> Document:
    """A prompt and what follows it, each encoded by itself as when the model is asked."""
    first = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    second = tokenizer(said, return_offsets_mapping=True, verbose=False, add_special_tokens=False)
    before: list[int] = [*first["input_ids"]]
    if len(before) > 1 and before[-1] == tokenizer.eos_token_id:
        before.pop()
    ends = [end for _, end in first["offset_mapping"]][: len(before)]
    ends[-1:] = [len(prompt)]
    ends += [len(prompt) + end for _, end in second["offset_mapping"]]
    ids = [*before, *second["input_ids"]]
    learned = [False] * len(before) + [True] * (len(ids) - len(before))
    return _ended(prompt + said, ids, learned, ends, tokenizer)


def _ended(
    said: str,
    ids: list[int],
    learned: list[bool],
    ends: list[int],
    tokenizer: Any,
) -> Document:
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids, learned, ends = [*ids, end], [*learned, True], [*ends, len(said)]
    return Document(said, ids, learned, ends)


# --- chats -----------------------------------------------------------------------------------


def chat(messages: list[dict[str, str]], tokenizer: Any) -> Document:
    """A chat by the tokenizer's own template; learned is what the assistant says, and its end.

    Where the template marks that itself ({% generation %}), by its marks; else by what each turn
    adds to the chat so far, as long as no turn changes what stands before it.

    Raises:
        UserError: there is no template, or neither shows what the assistant says.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: has no chat template; take a checkpoint that was made for "
            "chats, or give prompt and completion"
        )
    if MARKS.search(str(tokenizer.chat_template)):
        made: Any = _rendered(messages, tokenizer, return_assistant_tokens_mask=True)
        said = _rendered(messages, tokenizer, tokenize=False)
        learned = [bool(mask) for mask in made["assistant_masks"]]
    else:
        said, turns = _turns(messages, tokenizer)
        made = tokenizer(said, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        learned = [
            any(first <= start and end <= last for first, last in turns)
            for start, end in made["offset_mapping"]
        ]
    if not any(learned):
        raise _unmarked(tokenizer)
    return Document(
        said, list(made["input_ids"]), learned, [end for _, end in made["offset_mapping"]]
    )


def _rendered(messages: list[dict[str, str]], tokenizer: Any, **options: Any) -> Any:
    more = {} if options.get("tokenize") is False else {"return_offsets_mapping": True}
    try:
        return tokenizer.apply_chat_template(
            messages, return_dict=bool(more), tokenizer_kwargs=more or None, **options
        )
    except TemplateError as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template refuses a chat: {said}"
        ) from None


def _turns(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """A chat as one text, and from where to where in it the assistant speaks."""
    whole, turns = _rendered(messages, tokenizer, tokenize=False), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = ""
        if i:
            before = _rendered(messages[:i], tokenizer, tokenize=False, add_generation_prompt=True)
        after = _rendered(messages[: i + 1], tokenizer, tokenize=False)
        said = after[len(before) :].rstrip()
        # Without anything around it, a turn could be anyone's, and would never end.
        bare = said.strip() == message["content"].strip()
        if not after.startswith(before) or not whole.startswith(after.rstrip()) or bare:
            raise _unmarked(tokenizer)
        turns.append((len(before), len(before) + len(said)))
    return whole, turns


def _unmarked(tokenizer: PreTrainedTokenizerBase) -> UserError:
    return UserError(
        f"{tokenizer.name_or_path}: its chat template does not show what the assistant says; put "
        "{% generation %} and {% endgeneration %} around that in a copy of the checkpoint, or give "
        "prompt and completion"
    )
