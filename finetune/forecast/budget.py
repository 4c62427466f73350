"""Chooses what a run can train in a given time, from its forecast.

In this order, until it fits:

1. the recipe as it is
2. fewer steps, down to one epoch
3. a shorter ``max_length`` that cuts few rows, for one epoch
4. part of an epoch: each row is seen at most once
5. a trained head on the frozen encoder, whose features are computed once, where not even
   ``FEWEST_ROWS`` could be trained on

The schedule of the learning rate ends with the chosen steps.
"""

import dataclasses
import math
from typing import Any

import numpy

from finetune.errors import UserError
from finetune.forecast.measuring import Forecast
from finetune.recipe import Recipe, Tuning, methods

# Share of the time for what is not measured: baselines, scores, saving, the report.
RESERVE = 0.1
# Share of the time for the steps that are timed.
MEASURING = 0.1
LENGTHS = (256, 128, 64)
# Share of the rows that a shorter max_length may cut.
MOST_CUT = 0.1
FEWEST_ROWS = 2000
# As in recipes/rotten_tomatoes/minilm-head.yaml.
HEAD_EPOCHS = 5
# A step's forward pass is a third of it.
FORWARD = 1 / 3


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is trained in the time.

    Attributes:
        recipe: with the chosen values as ordinary keys.
        seconds: forecast of the training with its evaluations.
        limit: seconds from now after which training has to end, with its last evaluation to come.
        epochs, rows: what is trained.
    """

    recipe: Recipe
    seconds: float
    limit: float
    epochs: float
    rows: int

    def text(self, minutes: float, most: float) -> str:
        """Describes the choice; ``most`` is the recipe's own number of epochs."""
        took = f"{self.seconds // 60:.0f} min {self.seconds % 60:.0f} s"
        length = self.recipe.model.max_length
        what = f"{self.epochs:.3g} of {most:.3g} epochs of {self.rows:,} rows"
        if self.recipe.tuning.method == "head":
            what = f"a head on the frozen encoder, {self.rows:,} rows"
        return f"{minutes:g} minutes: {what}, max_length {length}; forecast {took} of training"


def choose(recipe: Recipe, forecast: Forecast, left: float) -> Choice:
    """Chooses what to train.

    Args:
        recipe: resolved; the forecast's.
        left: seconds that are left for everything, the measurement being done.

    Raises:
        UserError: there is no time to train a single step.
    """
    # The data are read and the model is loaded once more.
    besides = forecast.preparation_seconds + forecast.test_seconds + RESERVE * left
    available = left - besides
    limit = available - forecast.evaluation_seconds
    in_epoch, rows = forecast.steps_in_epoch, forecast.rows
    whole = Choice(recipe, forecast.train_seconds["value"], limit, forecast.steps / in_epoch, rows)
    if whole.seconds <= available:
        return whole
    # An evaluation more than the forecast's: the last epoch may be a part of one.
    each = forecast.step_seconds
    each += forecast.evaluations * forecast.evaluation_seconds / forecast.steps
    length, share = recipe.model.max_length, 1.0
    if limit < each * min(in_epoch, forecast.steps):
        for shorter in _lengths(forecast, length):
            length, share = shorter, _share(forecast, shorter)
            if limit >= share * each * in_epoch:
                break
    steps = min(forecast.steps, math.floor(limit / (share * each)))
    trained = steps / in_epoch * rows
    if trained < min(FEWEST_ROWS, rows) and _has_encoder(recipe, forecast):
        return _head(recipe, forecast, available, limit)
    if steps < 1:
        needed = math.ceil((besides + forecast.evaluation_seconds + each) / 60) + 1
        raise UserError(
            f"--minutes: no time is left to train: reading and testing take {besides:.0f} s, a "
            f"step {each:.1f} s; {left:.0f} s are left. Write --minutes {needed}, or more"
        )
    chosen = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, max_length=length),
        training=recipe.training | _schedule(recipe.training, steps, forecast.steps),
    )
    seconds = steps * share * each + forecast.evaluation_seconds
    return Choice(chosen, seconds, limit, steps / in_epoch, rows)


def _lengths(forecast: Forecast, length: int) -> list[int]:
    """Returns the shorter lengths that cut few rows, the longest first."""
    if not len(forecast.lengths):
        return []
    return [
        shorter
        for shorter in LENGTHS
        if shorter < min(length, forecast.lengths.max())
        and numpy.mean(forecast.lengths > shorter) <= MOST_CUT
    ]


def _share(forecast: Forecast, length: int) -> float:
    """Returns the share of the tokens that is left when rows are cut at ``length``."""
    return float(numpy.minimum(forecast.lengths, length).mean() / forecast.lengths.mean())


def _schedule(training: dict[str, Any], steps: int, planned: int) -> dict[str, Any]:
    """Returns the training keys for fewer steps; those that count steps become smaller, too."""
    changed: dict[str, Any] = {"max_steps": steps}
    warmup = training.get("warmup_steps", 0)
    if warmup >= 1:
        changed["warmup_steps"] = int(warmup * steps / planned)
    if (training.get("eval_steps") or 0) > steps:
        changed |= {key: steps for key in ("eval_steps", "save_steps") if training.get(key)}
    return changed


def _has_encoder(recipe: Recipe, forecast: Forecast) -> bool:
    """Whether a pretrained encoder of texts could be kept frozen."""
    pretrained = not recipe.model.checkpoint.startswith("new:")
    return recipe.tuning.method == "full" and pretrained and len(forecast.lengths) > 0


def _head(recipe: Recipe, forecast: Forecast, available: float, limit: float) -> Choice:
    """Trains a head on as many rows as there is time to compute features of."""
    row = FORWARD * forecast.step_seconds * forecast.steps_in_epoch / forecast.rows
    # All validation and test rows need features, too; the test's time is not part of ``available``.
    rows = min(forecast.rows, int((available - forecast.evaluation_seconds) / row))
    if rows < 1:
        raise UserError(
            f"--minutes: no time is left to train: {available:.0f} s; give more, or write "
            "--max_test_samples 500 and a smaller --validation_size"
        )
    training = {k: v for k, v in recipe.training.items() if k != "max_steps"}
    training |= {"num_train_epochs": HEAD_EPOCHS, "learning_rate": methods.learning_rate("head")}
    data = recipe.data
    if rows < forecast.rows:
        data = dataclasses.replace(data, max_train_samples=rows)
    chosen = dataclasses.replace(recipe, data=data, tuning=Tuning(method="head"), training=training)
    return Choice(chosen, rows * row + forecast.evaluation_seconds, limit, HEAD_EPOCHS, rows)
