"""The recipe's section ``classes``: the loss, the headline, and what validation rows decide."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy
import torch

from finetune.errors import TrainingError, UserError, refuse_unknown
from finetune.evaluation import decisions, scoring
from finetune.models import adapters, heads
from finetune.recipe import Classes, Recipe
from finetune.recipe.methods import CONTRASTIVE

if TYPE_CHECKING:
    from finetune.data.corpus import Corpus
    from finetune.training.losses import ClassificationLoss

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
# With a rarest class below this share of two classes, or a fifth of an even share of more, a model
# that never predicts it can have a high accuracy.
RARE = 0.1
# Logits may differ by so much of the largest after the head is scaled, in low precision.
TOLERANCE = 0.02


def check(recipe: Recipe) -> None:
    """Checks that the settings fit each other, the rest of the recipe and the problem type.

    Raises:
        UserError: they contradict each other, or one would have no effect.
    """
    asked, kind = recipe.classes, recipe.data.problem_type
    weighted = asked.class_weights is not None

    def refuse(key: str, why: str) -> None:
        raise UserError(f"{recipe.where(f'classes.{key}')}: {key}: {why}")

    changed = [key for key in vars(asked) if vars(asked)[key] != vars(Classes())[key]]
    if kind == "regression" and changed:
        refuse(changed[0], "a regression has no classes; leave it out")
    learns = [k for k in changed if k in {"class_weights", "loss", "sampler"}]
    if learns and recipe.tuning.method == CONTRASTIVE:
        refuse(learns[0], "contrastive tuning learns from pairs of rows; leave it out")
    if asked.calibrate and recipe.tuning.method == CONTRASTIVE:
        refuse("calibrate", "contrastive tuning fits its head at every evaluation; leave it out")
    if learns and recipe.distillation.teacher:
        refuse(learns[0], "a student's loss is its teacher's; leave it out")
    mixed = recipe.augmentation.mixup or recipe.augmentation.cutmix
    if mixed and (weighted or asked.loss == "focal"):
        refuse(learns[0], "mixup and cutmix blend labels, which then have no class; keep one")
    if weighted and asked.sampler == "balanced":
        refuse("class_weights", "the balanced sampler weights classes already; keep one")
    if asked.loss == "focal" and recipe.training.get("label_smoothing_factor"):
        refuse("loss", "focal counts sure rows less, label_smoothing_factor more; keep one")
    if "focal_gamma" in changed and asked.loss != "focal":
        refuse("focal_gamma", "has no effect without loss: focal")
    if "missed_cost" in changed and asked.threshold != "cost":
        refuse("missed_cost", "has no effect without threshold: cost")
    for key in ("sampler", "calibrate", "abstain"):
        if key in changed and kind != SINGLE:
            refuse(key, "needs one label a row; leave it out")


def check_rows(recipe: Recipe, data: "Corpus") -> None:
    """Checks that the rows are there that the settings need.

    Raises:
        UserError: there are no validation rows, or more than two classes for one threshold.
    """
    asked = recipe.classes
    for key in ("threshold", "calibrate", "abstain"):
        if getattr(asked, key) and not len(data.validation):
            raise UserError(
                f"{recipe.where(f'classes.{key}')}: {key} is decided on validation rows, and there "
                "are none; set validation_size"
            )
    if asked.threshold and data.problem_type == SINGLE and len(data.label_names) != 2:
        raise UserError(
            f"{recipe.where('classes.threshold')}: threshold needs two classes or several labels a "
            f"row; these rows have one of {len(data.label_names)}, of which the likeliest is taken"
        )


def counts(data: "Corpus") -> numpy.ndarray:
    """Returns how many training rows each class has: (K,) int."""
    labels = numpy.array(data.train["label"].tolist())
    if data.problem_type == MULTI:
        return labels.sum(0).astype(int)
    return numpy.bincount(labels.astype(int), minlength=len(data.label_names))


def weights(recipe: Recipe, data: "Corpus") -> tuple[float, ...] | None:
    """Returns the weights of the K classes in the loss.

    ``balanced`` gives every class the same sum: rows / (K x rows of the class), and of several
    labels each positive the rows without the label / those with it.

    Raises:
        UserError: a weight is for a class that does not exist, or is not above 0.
    """
    asked, names = recipe.classes.class_weights, data.label_names
    if asked is None:
        return None
    if asked == "balanced":
        have = numpy.maximum(counts(data), 1)
        rows = len(data.train)
        balanced = rows / (len(names) * have)
        if data.problem_type == MULTI:
            # A label that every row has still counts.
            balanced = numpy.maximum(rows - have, 1) / have
        return tuple(float(each) for each in balanced)
    where = recipe.where("classes.class_weights")
    assert isinstance(asked, Mapping)
    for name, value in asked.items():
        if name not in names:
            refuse_unknown(name, names, f"{where}: class_weights: class")
        if value <= 0:
            raise UserError(f"{where}: class_weights: {name}: {value:g} has to be above 0")
    return tuple(float(asked.get(name, 1.0)) for name in names)


def loss(recipe: Recipe, data: "Corpus", label_smoothing: float) -> "ClassificationLoss":
    """Returns the loss that the recipe asks for."""
    from finetune.training.losses import ClassificationLoss

    gamma = recipe.classes.focal_gamma if recipe.classes.loss == "focal" else None
    return ClassificationLoss(data.problem_type, label_smoothing, weights(recipe, data), gamma)


def headline(recipe: Recipe, data: "Corpus") -> tuple[str, list[str]]:
    """Returns the headline metric and, where classes are rare, a line that says why.

    A published number, the recipe's ``reference``, keeps the headline that it was published for.
    """
    from finetune.evaluation import metrics

    usual = metrics.HEADLINE[data.problem_type]
    names = data.label_names
    if data.problem_type != SINGLE or len(names) < 2:
        return usual, []
    have = counts(data)
    share = float(have.min() / have.sum())
    if share * len(names) / 2 >= RARE or (recipe.reference and recipe.reference.metric == usual):
        return usual, []
    name = "average_precision" if len(names) == 2 else "macro_f1"
    of = f" of {names[have.argmin()]}" if len(names) == 2 else ""
    line = (
        f"{names[have.argmin()]} has {100 * share:.1f} % of the training rows: the headline is "
        f"{metrics.spec(name).title}{of}, not accuracy"
    )
    return name, [line]


class Decisions:
    """What the validation rows decide about a classifier, and what it is worth on the test rows.

    The model's outputs are logits (N, K); where thresholds were chosen, a pair of them and the
    logits by which predictions are decided, of the same shape.
    """

    def __init__(self, recipe: Recipe, data: "Corpus") -> None:
        check_rows(recipe, data)
        self.asked, self.data = recipe.classes, data
        self.where = recipe.name
        self.temperature: float | None = None
        self.sure_from: float | None = None
        self.expected: numpy.ndarray | None = None
        names = data.label_names
        headline_is, _ = headline(recipe, data)
        if data.problem_type == SINGLE and len(names) == 2:
            positive = names[int(counts(data).argmin())]
            if self.asked.threshold or headline_is == "average_precision":
                data.report["positive"] = positive
            self.decided = [positive]
        else:
            self.decided = names
        if self.asked.abstain:
            data.report["abstain"] = self.asked.abstain

    @property
    def job(self) -> dict[str, Any]:
        """The parts of a ``Job`` that decide."""
        asked = self.asked
        return {
            "collect": self.collect,
            "calibrates": bool(asked.threshold or asked.abstain or asked.calibrate),
            "rescale": self.rescale if asked.calibrate else None,
            "details": self.details,
            "balanced": asked.sampler == "balanced",
        }

    def collect(self, logits: Any, labels: Any, split: str) -> tuple[Any, Any]:
        """Returns the outputs and the labels; those of validation decide."""
        if split == "validation":
            self._decide(logits, labels)
        if not self.data.report.get("thresholds"):
            return logits, labels
        return (logits, shifted(logits, vars(self.data) | self.data.report)), labels

    def _decide(self, logits: numpy.ndarray, labels: numpy.ndarray) -> None:
        names, asked = self.data.label_names, self.asked
        if self.expected is not None:
            apart = numpy.abs(logits - self.expected).max()
            if apart > TOLERANCE * numpy.abs(self.expected).max():
                raise TrainingError(
                    f"{self.where}: the logits of this model do not scale with its head's weights, "
                    "so it cannot be calibrated; resume with --calibrate false --allow-changed "
                    "classes.calibrate"
                )
        if asked.threshold:
            values = scoring.probabilities(self.data.problem_type, logits)
            several = self.data.problem_type == MULTI
            cost = asked.missed_cost if asked.threshold == "cost" else None
            found = {}
            for name in self.decided:
                k = names.index(name)
                truth = labels[:, k].astype(bool) if several else labels == k
                found[name] = decisions.threshold(values[:, k], truth, cost)
            self.data.report["thresholds"] = found
        if asked.abstain:
            chosen = shifted(logits, vars(self.data) | self.data.report)
            confidence = decisions.confidences(logits, chosen)
            self.sure_from = decisions.sure_from(confidence, chosen.argmax(1) == labels)

    def rescale(self, model: torch.nn.Module, outputs: Any, labels: numpy.ndarray) -> None:
        """Fits the temperature to the validation rows, and divides the head's weights by it."""
        logits, _ = decisions.both(outputs)
        self.temperature = decisions.temperature(logits, labels)
        heads.scale(adapters.plain(model), 1 / self.temperature)
        self.expected = logits / self.temperature

    def details(self, outputs: Any, labels: numpy.ndarray) -> dict[str, Any]:
        """Returns further sections of results.json, for the test rows."""
        logits, chosen = decisions.both(outputs)
        found: dict[str, Any] = {}
        if self.temperature is not None:
            before = scoring.score(SINGLE, logits * self.temperature, labels, self.data.label_names)
            kept = {name: before["metrics"][name] for name in ("calibration_error", "log_loss")}
            found["calibration"] = {"temperature": self.temperature, "before": kept}
        if self.asked.abstain:
            confidence = decisions.confidences(logits, chosen)
            correct = chosen.argmax(1) == labels
            least = [self.asked.abstain, *([self.sure_from] if self.sure_from else [])]
            found["abstain"] = [decisions.answered(confidence, correct, each) for each in least]
        return found


def shifted(logits: numpy.ndarray, data: Mapping[str, Any]) -> numpy.ndarray:
    """Returns the logits (N, K) by which predictions are decided.

    Args:
        data: the data section of the run's results.json.
    """
    return decisions.shifted(logits, data["label_names"], data.get("thresholds", {}))
