"""Intervals compared with published values and with theory."""

import numpy
import pytest

from finetune.evaluation import intervals


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_newcombe_1998_table_1(correct, n, low, high):
    metric = intervals.wilson(correct, n)
    assert metric["value"] == correct / n
    assert metric["n"] == n
    assert metric["low"] == pytest.approx(low, abs=5e-5)
    assert metric["high"] == pytest.approx(high, abs=5e-5)


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    sample = numpy.random.default_rng(6).normal(10, 3, 2000)
    metric = intervals.bootstrap(lambda rows: sample[rows].mean(), 2000)
    half = 1.96 * sample.std() / 2000**0.5
    assert metric["value"] == pytest.approx(sample.mean())
    assert metric["low"] == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert metric["high"] == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_a_paired_difference_draws_the_same_rows_for_both() -> None:
    sample = numpy.random.default_rng(7).normal(size=500)
    found = intervals.difference(
        lambda rows: sample[rows].mean() + 0.25, lambda rows: sample[rows].mean(), 500
    )
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([0.25] * 3)


def test_over_seeds_covers_what_seeds_and_rows_may_change() -> None:
    draw = numpy.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(200):
        # Whether a seed is right on a row depends on both.
        chance = 0.8 + 0.02 * draw.normal(size=(3, 1)) + 0.1 * draw.normal(size=(1, 300))
        found = intervals.over_seeds((draw.random((3, 300)) < chance).astype(float), 200)
        covered += found["low"] <= 0.8 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert covered / 200 >= 0.93
    assert numpy.mean(widths) < 0.12


def test_over_seeds_is_narrower_for_paired_differences() -> None:
    draw = numpy.random.default_rng(2)
    right = (draw.random((3, 500)) < 0.8).astype(float)
    other = right.copy()
    other[:, :10] = 1 - other[:, :10]
    apart = intervals.over_seeds(right - other)
    alone = intervals.over_seeds(right)
    assert apart["value"] == pytest.approx((right - other).mean())
    assert apart["high"] - apart["low"] < 0.6 * (alone["high"] - alone["low"])


def test_pigeonhole_is_over_seeds_for_means() -> None:
    right = (numpy.random.default_rng(3).random((4, 60)) < 0.7).astype(float)
    rows = [lambda places, own=own: float(own[places].mean()) for own in right]
    assert intervals.pigeonhole(rows, 60, 100) == intervals.over_seeds(right, 100)


def test_a_clear_difference_over_seeds_and_rows_has_a_small_p() -> None:
    draw = numpy.random.default_rng(4)
    assert intervals.over_seeds(draw.normal(0.2, 1, (5, 400)))["p"] < 0.01
    assert intervals.over_seeds(draw.normal(0.0, 1, (5, 400)))["p"] > 0.05


def test_student_is_the_t_test_of_scipy() -> None:
    from scipy.stats import ttest_1samp

    values = [0.1, 0.3, -0.1, 0.25]
    found, expected = intervals.student(values), ttest_1samp(values, 0)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["low"] == pytest.approx(expected.confidence_interval().low)
    assert intervals.student([0.5, 0.5])["p"] == 0
    assert intervals.student([0.0, 0.0])["p"] == 1


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    # 0.01 * 4, 0.03 * 2 (not below the one before), 0.02 * 3, 0.8 * 1
    assert intervals.holm([0.01, 0.03, 0.02, 0.8]) == pytest.approx([0.04, 0.06, 0.06, 0.8])
    assert intervals.holm([0.5, 0.9]) == [1.0, 1.0]
