"""Token classification: windows, words and pieces, and everything that a run promises."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
from transformers import pipeline
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from finetune import cli, inference, recipe, run_directory
from finetune.data import word_pieces
from finetune.errors import UserError
from finetune.inference import evaluation
from finetune.report import files
from finetune.tasks import token_classification
from finetune.training.job import Job
from tests.conftest import make_bert, make_writer, resume_to_the_bit, train, train_job
from tests.training.test_processes import SEVERAL, launch, losses

TASK = token_classification.TASK
# Of these names with two pieces each, the first begins an entity of its type.
NAMES = {"ada": "PER", "bob": "PER", "oslo": "LOC", "rome": "LOC"}
WORDS = ["saw", "in", "the", "rain", "and", "left", ".", "'"]
PIECES = ["##s", "lace"]
BOTH = ("full", "lora")


@pytest.fixture(scope="module")
def names_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights, whose tokenizer divides some words."""
    return make_bert(tmp_path_factory.mktemp("names-bert"), [*NAMES, *WORDS, *PIECES])


def sentences(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Different sentences of tokens and tags; names and the words after them are entities."""
    draw, rows = random.Random(seed), {}
    while len(rows) < count:
        tokens, tags = [], []
        for _ in range(draw.randint(2, 5)):
            tokens.append(draw.choice(WORDS[:6]))
            tags.append("O")
            if draw.random() < 0.5:
                name = draw.choice(list(NAMES))
                tokens += [name + draw.choice(["", "s"]), "lace"][: draw.randint(1, 2)]
                tags += [f"B-{NAMES[name]}", f"I-{NAMES[name]}"][: len(tokens) - len(tags)]
        rows[" ".join(tokens)] = {"tokens": tokens, "tags": tags}
    return list(rows.values())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def path(workdir: Path, names_bert: Path) -> Path:
    write(workdir / "rows.jsonl", sentences(136))
    made = workdir / "names.yaml"
    made.write_text(
        f"""\
task: token-classification
model: {{checkpoint: "{names_bert}", max_length: 32}}
data: {{train: rows.jsonl, text: tokens, label: tags, holdout: 24, validation_size: 16}}
training:
  learning_rate: 5.0e-3
  per_device_train_batch_size: 8
  num_train_epochs: 4
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


# --- windows and words ------------------------------------------------------------------------


def test_windows_predict_every_piece_once_with_context_on_both_sides() -> None:
    for count in range(200):
        for size in (1, 2, 5, 16, 30):
            found = word_pieces.windows(count, size)
            assert [i for _, predicted in found for i in predicted] == list(range(count))
            for window, predicted in found:
                assert len(window) <= size
                assert not predicted or (predicted.start in window and predicted.stop - 1 in window)
                if window.start and predicted:
                    assert predicted.start - window.start >= int(size * word_pieces.OVERLAP) // 2


def test_the_first_piece_of_a_word_is_labelled(path: Path) -> None:
    # Twice, so that it stays in train.
    row = {"tokens": ["adas", "lace", "\u200b", "in"], "tags": ["B-PER", "I-PER", "I-PER", "O"]}
    write(path.with_name("rows.jsonl"), [row, row, *sentences(40)])
    job = TASK.build(recipe.load(path, ["--holdout", "4", "--validation_size", "4"]))
    names = job.data.label_names
    at = list(job.data.train["text"]).index("adas lace \u200b in")
    found = job.splits["train"][at]
    pieces = job.processor.convert_ids_to_tokens(found["input_ids"])
    assert pieces == ["[CLS]", "ada", "##s", "lace", "in", "[SEP]"]
    labels = [names[k] if k >= 0 else "" for k in found["labels"]]
    assert labels == ["", "B-PER", "", "I-PER", "O", ""]
    # A word that the tokenizer leaves nothing of is predicted, too: as O.
    logits = numpy.zeros((1, 6, len(names)))
    logits[..., names.index("B-PER")] = 1
    (words,) = TASK.join([[token_classification._tagged(logits[0], *columns(found))]], [])
    assert words.tags(names) == ["B-PER", "B-PER", "O", "B-PER"]


def columns(row: dict[str, Any]) -> list[numpy.ndarray]:
    return [numpy.array(row[name]) for name in word_pieces.WORD_COLUMNS]


def test_a_document_of_3000_words_has_one_prediction_a_word(path: Path) -> None:
    run = train(path, "--max_steps", "1")
    model, tokenizer, read = inference.load(run)
    tokens = random.Random(0).choices([*NAMES, *WORDS[:6], "adas"], k=3000)
    places = word_places(tokens)
    row = {"text": " ".join(tokens), "words": json.dumps(places)}
    for given in (row, {"text": row["text"]}):
        (words,) = inference.outputs(model, tokenizer, read, [given])
        assert words.places.tolist() == places
        assert words.logits.shape == (3000, 5)


def word_places(tokens: list[str]) -> list[list[int]]:
    places, at = [], 0
    for token in tokens:
        places.append([at, at + len(token)])
        at += len(token) + 1
    return places


def test_a_long_row_is_learned_and_tested_in_windows(path: Path) -> None:
    rows = sentences(60)
    long = {k: [part for row in rows[:30] for part in row[k]] for k in ("tokens", "tags")}
    write(path.with_name("rows.jsonl"), [long, *rows])
    job = TASK.build(recipe.load(path, ["--allow_overlap", "true"]))
    split = next(n for n in job.splits if (job.data.__dict__[n]["text"].str.len() > 300).any())
    labels = [k for row in job.splits[split]["labels"] for k in row if k >= 0]
    assert len(labels) == sum(len(json.loads(w)) for w in getattr(job.data, split)["words"])
    assert job.blocks == (split == "train")
    logits = numpy.random.default_rng(0).normal(size=(len(job.splits[split]), 32, 5))
    outputs, truth = job.collect(logits, None, split)
    assert [len(words.logits) for words in outputs] == [len(row) for row in truth]


def texts(count: int) -> list[str]:
    """Texts of every kind of character."""
    draw = random.Random(0)
    parts = [
        "ada",
        "adas",
        "lace",
        "oslo",
        "in",
        "Rome",
        "'s",
        ".",
        "-",
        "é",
        "北京",
        "😀",
        "x1",
        "…",
    ]
    return [
        "".join(draw.choice(parts) + draw.choice(["", " ", "  ", "\n"]) for _ in range(5)).strip()
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["word pieces", "bytes"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")
def test_predictions_are_those_of_the_pipeline(path: Path, kind: str) -> None:
    flags = ["--checkpoint", str(make_writer(path.with_name("bytes"), "gpt2"))]
    # Random weights find all kinds of entities.
    flags = [*(flags if kind == "bytes" else []), "--max_steps", "1", "--learning_rate", "1e-9"]
    run = train(path, *flags)
    given = [*texts(40), "\u200b"]
    find = pipeline("token-classification", model=str(run.model), device="cpu")
    found = inference.predict(run, [{"text": text} for text in given])
    expected = [find(text, aggregation_strategy="first") for text in given]
    assert sum(map(len, expected)) > 40
    for ours, theirs in zip(found, expected, strict=True):
        keys = ("start", "end", "entity_group")
        spans = [(each["start"], each["end"], each["label"]) for each in ours["prediction"]]
        assert spans == [tuple(each[key] for key in keys) for each in theirs]
        scores = [each["score"] for each in ours["prediction"]]
        assert scores == pytest.approx([float(each["score"]) for each in theirs], abs=2e-6)


# --- a run -------------------------------------------------------------------------------------


@pytest.fixture
def learned(path: Path) -> tuple[run_directory.Run, Job]:
    return train_job(path, "--num_train_epochs", "15")


def test_a_run_learns_shows_and_predicts_entities(
    learned: tuple[run_directory.Run, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = learned
    results = run.results()
    assert results["headline"] == "entity_f1"
    assert results["metrics"]["entity_f1"]["value"] > 0.8
    assert results["metrics"]["entity_f1"]["n"] == 24
    assert {*results["per_class"]} == {"PER", "LOC"}
    assert {*results["baselines"]} == {
        *("most frequent tag of each word", "logistic regression on words")
    }
    files.write(run)
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert 'find_entities = pipeline("token-classification", model=' in card
    assert 'aggregation_strategy="first"' in card

    cli.main(["predict", str(run), "saw ada in rome"])
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["text"] == "saw ada in rome"
    spans = [(each["start"], each["end"], each["label"]) for each in line["prediction"]]
    assert spans == [(4, 7, "PER"), (11, 15, "LOC")]
    cli.main(["predict", str(run), "saw ada", "--format", "csv"])
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert json.loads(row["prediction"])[0]["label"] == "PER"
    # What the test found is what the saved model predicts.
    rows = run.predictions()
    found = inference.predict(run, [*rows[["text", "words"]].to_dict("records")])
    for each, cell in zip(found, rows["prediction"], strict=True):
        scores = [[span.pop("score") for span in spans] for spans in (each["prediction"], cell)]
        assert each["prediction"] == list(cell)
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_what_the_test_found_is_what_evaluate_finds(
    learned: tuple[run_directory.Run, Job],
) -> None:
    run, _ = learned
    rows = run.predictions()
    given = [
        {"text": text, "spans": [dict(each) for each in label]}
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    file = str(write(Path("new.jsonl"), given))
    found = evaluation.evaluate(run, file, {"text": "text", "label": "spans"})
    assert found["metrics"] == run.results()["metrics"]
    assert found["per_class"] == run.results()["per_class"]
    assert found["drift"]["words in a text"]["new"] > 2
    given[1]["spans"] = [{"start": 0, "end": 3, "label": "ORG"}]
    write(Path("new.jsonl"), given)
    with pytest.raises(UserError, match=r"new.jsonl:2: entity type 'ORG' does not occur"):
        evaluation.evaluate(run, file, {"text": "text", "label": "spans"})


def test_the_report_marks_true_and_predicted_entities(path: Path) -> None:
    run = train(path, "--max_steps", "1")
    files.write(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    (mistake, *_) = TASK.mistakes(run.predictions(), {}, 20) or []
    assert list(mistake.marked) == ["true", "predicted"]
    for parts in mistake.marked.values():
        assert "".join(part for part, _ in parts) == mistake.text
    part, label = next(pair for pair in mistake.marked["true"] if pair[1])
    assert f"<mark>{part} <small>{label}</small></mark>" in page
    assert '<th class="right" scope="col">entities</th>' in page


def test_rows_to_predict_are_texts_or_tokens(learned: tuple[run_directory.Run, Job]) -> None:
    run, _ = learned
    Path("new.conll").write_text("saw O\nada's O\n\nin O\n", encoding="utf-8")
    rows = inference.read_rows([], "new.conll", run)
    assert [row["text"] for row in rows] == ["saw ada's", "in"]
    assert len(inference.predict(run, rows)) == 2
    # As tokens, and as the pipeline divides them.
    (words,) = inference.outputs(*inference.load(run), rows[:1])
    assert words.places.tolist() == [[0, 3], [4, 9]]
    Path("new.txt").write_text("saw ada's\n\n", encoding="utf-8")
    rows = inference.read_rows([], "new.txt", run)
    assert inference.predict(run, rows)[1] == {"prediction": None}
    write(Path("bad.jsonl"), [{"tokens": ["a", ""]}, {"tokens": ["b"]}])
    with pytest.raises(UserError, match=r"bad.jsonl:1: token 2 is '', not a word"):
        inference.read_rows([], "bad.jsonl", run)


def test_check_counts_entities_and_cuts_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["check", str(path), "--max_length", "5"])
    shown = " ".join(capsys.readouterr().out.split())
    train = TASK.build(recipe.load(path)).data.train
    assert f"{sum(map(len, train['label']))} entities" in shown
    assert "continue in another row" in shown


# --- what every task promises ------------------------------------------------------------------


def test_shuffled_tags_give_chance(path: Path) -> None:
    draw, rows = random.Random(0), sentences(136)
    every = [tag for row in rows for tag in row["tags"]]
    draw.shuffle(every)
    for row in rows:
        row["tags"] = [every.pop() for _ in row["tags"]]
    write(path.with_name("rows.jsonl"), rows)
    found = train(path).results()["metrics"]["entity_f1"]
    assert found["value"] < 0.25


def test_sixteen_rows_are_learned_by_heart(path: Path) -> None:
    run, job = train_job(
        path, "--max_train_samples", "16", "--num_train_epochs", "60", "--validation_size", "0"
    )
    rows = job.data.train.to_dict("records")
    assert len(rows) == 16
    found = inference.predict(run, [{k: row[k] for k in ("text", "words")} for row in rows])
    spans = [[{k: e[k] for k in ("start", "end", "label")} for e in f["prediction"]] for f in found]
    assert spans == [row["label"] for row in rows]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(path: Path) -> None:
    rows = "--per_device_train_batch_size"
    alone = {m: train(path, "--method", m, rows, "14", "--output_dir", f"one/{m}") for m in BOTH}
    runs = [["names.yaml", "--method", m, rows, "7", "--output_dir", f"two/{m}"] for m in BOTH]
    launch(2, SEVERAL, json.dumps(runs))
    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        assert list(two.predictions()["id"]) == list(one.predictions()["id"])
        assert two.results()["metrics"]["entity_f1"]["n"] == 24


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_resumes_to_the_same_bits(path: Path, method: str) -> None:
    resume_to_the_bit(path, TASK.build, "--method", method)


@pytest.mark.parametrize("method", ["full", "lora", "bottleneck", "head"])
def test_a_saved_model_has_the_bits_of_the_trained_one(path: Path, method: str) -> None:
    run, job = train_job(path, "--method", method, "--learning_rate", "1e-3")
    rows = [{"text": " ".join(row["tokens"])} for row in sentences(8, seed=3)]
    loaded = inference.load(run)
    expected = inference.outputs(job.model.eval(), job.processor, loaded[2], rows)
    for ours, theirs in zip(inference.outputs(*loaded, rows), expected, strict=True):
        assert numpy.array_equal(ours.logits, theirs.logits)
    trained = {n for n, p in job.model.named_parameters() if p.requires_grad}
    assert any("classifier" in name for name in trained)
    if method == "head":
        assert all("classifier" in name for name in trained)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_batches_without_padding_have_the_padded_losses(path: Path, method: str) -> None:
    runs = {}
    for free in ("true", "false"):
        flags = ["--padding_free", free, "--method", method, "--output_dir", f"runs/{free}"]
        run, job = train_job(path, *flags)
        runs[free] = losses(run)
        assert any("without padding" in note for note in job.notes) == (free == "true")
    assert runs["true"] == pytest.approx(runs["false"], abs=1e-5)
    assert len(runs["true"]) == 48


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "prompt_tuning"], "adds tokens, which have no word; use lora"),
        (["--test_views", "2"], "augmentation changes images"),
        (["--metrics", "[hamming_loss]"], "token classification takes no further metrics"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TASK.build(recipe.load(path, flags))


def test_a_tokenizer_that_tells_no_words_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenizersBackend, "is_fast", False)
    with pytest.raises(UserError, match=r"take a checkpoint with a tokenizer.json"):
        TASK.build(recipe.load(path))
