"""Tests of finetune.models.tokenizer_files."""

import json

import pytest
from transformers import AutoTokenizer

from finetune.data import sources
from finetune.models import tokenizer_files

TEXTS = ["Hello  world, 1234 times.", "naïve 日本語 🙂\n\tend<|im_end|>"]
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]


def test_the_tokenizer_of_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = sources.checkpoint("embedded:smollm2", None)
    converted = AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)
    first = tokenizer_files.load(*checkpoint.processor)

    real = AutoTokenizer.from_pretrained

    def without_gguf(folder, **options):
        assert not options
        return real(folder)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without_gguf)
    again = tokenizer_files.load(*checkpoint.processor)
    for found in (first, again):
        assert type(found) is type(converted)
        made, expected = (json.loads(t.backend_tokenizer.to_str()) for t in (found, converted))
        assert made == expected
        assert found(TEXTS) == converted(TEXTS)
        assert found.apply_chat_template(CHAT) == converted.apply_chat_template(CHAT)
        assert found.special_tokens_map == converted.special_tokens_map
        assert found.model_max_length == converted.model_max_length


def test_a_conversion_that_was_killed_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = sources.checkpoint("embedded:smollm2", None)
    whole = tokenizer_files.load(*checkpoint.processor)
    (done,) = tmp_path.rglob("tokenizer.json")
    done.unlink()
    assert tokenizer_files.load(*checkpoint.processor)(TEXTS) == whole(TEXTS)


def test_a_checkpoint_without_a_tokenizer(tmp_path):
    with pytest.raises((OSError, ValueError)):
        tokenizer_files.load(tmp_path, {})
