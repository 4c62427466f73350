"""Questions with answers in a context: made-up rows, whose answer is the one opinion in a text."""

import contextlib
import csv
import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from finetune import cli, inference, recipe, run_directory
from finetune.errors import UserError
from finetune.evaluation import squad
from finetune.report import files
from finetune.tasks import question_answering
from finetune.tasks.question_answering import THRESHOLD
from finetune.training import losses
from tests.conftest import WORDS, interrupted, sentences, train, train_job

ASKED = ["the film was", "a plot was", "the cast"]
NOT_OPINIONS = WORDS[6:]
Row = dict[str, Any]


def word(words: list[str], place: int) -> Row:
    """A word of a text as an answer."""
    return {"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}


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
            answers = [word(words, place)]
        out.append({"question": draw.choice(ASKED), "context": " ".join(words), "answers": answers})
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


def recipe_for(folder: Path, checkpoint: Path, without: int = 0) -> Path:
    """A recipe that trains on made-up questions in seconds."""
    write(folder / "asked.json", rows(136, without))
    path = folder / "asked.yaml"
    path.write_text(
        f"""\
task: question-answering
model: {{checkpoint: "{checkpoint}", max_length: 16, stride: 4, max_answer_length: 4}}
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


@pytest.fixture
def path(workdir: Path, tiny_bert: Path) -> Path:
    return recipe_for(workdir, tiny_bert)


def answers_of_the_card(run: run_directory.Run, given: list[Row]) -> list[str]:
    """What the code of the model card answers."""
    card = (run.model / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return [names["answer"](row["question"], row["context"]) for row in given]


def test_it_learns_and_predict_gives_the_answers_of_the_test(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(path, "--num_train_epochs", "5")
    results = run.results()
    found = results["metrics"]["answer_f1"]
    beside = results["baselines"]["sentence with most words of the question"]
    assert found["value"] == results["metrics"]["exact_match"]["value"] > 0.9
    assert found["n"] == 24
    assert beside["difference"]["low"] > 0
    assert "no answer" not in results["baselines"]
    assert results["data"][THRESHOLD] is None
    tested = run.predictions().to_dict("records")
    for row in tested:
        assert row["context"][row["start"] : row["end"]] == row["prediction"]
        scores = [each["score"] for each in row["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert row["score"] == scores[0]

    # The file as SQuAD has it, and one context for many questions.
    cli.main(["predict", str(run), "--file", "asked.json"])
    lines = {line["id"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(lines) == 136
    for row in tested:
        line = lines[row["id"]]
        assert "context" not in line
        assert [line[n] for n in ("question", "prediction", "start", "end")] == [
            row[n] for n in ("question", "prediction", "start", "end")
        ]
        assert line["score"] == pytest.approx(row["score"], abs=1e-5)
    files.write(run)
    assert answers_of_the_card(run, tested) == [row["prediction"] for row in tested]


def test_many_questions_about_one_context(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(path, "--num_train_epochs", "5")
    # An answer that only the last windows have, and one behind a line of its own.
    long = f"{' '.join(NOT_OPINIONS * 6)}\r\n the film was good "
    Path("long.txt").write_bytes(long.encode())
    Path("asked.txt").write_text("\n".join([*ASKED, ""]) + "\n", encoding="utf-8")
    capsys.readouterr()
    cli.main(["predict", str(run), "--file", "asked.txt", "--context", "long.txt"])
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in shown] == [*ASKED, ""]
    for row in shown[:3]:
        assert row["prediction"] == "good"
        assert long[row["start"] : row["end"]] == "good"
    assert shown[3]["prediction"] is None
    cli.main(["predict", str(run), ASKED[1], "--context", "long.txt", "--format", "csv"])
    shown_csv = capsys.readouterr().out
    assert shown_csv.splitlines()[0] == "question,prediction,start,end,score,candidates"
    (line,) = csv.DictReader(shown_csv.splitlines())
    assert json.loads(line["candidates"]) == shown[1]["candidates"]
    files.write(run)
    assert answers_of_the_card(run, [{"question": ASKED[0], "context": long}]) == ["good"]
    with pytest.raises(SystemExit):
        cli.main(["predict", str(run), "Which film?"])
    assert "add --context FILE.txt" in capsys.readouterr().err


def test_questions_without_an_answer_have_a_threshold_of_validation(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("asked.json"), rows(200, without=80))
    run, job = train_job(path, "--num_train_epochs", "8", "--validation_size", "40")
    results = run.results()
    assert job.calibrates
    assert any("training questions without an answer" in n for n in results["data"]["notes"])
    metrics = results["metrics"]
    assert metrics["has_answer_f1"]["n"] + metrics["no_answer_accuracy"]["n"] == 24
    never = results["baselines"]["no answer"]
    assert never["answer_f1"]["value"] == metrics["no_answer_accuracy"]["n"] / 24
    assert never["difference"]["low"] > 0
    assert metrics["no_answer_accuracy"]["value"] > 0.8
    # Saved, and the threshold of the chosen weights, not of the last evaluation.
    threshold = results["data"][THRESHOLD]
    validation = job.data.validation.to_dict("records")
    model, processor, read = inference.load(run)
    outputs = inference.outputs(model, processor, read, validation)
    truth = squad.references(job.data.validation["label"])
    assert threshold == pytest.approx(squad.best_threshold(outputs, truth), abs=1e-4)
    tested = run.predictions().to_dict("records")
    assert {row["prediction"] == "" for row in tested} == {True, False}
    files.write(run)
    assert answers_of_the_card(run, tested) == [row["prediction"] for row in tested]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "F1 where there is an answer" in page
    cli.main(["evaluate", str(run), "asked.json"])
    shown = capsys.readouterr().out
    assert "asked.json: 200 rows" in shown


def test_shuffled_answers_give_chance(path: Path) -> None:
    draw, given = random.Random(1), rows(136)
    for row in given:
        words = row["context"].split()
        # Nothing is left of an article.
        places = [i for i, word in enumerate(words) if word not in {"a", "the"}]
        row["answers"] = [word(words, draw.choice(places))]
    write(Path("asked.json"), given)
    run = train(path, "--num_train_epochs", "5")
    found = run.results()["metrics"]["exact_match"]
    # Nothing is better than the most frequent word of each text.
    counts = [Counter(c.replace("the", "a").split()) for c in run.predictions()["context"]]
    shares = [max(v for k, v in c.items() if k != "a") / (c.total() - c["a"]) for c in counts]
    assert found["low"] < sum(shares) / len(shares) < 0.5


def test_it_learns_16_questions_by_heart(path: Path) -> None:
    draw, given = random.Random(1), rows(16)
    for row in given:
        words = row["context"].split()
        row["answers"] = [word(words, draw.randrange(len(words)))]
    write(Path("asked.json"), given)
    flags = ["--test", "asked.json", "--validation_size", "0", "--allow_overlap", "true"]
    flags += ["--num_train_epochs", "60"]
    assert train(path, *flags).results()["metrics"]["exact_match"]["value"] == 1.0


@pytest.mark.parametrize("method", ["full", "head", "lora", "bottleneck"])
def test_a_tuned_model_is_loaded_to_the_last_bit(path: Path, method: str) -> None:
    flags = ["--method", method, "--learning_rate", "5e-3", "--num_train_epochs", "3"]
    run, job = train_job(path, *flags)
    model, processor, read = inference.load(run)
    given = job.data.test.to_dict("records")
    for after, before in zip(
        inference.outputs(model, processor, read, given),
        inference.outputs(job.model.eval(), processor, read, given),
        strict=True,
    ):
        assert after == before
    files.write(run)
    rows_of = run.predictions().to_dict("records")
    assert answers_of_the_card(run, rows_of) == [row["prediction"] for row in rows_of]


def test_an_adapter_sees_token_types(path: Path) -> None:
    """peft's own model for the task would drop them."""
    _, job = train_job(path, "--method", "lora", "--max_steps", "1")
    ids = torch.tensor([[2, 5, 3, 6, 7, 3]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        one = job.model(**given, token_type_ids=kinds).start_logits
        other = job.model(**given, token_type_ids=0 * kinds).start_logits
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_resumes_to_the_same_bits(path: Path, method: str) -> None:
    write(Path("asked.json"), rows(136, without=40))
    flags = ["--method", method, "--num_train_epochs", "3"]
    whole = train(path, *flags, "--output_dir", "runs/whole")
    build = question_answering.TASK.build
    with pytest.raises(KeyboardInterrupt):
        train(path, *flags, build=interrupted(build))
    run = train(path, *flags, resume=True)
    assert run.history() == whole.history()
    for part in ("metrics", "chosen", "data"):
        assert run.results()[part] == whole.results()[part]
    assert run.predictions().equals(whole.predictions())


def test_a_window_s_loss_does_not_depend_on_its_batch(path: Path) -> None:
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        recipe.read(path).model.checkpoint
    ).eval()
    question_answering.leave_out_padding(model)
    ids = torch.tensor([[2, 5, 3, 6, 7, 3]])
    wide = functional.pad(ids, (0, 9))
    label = torch.tensor([[3, 4]])
    with torch.no_grad():
        alone = losses.answer_loss(model(input_ids=ids, attention_mask=ids > 0), label)
        padded = losses.answer_loss(model(input_ids=wide, attention_mask=wide > 0), label)
        out = model(input_ids=ids, attention_mask=ids > 0)
        pair = [functional.cross_entropy(out[n], label[:, i]) for i, n in enumerate(out)]
    assert float(alone) == pytest.approx(float(padded), abs=1e-6)
    # transformers' own mean of both.
    assert float(alone) == pytest.approx(float(sum(pair)) / 2, abs=1e-6)


def test_batches_are_without_padding_and_the_run_is_the_same(path: Path) -> None:
    free, job = train_job(path, "--output_dir", "free")
    padded, other = train_job(path, "--output_dir", "padded", "--padding_free", "false")
    assert "batches without padding by SDPA per sequence" in " ".join(job.notes)
    assert "batches padded: the recipe says so" in other.notes
    pairs = [[row["loss"] for row in r.history() if "loss" in row] for r in (free, padded)]
    assert pairs[0] == pytest.approx(pairs[1], abs=1e-4)


def test_what_cannot_be_learned_is_counted_or_refused(path: Path) -> None:
    given = rows(60)
    given[0]["answers"] = [{"text": given[0]["context"], "answer_start": 0}]
    long = " ".join(["the film", *NOT_OPINIONS * 3])
    whole = [{"text": long, "answer_start": 0}]
    given.append({"question": "the film", "context": long, "answers": whole})
    film = [{"text": "film", "answer_start": 2}]
    given.append({"question": " ".join(["a film"] * 9), "context": "a film", "answers": film})
    write(Path("asked.json"), given)
    flags = ["--test", "test.json", "--validation_size", "0"]
    write(Path("test.json"), rows(8, seed=5))
    job = question_answering.TASK.build(recipe.load(path, flags))
    notes = job.data.report["notes"]
    assert "1 training questions cut to half of max_length" in notes
    assert "1 training answers longer than a window, left out" in notes
    assert any(n.startswith("1 training answers above max_answer_length 4") for n in notes)
    assert 60 not in set(job.splits["train"]["number"])
    assert any(n.endswith("windows of 62 training questions") for n in notes)
    for more, message in (
        (["--stride", "9"], "windows of max_length 16 have 5 tokens of context"),
        (["--method", "prompt_tuning"], "prompt_tuning shifts the tokens"),
    ):
        with pytest.raises(UserError, match=message):
            question_answering.TASK.build(recipe.load(path, [*flags, *more]))


def test_the_report_marks_both_answers(path: Path) -> None:
    run = train(path, "--max_steps", "1")
    files.write(run)
    wrong = [
        row
        for row in run.predictions().to_dict("records")
        if row["prediction"] != row["label"][0]["text"]
    ]
    assert wrong
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for row in wrong[:20]:
        assert row["question"] in page
        answer = row["label"][0]["text"]
        marks = [
            f"<mark>{answer} <small>{kind}</small></mark>" for kind in ("true", "predicted, true")
        ]
        assert any(mark in page for mark in marks)
