"""Reranking: pairs of queries and passages, and everything that a run promises."""

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
from sentence_transformers import CrossEncoder

from finetune import cli, inference, recipe, run_directory
from finetune.errors import UserError
from finetune.evaluation import ranking
from finetune.report import files
from finetune.tasks import reranking
from tests.conftest import make_bert, resume_to_the_bit, train, train_job
from tests.tasks.test_embedding import BOTH, OTHER, WORDS, write
from tests.training.test_processes import SEVERAL, launch, losses

TASK = reranking.TASK


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("cross"), [*WORDS, *OTHER, "yes", "no"])


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Queries whose words two passages have, of which the one with "yes" is relevant."""
    draw, every = random.Random(seed), [f"{a} {b}" for a in WORDS for b in WORDS if a < b]
    rows = []
    for query in draw.sample(every, count):
        passages = []
        for mark in ("yes", "no"):
            words = [*query.split(), mark, *draw.choices(OTHER, k=3)]
            draw.shuffle(words)
            passages.append(" ".join(words))
        rows.append({"query": query, "passage": passages[0], "negative": passages[1]})
    return rows


@pytest.fixture
def path(workdir: Path, encoder: Path) -> Path:
    write(workdir / "rows.jsonl", pairs(60))
    made = workdir / "rank.yaml"
    made.write_text(
        f"""\
task: reranking
model: {{checkpoint: "{encoder}", max_length: 16}}
data: {{train: rows.jsonl, negative: negative, holdout: 12, validation_size: 8}}
training:
  learning_rate: 2.0e-3
  per_device_train_batch_size: 16
  num_train_epochs: 2
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


def test_rows_are_queries_with_their_own_and_with_wrong_passages(path: Path) -> None:
    job = TASK.build(recipe.load(path))
    rows: Any = job.splits["train"]
    assert len(rows) == 2 * len(job.data.train) == 80
    texts = [job.processor.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    assert [row["labels"] == [1.0] for row in rows] == ["yes" in text for text in texts]
    job = TASK.build(recipe.load(path, ["--mined_negatives", "3"]))
    assert 80 < len(job.splits["train"]) <= 5 * 40
    assert len(job.splits["test"]) == 12 * reranking.CANDIDATES
    # Candidates come in the order of their logits; those of one query stay together.
    logits = numpy.tile(numpy.arange(reranking.CANDIDATES)[:, None], (12, 1))
    outputs, truth = job.collect(logits, None, "test")
    first = job.baselines()[ranking.BM25]
    for ours, theirs in zip(outputs, first, strict=True):
        assert ours.items.tolist() == theirs.items.tolist()[::-1]
    assert len(truth) == 12


def test_without_wrong_passages_nothing_can_be_learned(path: Path) -> None:
    text = path.read_text("utf-8").replace("negative: negative, ", "")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="set mined_negatives: 4"):
        TASK.build(recipe.load(path))


def test_a_run_learns_reorders_and_is_a_cross_encoder(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(path, "--num_train_epochs", "8")
    results = run.results()
    assert results["metrics"]["recall_at_1"]["value"] > 0.9
    assert {*results["baselines"]} == {ranking.BM25}
    assert results["baselines"][ranking.BM25]["difference"]["low"] > 0
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert "from sentence_transformers import CrossEncoder" in card

    rows = pairs(6, seed=1)
    write(Path("new.jsonl"), [{k: row[k] for k in ("query", "passage")} for row in rows])
    cli.main(["predict", str(run), "--file", "new.jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    public = CrossEncoder(str(run.model), device="cpu").predict(
        [(row["query"], row["passage"]) for row in rows]
    )
    assert [line["prediction"] for line in lines] == pytest.approx(public.tolist(), abs=2e-6)

    # A search of the passages of the data finds what the test found.
    tested = run.predictions()
    every = [row[k] for row in pairs(60) for k in ("passage", "negative")]
    write(Path("corpus.jsonl"), [{"passage": each} for each in every])
    cli.main(["predict", str(run), *tested["query"], "--corpus", "corpus.jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, found in zip(lines, tested["prediction"], strict=True):
        assert line["prediction"][0]["passage"] == found[0]["passage"]
        assert line["prediction"][0]["score"] == pytest.approx(found[0]["score"], abs=1e-5)
    with pytest.raises(SystemExit):
        cli.main(["predict", str(run), "a query alone"])
    assert "add --corpus FILE" in capsys.readouterr().err


def test_shuffled_passages_give_chance(path: Path) -> None:
    draw, rows = random.Random(0), pairs(60)
    for row in rows:
        names = ["passage", "negative"]
        draw.shuffle(names)
        row["passage"], row["negative"] = (row[name] for name in names)
    write(Path("rows.jsonl"), rows)
    found = train(path, "--num_train_epochs", "8").results()
    # Both passages of a query are alike to it.
    assert found["metrics"]["recall_at_1"]["value"] < 0.85


@pytest.mark.slow
def test_sixteen_rows_are_learned_by_heart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, rows = random.Random(0), pairs(16)
    for row in rows:
        for name in ("passage", "negative"):
            row[name] = " ".join([*row["query"].split(), *draw.choices(OTHER, k=7)])
    write(Path("train.jsonl"), rows)
    # BM25 finds the two passages that have both words of a query, and knows no stop words.
    monkeypatch.setattr(reranking, "CANDIDATES", 2)
    flags = ["--train", "train.jsonl", "--test", "train.jsonl", "--allow_overlap", "true"]
    flags += ["--negative", "negative", "--validation_size", "0", "--num_train_epochs", "200"]
    run = train(path, *flags)
    assert run.results()["metrics"]["recall_at_1"]["value"] == 1


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(path: Path) -> None:
    size = "--per_device_train_batch_size"
    alone = {m: train(path, "--method", m, size, "14", "--output_dir", f"one/{m}") for m in BOTH}
    runs = [["rank.yaml", "--method", m, size, "7", "--output_dir", f"two/{m}"] for m in BOTH]
    launch(2, SEVERAL, json.dumps(runs))
    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        found, expected = (each.results()["metrics"]["ndcg_at_10"] for each in (two, one))
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_it_resumes_to_the_same_bits(path: Path, method: str) -> None:
    resume_to_the_bit(path, TASK.build, "--method", method)


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_a_saved_model_has_the_bits_of_the_trained_one(path: Path, method: str) -> None:
    run, job = train_job(path, "--method", method, "--learning_rate", "1e-3", "--max_steps", "3")
    rows = [{"query": row["query"], "passage": row["passage"]} for row in pairs(9, seed=3)]
    loaded = inference.load(run)
    expected = inference.outputs(job.model.eval(), job.processor, loaded[2], rows)
    assert numpy.array_equal(inference.outputs(*loaded, rows), expected)
