"""What is learned of a chat, by the templates of models that many people fine-tune."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune.data import chats, documents
from finetune.data.chat_templates import ChatTemplate
from finetune.errors import UserError

FOLDER = Path(__file__).parent / "chat_templates"
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|end|>", "[gMASK]", "<sop>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
]
# Tokens of their own, but no special ones.
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
END = {
    "chatml": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "llama-3.2": "<|eot_id|>",
    "qwen-2.5": "<|im_end|>",
    "qwen-3": "<|im_end|>",
    "mistral": "</s>",
    "gemma-2": "<end_of_turn>",
    "phi-3": "<|end|>",
    "glm-4": "<|user|>",
    "deepseek-v3": "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "gpt-oss": "<|return|>",
}
# Templates that write an earlier answer in another way than the last one.
REWRITE = {"qwen-3", "gpt-oss"}
SYSTEM, HI, HELLO, MORE, BYE = (
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be brief."),
        ("user", "Hi there"),
        ("assistant", "Hello, you."),
        ("user", "And now?"),
        ("assistant", "Good bye."),
    ]
)
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": "weather", "arguments": {"city": "Rome"}},
        }
    ],
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "sunny"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def template_of(tokenizer: Any, name: str, text: str | None = None) -> ChatTemplate:
    tokenizer.chat_template = text or (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(tokenizer, datetime.date(2024, 7, 26))


def encoded(template: ChatTemplate, messages: Any, each: bool = False) -> documents.Encoded:
    return documents.chat(chats.read(messages), template, each)


def learned(template: ChatTemplate, messages: Any, each: bool = False) -> list[str]:
    """The learned pieces of text; those that the tokens stand for, too."""
    found = encoded(template, messages, each)
    assert found.fault is None
    out = []
    for document in found.documents:
        pieces = [text for text, on in document.pieces() if on]
        ids = [i for i, on in zip(document.ids, document.learned, strict=True) if on]
        assert template.tokenizer.decode(ids) == "".join(pieces)
        out += pieces
    return out


@pytest.mark.parametrize("name", END)
def test_the_words_and_the_end_mark_are_learned(tokenizer: Any, name: str) -> None:
    template, end = template_of(tokenizer, name), END[name]
    assert learned(template, [HI, HELLO]) == [f"Hello, you.{end}"]
    assert learned(template, [SYSTEM, HI, HELLO]) == [f"Hello, you.{end}"]
    both = [f"Hello, you.{end}", f"Good bye.{end}"]
    chat = [HI, HELLO, MORE, BYE]
    assert learned(template, chat) == (both[1:] if name in REWRITE else both)
    assert learned(template, chat, each=True) == both
    assert learned(template, [SYSTEM, *chat], each=True) == both
    # Nothing comes after the last answer that could be learned.
    assert learned(template, [*chat, HI]) == (both[1:] if name in REWRITE else both)
    assert template.end == end
    assert template.end_id == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("name", END)
def test_the_text_is_the_template_s_own(tokenizer: Any, name: str) -> None:
    template = template_of(tokenizer, name)
    (document,) = encoded(template, [HI, HELLO, MORE, BYE]).documents
    plain = template.text()
    own = tokenizer.apply_chat_template([HI, HELLO, MORE, BYE], tokenize=False, chat_template=plain)
    assert document.text == own + ("<|user|>" if name == "glm-4" else "")
    assert document.text == "".join(text for text, _ in document.pieces())


def test_turns_that_are_rewritten_are_counted(tokenizer: Any) -> None:
    template = template_of(tokenizer, "qwen-3")
    assert encoded(template, [HI, HELLO, MORE, BYE]).notes == [documents.REWRITTEN]
    assert encoded(template, [HI, HELLO, MORE, BYE], each=True).notes == []
    template = template_of(tokenizer, "llama-3")
    assert encoded(template, [HI, HELLO, MORE, BYE]).notes == []


def test_reasoning_is_learned_with_its_marks_where_the_template_writes_it(tokenizer: Any) -> None:
    template = template_of(tokenizer, "qwen-3")
    whole = "<think>\nA greeting.\n</think>\n\nHello, you.<|im_end|>"
    for answer in (
        HELLO | {"reasoning_content": "A greeting."},
        HELLO | {"content": "<think>\nA greeting.\n</think>\n\nHello, you."},
    ):
        assert learned(template, [HI, answer]) == [whole]
    template = template_of(tokenizer, "llama-3")
    found = encoded(template, [HI, HELLO | {"reasoning_content": "A greeting."}])
    assert found.notes == [documents.NO_REASONING]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("llama-3.2", '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'),
        (
            "qwen-2.5",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
            "<|im_end|>",
        ),
        (
            "qwen-3",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
            "<|im_end|>",
        ),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, '
            '"id": "abcdefghi"}]</s>',
        ),
    ],
)
def test_tool_calls_are_learned_and_results_are_not(tokenizer: Any, name: str, call: str) -> None:
    template = template_of(tokenizer, name)
    chat = [HI, CALL, RESULT, HELLO]
    assert learned(template, chat, each=True) == [call, f"Hello, you.{END[name]}"]
    if name not in REWRITE:
        assert learned(template, chat) == [call, f"Hello, you.{END[name]}"]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    (document, *_) = encoded(template, {"messages": chat, "tools": [tool]}).documents
    assert '"parameters": {}' in document.text.replace("\n", "")


@pytest.mark.parametrize("name", ["chatml", "smollm2", "llama-3", "gemma-2", "phi-3"])
def test_tool_calls_that_a_template_would_leave_out_set_the_row_aside(
    tokenizer: Any, name: str
) -> None:
    found = encoded(template_of(tokenizer, name), [HI, CALL, RESULT, HELLO])
    assert found.fault == "has tool calls, which the chat template does not write"


@pytest.mark.parametrize("name", ["smollm2", "llama-3", "llama-3.2", "qwen-2.5", "qwen-3", "glm-4"])
def test_of_a_chat_that_starts_with_the_assistant_no_header_is_learned(
    tokenizer: Any, name: str
) -> None:
    template, end = template_of(tokenizer, name), END[name]
    both = [f"Hello, you.{end}", f"Good bye.{end}"]
    assert learned(template, [HELLO, MORE, BYE], each=True) == both
    if name not in REWRITE:
        assert learned(template, [HELLO, MORE, BYE]) == both


def test_the_next_turn_s_opening_ends_an_answer_that_nothing_else_ends(tokenizer: Any) -> None:
    template = template_of(tokenizer, "glm-4")
    chat = [HI, HELLO, RESULT, BYE]
    assert learned(template, chat) == ["Hello, you.<|observation|>", "Good bye.<|user|>"]


def test_a_system_message_is_joined_to_the_user_s_where_the_template_has_none(
    tokenizer: Any,
) -> None:
    found = encoded(template_of(tokenizer, "gemma-2"), [SYSTEM, HI, HELLO])
    assert "user\nBe brief.\n\nHi there<end_of_turn>" in found.documents[0].text
    assert found.notes == [documents.JOINED]
    # Mistral's leaves the system message out where a chat ends with an answer.
    found = encoded(template_of(tokenizer, "mistral"), [SYSTEM, HI, HELLO])
    assert "[INST] Be brief.\n\nHi there[/INST]" in found.documents[0].text
    assert found.notes == [documents.JOINED]
    assert encoded(template_of(tokenizer, "phi-3"), [SYSTEM, HI, HELLO]).notes == []


@pytest.mark.parametrize("name", ["mistral", "gemma-2"])
def test_a_chat_that_the_template_refuses_is_set_aside_with_its_words(
    tokenizer: Any, name: str
) -> None:
    found = encoded(template_of(tokenizer, name), [HI, MORE, HELLO])
    assert found.documents == []
    assert "rejected by the chat template: " in str(found.fault)
    assert "roles must alternate user/assistant" in str(found.fault)


@pytest.mark.parametrize("marked", [False, True])
def test_an_answer_of_weight_0_is_not_learned(tokenizer: Any, marked: bool) -> None:
    text = (FOLDER / "chatml.jinja").read_text(encoding="utf-8")
    if marked:
        text = (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% generation %}"
            "{% if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
            "{% endgeneration %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}"
            "{{ '\n' }}{% endfor %}"
        )
    template = template_of(tokenizer, "chatml", text)
    first, last = f"{HELLO['content']}<|im_end|>", f"{BYE['content']}<|im_end|>"
    chat = [HI, HELLO, MORE, BYE]
    assert learned(template, chat) == [first, last]
    assert learned(template, [HI, HELLO | {"weight": 0}, MORE, BYE]) == [last]
    assert learned(template, [HI, HELLO, MORE, BYE | {"weight": 0}]) == [first]
    assert learned(template, chat, each=True) == [first, last]


def test_a_template_prints_the_date_that_it_is_given(tokenizer: Any) -> None:
    for name, printed in (
        ("llama-3.2", "Today Date: 26 Jul 2024\n"),
        ("gpt-oss", ": 2024-07-26\n"),
    ):
        template = template_of(tokenizer, name)
        assert template.has_date
        assert printed in encoded(template, [HI, HELLO]).documents[0].text
        assert printed in template.prompt([HI])
    assert not template_of(tokenizer, "llama-3").has_date


def test_words_that_share_a_token_with_what_comes_before_are_learned(tokenizer: Any) -> None:
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    letters = {**made.get_vocab(with_added_tokens=False), "ĠH": 1000, "ĠHe": 1001}
    made.model = models.BPE(letters, [("Ġ", "H"), ("ĠH", "e")])
    merging = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    template = template_of(merging, "mistral")
    (document,) = encoded(template, [HI, HELLO]).documents
    ids = [i for i, on in zip(document.ids, document.learned, strict=True) if on]
    assert merging.decode(ids) == " Hello, you.</s>"


def test_a_template_that_hides_the_assistant_is_an_error(tokenizer: Any) -> None:
    template = template_of(tokenizer, "", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match=r"does not show where the assist.*put {% generation %}"):
        encoded(template, [HI, HELLO])
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        ChatTemplate(tokenizer, datetime.date(2024, 7, 26))
