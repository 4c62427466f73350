"""What validation decided is said and drawn: thresholds, calibration, abstaining, curves."""

import re

import numpy
import pandas

from finetune import run_directory
from finetune.report import card, decided, figures, page, tables
from tests.report.test_report import ROWS, changed, metric, write

__all__ = ["write"]

DECIDED = {
    "data__thresholds": {"positive": 0.3125},
    "calibration": {
        "temperature": 1.5,
        "before": {"calibration_error": metric(0.05), "log_loss": metric(0.3)},
    },
    "abstain": [
        {"confidence": 0.9, "coverage": 0.5, "accuracy": metric(0.97)},
        {"confidence": 0.8, "coverage": 0.75, "accuracy": None},
    ],
}
MEASURED = {
    "accuracy": metric(0.75),
    "calibration_error": metric(0.02),
    "log_loss": metric(0.25),
}


def test_decisions_are_sentences() -> None:
    thresholds, calibrated, first, second = decided.lines(changed(metrics=MEASURED, **DECIDED))
    assert "positive 0.312" in thresholds
    assert "temperature of 1.5," in calibrated
    assert re.search(r"calibration error 0\.0500 \[.*\] before, 0\.0200 \[.*\] after", calibrated)
    assert first.startswith("With a probability of 90.0 % or more 50.0 % of the test rows")
    assert "97.0 %" in first
    assert "above which 95 % of the validation rows are right" in second
    assert decided.lines(changed()) == []
    never = changed(metrics=MEASURED, abstain=DECIDED["abstain"][:1])
    assert decided.lines(never)[1].startswith("No probability has 95 %")


def test_decisions_are_in_the_table_the_page_and_the_card(write) -> None:
    run = write(changed(metrics=MEASURED, **DECIDED))
    from finetune import recipe

    read = recipe.read(run.folder / run_directory.RECIPE)
    for text in (tables.summary(run), page.render(run), card.render(read, run.results())):
        assert "temperature of" in " ".join(text.split())
    html = page.render(run)
    assert "Accuracy over coverage" in html
    assert "Precision-recall and ROC curves" in html


def test_suspects_and_augmented_texts_are_on_the_page(write) -> None:
    sheet = [{"text": "a fine film", "epochs": ["a film", "fine film"]}]
    run = write(changed(augmented=sheet))
    row = {"id": "train-7", "text": "<b>dull</b>", "label": "positive", "suggested": "negative"}
    run.write_label_errors([row | {"quality": "0.031", "probably_wrong": "yes"}])
    html = page.render(run)
    assert "<strong>a fine film</strong>" in html
    assert "fine film</blockquote>" in html
    assert "&lt;b&gt;dull&lt;/b&gt;" in html
    assert "0.031" in html
    assert "Labels that are probably wrong" not in page.render(write(changed(name="other")))


def test_curves_are_of_the_rarest_classes() -> None:
    draw = numpy.random.default_rng(0)
    names = [f"class {k}" for k in range(12)]
    labels = numpy.concatenate([numpy.full(5 + k, k) for k in range(12)])
    shares = draw.dirichlet(numpy.ones(12), len(labels)) + numpy.eye(12)[labels]
    rows = pandas.DataFrame(
        {"label": [names[k] for k in labels], "probabilities": list(shares / 2)}
    )
    drawn = figures.ranking(rows, names, None)
    assert drawn is not None
    assert [name for name in names if f">{name} " in drawn] == names[:8]
    two = figures.ranking(ROWS, ["negative", "positive"], "negative")
    assert two is not None
    assert ">negative 0.917" in two
    assert ">positive " not in two
    alone = ROWS.assign(label="positive")
    assert figures.ranking(alone, ["negative", "positive"], None) is None
