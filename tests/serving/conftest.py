"""Finished tiny runs to serve, each trained once, and a client of their service."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from finetune.run_directory import Run
from finetune.serving.app import create_app
from tests.conftest import make_writer, sentences, train, write_csv

TRAINING = "training: {max_steps: 1, use_cpu: true, output_dir: "
LOOPBACK = "http://127.0.0.1:8000"


def trained(folder: Path, text: str, *flags: str) -> Run:
    (folder / "recipe.yaml").write_text(f'{text}\n{TRAINING} "{folder}/run"}}\n', encoding="utf-8")
    return train(folder / "recipe.yaml", *flags)


@pytest.fixture(scope="session")
def texts(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier of texts."""
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "reviews.csv", sentences(60))
    return trained(
        folder,
        "task: text-classification\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16}}\n'
        f'data: {{train: "{folder}/reviews.csv", holdout: 10, validation_size: 10}}',
    )


@pytest.fixture(scope="session")
def pairs(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A regression on pairs of texts."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [(f"{text},the plot", f"{i % 7}.5") for i, (text, _) in enumerate(sentences(60))]
    write_csv(folder / "pairs.csv", rows, "text,other,label")
    return trained(
        folder,
        "task: text-classification\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16}}\n'
        f'data: {{train: "{folder}/pairs.csv", text_pair: other, holdout: 10, '
        "validation_size: 10, problem_type: regression}",
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier of images."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        place = folder / "photos" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (6 * i, 0, 0)).save(place / f"{i}.png")
    size = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16"
    return trained(
        folder,
        "task: image-classification\n"
        f'model: {{checkpoint: "new:vit", config: {{image_size: 8, patch_size: 4, {size}}}}}\n'
        f'data: {{train: "{folder}/photos", holdout: 8, validation_size: 8}}',
    )


@pytest.fixture(scope="session")
def entities(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A token classifier; every word is an entity to it."""
    folder = tmp_path_factory.mktemp("entities")
    rows = [
        json.dumps({"tokens": words, "tags": ["B-WORD"] * len(words)})
        for words in (text.split() for text, _ in sentences(60))
    ]
    rows[0] = rows[0].replace("B-WORD", "O", 1)
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return trained(
        folder,
        "task: token-classification\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16}}\n'
        f'data: {{train: "{folder}/rows.jsonl", text: tokens, label: tags, holdout: 10, '
        "validation_size: 10}",
        *("--max_steps", "20", "--learning_rate", "5e-3"),
    )


@pytest.fixture(scope="session")
def questions(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model that answers questions with the first word of a text."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for text, _ in sentences(60):
        answer = {"text": text.split()[0], "answer_start": 0}
        rows.append({"question": "the film was", "context": text, "answers": [answer]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return trained(
        folder,
        "task: question-answering\n"
        f'model: {{checkpoint: "{tiny_bert}", max_length: 16, stride: 4}}\n'
        f'data: {{train: "{folder}/rows.jsonl", holdout: 10, validation_size: 10}}',
    )


@pytest.fixture(scope="session")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An encoder-decoder that knows some letters."""
    folder = tmp_path_factory.mktemp("speller")
    words = ["".join(letters) for letters in itertools.permutations("abcd", 3)]
    rows = [f"{word},{word.upper()}" for word in [*words, "bad"]]
    (folder / "rows.csv").write_text("\n".join(["source,target", *rows]), encoding="utf-8")
    size = "d_model: 32, d_kv: 16, d_ff: 64, num_layers: 1, num_heads: 2, num_decoder_layers: 1"
    return trained(
        folder,
        "task: text2text-generation\n"
        f'model: {{checkpoint: "new:t5", config: {{{size}}}, token_pattern: "[A-Z]|.", '
        "max_length: 16, max_target_length: 10}\n"
        f'data: {{train: "{folder}/rows.csv", holdout: 5, validation_size: 5}}',
    )


def language_model(folder: Path, column: str, rows: list[str]) -> Run:
    make_writer(folder / "writer")
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return trained(
        folder,
        "task: text-generation\n"
        f'model: {{checkpoint: "{folder}/writer", max_length: 64}}\n'
        f'data: {{train: "{folder}/rows.jsonl", {column}, holdout: 8, validation_size: 8}}',
    )


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A language model of texts."""
    rows = [json.dumps({"text": text}) for text, _ in sentences(40)]
    return language_model(tmp_path_factory.mktemp("writer"), "text: text", rows)


@pytest.fixture(scope="session")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A language model of chats."""
    answer = {"role": "assistant", "content": "!"}
    texts = [{"role": "user", "content": text} for text, _ in sentences(40)]
    rows = [json.dumps({"messages": [text, answer]}) for text in texts]
    return language_model(tmp_path_factory.mktemp("chatter"), "messages: messages", rows)


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Starts a service of a run, as ``create_app`` does with the same arguments."""
    # It imports torch, which most tests here do without.
    from finetune.serving.service import Service

    with ExitStack() as stack:

        def start(run: Run, *arguments: Any, headers: Any = None) -> TestClient:
            app = create_app(Service(run), *arguments)
            return stack.enter_context(TestClient(app, LOOPBACK, headers=headers))

        yield start
