"""Tables, page and model card of made-up runs."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import yaml

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.evaluation import intervals
from finetune.report import card, comparison, figures, listing, page, tables, wording

RECIPE = """\
task: text-classification
model: {checkpoint: "embedded:minilm", max_length: 128, truncation: head+tail}
data: {dataset: "embedded:imdb"}
tuning: {method: full}
training: {learning_rate: 1.0e-4}
"""
HISTORY = [
    {"step": 1, "loss": 0.7, "grad_norm": 1.2, "learning_rate": 1e-4, "epoch": 0.1},
    {"step": 10, "loss": float("nan"), "epoch": 0.5},
    {"step": 20, "loss": 0.3, "epoch": 1.0},
    {"step": 20, "eval_loss": 0.4, "eval_accuracy": 0.85, "eval_macro_f1": 0.85, "epoch": 1.0},
]


def metric(value: float, reach: float = 0.01) -> dict[str, Any]:
    return {"value": value, "low": value - reach, "high": value + reach, "n": 4}


RESULTS: dict[str, Any] = {
    "name": "imdb/minilm",
    "task": "text-classification",
    "checkpoint": {"name": "embedded:minilm", "revision": None, "sha256": "53aa51172d142c89"},
    "method": "full",
    "seed": 0,
    "headline": "accuracy",
    "metrics": {"accuracy": metric(0.877), "macro_f1": metric(0.876), "log_loss": metric(0.33)},
    "per_class": {
        "negative": {"precision": 0.88, "recall": 0.87, "f1": 0.875, "rows": 1000},
        "positive": {"precision": None, "recall": 0.88, "f1": None, "rows": 1000},
    },
    "confusion": [[870, 130], [117, 883]],
    "reliability": {"confidence": [0.55, 0.9], "accuracy": [0.5, 0.8], "count": [10.0, 90.0]},
    "baselines": {
        "majority class": {"accuracy": metric(0.5)},
        "TF-IDF + logistic regression": {"accuracy": metric(0.868)},
    },
    "reference": {"metric": "accuracy", "value": 0.946, "source": "A 2019", "split": "official"},
    "chosen": {"step": 20, "value": 0.85, "metric": "eval_accuracy"},
    "steps": 20,
    "data": {
        "source": "embedded:imdb",
        "revision": None,
        "fingerprint": "32a5b62c6fd2fbcd",
        "train": 2000,
        "validation": 500,
        "test": 4,
        "test_is": "holdout",
        "problem_type": "single_label_classification",
        "label_names": ["negative", "positive"],
        "duplicates_in_train": 3,
        "contradictions_in_train": 0,
        "contradicting_rows": [],
        "test_texts_in_train": 0,
        "rejected": 0,
        "fixed": {},
        "share_truncated": 0.15,
    },
    "versions": {"finetune": "0.1.0", "torch": "2.13.0"},
    "git_commit": None,
    "device": "1 x cpu, 2 threads, fp32",
    "command": "finetune train recipes/imdb/minilm.yaml",
    "cost": {
        "train_seconds": 400.1,
        "total_seconds": 520.0,
        "tokens_seen": 880000,
        "tokens_per_second": 2200.0,
        "peak_memory_bytes": 3100000000,
        "trainable_parameters": 22713986,
        "total_parameters": 22713986,
        "model_bytes": 91600000,
    },
}
ROWS = pandas.DataFrame(
    {
        "id": ["train-1", "train-2", "train-3", "train-4"],
        "text": ["fine", "<script>alert(1)</script> bad", "word " * 400, "dull"],
        "label": ["positive", "negative", "negative", "negative"],
        "prediction": ["positive", "positive", "positive", "negative"],
        "probabilities": [[0.1, 0.9], [0.03, 0.97], [0.4, 0.6], [0.8, 0.2]],
    }
)


def changed(**values: Any) -> dict[str, Any]:
    """RESULTS with some values replaced; ``data__test=5`` reaches into ``data``."""
    results = copy.deepcopy(RESULTS)
    for name, value in values.items():
        section, _, key = name.partition("__")
        if key:
            results[section][key] = value
        else:
            results[section] = value
    return results


def scored(value: float, **values: Any) -> dict[str, Any]:
    return changed(metrics={"accuracy": metric(value)}, **values)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def written(
        results: dict[str, Any],
        folder: str | None = None,
        rows: pandas.DataFrame = ROWS,
        text: str = RECIPE,
    ) -> run_directory.Run:
        folder = folder or f"runs/{results['name']}/seed-{results['seed']}"
        run = run_directory.Run(folder)
        settings = yaml.safe_load(text)
        settings["training"] |= {"seed": results["seed"], "output_dir": folder}
        for scores in results["baselines"].values():
            headline = results["headline"]
            if headline in scores and headline in results["metrics"]:
                by = results["metrics"][headline]["value"] - scores[headline]["value"]
                scores["difference"] = {"value": by, "low": by - 0.015, "high": by + 0.015, "n": 4}
        with run.claim(yaml.safe_dump(settings), overwrite=True):
            run.begin(yaml.safe_dump(settings))
            for row in HISTORY:
                run.log(row)
            run.write_predictions(rows)
            run.write_results(results)
        return run

    return written


def many_classes(k: int) -> dict[str, Any]:
    names = [f"$class {i} with [a] rather long name$" for i in range(k)]
    scores = {"precision": 0.5, "recall": 0.5, "rows": 1000}
    return changed(
        per_class={name: scores | {"f1": 0.5 + i / 100} for i, name in enumerate(names)},
        confusion=numpy.full((k, k), 12345).tolist(),
        data__label_names=names,
    )


def own_rows(names: list[str]) -> pandas.DataFrame:
    shares = [[1 / len(names)] * len(names)] * 4
    return ROWS.assign(label=names[0], prediction=names[1], probabilities=shares)


def regression() -> dict[str, Any]:
    results = changed(
        headline="r2",
        metrics={"r2": metric(0.55), "rmse": metric(1.2)},
        baselines={
            "mean of train": {"r2": metric(0.0)},
            "TF-IDF + ridge regression": {"r2": metric(0.65)},
        },
        reference=None,
        chosen=None,
        data__problem_type="regression",
        data__label_names=[],
    )
    for name in ("per_class", "confusion", "reliability"):
        del results[name]
    return results


NUMBERS = ROWS.drop(columns="probabilities").assign(
    label=[1.0, 2.0, 3.0, 4.0], prediction=[1.1, 2.0, -3.5, 4.2]
)


# --- one run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 6, 7, 40])
def test_summary_fits_80_columns(write, k: int) -> None:
    results = many_classes(k)
    results["name"] = "a-dataset-with-a-name/" + "long" * 30
    results["data"]["source"] = "a/path/" * 30
    lines = tables.summary(write(results, "runs/" + "deep/" * 30 + "x")).splitlines()
    assert max(map(len, lines)) <= 80
    assert (k > 12) == any(f"{k - 12} more are in results.json" in line for line in lines)


def test_summary_of_two_classes_fits_one_screen(write) -> None:
    assert len(tables.summary(write(RESULTS)).splitlines()) <= 42


@pytest.mark.parametrize(
    ("value", "word", "sentence"),
    [
        (0.80, "worse", "worse than TF-IDF + logistic regression; better than majority class."),
        (0.87, "not clearly better", "not clearly better than TF-IDF + logistic regression (the "),
        (
            0.95,
            "better",
            "The model is better than majority class and TF-IDF + logistic regression.",
        ),
    ],
)
def test_verdict_on_the_linear_baseline(write, value: float, word: str, sentence: str) -> None:
    run = write(scored(value))
    row = next(line for line in tables.summary(run).splitlines() if line.startswith("TF-IDF"))
    assert row.split("]")[1].strip().startswith(f"{word}, ")
    assert sentence in page.render(run)
    assert sentence in card.render(load(run), run.results())


@pytest.mark.parametrize(
    ("value", "answer"), [(0.80, "no, -6.8 ["), (0.95, "yes, +8.2 ["), (0.87, "undecided, +0.2 [")]
)
def test_the_summary_ends_with_the_verdict_on_the_strongest_baseline(write, value, answer) -> None:
    run = write(scored(value))
    start = f"beats TF-IDF + logistic regression: {answer}"
    *_, last = re.split(r"\nverdict +", tables.summary(run))
    assert " ".join(last.split()).startswith(start)
    assert start in page.render(run)


def test_the_verdict_names_the_rows_that_decide() -> None:
    # Of 200 rows, our model is right where theirs is wrong on 12, and the other way round on 8.
    ours, theirs = numpy.ones(200), numpy.ones(200)
    theirs[:12], ours[12:20] = 0, 0

    def results(times: float) -> dict[str, Any]:
        a, b = (numpy.resize(each, round(200 * times)) for each in (ours, theirs))
        difference = intervals.difference(lambda r: a[r].mean(), lambda r: b[r].mean(), len(a))
        scores = {"accuracy": metric(0.9), "difference": difference}
        own = {"accuracy": metric(0.92) | {"n": len(a)}}
        return {"headline": "accuracy", "metrics": own, "baselines": {"TF-IDF": scores}}

    line = wording.conclusion(results(1))
    found = re.search(r"undecided, .*; about ([\d,]+) more test rows would decide it", line)
    assert found
    more = int(found[1].replace(",", ""))
    assert "undecided" in wording.conclusion(results(0.75 * (200 + more) / 200))
    assert "yes" in wording.conclusion(results(1.25 * (200 + more) / 200))


def test_equal_models_are_not_told_a_number_of_rows() -> None:
    same = {"accuracy": metric(0.9), "difference": metric(0.0)}
    found = {"headline": "accuracy", "metrics": {"accuracy": metric(0.9)}, "baselines": {"A": same}}
    assert wording.conclusion(found).endswith("differ too little for more test rows to decide it")
    assert wording.conclusion(found | {"baselines": {}}) == ""


@pytest.mark.parametrize("name", ["brier", "log_loss", "calibration_error", "rmse", "perplexity"])
def test_less_is_better_for_a_loss_as_headline(write, name: str) -> None:
    def lossy(value: float, seed: int) -> run_directory.Run:
        baselines = {"TF-IDF + logistic regression": {name: metric(0.5)}}
        found = changed(headline=name, metrics={name: metric(value)}, baselines=baselines)
        return write(found | {"seed": seed, "reference": None})

    runs = [lossy(0.8, 0), lossy(0.3, 1)]
    assert "The model is worse than TF-IDF" in wording.standing(runs[0].results())
    assert "The model is better than TF-IDF" in wording.standing(runs[1].results())
    text = comparison.compare(runs)
    assert re.findall(r"seed-(\d).*\]\s+(\w+) ", text) == [("1", "yes"), ("0", "no")]


def load(run: run_directory.Run) -> recipe.Recipe:
    return recipe.load(run.folder / run_directory.RECIPE)


def test_holdout_is_never_a_reproduction(write) -> None:
    # Even where the published number lies inside the interval.
    run = write(scored(0.946))
    texts = [tables.summary(run), page.render(run), card.render(load(run), run.results())]
    for text in texts:
        text = " ".join(text.split())
        assert "holdout of the training data, not the official test split" in text
        assert "another split (holdout): not a reproduction" in text
        assert "reproduc" not in text.replace("not a reproduction", "")


def test_official_split_says_whether_the_interval_covers_the_published_value(write) -> None:
    inside = tables.summary(write(scored(0.94, data__test_is="official")))
    assert "-0.6 points; its interval covers it" in inside
    assert "not the official" not in inside
    outside = tables.summary(write(scored(0.9, data__test_is="official", seed=1)))
    assert "does not cover it" in outside


def test_reference_in_another_metric(write) -> None:
    results = changed(reference=RESULTS["reference"] | {"metric": "macro_f1"})
    assert "this run 87.6 %: -7.0 points" in tables.summary(write(results))
    results = changed(reference=RESULTS["reference"] | {"metric": "matthews"}, seed=1)
    assert "this run did not measure matthews" in tables.summary(write(results))


def test_percent_rounds_as_readers_do() -> None:
    assert wording.number("accuracy", 0.8765) == "87.7 %"
    assert wording.measured("log_loss", metric(0.33)) == "0.3300 [0.3200, 0.3400]"
    assert wording.number("accuracy", float("nan")) == "nan %"


def test_terminal_codes_in_label_names_are_not_printed(write) -> None:
    results = changed(per_class={"\x1b[31mred\n[bold]": RESULTS["per_class"]["negative"]})
    text = tables.summary(write(results))
    assert "\x1b" not in text
    assert "[31mred [bold]" in text


def test_the_summary_of_an_unfinished_run_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        tables.summary(run_directory.Run(tmp_path))


# --- page ------------------------------------------------------------------------------------


def test_page_escapes_text_and_lists_the_surest_mistakes_first(write) -> None:
    html = page.render(write(RESULTS))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert html.index("97.0 %") < html.index("60.0 %</span>")
    assert "train-1<" not in html
    assert "word " * 130 not in html


def loaded(html: str) -> list[str]:
    """What a browser would fetch: every src, href, url() and @import but fragments and data."""
    found = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^)"']+)""", html)
    links = [a or b for a, b in found]
    assert len(links) > 10
    return [link for link in links if not link.startswith(("#", "data:"))] + re.findall(
        "@import", html
    )


def test_page_loads_nothing_and_its_ids_are_unique(write) -> None:
    html = page.render(write(RESULTS))
    assert loaded(html) == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert html.count("<svg") == 4


def test_page_is_the_same_twice(write) -> None:
    run = write(RESULTS)
    assert page.render(run) == page.render(run)


def test_page_of_a_regression(write) -> None:
    html = page.render(write(regression(), rows=NUMBERS))
    assert "Predicted against true" in html
    assert "off by -6.5" in html
    assert "worse than TF-IDF + ridge regression" in html


def test_page_of_several_labels(write) -> None:
    results = changed(
        headline="macro_f1",
        data__problem_type="multi_label_classification",
        baselines={"majority class": {"macro_f1": metric(0.0)}},
    )
    del results["confusion"], results["reliability"]
    for scores in results["per_class"].values():
        scores["average_precision"] = None
    rows = ROWS.assign(
        label=[["negative"], [], ["negative", "positive"], ["positive"]],
        prediction=[["negative"], ["positive"], ["negative"], ["positive"]],
        probabilities=[[0.9, 0.2], [0.1, 0.99], [0.9, 0.02], [0.3, 0.8]],
    )
    run = write(results, rows=rows)
    html = page.render(run)
    assert "average precision" in html
    mistakes = html[html.index("Most confidently wrong") :]
    assert re.findall(r"true <strong>([^<]*)", mistakes) == ["none", "negative, positive"]
    assert re.findall(r"<span>([\d.]+ %)", mistakes) == ["99.0 %", "98.0 %"]
    assert "average" not in tables.summary(run)


def test_page_without_validation_or_history(write) -> None:
    run = write(changed(chosen=None, reference=None))
    (run.folder / run_directory.HISTORY).unlink()
    html = page.render(run)
    assert "Learning curves" not in html
    assert html.count("<svg") == 3


@pytest.mark.parametrize(("k", "drawn"), [(12, True), (30, True), (31, False)])
def test_confusion_matrix_takes_any_names_up_to_30_classes(k: int, drawn: bool) -> None:
    names = [f"负 $x_{i}$ <b>" for i in range(k)]
    svg = figures.confusion(numpy.eye(k, dtype=int).tolist(), names)
    assert (svg is not None) == drawn
    if svg:
        assert svg.count("负 $x_1$ &lt;b&gt;") == 2


# --- several runs ----------------------------------------------------------------------------


def test_compare_ranks_and_gives_an_interval_over_seeds(write) -> None:
    values = [0.80, 0.84, 0.82]
    runs = [write(scored(value, seed=seed)) for seed, value in enumerate(values)]
    text = comparison.compare(runs)
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^imdb/minilm/seed-(\d)", text, re.MULTILINE) == ["1", "2", "0"]
    # Student's t with 2 degrees of freedom: 4.3027 * 0.02 / sqrt(3) = 0.0497
    assert "imdb/minilm: mean 82.0 % [77.0, 87.0], 95 % t interval over 3 seeds (0, 1, 2)" in text
    assert "86.8 % [85.8, 87.8]" in text


def test_compare_gives_the_paired_difference_from_the_best_recipe(write) -> None:
    ours = [write(scored(v, seed=i)) for i, v in enumerate([0.80, 0.84, 0.82])]
    other = [write(scored(v, seed=i, name="a/b")) for i, v in enumerate([0.70, 0.75, 0.71])]
    lone = write(scored(0.9, name="c/d"))
    text = " ".join(comparison.compare([*other, *ours, lone]).split())
    # Differences -10, -9, -11: mean -10, reach 4.3027 * 1 / sqrt(3) = 2.48.
    assert "a/b: mean 72.0 % [65.4, 78.6], 95 % t interval over 3 seeds (0, 1, 2); " in text
    assert "difference from imdb/minilm -10.0 [-12.5, -7.5] over 3 shared seeds" in text
    assert text.index("imdb/minilm: mean") < text.index("a/b: mean")
    assert "c/d: mean" not in text
    assert text.count("difference from ") == 1


def test_compare_pairs_draws_of_training_rows_with_each_other_and_the_linear_baseline(
    write,
) -> None:
    linear = "TF-IDF + logistic regression"
    runs = []
    for name, values in (("a/b", [0.70, 0.75, 0.71]), ("imdb/minilm", [0.80, 0.84, 0.82])):
        for seed, value in enumerate(values):
            found = scored(value, seed=seed, name=name)
            found["baselines"][linear]["accuracy"] = {"value": 0.6 + 0.01 * seed}
            found["baselines"][linear]["accuracy"] |= {"low": 0.5, "high": 0.7, "n": 4}
            text = RECIPE.replace("data: {", f"data: {{sample_seed: {seed}, ")
            runs.append(write(found, text=text))
    shown = " ".join(comparison.compare(runs).split())
    assert "difference from imdb/minilm -10.0 [-12.5, -7.5] over 3 shared seeds" in shown
    # Differences -20, -23, -20: mean -21, reach 4.3027 * 1.732 / sqrt(3) = 4.30.
    assert f"{linear}: mean 61.0 %" in shown
    assert "difference from imdb/minilm -21.0 [-25.3, -16.7] over 3 shared seeds" in shown
    # One draw with several seeds is another recipe, and no draw has two seeds.
    text = RECIPE.replace("data: {", "data: {sample_seed: 7, ")
    runs += [write(scored(0.9, seed=seed), f"runs/c/{seed}", text=text) for seed in (0, 1)]
    assert "runs/c: mean 90.0 %" in " ".join(comparison.compare(runs).split())


def test_compare_names_the_folder_of_runs_of_one_recipe_with_other_flags(write) -> None:
    ours = [write(scored(v, seed=i), f"runs/a/{i}") for i, v in enumerate([0.80, 0.84])]
    text = RECIPE.replace("1.0e-4", "5.0e-5")
    other = [write(scored(v, seed=i), f"runs/b/{i}", text=text) for i, v in enumerate([0.70, 0.75])]
    shown = " ".join(comparison.compare([*other, *ours]).split())
    assert "runs/a: mean 82.0 %" in shown
    assert "runs/b: mean 72.5 %" in shown
    assert "; difference from runs/a -9.5 " in shown


def test_compare_says_which_differences_over_seeds_and_rows_may_be_noise(write) -> None:
    draw, count = numpy.random.default_rng(0), 400
    for name, share in (("a/best", 0.9), ("b/near", 0.895), ("c/far", 0.7)):
        for seed in range(3):
            right = draw.random(count) < share
            rows = pandas.DataFrame(
                {
                    "id": [f"train-{i}" for i in range(count)],
                    "text": [f"row {i}" for i in range(count)],
                    "label": ["positive"] * count,
                    "prediction": numpy.where(right, "positive", "negative"),
                    "probabilities": [[0.5, 0.5]] * count,
                }
            )
            write(scored(float(right.mean()), seed=seed, name=name, data__test=count), rows=rows)
    text = " ".join(comparison.compare(run_directory.find(["runs"])).split())
    near, far = (re.search(rf"{name}: mean .*?\(p = [\d.]+\)", text) for name in ("near", "far"))
    assert near
    assert far
    assert "over seeds and rows; the worst" in near[0]
    assert "over 3 shared seeds and all rows, may be noise" in near[0]
    assert "over 3 shared seeds and all rows, clear" in far[0]
    assert "2 comparisons with the best; p is corrected for that number (Holm 1979)." in text


def test_compare_takes_no_mean_over_different_settings(write) -> None:
    runs = [write(scored(0.8))]
    runs.append(write(scored(0.9, seed=1), text=RECIPE.replace("1.0e-4", "5.0e-5")))
    assert "mean" not in comparison.compare(runs)


def test_compare_takes_no_mean_over_one_seed_twice(write) -> None:
    text = comparison.compare([write(scored(0.8), "runs/a"), write(scored(0.9), "runs/b")])
    assert "mean" not in text
    assert re.findall(r"^runs/(\w)", text, re.MULTILINE) == ["b", "a"]


@pytest.mark.parametrize(
    "other",
    [
        {"data__source": "embedded:rotten_tomatoes"},
        {"data__test_is": "official"},
        {"data__test": 5},
    ],
)
def test_different_test_data_is_not_ranked_together(write, other: dict[str, Any]) -> None:
    text = comparison.compare([write(scored(0.8)), write(scored(0.9, name="b/c", **other))])
    assert text.count("test rows (") == 2
    first, second = re.split(r"\n\n(?=embedded:)", text)
    assert "imdb/minilm" in first
    assert "b/c" not in first
    assert "b/c" in second


def test_another_fingerprint_splits_the_ranking_only_with_other_test_rows(write) -> None:
    run = write(scored(0.8))
    less = write(scored(0.9, seed=1, data__fingerprint="less training rows"))
    assert comparison.compare([run, less]).count("test rows (") == 1
    other = scored(0.9, seed=2, data__fingerprint="another split seed")
    rows = ROWS.assign(id=["train-7", "train-8", "train-9", "train-10"])
    assert comparison.compare([run, write(other, rows=rows)]).count("test rows (") == 2


def test_compare_shows_which_runs_beat_the_linear_baseline_and_ranges(write) -> None:
    baselines = copy.deepcopy(RESULTS["baselines"])
    baselines["TF-IDF + logistic regression"]["accuracy"] = metric(0.7)
    text = comparison.compare(
        [
            write(scored(0.95)),
            write(scored(0.5, seed=1)),
            write(scored(0.7, seed=2)),
            write(scored(0.71, seed=3, baselines=baselines)),
        ]
    )
    beats = re.findall(r"seed-(\d).*\]\s+(\w+) ", text)
    assert beats == [("0", "yes"), ("3", "unclear"), ("2", "no"), ("1", "no")]
    assert "70.0 % to 86.8 %" in text


# --- recipes ---------------------------------------------------------------------------------


def test_recipes_show_measured_and_published_numbers(write, tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "imdb"
    folder.mkdir(parents=True)
    (tmp_path / "recipes" / "launch").mkdir()
    (tmp_path / "recipes" / "launch" / "ddp.yaml").write_text("num_processes: 2\n")
    published = "reference: {metric: accuracy, value: 0.946, source: A 2019}\n"
    (folder / "minilm.yaml").write_text(RECIPE + published)
    hub = "an-owner/" + "a-long-checkpoint-name-" * 5
    (folder / "own.yaml").write_text(
        RECIPE.replace('dataset: "embedded:imdb"', "train: path/to/your.csv").replace(
            "embedded:minilm", hub
        )
    )
    for seed, value in enumerate([0.8, 0.84]):
        write(scored(value, seed=seed), text=RECIPE + published)
    # A run with other settings than those of the file is not counted.
    write(scored(0.99, seed=2), text=RECIPE.replace("1.0e-4", "9.0e-4") + published)
    lines = listing.recipes(Path("recipes")).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if ".yaml" in line]
    assert [row.split()[0] for row in rows] == ["imdb/minilm.yaml", "imdb/own.yaml"]
    assert "82.0 % (2)" in rows[0]
    assert rows[0].endswith("94.6 %")


def test_a_folder_without_recipes_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no recipe"):
        listing.recipes(tmp_path / "recipes")


# --- card ------------------------------------------------------------------------------------


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def test_card_of_a_whole_model(write) -> None:
    run = write(RESULTS)
    text = card.render(load(run), run.results())
    front = front_matter(text)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.877
    assert "datasets" not in front
    assert "keeps the head only" in text
    compile(text.split("```python")[1].split("```")[0], "card", "exec")


def test_card_of_an_adapter_on_a_hub_checkpoint(write) -> None:
    checkpoint = {"name": "owner/base", "revision": "0123abc", "sha256": "53aa51172d142c89"}
    run = write(changed(method="lora", checkpoint=checkpoint))
    text = card.render(load(run), run.results())
    front = front_matter(text)
    assert "license" not in front
    assert front["library_name"] == "peft"
    assert front["base_model"] == "owner/base"
    code = text.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "PeftModel.from_pretrained" in code
    assert '"owner/base", revision="0123abc"' in code


def test_card_names_no_base_for_a_local_checkpoint(write) -> None:
    run = write(changed(checkpoint={"name": "mine/base", "revision": None, "sha256": "53aa"}))
    assert "base_model" not in front_matter(card.render(load(run), run.results()))


# --- imports ---------------------------------------------------------------------------------


def test_report_imports_no_torch() -> None:
    heavy = {"torch", "transformers", "peft", "datasets"}
    code = (
        "import sys, finetune.report.page, finetune.report.tables, finetune.report.card\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipes_show_the_measured_note_until_there_is_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes" / "imdb"
    folder.mkdir(parents=True)
    noted = "measured: {metric: accuracy, value: 0.8765, source: here}\n"
    (folder / "minilm.yaml").write_text(RECIPE + noted, encoding="utf-8")
    assert "87.7 %" in listing.recipes(tmp_path / "recipes")
    read = recipe.load(folder / "minilm.yaml")
    assert "measured" not in read.dump()
    assert recipe.load(folder / "minilm.yaml", ["--train", "mine.csv"]).measured is None
