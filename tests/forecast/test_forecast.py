"""``finetune forecast`` on tiny models; seconds are made up, never measured."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional

from finetune import cli, recipe
from finetune.errors import UserError
from finetune.forecast import hardware, measuring, rendering
from finetune.forecast.counting import Counts, StepCounter
from finetune.training.sampling import StepSampler
from tests.conftest import train_job


def test_seconds_that_are_linear_in_tokens_are_summed_over_all_steps() -> None:
    tokens = numpy.arange(100, 1100, 10)
    timed = numpy.tile([100, 500, 1000], 3)
    found = measuring._total(timed, 0.5 + 0.002 * timed, tokens, steps=250)
    expected = 250 * (0.5 + 0.002 * tokens.mean())
    assert found["value"] == pytest.approx(expected)
    assert found["low"] == pytest.approx(expected)
    equal = measuring._total(numpy.full(6, 512), numpy.full(6, 2.0), numpy.full(9, 512), steps=90)
    assert equal["value"] == pytest.approx(180)


def test_the_interval_covers_the_total_in_95_of_100_runs() -> None:
    draw = numpy.random.default_rng(0)
    tokens = draw.integers(100, 1000, 60)
    timed = numpy.tile(numpy.percentile(tokens, [10, 50, 95]), 4)
    covered = 0
    for _ in range(400):
        seconds = 0.5 + 0.002 * timed + draw.normal(0, 0.1, len(timed))
        every = 0.5 + 0.002 * numpy.tile(tokens, 2) + draw.normal(0, 0.1, 120)
        found = measuring._total(timed, seconds, tokens, steps=120)
        covered += found["low"] <= every.sum() <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98


def test_the_longest_step_comes_first_and_then_other_steps_near_each_percentile() -> None:
    tokens = numpy.random.default_rng(0).permutation(200)
    longest, median, *rounds = tokens[measuring._chosen(tokens)]
    assert (longest, median) == (199, 99)
    by_percentile = numpy.reshape(rounds, (measuring.ROUNDS, -1)).T
    starts = [20, 98, 185, 195]
    assert by_percentile.tolist() == [[*range(s, s + measuring.ROUNDS)] for s in starts]


def test_a_run_of_few_steps_repeats_them() -> None:
    assert measuring._chosen(numpy.array([7, 9])) == [1, 0, *[0] * 4, *[1] * 4 * 4]


def test_a_sampler_yields_only_the_steps_that_are_named() -> None:
    settings: dict[str, Any] = {
        **{"rows": 40, "lengths": range(40), "grouped": True, "step_rows": 8},
        **{"accumulation": 2, "processes": 1, "rank": 0, "seed": 0},
    }
    every = list(StepSampler(**settings))
    some = StepSampler(**settings, only=[3, 0, 3])
    assert list(some) == [every[i] for i in (6, 7, 0, 1, 6, 7)]
    assert len(some) == 6
    assert len(some.tokens_of(0)) == 3


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_train_epochs", "1.5"],
        ["--eval_strategy", "steps", "--eval_steps", "4"],
        ["--eval_strategy", "steps", "--eval_steps", "0.25", "--save_steps", "0.25"],
        ["--eval_strategy", "no"],
        ["--max_steps", "7", "--gradient_accumulation_steps", "2"],
    ],
)
def test_steps_evaluations_and_tokens_are_those_of_the_run(
    tiny_recipe: Path, flags: list[str]
) -> None:
    found = measuring.measure(recipe.load(tiny_recipe, flags))
    assert sorted(path.name for path in Path().iterdir()) == ["reviews.csv", "tiny.yaml"]
    run, job = train_job(tiny_recipe, *flags)
    history = run.history()
    assert found.steps == max(line["step"] for line in history)
    assert found.evaluations == sum("eval_loss" in line for line in history)
    if float(found.steps) % 6 == 0:
        assert found.tokens == run.results()["cost"]["tokens_seen"]
    written = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    weights = sum(p.nbytes for p in job.model.parameters())
    assert weights < written < found.disk_bytes + 1e6


def test_a_step_s_operations_and_activations_are_counted() -> None:
    model = torch.nn.Linear(30, 20, bias=False)
    counter = StepCounter(model)
    for step in range(2):
        counter.begin(step)
        for end in (counter.end_micro_batch, lambda step=step: counter.end(step)):
            rows = torch.randn(8, 30, requires_grad=True)
            model(rows).square().sum().backward()
            end()
    counts = counter.counts(16)
    # Forward, and the gradients of the weights and of the rows, for both micro-batches.
    assert counts.flops == 2 * 3 * 2 * 8 * 30 * 20
    assert counts.kernels > 6
    assert counts.micro_batches == 2
    # The rows and the output, but not the weights.
    assert counts.activation_bytes == 4 * (8 * 30 + 8 * 20)
    assert counts.parameter_bytes == counts.trained_bytes == 4 * 30 * 20


def test_attention_on_the_cpu_is_counted_as_on_a_gpu() -> None:
    counter = StepCounter(torch.nn.Linear(1, 1))
    query, key, value = (torch.randn(2, 4, 32, 8, requires_grad=True) for _ in range(3))
    counter.begin(1)
    functional.scaled_dot_product_attention(query, key, value).sum().backward()
    counter.end(1)
    products = 2 * 2 * 4 * 32 * 32 * 8
    assert counter.counts(0).flops in {6 * products, 7 * products}


COUNTS = Counts(
    tokens=1000,
    flops=10**13,
    kernels=1000,
    micro_batches=1,
    parameter_bytes=4 * 10**9,
    trained_bytes=4 * 10**9,
    activation_bytes=10**9,
)
FORECAST = measuring.Forecast(
    name="made/up",
    device="1 x cpu, 2 threads, fp32",
    train_seconds={"value": 3700.0, "low": 3300.0, "high": 4100.0, "n": 15},
    preparation_seconds=20,
    test_seconds=30,
    evaluation_seconds=50,
    step_seconds=36,
    steps=100,
    evaluations=2,
    measured=15,
    tokens=100_000,
    peak_memory_bytes=6 * 10**9,
    disk_bytes=40 * 10**9,
    counts=COUNTS,
)


def test_a_card_is_estimated_from_what_a_step_computes() -> None:
    a100, t4 = (hardware.card(name) for name in ("A100", "t4"))
    found = hardware.estimate(FORECAST, a100, half=True)
    more = 1 + 2 * 50 / 3600
    compute, traffic = 1e13 / (312e12 * 0.5), (2 * 4e9 + 8 * 4e9) / 2039e9
    assert found.fast == pytest.approx(100 * more * (compute + traffic))
    assert found.memory_bytes == 4e9 + 12e9 + 1e9 + 1e9
    assert found.fits
    assert not hardware.estimate(FORECAST, t4, half=True).fits
    assert hardware.estimate(FORECAST, a100, half=False).fast > 5 * found.fast
    small = dataclasses.replace(FORECAST, counts=dataclasses.replace(COUNTS, flops=1))
    assert hardware.estimate(small, a100, half=True).fast > 100 * 1000 * hardware.LAUNCH[0]
    with pytest.raises(UserError, match=r"--gpu a10g: known are t4, .* did you mean"):
        hardware.card("a10g")


def test_the_forecast_fits_80_columns() -> None:
    cards = [hardware.estimate(FORECAST, card, half=True) for card in hardware.CARDS.values()]
    text = rendering.text(FORECAST, cards)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "1 h 1 min [55 min 0 s, 1 h 8 min]" in text
    assert "100 steps of 36.0 s, 2 evaluations of 50.0 s" in text
    assert next(line for line in text.splitlines() if line.startswith("T4")).endswith("not fit")
    assert "by formula" not in rendering.text(FORECAST, [])


def test_the_command_trains_nothing_and_prints_the_forecast(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["forecast", "tiny.yaml", "--gpu", "h100", "--max_steps", "5"])
    text = capsys.readouterr().out
    assert text.startswith("tiny: forecast for this machine\n")
    assert "5 steps of" in text
    assert "H100 SXM" in text
    assert not Path("runs").exists()
    assert math.isfinite(measuring.measure(recipe.load(tiny_recipe)).train_seconds["high"])
