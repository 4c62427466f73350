"""How numbers and verdicts read, in tables, pages and cards alike.

A metric is scoring's ``{"value", "low", "high", "n"}``, with a 95 % interval over the test rows.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from finetune.data.findings import describe

Metric = dict[str, Any]
# Shares, shown in percent; every other metric is shown as it is.
PERCENT = {
    *("accuracy", "macro_f1", "micro_f1", "exact_match"),
    *("explained_variance", "masked_accuracy"),
}
# The less the better.
LOSSES = {"bits_per_byte", "perplexity"}
TITLES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "log_loss": "log loss",
    "brier": "Brier score",
    "masked_accuracy": "accuracy on hidden tokens",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
}
METHODS = {"full": "full fine-tuning", "head": "head only", "lora": "LoRA"}
SPLITS = {
    "official": "official test split",
    "holdout": "holdout of the training data, not the official test split",
    "given": "test split as given by the user",
}
BETTER, WORSE = "better", "worse"
UNCLEAR = "not clearly better"


def plain(text: object) -> str:
    """Text on one line, without control characters that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def title(metric: str) -> str:
    """The name of a metric as a reader knows it."""
    return TITLES.get(metric, metric.replace("_", " "))


def also_measured(results: dict[str, Any]) -> list[list[str]]:
    """All metrics but the headline, a header and then a row each.

    Beside the model's value stands that of any baseline measured as fully.
    """
    names = [name for name in results["metrics"] if name != results["headline"]]
    scored = {"this model": results["metrics"]} | results["baselines"]
    scored = {name: scores for name, scores in scored.items() if {*names} <= scores.keys()}
    rows = [[title(n), *(measured(n, scores[n]) for scores in scored.values())] for n in names]
    return [["also measured", *scored], *rows]


def method(name: str) -> str:
    """The name of a tuning method as a reader knows it."""
    return METHODS.get(name, name)


def split(test_is: str) -> str:
    """What kind of rows the model was tested on."""
    return SPLITS.get(test_is, test_is)


def views(data: dict[str, Any]) -> str:
    """How test images were answered where not by one look; else nothing."""
    if not data.get("test_views"):
        return ""
    return (
        f"Each test image was answered by the mean over it and {data['test_views']} changed views "
        "of it, as finetune predict answers; pipeline() looks once and may score otherwise."
    )


def _percent(value: float) -> str:
    # As the decimal digits read: a plain format makes 87.6 of 0.8765, which readers round up.
    return str((100 * Decimal(str(value))).quantize(Decimal("0.1"), ROUND_HALF_UP))


def _bare(metric: str, value: float) -> str:
    if metric in PERCENT and math.isfinite(value):
        return _percent(value)
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def number(metric: str, value: float) -> str:
    """A value: ``87.7 %`` for a share, else three or four decimals."""
    return _bare(metric, value) + (" %" if metric in PERCENT else "")


def interval(metric: str, scores: Metric) -> str:
    """The interval alone: ``[86.1, 89.0]``."""
    return f"[{_bare(metric, scores['low'])}, {_bare(metric, scores['high'])}]"


def measured(metric: str, scores: Metric) -> str:
    """A value with its interval: ``87.7 % [86.1, 89.0]``."""
    return f"{number(metric, scores['value'])} {interval(metric, scores)}"


def share(value: float | None) -> str:
    """A share in percent, or a dash where it is not defined."""
    return "-" if value is None else f"{_percent(value)} %"


def verdict(metric: str, baseline: dict[str, Metric]) -> str:
    """Whether the model beats a baseline: by the 95 % interval of the paired difference."""
    apart = baseline["difference"]
    more, less = (WORSE, BETTER) if metric in LOSSES else (BETTER, WORSE)
    if apart["low"] > 0:
        return more
    return less if apart["high"] < 0 else UNCLEAR


def apart(metric: str, baseline: dict[str, Metric]) -> str:
    """The verdict with the difference, in points for a share: ``better, +2.0 [+0.6, +3.4]``."""
    return f"{verdict(metric, baseline)}, {signed(metric, baseline['difference'])}"


def signed(metric: str, difference: Metric) -> str:
    """A difference, in points for a share: ``+2.0 [+0.6, +3.4]``."""
    value, low, high = (
        ("+" if difference[key] >= 0 else "") + _bare(metric, difference[key])
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def linear(baselines: dict[str, Any]) -> str | None:
    """The name of the linear baseline, which a fine-tuned model has to beat; None without one."""
    return next((name for name in baselines if "regression" in name), None)


def standing(results: dict[str, Any]) -> str:
    """One sentence: how the headline stands against every baseline."""
    said: dict[str, list[str]] = {}
    for name, scores in results["baselines"].items():
        said.setdefault(verdict(results["headline"], scores), []).append(name)
    if not said:
        return "No baseline was measured."
    parts = {
        WORSE: "worse than {}",
        UNCLEAR: "not clearly better than {} (the difference may be chance)",
        BETTER: "better than {}",
    }
    told = [phrase.format(_and(said[word])) for word, phrase in parts.items() if word in said]
    return f"The model is {'; '.join(told)}."


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


@dataclass(frozen=True)
class Reference:
    """The published number beside this run's, in words."""

    published: str
    against: str
    caveat: str

    @property
    def lines(self) -> list[str]:
        """The words that apply."""
        return [line for line in (self.published, self.against, self.caveat) if line]


def reference(results: dict[str, Any]) -> Reference | None:
    """Compare a run with its published number, or None where the recipe names none."""
    given = results["reference"]
    if given is None:
        return None
    name, value, test_is = given["metric"], given["value"], results["data"]["test_is"]
    source = f" ({plain(given['source'])})" if given["source"] else ""
    published = f"{title(name)} {number(name, value)} published{source}"
    elsewhere = (
        "" if test_is == given["split"] else f"another split ({test_is}): not a reproduction"
    )
    if name not in results["metrics"]:
        return Reference(published, f"this run did not measure {title(name)}", elsewhere)
    ours = results["metrics"][name]
    apart = ours["value"] - value
    points = f"{100 * apart:+.1f} points" if name in PERCENT else f"{apart:+.4f}"
    covered = "covers" if ours["low"] <= value <= ours["high"] else "does not cover"
    against = f"this run {number(name, ours['value'])}: {points}; its interval {covered} it"
    if elsewhere:
        return Reference(published, against, elsewhere)
    if test_is != "official":
        # Two holdouts of the same data are rarely the same rows.
        return Reference(published, against, f"both on a split of kind {test_is}; rows may differ")
    return Reference(published, against, "both on the official test split")


def rows(count: int) -> str:
    """A count with thousands apart: ``2,000``."""
    return f"{count:,}"


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    for scale, unit in units:
        if value >= scale:
            scaled = value / scale
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {unit}"
    return f"{value:.0f}"


def parameters(count: int) -> str:
    """A parameter count: ``22.7 M``."""
    return _scaled(count, [(1e9, "B"), (1e6, "M"), (1e3, "k")])


def size(count: int) -> str:
    """Bytes in decimal units: ``91.6 MB``."""
    return _scaled(count, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")])


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``6 min 40 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def about(seconds: float) -> str:
    """Seconds in one unit, where space is short: ``6.7 min``."""
    return duration(seconds) if seconds < 60 else _scaled(seconds, [(3600, "h"), (60, "min")])


def speed(cost: dict[str, Any]) -> str:
    """What went through training a second: real tokens, or rows where there are none."""
    if "tokens_per_second" in cost:
        return f"{rows(round(cost['tokens_per_second']))} real tokens a second"
    return f"{rows(round(cost['rows_per_second']))} rows a second"


def trained(cost: dict[str, Any]) -> str:
    """How many parameters learned: ``0.6 M of 23.3 M parameters (2.5 %)``."""
    some, total = cost["trainable_parameters"], cost["total_parameters"]
    part = f"{100 * some / total:.3g} %"
    return f"{parameters(some)} of {parameters(total)} parameters ({part})"


def counts(data: dict[str, Any]) -> str:
    """How many rows each split has."""
    parts = [f"{rows(data[name])} {name}" for name in ("train", "validation", "test")]
    return ", ".join(parts)


def findings(data: dict[str, Any]) -> list[str]:
    """What the data checks found that is not zero, in words."""
    return describe(data)
