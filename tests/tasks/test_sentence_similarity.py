"""Embeddings of texts with scores: losses, and everything that a run promises."""

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as theirs
from transformers.utils.generic import ModelOutput

from finetune import cli, inference, recipe, run_directory
from finetune.errors import UserError
from finetune.report import files
from finetune.tasks import sentence_similarity
from finetune.training import in_batch
from tests.conftest import make_bert, resume_to_the_bit, train, train_job, write_csv
from tests.tasks.test_embedding import BOTH, OTHER, WORDS
from tests.training.test_processes import SEVERAL, launch, losses

TASK = sentence_similarity.TASK


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*WORDS, *(f"{word}s" for word in WORDS), *OTHER]
    return make_bert(tmp_path_factory.mktemp("similar"), words)


def rows(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Two texts of four words, and how many of the first the second has in another form."""
    draw, made = random.Random(seed), {}
    while len(made) < count:
        words = draw.sample(WORDS, 8)
        alike = draw.randint(0, 4)
        first, second = words[:4], [f"{word}s" for word in words[:alike] + words[4 : 8 - alike]]
        draw.shuffle(second)
        made[" ".join(first), " ".join(second)] = str(alike)
    return [(*texts, score) for texts, score in made.items()]


def write(given: list[tuple[str, str, str]]) -> None:
    write_csv(Path("rows.csv"), given, "text,other,label")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def path(workdir: Path, encoder: Path) -> Path:
    write(rows(156))
    made = workdir / "similar.yaml"
    made.write_text(
        f"""\
task: sentence-similarity
model: {{checkpoint: "{encoder}", max_length: 16}}
data: {{train: rows.csv, text_pair: other, holdout: 40, validation_size: 20}}
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


def test_the_loss_is_that_of_sentence_transformers() -> None:
    torch.manual_seed(0)
    vectors, labels = torch.randn(12, 8), torch.tensor([[1.0], [2.0], [2.0], [0.5], [4.0], [3.0]])
    unused: Any = torch.nn.Identity()
    expected = theirs.CoSENTLoss(unused).compute_loss_from_embeddings(
        list(vectors.split(6)), labels
    )
    loss = in_batch.ScoreLoss(unused)
    assert loss(ModelOutput(logits=vectors), labels) == expected


def test_a_run_learns_scores_and_is_a_folder_of_sentence_transformers(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(path, "--num_train_epochs", "20")
    results = run.results()
    assert results["headline"] == "spearman"
    assert {*results["metrics"]} == {"spearman", "pearson"}
    assert results["metrics"]["spearman"]["value"] > 0.6
    assert {*results["baselines"]} == {sentence_similarity.TFIDF, "before training"}
    assert results["baselines"]["before training"]["difference"]["low"] > 0
    files.write(run)
    assert "model.similarity" in (run.model / "README.md").read_text(encoding="utf-8")

    tested = run.predictions()
    public = SentenceTransformer(str(run.model), device="cpu")
    first, second = (public.encode(tested[part].tolist()) for part in ("text", "text_pair"))
    assert tested["prediction"].tolist() == pytest.approx((first * second).sum(1), abs=2e-6)
    write([(*each, "0") for each in zip(tested["text"], tested["text_pair"], strict=True)])
    cli.main(["predict", str(run), "--file", "rows.csv"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [line["prediction"] for line in lines]
    assert found == pytest.approx(tested["prediction"].tolist(), abs=2e-6)


def test_shuffled_scores_give_chance(path: Path) -> None:
    given = rows(156)
    scores = [score for _, _, score in given]
    random.Random(0).shuffle(scores)
    write([(a, b, score) for (a, b, _), score in zip(given, scores, strict=True)])
    found = train(path, "--num_train_epochs", "8").results()["metrics"]["spearman"]
    assert abs(found["value"]) < 0.4


def test_sixteen_rows_are_learned_by_heart(path: Path) -> None:
    draw, given = random.Random(0), rows(16)
    write([(a, b, str(draw.random())) for a, b, _ in given])
    flags = ["--test", "rows.csv", "--allow_overlap", "true", "--validation_size", "0"]
    run = train(path, *flags, "--num_train_epochs", "80")
    assert run.results()["metrics"]["spearman"]["value"] > 0.98


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(path: Path) -> None:
    size = "--per_device_train_batch_size"
    alone = {m: train(path, "--method", m, size, "14", "--output_dir", f"one/{m}") for m in BOTH}
    runs = [["similar.yaml", "--method", m, size, "7", "--output_dir", f"two/{m}"] for m in BOTH]
    launch(2, SEVERAL, json.dumps(runs))
    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        found, expected = (each.results()["metrics"]["spearman"] for each in (two, one))
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_it_resumes_to_the_same_bits(path: Path, method: str) -> None:
    resume_to_the_bit(path, TASK.build, "--method", method)


@pytest.mark.parametrize("method", BOTH)
def test_a_saved_model_has_the_bits_of_the_trained_one(path: Path, method: str) -> None:
    run, job = train_job(path, "--method", method, "--learning_rate", "1e-3", "--max_steps", "3")
    given = [{"text": a, "text_pair": b} for a, b, _ in rows(9, seed=3)]
    loaded = inference.load(run)
    expected = inference.outputs(job.model.eval(), job.processor, loaded[2], given)
    assert numpy.array_equal(inference.outputs(*loaded, given), expected)


def test_single_texts_are_refused(path: Path) -> None:
    text = path.read_text("utf-8").replace("text_pair: other, ", "")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="compares two texts; name the column of the second"):
        TASK.build(recipe.load(path))
