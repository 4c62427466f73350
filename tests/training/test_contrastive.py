"""Contrastive tuning: pairs, the fitted head, and runs that train, stop and load like others."""

import copy
import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, default_data_collator

from finetune import recipe
from finetune.errors import UserError
from finetune.models import heads
from finetune.training.contrastive import TripletCollator, contrastive_loss, fit, parts
from finetune.training.losses import ClassificationLoss
from tests.conftest import sentences, train, train_job, write_csv
from tests.models.test_tuning import ARCHITECTURES
from tests.training.test_resume import assert_same, end, stop_and_resume

METHOD = ["--method", "contrastive"]
LABELS = [0, 0, 0, 1, 1, 2]


def collator(seed: int = 0) -> TripletCollator:
    rows = Dataset.from_dict({"labels": LABELS, "input_ids": [[i] for i in range(len(LABELS))]})
    return TripletCollator(lambda rows: rows, rows, seed)  # pyright: ignore[reportArgumentType]


def test_partners_follow_from_seed_epoch_and_row_and_have_the_right_classes() -> None:
    rows = list(range(len(LABELS)))
    seen: dict[int, set[int]] = {}
    for epoch in range(60):
        found = collator().partners(rows, [epoch] * len(rows))
        same, different = found[: len(rows)], found[len(rows) :]
        assert [LABELS[i] for i in same] == LABELS
        assert all(LABELS[i] != LABELS[row] for row, i in zip(rows, different, strict=True))
        # A row alone in its class has no other.
        assert [row for row, i in zip(rows, same, strict=True) if row == i] == [5]
        assert collator().partners([4, 1], [epoch, epoch]) == [
            same[4],
            same[1],
            *(different[4], different[1]),
        ]
        for row, i in zip(rows, different, strict=True):
            seen.setdefault(row, set()).add(i)
    assert seen[0] == {3, 4, 5}
    assert seen[5] == {0, 1, 2, 3, 4}
    assert collator(1).partners(rows, [0] * 6) != collator(0).partners(rows, [0] * 6)


def test_the_loss_is_zero_when_classes_are_orthogonal_and_counts_rows_of_the_step() -> None:
    right = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    wrong = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    label = torch.tensor([0])
    assert contrastive_loss({"logits": right}, label).item() == 0  # pyright: ignore
    assert contrastive_loss({"logits": wrong}, label).item() == pytest.approx(2)  # pyright: ignore
    half = contrastive_loss({"logits": wrong}, label, torch.tensor(2))  # pyright: ignore
    assert half.item() == pytest.approx(1)


def test_sixteen_rows_are_learned_and_the_folder_is_a_plain_classifier(tiny_recipe: Path) -> None:
    from transformers import pipeline

    rows = ["--max_train_samples", "16", "--validation_size", "0", "--num_train_epochs", "40"]
    run, job = train_job(tiny_recipe, *METHOD, *rows)
    assert len(job.data.train) == 16
    classify = pipeline("text-classification", model=str(run.model))
    found = classify(list(job.data.train["text"]))
    names = [job.data.label_names[label] for label in job.data.train["label"]]
    assert [each["label"] for each in found] == names
    rows = run.predictions()
    ours = numpy.stack(rows["probabilities"].tolist()).max(1)
    again = classify(list(rows["text"]))
    assert [each["label"] for each in again] == list(rows["prediction"])
    assert [each["score"] for each in again] == pytest.approx(ours, abs=1e-5)
    assert run.results()["metrics"]["accuracy"]["value"] > 0.8
    losses = [row["loss"] for row in run.history() if "loss" in row]
    assert numpy.mean(losses[-5:]) < 0.1 * losses[0]


def test_labels_are_learned_and_shuffled_ones_give_chance(tiny_recipe: Path) -> None:
    texts, labels = zip(*sentences(336), strict=True)
    shuffled = random.Random(0).sample(labels, len(labels))
    rows = ["--holdout", "200", "--validation_size", "0", "--num_train_epochs", "8"]
    for name, given in (("true", labels), ("shuffled", shuffled)):
        write_csv(Path(f"{name}.csv"), list(zip(texts, given, strict=True)))
        run = train(tiny_recipe, *METHOD, "--train", f"{name}.csv", *rows, "--output_dir", name)
        accuracy = run.results()["metrics"]["accuracy"]
        assert (accuracy["low"] > 0.8) == (name == "true")
        assert (accuracy["low"] < 0.5 < accuracy["high"]) == (name == "shuffled")


def test_the_head_is_the_logistic_regression_and_leaves_absent_classes_out(
    tiny_recipe: Path,
) -> None:
    from sklearn.linear_model import LogisticRegression
    from transformers import DataCollatorWithPadding

    names = ["bad", "good", "mixed"]
    rows = [(text, names[i % 3]) for i, (text, _) in enumerate(sentences(60))]
    write_csv(Path("three.csv"), rows)
    _, job = train_job(tiny_recipe, *METHOD, "--train", "three.csv", "--holdout", "12")
    model: Any = job.model
    pad: Any = DataCollatorWithPadding(job.processor)
    for labels in ([0, 1, 2], [0, 2]):
        kept = job.splits["train"].filter(lambda row, labels=labels: row["labels"] in labels)
        fit(model, model.classifier, kept, pad)
        model.eval()
        batch = pad([{k: row[k] for k in ("input_ids", "attention_mask")} for row in kept])
        with torch.no_grad():
            embeddings = model.bert(**batch).pooler_output
            found = model(**batch).logits.softmax(1).numpy()
        expected = LogisticRegression(max_iter=1000).fit(embeddings.numpy(), kept["labels"][:])
        assert found[:, labels] == pytest.approx(
            expected.predict_proba(embeddings.numpy()), abs=1e-4
        )
        assert found[:, labels].sum(1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("at", [("training_step", 9), ("prediction_step", 1)])
def test_a_stopped_and_resumed_run_ends_like_an_uninterrupted_one(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int]
) -> None:
    flags = [*METHOD, "--config", "{hidden_dropout_prob: 0.1}", "--max_train_samples", "48"]
    whole = end(train(tiny_recipe, *flags, "--num_train_epochs", "4", "--output_dir", "runs/whole"))
    flags += ["--num_train_epochs", "4"]
    run = stop_and_resume(monkeypatch, tiny_recipe, *flags, at=at, number=signal.SIGTERM)
    assert_same(whole, end(run))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problem_type", "regression", "--label", "stars"], "needs one label a row"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor needs classes"),
        (["--max_train_samples", "1"], "needs training rows of two classes"),
        (["--quantization", "nf4"], "weights in nf4 cannot be trained"),
    ],
)
def test_what_it_cannot_do_is_an_error(tiny_recipe: Path, words: list[str], message: str) -> None:
    rated = [(text, str(i % 5)) for i, (text, _) in enumerate(sentences(60))]
    if "regression" in words:
        write_csv(Path("rated.csv"), rated, "text,stars")
        words = [*words, "--train", "rated.csv"]
    with pytest.raises(UserError, match=message):
        train(tiny_recipe, *METHOD, *words)


def test_other_tasks_have_no_pairs(workdir: Path) -> None:
    rows = [json.dumps({"text": text}) for text, _ in sentences(20)]
    Path("texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    Path("writer.yaml").write_text(
        "task: text-generation\nmodel: {checkpoint: new:gpt2}\ndata: {train: texts.jsonl}\n"
        "tuning: {method: contrastive}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"writer.yaml:4: contrastive pairs texts by their class"):
        train(Path("writer.yaml"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_learns_from_what_its_last_layer_reads(name: str, tiny_recipe: Path) -> None:
    torch.manual_seed(0)
    config: Any = copy.deepcopy(ARCHITECTURES[name])
    config.num_labels, config.pad_token_id = 2, 0
    model = AutoModelForSequenceClassification.from_config(config)
    ids = torch.randint(5, 50, (12, 6)).tolist()
    labels = [i % 2 for i in range(12)]
    rows = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 6] * 12, "labels": labels, "length": [6] * 12}
    )
    splits = {"train": rows}
    loss = ClassificationLoss("single_label_classification")
    read = recipe.load(tiny_recipe, METHOD)
    found = parts(model, splits, default_data_collator, read, loss)
    model.train()
    batch = found["collator"](splits["train"].__getitems__([0, 1, 2]))
    counted = batch.pop("labels")
    outputs = model(**batch)
    (layer,) = heads.output_layers(model)
    assert outputs.logits.shape == (9, layer.in_features)
    found["loss"](outputs, counted, num_items_in_batch=torch.tensor(3)).backward()
    assert layer.weight.grad is None
    learned = [p for p in model.base_model.parameters() if p.grad is not None and p.grad.any()]
    assert len(learned) >= 0.8 * len([*model.base_model.parameters()])
    found["before_evaluation"]()
    assert model.training
    model.eval()
    batch = {k: torch.tensor(rows[k][:]) for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (12, 2)
    expected = loss({"logits": logits}, torch.tensor(labels))
    assert expected < 0.69
