"""Built-in ``evaluate.Metric`` classes that a recipe can name, computed by scikit-learn.

Imports evaluate and scikit-learn; ``extra_metrics`` imports it only when a recipe names metrics.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import evaluate
from datasets import Features, Sequence, Value
from sklearn import metrics as sk

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"
FEATURES = {SINGLE: Value("int64"), MULTI: Sequence(Value("int64")), NUMBER: Value("float64")}


class SklearnMetric(evaluate.Metric):
    """A function of scikit-learn as an ``evaluate.Metric``; ``config_name`` is the problem type."""

    function: ClassVar[Callable[..., float]]

    def _info(self) -> evaluate.MetricInfo:
        feature = FEATURES[self.config_name or SINGLE]
        return evaluate.MetricInfo(
            description=type(self).__name__,
            citation="",
            features=Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> Any:
        with warnings.catch_warnings():
            # Of classes without a prediction or a row, whose share counts as 0.
            warnings.simplefilter("ignore", UserWarning)
            return {self.name: float(type(self).function(references, predictions))}


class MatthewsCorrelation(SklearnMetric):
    function = staticmethod(sk.matthews_corrcoef)


class BalancedAccuracy(SklearnMetric):
    function = staticmethod(sk.balanced_accuracy_score)


class CohenKappa(SklearnMetric):
    function = staticmethod(sk.cohen_kappa_score)


class MacroPrecision(SklearnMetric):
    function = staticmethod(partial(sk.precision_score, average="macro"))


class MacroRecall(SklearnMetric):
    function = staticmethod(partial(sk.recall_score, average="macro"))


class WeightedF1(SklearnMetric):
    function = staticmethod(partial(sk.f1_score, average="weighted"))


class HammingLoss(SklearnMetric):
    function = staticmethod(sk.hamming_loss)


class MSE(SklearnMetric):
    function = staticmethod(sk.mean_squared_error)


class MaxError(SklearnMetric):
    function = staticmethod(sk.max_error)


_AVERAGES: dict[str, type[SklearnMetric]] = {
    "macro_precision": MacroPrecision,
    "macro_recall": MacroRecall,
    "weighted_f1": WeightedF1,
}
BUILT_IN: dict[str, dict[str, type[SklearnMetric]]] = {
    SINGLE: {
        "matthews_correlation": MatthewsCorrelation,
        "balanced_accuracy": BalancedAccuracy,
        "cohen_kappa": CohenKappa,
        **_AVERAGES,
    },
    MULTI: {**_AVERAGES, "hamming_loss": HammingLoss},
    NUMBER: {"mse": MSE, "max_error": MaxError},
}
