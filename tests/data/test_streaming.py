"""Documents on disk: the same training as in memory, resuming, cached tokens, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from finetune import recipe, run_directory
from finetune.data import corpus, documents, sources, streaming, token_cache
from finetune.errors import UserError
from finetune.recipe import Data
from finetune.tasks import causal_lm
from finetune.training import runner
from tests.conftest import interrupted, make_writer, sentences, train_job


@pytest.fixture
def corpus_file(workdir: Path) -> Path:
    """Sixty different texts, one of them twice, and blank lines between some."""
    texts = [text for text, _ in sentences(60)]
    rows = [json.dumps({"text": text}) for text in (*texts, texts[0])]
    rows.insert(7, json.dumps({"text": "  "}))
    path = workdir / "corpus.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def writer_recipe(workdir: Path, corpus_file: Path) -> Path:
    make_writer(workdir / "writer")
    path = workdir / "tiny.yaml"
    path.write_text(
        """\
task: text-generation
model: {checkpoint: writer, max_length: 32}
data: {train: corpus.jsonl, holdout: 8, validation_size: 4}
training:
  learning_rate: 1.0e-3
  per_device_train_batch_size: 4
  num_train_epochs: 2
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return path


def test_splits_share_no_text_and_hold_all_of_them(corpus_file: Path) -> None:
    found = streaming.load(Data(train=str(corpus_file), holdout=8, validation_size=4))
    train, test, validation = (
        list(rows["text"]) for rows in (found.train, found.test, found.validation)
    )
    assert (len(train), len(validation), len(test)) == (49, 4, 8)
    assert not set(train) & (set(test) | set(validation))
    assert not set(test) & set(validation)
    assert {*train, *test, *validation} == {text for text, _ in sentences(60)}
    assert found.report["duplicates_in_train"] == 1
    again = streaming.load(Data(train=str(corpus_file), holdout=8, validation_size=4))
    assert again.fingerprint == found.fingerprint
    assert list(again.test["id"]) == list(found.test["id"])
    other = Data(train=str(corpus_file), holdout=8, validation_size=4, split_seed=1)
    assert streaming.load(other).fingerprint != found.fingerprint


def test_training_from_disk_sees_the_blocks_that_training_from_memory_sees(
    writer_recipe: Path,
) -> None:
    # With the same held-out files, the training documents are the same, too.
    held = [json.dumps({"text": f"held out {i}"}) for i in range(4)]
    Path("held.jsonl").write_text("\n".join(held), encoding="utf-8")
    flags = ("--test", "held.jsonl", "--validation", "held.jsonl", "--allow_overlap")
    flags = (*flags, "--num_train_epochs", "1")
    memory, _ = train_job(writer_recipe, *flags, "--output_dir", "runs/memory")
    disk, job = train_job(writer_recipe, *flags, "--streaming", "true", "--output_dir", "runs/disk")
    assert isinstance(job.data.train, Dataset)
    assert disk.history() == memory.history()
    assert disk.results()["metrics"] == memory.results()["metrics"]
    for key in ("tokens", "blocks", "share_cut", "share_padding", "train", "test"):
        assert disk.results()["data"][key] == memory.results()["data"][key]


def test_two_processes_share_a_corpus_on_disk_without_overlap(writer_recipe: Path) -> None:
    flags = ["--streaming", "true", "--num_train_epochs", "1"]
    one, _ = train_job(writer_recipe, *flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["-m", "finetune.writing", "tiny.yaml", *flags, "--output_dir", "runs/two"]
    done = subprocess.run(
        [*launch, *words, "--per_device_train_batch_size", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    two = run_directory.Run("runs/two")
    curves = [[row["loss"] for row in run.history() if "loss" in row] for run in (one, two)]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert two.results()["cost"]["tokens_seen"] == one.results()["cost"]["tokens_seen"]


def test_a_stopped_run_goes_on_from_disk_as_if_it_had_not_stopped(writer_recipe: Path) -> None:
    flags = ["--streaming", "true", "--num_train_epochs", "3"]
    whole, _ = train_job(writer_recipe, *flags)
    read = recipe.load(writer_recipe, [*flags, "--output_dir", "runs/stopped"])
    with pytest.raises(KeyboardInterrupt):
        runner.train(read, interrupted(causal_lm.TASK.build))
    read = recipe.load(writer_recipe, [*flags, "--output_dir", "runs/stopped"])
    stopped = runner.train(read, causal_lm.TASK.build, resume=True)
    assert stopped is not None
    assert stopped.results()["metrics"] == whole.results()["metrics"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same_texts(workdir: Path, suffix: str) -> None:
    texts = ["NA", "007", 'é, "quoted"', *(text for text, _ in sentences(30))]
    rows = Dataset.from_dict({"text": texts})
    if suffix == "parquet":
        rows.to_parquet("a.parquet")
    elif suffix == "folder":
        Path("a.folder").mkdir()
        for part in range(2):
            rows.shard(2, part).to_json(f"a.folder/{part}.jsonl")
    else:
        rows.to_csv(f"a.{suffix}", sep="\t" if suffix == "tsv" else ",", index=False)
    found = streaming.load(Data(train=f"a.{suffix}", holdout=2, validation_size=0))
    assert sorted([*found.train["text"], *found.test["text"]]) == sorted(texts)


def counted_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records how many documents each later call of ``causal_lm.blocks`` gets."""
    calls, made = [], causal_lm.blocks

    def blocks(rows: list[documents.Document], *settings: Any) -> dict[str, list[Any]]:
        calls.append(len(rows))
        return made(rows, *settings)

    monkeypatch.setattr(causal_lm, "blocks", blocks)
    return calls


def test_tokens_are_made_once(writer_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_blocks(monkeypatch)
    read = recipe.load(writer_recipe, ["--streaming", "true"])
    first = causal_lm.TASK.build(read).splits["train"]
    assert sum(calls) == 49
    again = causal_lm.TASK.build(read).splits["train"]
    assert sum(calls) == 49
    assert again[:] == first[:]
    # Another length, other texts or another tokenizer make other tokens.
    causal_lm.TASK.build(recipe.load(writer_recipe, ["--streaming", "true", "--max_length", "16"]))
    assert sum(calls) == 98
    with Path("corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    causal_lm.TASK.build(read)
    assert sum(calls) == 148
    assert len(list(sources.cache("encoded").glob("*.arrow"))) == 3


def test_the_code_and_the_tokenizer_are_part_of_what_is_kept(
    writer_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = recipe.load(writer_recipe, [])
    causal_lm.TASK.build(read)
    monkeypatch.setattr(token_cache, "_code", lambda _: "other code")
    causal_lm.TASK.build(read)
    assert len(list(sources.cache("encoded").glob("*.arrow"))) == 2


def test_rows_on_disk_are_encoded_some_at_a_time(
    writer_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "MOST_BYTES", 400)
    sizes = counted_blocks(monkeypatch)
    causal_lm.TASK.build(recipe.load(writer_recipe, ["--streaming", "true"]))
    assert sum(sizes) == 49
    assert max(sizes) < 20


def test_masked_models_learn_from_disk(workdir: Path, corpus_file: Path, tiny_bert: Path) -> None:
    Path("mlm.yaml").write_text(
        f"""\
task: fill-mask
model: {{checkpoint: "{tiny_bert}", max_length: 16}}
data: {{train: corpus.jsonl, holdout: 8, validation_size: 4, streaming: true}}
training: {{num_train_epochs: 1, per_device_train_batch_size: 8, use_cpu: true}}
""",
        encoding="utf-8",
    )
    run, job = train_job(Path("mlm.yaml"))
    assert run.results()["data"]["train"] == 49
    assert job.splits["train"]["row"][:] == list(range(len(job.splits["train"])))


def test_chats_stay_on_disk_and_broken_ones_are_counted(workdir: Path) -> None:
    chats = [
        [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": f"say {i}"}]
        for i in range(200)
    ]
    rows = [json.dumps({"messages": chat}) for chat in chats]
    rows[3] = json.dumps({"messages": chats[3][:1]})
    Path("chats.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = Data(train="chats.jsonl", holdout=10, validation_size=0)
    found = streaming.load(data, corpus.DOCUMENTS)
    assert found.report["rejected"] == 1
    assert found.rejected[0]["line"] == 4
    assert "assistant" in found.rejected[0]["reason"]
    assert len(found.train) == 189
    (first,) = streaming.as_text(found.train[:1])["messages"]
    assert json.loads(first)[1]["content"].startswith("say")
    rows[5:27] = rows[3:4] * 22
    Path("chats.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"23 of 200 rows cannot be used"):
        streaming.load(data, corpus.DOCUMENTS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": "none.jsonl"}, "no such file"),
        ({"train": "corpus.docx"}, "give files of one kind"),
        ({"train": "corpus.jsonl", "text": "body"}, "no column 'body'; it has text"),
        ({"train": "corpus.jsonl", "holdout": 100.0}, "holdout: 100 of 61 rows cannot be taken"),
        ({"train": "broken.jsonl"}, "broken.jsonl: cannot be read as json"),
        ({"train": "corpus.jsonl", "test": "corpus.jsonl"}, "61 of 61 test rows are also in train"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(
    corpus_file: Path, data: dict[str, object], says: str
) -> None:
    Path("corpus.docx").write_text("a text\n", encoding="utf-8")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        streaming.load(Data(**{"validation_size": 0, **data}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_classifier_does_not_stream(tiny_recipe: Path) -> None:
    from finetune.tasks import text_classification

    read = recipe.load(tiny_recipe, ["--streaming", "true"])
    with pytest.raises(UserError, match="streaming"):
        runner.train(read, text_classification.TASK.build)
