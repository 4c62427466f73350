"""What classifiers of texts and of images share: scores, answers, mistakes.

Their outputs are logits (N, K) float, or a pair of such where thresholds were chosen (see
``class_settings``); a regression is a classifier with one output.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy

from finetune.errors import UserError, refuse_unknown
from finetune.evaluation import extra_metrics, scoring, statistics
from finetune.evaluation.decisions import both
from finetune.recipe import Recipe
from finetune.tasks import class_settings
from finetune.tasks.base import Labelled, Mistake, Task
from finetune.tasks.usage import Example

if TYPE_CHECKING:
    import pandas

    from finetune.data.corpus import Corpus
    from finetune.data.row_kinds import RowKind


def scorer(data: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """Returns (outputs, labels, resamples) -> all scores.

    Args:
        data: ``problem_type``, ``label_names``, and ``positive`` where its average precision is
            measured.
    """

    def score(outputs: Any, labels: numpy.ndarray, resamples: int) -> dict[str, Any]:
        kind, names = data["problem_type"], data["label_names"]
        return scoring.score(kind, outputs, labels, names, resamples, data.get("positive"))

    return score


def for_metrics(problem_type: str) -> Callable[..., tuple[numpy.ndarray, numpy.ndarray]]:
    """Returns (outputs, labels) -> predictions and references as ``evaluate`` metrics take them.

    Class indices (N,) int, 0/1 (N, K) int for several labels, or numbers (N,) for a regression.
    """

    def convert(outputs: Any, labels: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        logits, decided = both(outputs)
        if problem_type == "single_label_classification":
            return decided.argmax(1), labels.astype(int)
        if problem_type == "multi_label_classification":
            return (decided > 0).astype(int), labels.astype(int)
        return logits.reshape(len(logits)), labels

    return convert


def scored_by(data: "Corpus", recipe: Recipe) -> dict[str, Any]:
    """Returns the parts of a classifier's ``Job`` that follow from its labels and metrics.

    Raises:
        UserError: a metric that the recipe names, or its section ``classes``, cannot be used.
    """
    # Prediction starts without it.
    from finetune.training import losses

    kind, names = data.problem_type, data.label_names
    # A number has no other classes.
    smoothing = 0.0 if kind == "regression" else losses.smoothing(recipe)
    headline, notes = class_settings.headline(recipe, data)
    decides = class_settings.Decisions(recipe, data)
    known = {"problem_type": kind, "label_names": names, **data.report}
    positive = names.index(known["positive"]) if "positive" in known else 0

    return {
        "loss": class_settings.loss(recipe, data, smoothing),
        "label_smoothing": smoothing,
        "score": scorer(known),
        "headline": headline,
        "extra_metrics": _extra(recipe, kind, names),
        "for_metrics": for_metrics(kind),
        # (outputs, others' outputs, labels) -> the difference in the headline metric.
        "difference": partial(scoring.difference, kind, headline=headline, positive=positive),
        "notes": notes,
        **decides.job,
    }


def _extra(recipe: Recipe, kind: str, names: list[str]) -> dict[str, extra_metrics.ExtraMetric]:
    return extra_metrics.load(recipe.metrics, kind, len(names), recipe.where("metrics"))


class Classifier(Task):
    """A task whose model has one output for each class.

    Attributes:
        content: what a row is: ``TEXTS`` or ``IMAGES``.
    """

    content: ClassVar["RowKind"]
    is_labelled = True

    def labelled(self, file: str, recipe: Recipe, data: Mapping[str, Any]) -> Labelled:
        # Prediction starts without it.
        from finetune.data import corpus

        names = data["label_names"]
        frame, table = corpus.labelled(file, recipe.data, self.content, names)
        kind = data["problem_type"]
        extra = _extra(recipe, kind, names)

        def score(logits: numpy.ndarray, labels: numpy.ndarray) -> dict[str, Any]:
            outputs = logits, class_settings.shifted(logits, data)
            return extra_metrics.add(
                scorer(data)(outputs, labels, scoring.RESAMPLES),
                extra,
                lambda: for_metrics(kind)(outputs, labels),
                scoring.RESAMPLES,
            )

        content = frame.drop(columns=["id", "label", "digest"], errors="ignore")
        return Labelled(
            content=self.content,
            rows=content.to_dict(orient="records"),
            frame=frame,
            table=table.rows.loc[frame.index],
            rejected=len(table.rejected),
            labels=numpy.array(frame["label"].tolist()),
            score=score,
            values=partial(_values, data),
        )

    def check(self, recipe: Recipe) -> None:
        class_settings.check(recipe)
        self.check_texts(recipe)

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        problem_type, names = data["problem_type"], data["label_names"]
        logits, _ = both(outputs)
        values = scoring.probabilities(problem_type, logits)
        if problem_type == "regression":
            return [{"prediction": float(row[0])} for row in values]
        out = []
        for row, decided in zip(values, class_settings.shifted(logits, data), strict=True):
            scores = {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}
            if problem_type == "single_label_classification":
                prediction: Any = names[int(decided.argmax())]
            else:
                prediction = [name for name, d in zip(names, decided, strict=True) if d > 0]
            answer = {"prediction": prediction, "probabilities": scores}
            if least := data.get("abstain"):
                answer["abstains"] = bool(row[decided.argmax()] < least)
            out.append(answer)
        return out

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return [
            {
                "single_label_classification": "Output: `logits` (B, K); their softmax is the "
                "probability of each of the K labels below.",
                "multi_label_classification": "Output: `logits` (B, K); a label counts as "
                "predicted where its logit is above 0, a probability of 0.5.",
                "regression": "Output: `logits` (B, 1), the predicted number.",
            }[results["data"]["problem_type"]],
            *(
                f"`finetune predict` predicts {name} from a probability of {value:.3g} on instead."
                for name, value in results["data"].get("thresholds", {}).items()
            ),
        ]

    def check_label(self, label: Any, data: Mapping[str, Any]) -> None:
        problem_type, names = data["problem_type"], data["label_names"]
        if problem_type == "regression":
            if not isinstance(label, float | int) or not math.isfinite(label):
                raise UserError("the label has to be a finite number")
        elif problem_type == "multi_label_classification":
            if not isinstance(label, list):
                raise UserError("the label has to be a list of names; an empty one if none applies")
            for name in label:
                _check_name(name, names)
        else:
            _check_name(label, names)

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns ``text`` or ``image`` of a ``Mistake``, from a row of predictions.parquet."""
        raise NotImplementedError

    def statistic(
        self, metric: str, rows: "pandas.DataFrame", data: Mapping[str, Any]
    ) -> Callable[[numpy.ndarray], float] | None:
        kind, names = data["problem_type"], data["label_names"]
        columns = [rows[column] for column in ("label", "prediction")]
        if kind == "regression":
            labels, predicted = (column.to_numpy(float) for column in columns)
        else:
            labels, predicted = (_members(list(column), names) for column in columns)
        return statistics.of_predictions(kind, metric, labels, predicted)

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """The wrong predictions with the highest confidence.

        Confidence is the probability of the wrong class; of several labels that of the label most
        confidently predicted or left out; for a regression it is the size of the error.
        """
        problem_type, names = data["problem_type"], data["label_names"]
        if problem_type == "regression":
            errors = (rows["prediction"] - rows["label"]).to_numpy(dtype=float)
            amount, wrong = numpy.abs(errors), errors != 0
            confidence: list[Any] = [f"off by {value:+.4g}" for value in errors]
            predicted, labels = ([f"{v:.4g}" for v in rows[c]] for c in ("prediction", "label"))
        else:
            answer, truth = (_members(list(rows[c]), names) for c in ("prediction", "label"))
            probabilities = numpy.stack([numpy.asarray(p, float) for p in rows["probabilities"]])
            if problem_type == "single_label_classification":
                sure = numpy.where(answer, probabilities, 0.0)
            else:
                sure = numpy.where(answer, probabilities, 1 - probabilities)
            different = answer != truth
            amount, wrong = numpy.where(different, sure, 0.0).max(1), different.any(1)
            confidence = [float(value) for value in amount]
            predicted, labels = (_joined(members, names) for members in (answer, truth))
        order = numpy.argsort(-amount, kind="stable")
        records = rows.to_dict("records")
        return [
            Mistake(
                id=str(records[i]["id"]),
                label=labels[i],
                prediction=predicted[i],
                confidence=confidence[i],
                **self.shown(records[i]),
            )
            for i in order[wrong[order]][:most]
        ]


def _check_name(name: Any, names: list[str]) -> None:
    if name not in names:
        refuse_unknown(str(name)[:80], names, "label")


def _values(data: Mapping[str, Any], rows: "pandas.DataFrame") -> dict[str, numpy.ndarray]:
    """Numbers of predicted rows (N) by name: how right, how sure, how long, which label."""
    names, labels = data["label_names"], rows["label"]
    if data["problem_type"] == "regression":
        error = numpy.abs((rows["prediction"] - labels).to_numpy(float))
        return {"absolute error": error, **_lengths(rows), "label": labels.to_numpy(float)}
    truth, answer = (_members(list(rows[c]), names) for c in ("label", "prediction"))
    found = {"predicted right": (truth == answer).all(1).astype(float)}
    if data["problem_type"] == "single_label_classification":
        found["confidence"] = numpy.stack(rows["probabilities"].tolist()).max(1)
    # Of two classes, the second's share says nothing that the first's does not.
    shown = names[:1] if len(names) == 2 and not isinstance(labels.iloc[0], list) else names
    shares = {f"labelled {name}": truth[:, k].astype(float) for k, name in enumerate(shown)}
    return {**found, **_lengths(rows), **shares}


def _lengths(rows: "pandas.DataFrame") -> dict[str, numpy.ndarray]:
    if "text" not in rows:
        return {}
    return {"words in a text": rows["text"].str.split().str.len().to_numpy(float)}


def _joined(members: numpy.ndarray, names: list[str]) -> list[str]:
    """(N, K) bool -> the names of each row in one text."""
    return [
        ", ".join(n for n, on in zip(names, row, strict=True) if on) or "none" for row in members
    ]


def example(problem_type: str, name: str, arguments: list[str]) -> Example:
    """Returns the pipeline call of a classifier for its problem type."""
    if problem_type == "multi_label_classification":
        note = "A label counts as predicted when its score is above 0.5."
        return Example(name, [*arguments, "top_k=None"], [note])
    if problem_type == "regression":
        options = [*arguments, 'function_to_apply="none"']
        return Example(name, options, ["The score is the predicted number."])
    return Example(name, arguments)


def _members(cells: list[Any], names: list[str]) -> numpy.ndarray:
    """One name or a list of names a row (N) -> (N, K) bool in the order of ``names``."""
    index = {name: k for k, name in enumerate(names)}
    out = numpy.zeros((len(cells), len(names)), dtype=bool)
    for row, cell in zip(out, cells, strict=True):
        row[[index[name] for name in ([cell] if isinstance(cell, str) else cell)]] = True
    return out
