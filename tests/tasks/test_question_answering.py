"""Questions with answers in a context: made-up rows, whose answer is the one opinion in a text."""

import contextlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from finetune import cli, inference, recipe, run_directory
from finetune.errors import UserError
from finetune.models import tuning
from finetune.models.speed import padding_free
from finetune.report import files
from finetune.tasks import question_answering
from finetune.tasks.question_answering import THRESHOLD
from finetune.training import losses
from tests.conftest import WORDS, interrupted, sentences, train, train_job

ASKED = ["the film was", "a plot was", "the cast"]
NOT_OPINIONS = WORDS[6:]
Row = dict[str, Any]


def rows(count: int, without: int = 0, seed: int = 0) -> list[Row]:
    """Questions about texts with one opinion, the answer; ``without`` of them have none."""
    draw, out = random.Random(seed), []
    for number, (context, _) in enumerate(sentences(count, seed)):
        words = context.split()
        place = next(i for i, word in enumerate(words) if word not in NOT_OPINIONS)
        if number < without:
            words[place : place + 1] = draw.choices(NOT_OPINIONS, k=3)
            answers = []
        else:
            start = len(" ".join([*words[:place], ""]))
            answers = [{"text": words[place], "answer_start": start}]
        out.append(
            {"question": draw.choice(ASKED), "context": " ".join(words), "answers": answers}
        )
    draw.shuffle(out)
    return out


def write(path: Path, given: list[Row]) -> Path:
    """SQuAD's nested JSON, a paragraph for each row."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [{"id": f"q{i}", "question": row["question"], "answers": row["answers"]}],
        }
        for i, row in enumerate(given)
    ]
    whole = {"version": "made up", "data": [{"title": "Films", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


@pytest.fixture
def path(workdir: Path, tiny_bert: Path) -> Path:
    """A recipe that trains the tiny BERT on made-up questions in seconds."""
    write(workdir / "asked.json", rows(136))
    path = workdir / "asked.yaml"
    path.write_text(
        f"""\
task: question-answering
model: {{checkpoint: "{tiny_bert}", max_length: 16, stride: 4, max_answer_length: 4}}
data: {{train: asked.json, holdout: 24, validation_size: 16}}
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
    return path


def test_it_learns_and_predict_gives_the_answers_of_the_test(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(path, "--num_train_epochs", "5")
    results = run.results()
    found = results["metrics"]["answer_f1"]
    beside = results["baselines"]["sentence with most words of the question"]
    assert found["low"] < found["value"] <= found["high"]
    assert beside["difference"]["low"] > 0
    assert "no answer" not in results["baselines"]
    assert results["data"][THRESHOLD] is None
    assert results["metrics"]["exact_match"]["value"] > 0.9
    tested = run.predictions()
    for row in tested.to_dict("records"):
        assert row["context"][row["start"] : row["end"]] == row["prediction"]
        scores = [each["score"] for each in row["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert row["score"] == scores[0]
    print(tested.to_dict("records")[0], results)
