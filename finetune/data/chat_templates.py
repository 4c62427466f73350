"""Writes chats by a tokenizer's chat template, and finds in the text what the assistant says.

Few templates mark the assistant's words ({% generation %}). In the others they are found by writing
the chat twice, once with another answer in the place of the one that is looked for:

- The words start where the two texts start to differ, and end before what both have in common.
- The end mark is the special token that follows the words, or without one the text that does.
- Where nothing follows the last answer (GLM 4), the next turn's opening token ends it.
- An answer that a longer chat writes in another way than a chat that ends with it (Qwen 3 leaves
  out the reasoning of earlier turns) is learned only from a chat that ends with it.
"""

import datetime
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from finetune.errors import UserError
from finetune.recipe import Recipe

# What marks the assistant's messages in a chat template.
MARKS = re.compile(r"{%-?\s*generation\s*-?%}")
# An answer that occurs in no chat.
PROBE = "\ue000answer\ue001"
FORMATS = re.compile(r"strftime_now\(\s*(\"[^\"]*\"|'[^']*')\s*\)")

Messages = Sequence[dict[str, Any]]


class Refused(ValueError):  # noqa: N818 - named as what happened
    """A template does not write a chat: its own words."""


class ChatTemplate:
    """The chat template of a tokenizer, on a fixed date.

    Args:
        date: what a template that prints the current date prints.

    Raises:
        UserError: the tokenizer has no chat template, or one that does not show where the
            assistant's messages end.
    """

    def __init__(self, tokenizer: Any, date: datetime.date) -> None:
        self.tokenizer, self.name = tokenizer, tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise UserError(
                f"{self.name}: has no chat template; take a checkpoint that was made for chats, "
                "or give prompt and completion"
            )
        self.date = date
        tokens = [str(t) for t in tokenizer.added_tokens_decoder.values() if str(t).strip()]
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        self.special = re.compile(r"\s*(?:" + ("|".join(longest_first) or "(?!)") + ")")

    def text(self, tools: Any = None) -> str:
        """Returns the template, which prints the fixed date."""
        try:
            text = self.tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise UserError(f"{self.name}: {str(error).splitlines()[0]}") from None
        formats = {json.loads(f'"{quoted[1:-1]}"') for quoted in FORMATS.findall(text)}
        if not formats:
            return text
        # A macro hides the function of this name, which transformers gives to templates.
        printed = json.dumps({each: self.date.strftime(each) for each in sorted(formats)})
        macro = "{% macro strftime_now(format) %}{{ " + printed + "[format] }}{% endmacro %}"
        # The empty text keeps a line break that the template may start with.
        return macro + "{{ '' }}" + text

    @property
    def has_date(self) -> bool:
        """Whether the template prints the current date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    @property
    def is_marked(self) -> bool:
        """Whether the template marks what the assistant says."""
        return bool(MARKS.search(str(self.tokenizer.chat_template)))

    def write(self, messages: Messages, tools: Any = None, **options: Any) -> Any:
        """Returns a chat as text, or with ``tokenize`` as tokens.

        Raises:
            Refused: the template does not write this chat.
        """
        plain = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
        options = {"tokenize": False, **options}
        try:
            return self.tokenizer.apply_chat_template(
                plain, tools=tools or None, chat_template=self.text(tools), **options
            )
        except (TemplateError, TypeError) as error:
            raise Refused(" ".join(str(error).split())) from None

    # --- what the template has -----------------------------------------------------------------

    @cached_property
    def has_system(self) -> bool:
        """Whether the template writes the system message of a chat that ends with an answer.

        That of Mistral writes it into the last message, if that is the user's.
        """
        system, asked = {"role": "system", "content": PROBE}, {"role": "user", "content": "?"}
        try:
            return PROBE in self.write([system, asked, {"role": "assistant", "content": "!"}])
        except Refused:
            return False

    @cached_property
    def end(self) -> str:
        """What ends an answer, for example "<|im_end|>".

        Raises:
            UserError: nothing does, or the template writes no chats.
        """
        asked = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": PROBE}
        try:
            tail = self.write([asked, answer]).rpartition(PROBE)[2]
            found = self._mark(tail)
            if not found:
                opening = self.special.match(
                    self.write([asked, answer, asked]).rpartition(PROBE)[2]
                )
                found = opening[0] if opening else ""
        except Refused as reason:
            raise UserError(f"{self.name}: its chat template rejects a chat: {reason}") from None
        if not found:
            raise self.unmarked()
        return found

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer; None if it is several."""
        ids = self.tokenizer(self.end.strip(), add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    def _mark(self, tail: str) -> str:
        """Returns the end mark at the beginning of what follows an answer, if there is one."""
        special = self.special.match(tail)
        return special[0] if special else tail.rstrip()

    def unmarked(self) -> UserError:
        """Returns the error for a template that hides the assistant's messages."""
        return UserError(
            f"{self.name}: its chat template does not show where the assistant's messages are; put "
            "{% generation %} and {% endgeneration %} around them in a copy of the checkpoint, or "
            "give prompt and completion"
        )

    # --- chats ---------------------------------------------------------------------------------

    def fitted(self, messages: Messages) -> Messages:
        """Joins a system message to the first message of the user, if the template has none."""
        if len(messages) < 2 or messages[0]["role"] != "system" or self.has_system:
            return messages
        system, first, *rest = messages
        if first["role"] != "user":
            return [{**system, "role": "user"}, first, *rest]
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def prompt(self, messages: Messages, tools: Any = None) -> str:
        """Returns messages as text that asks for an answer.

        Raises:
            UserError: the template does not write this chat.
        """
        try:
            return self.write(self.fitted(messages), tools, add_generation_prompt=True)
        except Refused as reason:
            raise UserError(f"{self.name}: its chat template rejects a chat: {reason}") from None

    def marked(self, messages: Messages, tools: Any) -> Any:
        """Returns the tokens of a chat, ``assistant_masks`` by the template's marks, and offsets.

        Raises:
            Refused: the template does not write this chat.
        """
        return self.write(
            messages,
            tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )

    def answers(self, messages: Messages, tools: Any) -> tuple[str, list[tuple[int, int]], int]:
        """Returns a chat up to its last answer as text, and where answers start and end in it.

        Answers of weight 0 are not among them. The number counts those that are left out because
        the template writes them in another way where a chat ends with them.

        Raises:
            Refused: the template does not write this chat.
        """
        places = [i for i, message in enumerate(messages) if is_learned(message)]
        whole = self.write(messages[: places[-1] + 1], tools)
        spans, rewritten = [], 0
        for i in places:
            text, start, end, is_ended = self._answer(messages[: i + 1], tools)
            if not whole.startswith(text[:end]):
                rewritten += 1
                continue
            if not is_ended:
                if i == places[-1]:
                    whole = whole[:end] + self.end
                opening = self.special.match(whole, end)
                end = opening.end() if opening else end
            spans.append((start, end))
        return whole, spans, rewritten

    def _answer(self, messages: Messages, tools: Any) -> tuple[str, int, int, bool]:
        """Returns a chat as text, where its last message starts and ends, and if a mark ends it."""
        before = messages[:-1]
        text = self.write(messages, tools)
        probe = self.write([*before, {"role": "assistant", "content": PROBE}], tools)
        head, found, tail = probe.partition(PROBE)
        if not found:
            raise self.unmarked()
        start = _common(text, probe)
        if start < len(head) and before:
            # More than other words: reasoning, which starts with a mark of its own.
            asked = self.write(before, tools, add_generation_prompt=True)
            if text.startswith(asked):
                start = min(start, len(asked))
        if not text.endswith(tail):
            return text, start, len(text.rstrip()), True
        mark = self._mark(tail)
        return text, start, len(text) - len(tail) + len(mark), bool(mark)


def _common(first: str, second: str) -> int:
    """Returns how many characters at the beginning of two texts are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def is_learned(message: dict[str, Any]) -> bool:
    """Returns whether a message is an answer to learn."""
    return message["role"] == "assistant" and message.get("weight") != 0


def of(recipe: Recipe, tokenizer: Any) -> ChatTemplate:
    """Returns a tokenizer's chat template on the recipe's date.

    Raises:
        UserError: the date is none, or as ``ChatTemplate`` does.
    """
    try:
        date = datetime.date.fromisoformat(recipe.data.date)
    except ValueError:
        where = recipe.where("data.date")
        raise UserError(f"{where}: date {recipe.data.date!r}; write it as 2024-07-26") from None
    return ChatTemplate(tokenizer, date)
