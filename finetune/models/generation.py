"""Generates text with a language model, from a prompt or a chat."""

import json
from typing import Any

import numpy
import pandas
import torch
from transformers import PreTrainedTokenizerBase

from finetune.data import chats, documents
from finetune.data.chat_templates import ChatTemplate
from finetune.errors import UserError
from finetune.models import positions

# For how many test documents the report shows a continuation, how many words of a text are given
# as its prompt, and how many tokens are generated.
SAMPLES, PROMPT_WORDS, SAMPLE_TOKENS = 3, 8, 60


def prompt_of(row: Any, kind: str) -> Any:
    """Returns the part of a test document that is given as a prompt: a text, or messages.

    Of a chat, that is what comes before the first answer to a user; None if there is none.
    """
    if kind == "prompt":
        return row["prompt"]
    if kind == "messages":
        messages = chats.read(json.loads(row["messages"])).messages
        asked = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i]
        return messages[: asked[0]] if asked else None
    return " ".join(row["text"].split()[:PROMPT_WORDS])


def encode_prompt(
    given: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None
) -> dict[str, torch.Tensor]:
    """A text or messages -> ``input_ids`` and ``attention_mask`` (1, T), without an end token."""
    if not isinstance(given, str):
        assert template is not None
        text = template.prompt(given)
        made: Any = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)
        return {name: made[name] for name in ("input_ids", "attention_mask")}
    encoded: Any = tokenizer(given, return_tensors="pt", verbose=False)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if inputs["input_ids"].shape[1] > 1 and inputs["input_ids"][0, -1] == tokenizer.eos_token_id:
        return {name: value[:, :-1] for name, value in inputs.items()}
    return inputs


def room(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Returns how many tokens the model has positions for after a prompt."""
    return positions.most_tokens(model.config) - inputs["input_ids"].shape[1]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    given: Any,
    seed: int,
    max_new_tokens: int,
    do_sample: bool = True,
    template: ChatTemplate | None = None,
    **options: Any,
) -> str:
    """Returns the text that the model generates, without special tokens.

    Args:
        given: a text or messages.
        seed: of this text alone; the global random state is left as it was.
        max_new_tokens: at most so many, or fewer where the model's positions end.
        template: writes messages.

    Raises:
        UserError: the prompt takes all positions.
    """
    encoded = encode_prompt(given, tokenizer, template)
    inputs = {name: value.to(model.device) for name, value in encoded.items()}
    count, left = inputs["input_ids"].shape[1], room(model, inputs)
    if left < 1:
        raise UserError(f"the prompt has {count} tokens, as many as the model has positions for")
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            **inputs, do_sample=do_sample, max_new_tokens=min(max_new_tokens, left), **options
        )
    model.train(training)
    return tokenizer.decode(out[0, count:], skip_special_tokens=True)


def samples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    test: pandas.DataFrame,
    template: ChatTemplate | None,
) -> dict[str, str]:
    """Returns what the model generates from the beginning of some test documents, by prompt.

    A document whose prompt leaves the model no position is not among them.
    """
    kind = documents.kind(test)
    out = {}
    for seed, i in enumerate(numpy.linspace(0, len(test) - 1, SAMPLES).astype(int)):
        given = prompt_of(test.iloc[i], kind)
        if given and room(model, encode_prompt(given, tokenizer, template)) > 0:
            shown = given if isinstance(given, str) else given[-1]["content"]
            out[shown] = generate(model, tokenizer, given, seed, SAMPLE_TOKENS, template=template)
    return out
