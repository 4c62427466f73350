"""Embeddings for search: batches, losses, and everything that a run promises."""

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as theirs
from transformers import AutoModel
from transformers.utils.generic import ModelOutput

from finetune import cli, inference, recipe, run_directory
from finetune.errors import UserError
from finetune.models import embeddings
from finetune.report import files
from finetune.tasks import embedding, searches
from finetune.training import in_batch
from tests.conftest import make_bert, resume_to_the_bit, train, train_job
from tests.training.test_processes import SEVERAL, launch, losses

TASK = embedding.TASK
# Each word of a query stands for another one in its passage.
WORDS = [
    "cat",
    "dog",
    "sun",
    "moon",
    "tree",
    "rock",
    "fish",
    "bird",
    "king",
    "ship",
    "rain",
    "fire",
]
OTHER = ["the", "of", "and"]
BOTH = ("full", "lora")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights, as a folder of transformers alone."""
    words = [*WORDS, *(f"{word}s" for word in WORDS), *OTHER]
    return make_bert(tmp_path_factory.mktemp("encoder"), words)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different queries of two words, whose passages have those words in another form."""
    draw, rows = random.Random(seed), {}
    every = [(a, b) for a in WORDS for b in WORDS if a < b]
    for a, b in draw.sample(every, count):
        words = [f"{a}s", f"{b}s", *draw.choices(OTHER, k=draw.randint(1, 5))]
        draw.shuffle(words)
        rows[f"{a} {b}"] = {"query": f"{a} {b}", "passage": " ".join(words)}
    return list(rows.values())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def path(workdir: Path, encoder: Path) -> Path:
    write(workdir / "rows.jsonl", pairs(60))
    made = workdir / "search.yaml"
    made.write_text(
        f"""\
task: embedding
model: {{checkpoint: "{encoder}", max_length: 16}}
data: {{train: rows.jsonl, holdout: 12, validation_size: 8}}
training:
  learning_rate: 2.0e-3
  per_device_train_batch_size: 8
  num_train_epochs: 4
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


# --- batches and the loss ----------------------------------------------------------------------


def test_rows_draw_their_passages_anew_in_each_epoch(path: Path) -> None:
    rows = pairs(60)
    for number, row in enumerate(rows):
        row["passage"] = [row["passage"], f"the {number}"]
        row["wrong"] = [f"and {number}", f"of {number}"] if number % 2 else []
    write(Path("rows.jsonl"), rows)
    job = TASK.build(recipe.load(path, ["--negative", "wrong"]))
    collator, split = job.collator, job.splits["train"]
    assert isinstance(collator, in_batch.PassageCollator)
    given = [{**split[i], "epoch": epoch} for epoch in range(12) for i in range(4)]
    labels = collator.drawn(given)
    again = torch.cat([collator.drawn([row]) for row in given])
    assert torch.equal(labels, again)
    for row, (positive, negative) in zip(given, labels.tolist(), strict=True):
        assert positive in row["positives"]
        assert negative in (row["negatives"] or [in_batch.NONE])
    for i in range(4):
        assert {p for p, _ in labels[i::4].tolist()} == set(split[i]["positives"])
        assert {n for _, n in labels[i::4].tolist()} == set(split[i]["negatives"] or [-1])
    batch = collator(given[:4])
    assert len(batch["input_ids"]) == 12
    texts = job.processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts[:4] == [job.data.train["query"][i] for i in range(4)]
    # Evaluation rows have neither.
    assert len(collator([job.splits["test"][i] for i in range(3)])["input_ids"]) == 6


def test_the_loss_is_that_of_sentence_transformers() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(15, 8)
    loss = in_batch.InBatchLoss(torch.nn.Identity())
    parts = list(vectors.split(5))
    whole = theirs.MultipleNegativesRankingLoss(torch.nn.Identity())
    labels = torch.tensor([[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]])
    expected = whole.compute_loss_from_embeddings(parts, torch.zeros(5))
    assert loss(ModelOutput(logits=vectors), labels) == expected
    # A passage that occurs twice is right for both queries; -1 is none.
    labels = torch.tensor([[0, 5], [1, -1], [0, 7], [3, 1], [4, 7]])
    query, passage = [0, 1, 3, 4], [0, 2]
    kept = [parts[0][query], parts[1][query], parts[2][passage]]
    expected = whole.compute_loss_from_embeddings(kept, torch.zeros(4))
    assert loss(ModelOutput(logits=vectors), labels) == expected


def test_mined_negatives_are_wrong_and_not_nearly_right(path: Path) -> None:
    ranked = in_batch.Ranked(numpy.arange(6), numpy.array([0.9, 0.8, 0.79, 0.7, 0.6, 0.5]))
    assert in_batch.mined(ranked, {1}, numpy.array([0.8]), 2) == [3, 4]
    assert in_batch.mined(ranked, {1, 3}, numpy.array([0.8, 0.7]), 9) == [4, 5]
    job = TASK.build(recipe.load(path, ["--mined_negatives", "3"]))
    rows = job.splits["train"]
    assert max(len(row["negatives"]) for row in rows) == 3
    assert not any(set(row["negatives"]) & set(row["positives"]) for row in rows)
    assert len(job.collator([{**rows[0], "epoch": 0}])["input_ids"]) == 3


# --- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_is_the_checkpoint_s_own(path: Path, encoder: Path, mode: str) -> None:
    model = AutoModel.from_pretrained(encoder)
    first = Path("first")
    model.save_pretrained(first)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (first / name).write_bytes((encoder / name).read_bytes())
    if mode != "mean":
        model.config.sentence_pooling = mode
        embeddings.save_modules(model.config, 16, first)
    run = train(path, "--checkpoint", "first", "--max_steps", "2")
    saved = SentenceTransformer(str(run.model), device="cpu")
    assert saved[1].pooling_mode == mode
    assert saved.max_seq_length == 16


def test_a_checkpoint_with_further_modules_is_refused(path: Path) -> None:
    Path("dense").mkdir()
    for file in Path(recipe.load(path).model.checkpoint).iterdir():
        (Path("dense") / file.name).write_bytes(file.read_bytes())
    modules = [
        {"type": f"sentence_transformers.models.{k}", "path": k} for k in ("Pooling", "Dense")
    ]
    (Path("dense") / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(UserError, match="dense: its embeddings have a module Dense"):
        TASK.build(recipe.load(path, ["--checkpoint", "dense"]))


# --- a run -------------------------------------------------------------------------------------


@pytest.fixture
def learned(path: Path) -> run_directory.Run:
    return train(path, "--num_train_epochs", "20")


def test_a_run_learns_searches_and_is_a_folder_of_sentence_transformers(
    learned: run_directory.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = learned, learned.results()
    found = results["metrics"]["ndcg_at_10"]
    assert (results["headline"], found["n"]) == ("ndcg_at_10", 12)
    assert found["value"] > 0.7
    assert {*results["baselines"]} == {"BM25", "before training"}
    for each in results["baselines"].values():
        assert each["difference"]["low"] > 0
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert "from sentence_transformers import SentenceTransformer" in card

    rows = run.predictions()
    queries = rows["query"].tolist()
    cli.main(["predict", str(run), *queries])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == queries
    vectors = numpy.array([line["prediction"] for line in lines])
    public = SentenceTransformer(str(run.model), device="cpu").encode(queries)
    assert vectors == pytest.approx(public, abs=1e-6)
    plain = AutoModel.from_pretrained(run.model)
    inner = inference.load(run)[0].base_model.state_dict()
    assert all(torch.equal(v, inner[k]) for k, v in plain.state_dict().items())

    # A search of the same passages finds what the test found.
    every = [row["passage"] for row in pairs(60)]
    write(Path("corpus.jsonl"), [{"passage": each} for each in every])
    cli.main(["predict", str(run), *queries, "--corpus", "corpus.jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, tested in zip(lines, rows["prediction"], strict=True):
        scores = [each["score"] for each in line["prediction"]]
        assert scores == pytest.approx([each["score"] for each in tested], abs=2e-6)
        assert {"query", "prediction"} == {*line}


def test_the_report_shows_queries_whose_passage_comes_late(path: Path) -> None:
    run = train(path, "--max_steps", "1")
    files.write(run)
    rows = run.predictions()
    shown = TASK.mistakes(rows, {}, 20) or []
    first = [row["prediction"][0]["passage"] in row["label"] for row in rows.to_dict("records")]
    assert len(shown) == first.count(False) > 0
    places = [each.confidence for each in shown]
    assert places[-1] <= places[0] or "not among" in str(places[0])
    assert shown[0].text in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_merged_adapter_is_a_folder_of_sentence_transformers(path: Path) -> None:
    run = train(path, "--method", "lora", "--learning_rate", "1e-2", "--max_steps", "8")
    files.write(run)
    assert "finetune merge" in (run.model / "README.md").read_text(encoding="utf-8")
    assert not (run.model / "modules.json").exists()
    cli.main(["merge", str(run), "--output", "merged"])
    queries = ["cat dog", "sun moon tree"]
    ours = inference.predict(run, [{"query": each} for each in queries])
    public = SentenceTransformer("merged", device="cpu").encode(queries)
    assert numpy.array([each["prediction"] for each in ours]) == pytest.approx(public, abs=1e-5)


# --- what every task promises ------------------------------------------------------------------


def test_shuffled_passages_give_chance(path: Path) -> None:
    rows = pairs(60)
    every = [row["passage"] for row in rows]
    random.Random(0).shuffle(every)
    write(Path("rows.jsonl"), [{**row, "passage": p} for row, p in zip(rows, every, strict=True)])
    found = train(path, "--num_train_epochs", "20").results()["metrics"]["ndcg_at_10"]
    # At random the one right passage of 60 is among the first ten in one of six searches.
    assert found["value"] < 0.3


def test_sixteen_rows_are_learned_by_heart(path: Path) -> None:
    draw, rows = random.Random(0), pairs(16)
    for row in rows:
        row["passage"] = " ".join(f"{word}s" for word in draw.sample(WORDS, 3))
    assert len({row["passage"] for row in rows}) == 16
    write(Path("train.jsonl"), rows)
    flags = ["--train", "train.jsonl", "--test", "train.jsonl", "--allow_overlap", "true"]
    flags += ["--validation_size", "0", "--num_train_epochs", "80"]
    run = train(path, *flags, "--per_device_train_batch_size", "16")
    assert run.results()["metrics"]["recall_at_1"]["value"] == 1


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(path: Path) -> None:
    size, mined = "--per_device_train_batch_size", ["--mined_negatives", "2"]
    alone = {
        m: train(path, "--method", m, *mined, size, "14", "--output_dir", f"one/{m}") for m in BOTH
    }
    runs = [
        ["search.yaml", "--method", m, *mined, size, "7", "--output_dir", f"two/{m}"] for m in BOTH
    ]
    launch(2, SEVERAL, json.dumps(runs))
    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        # 40 rows in steps of 14 leave 12.
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        found, expected = (each.results()["metrics"]["ndcg_at_10"] for each in (two, one))
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_it_resumes_to_the_same_bits(path: Path, method: str) -> None:
    resume_to_the_bit(path, TASK.build, "--method", method, "--mined_negatives", "2")


@pytest.mark.parametrize("method", ["full", "lora", "bottleneck", "bitfit"])
def test_a_saved_model_has_the_bits_of_the_trained_one(path: Path, method: str) -> None:
    run, job = train_job(path, "--method", method, "--learning_rate", "1e-3", "--max_steps", "5")
    rows = [{"query": row["passage"]} for row in pairs(9, seed=3)]
    loaded = inference.load(run)
    expected = inference.outputs(job.model.eval(), job.processor, loaded[2], rows)
    assert numpy.array_equal(inference.outputs(*loaded, rows), expected)
    trained = [n for n, p in job.model.named_parameters() if p.requires_grad]
    assert trained
    # Nothing reads the pooler.
    assert method == "bitfit" or not any("pooler" in name for name in trained)


@pytest.mark.parametrize("method", BOTH)
def test_batches_without_padding_have_the_padded_losses(path: Path, method: str) -> None:
    runs = {}
    for free in ("true", "false"):
        flags = ["--padding_free", free, "--method", method, "--output_dir", f"runs/{free}"]
        run, job = train_job(path, *flags)
        runs[free] = losses(run)
        assert any("without padding" in note for note in job.notes) == (free == "true")
    assert runs["true"] == pytest.approx(runs["false"], abs=1e-5)
    assert len(runs["true"]) == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "head"], "has no head to train; take lora, or full"),
        (["--method", "prompt_tuning"], "gets no tokens by prompt_tuning"),
        (
            ["--gradient_accumulation_steps", "2"],
            "compared with each other, so it cannot be divided",
        ),
        (
            ["--per_device_train_batch_size", "auto"],
            "compared with each other, so it cannot be divided",
        ),
        (["--test_views", "2"], "augmentation changes images"),
        (["--metrics", "[hamming_loss]"], "embedding takes no further metrics"),
        (["--checkpoint", "new:t5"], "t5 is no encoder"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TASK.build(recipe.load(path, flags))


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "PACKAGES", ("bm25s", "no_such_package"))
    with pytest.raises(
        UserError, match=r"no_such_package is not installed: pip install 'finetune-"
    ):
        TASK.build(recipe.load(path))
