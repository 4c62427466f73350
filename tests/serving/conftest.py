"""Finished tiny runs to serve, each trained once, and a client of their service."""

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


def trained(folder: Path, text: str) -> Run:
    (folder / "recipe.yaml").write_text(f'{text}\n{TRAINING} "{folder}/run"}}\n', encoding="utf-8")
    return train(folder / "recipe.yaml")


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
