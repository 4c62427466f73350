"""What the validation rows decided about a classifier, in sentences."""

from typing import Any

from finetune.report import wording


def lines(results: dict[str, Any]) -> list[str]:
    """Returns sentences on thresholds, calibration and abstaining, where they were asked for."""
    return [*_thresholds(results), *_calibration(results), *_abstaining(results)]


def _thresholds(results: dict[str, Any]) -> list[str]:
    chosen = results["data"].get("thresholds", {})
    if not chosen:
        return []
    named = ", ".join(f"{wording.plain(name)} {value:.3g}" for name, value in chosen.items())
    return [
        f"Predicted above a probability chosen on the validation rows: {named}. `finetune predict` "
        "and these results use it; pipeline() decides at 0.5."
    ]


def _calibration(results: dict[str, Any]) -> list[str]:
    found = results.get("calibration")
    if not found:
        return []
    changes = (
        f"{wording.title(name)} {wording.measured(name, before)} before, "
        f"{wording.measured(name, results['metrics'][name])} after"
        for name, before in found["before"].items()
    )
    return [
        "Calibrated on the validation rows: the head's weights are divided by a temperature of "
        f"{found['temperature']:.3g}, so pipeline() gives these probabilities. "
        f"{'; '.join(changes)}."
    ]


def _abstaining(results: dict[str, Any]) -> list[str]:
    out = []
    for place, each in enumerate(results.get("abstain", [])):
        accuracy = each["accuracy"]
        right = "none" if accuracy is None else wording.measured("accuracy", accuracy)
        why = ", above which 95 % of the validation rows are right," if place else ""
        out.append(
            f"With a probability of {wording.share(each['confidence'])} or more{why} "
            f"{wording.share(each['coverage'])} of the test rows are predicted, {right} correctly."
        )
    if len(out) == 1:
        out.append("No probability has 95 % of the validation rows above it right.")
    return out
