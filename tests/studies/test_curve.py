"""Learning curves: the fit of a power law, and the command."""

import json
from pathlib import Path

import numpy
import pytest

from finetune import cli
from finetune.studies import curve
from tests.conftest import sentences, write_csv

ROWS = [200, 400, 800, 1600, 3200, 6400]


def law(rows: list[float]) -> numpy.ndarray:
    return 2.0 * numpy.array(rows, float) ** -0.5 + 0.08


def test_a_power_law_is_found_again() -> None:
    found = curve.fit(ROWS, law(ROWS), numpy.full(6, 1e-4), [12800])
    assert found.values == pytest.approx(law([12800]), abs=1e-4)
    assert found.exponent == pytest.approx(0.5, abs=0.01)
    assert found.low[0] < law([12800])[0] < found.high[0]


def test_the_interval_holds_the_true_error_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curve, "RESAMPLES", 100)
    draw = numpy.random.default_rng(1)
    inside = 0
    for _ in range(12):
        errors = law(ROWS) + draw.normal(0, 0.006, 6)
        found = curve.fit(ROWS, errors, numpy.full(6, 0.006), [12800])
        inside += bool(found.low[0] <= law([12800])[0] <= found.high[0])
    assert inside >= 10


def test_scatter_beyond_the_standard_errors_widens_the_interval() -> None:
    errors = law(ROWS) + numpy.array([1, -1, 1, -1, 1, -1]) * 0.02
    narrow = curve.fit(ROWS, law(ROWS), numpy.full(6, 0.002), [12800])
    wide = curve.fit(ROWS, errors, numpy.full(6, 0.002), [12800])
    assert (wide.high - wide.low)[0] > 3 * (narrow.high - narrow.low)[0]


@pytest.mark.parametrize(
    ("headline", "error"), [("accuracy", 0.25), ("bits_per_byte", 0.75), ("chrf", None)]
)
def test_errors_fall_as_models_get_better(headline: str, error: float | None) -> None:
    assert curve.is_fitted(headline) == (error is not None)
    if error is not None:
        assert curve.error_of(headline, 0.75) == error
        assert curve.error_of(headline, error) == 0.75


def test_six_sizes_say_what_twice_the_rows_would_bring(
    tiny_recipe: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(Path("reviews.csv"), sentences(340))
    command = ["train", str(tiny_recipe), "--learning_curve", "--num_train_epochs", "1"]
    cli.main(command)
    rows = {
        json.loads(path.read_text(encoding="utf-8"))["data"]["train"]
        for path in Path("runs/tiny-curve").glob("rows-*/seed-0/results.json")
    }
    assert rows == {300, 150, 75, 37, 18, 9}
    shown = " ".join(capsys.readouterr().out.split())
    assert "Twice the rows (600) would bring accuracy to" in shown
    page = Path("runs/tiny-curve/report.html").read_text(encoding="utf-8")
    assert "Power law over training rows" in page
    cli.main(command)
    assert len(started) == 6


def test_too_few_rows_are_a_mistake(
    tiny_recipe: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", str(tiny_recipe), "--learning_curve", "--max_steps", "1"])
    assert "96 training rows are too few for 6 sizes; it needs 256" in capsys.readouterr().err
