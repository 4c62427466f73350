"""Formats numbers and verdicts, the same way in tables, pages and model cards.

A metric is ``{"value", "low", "high", "n"}``, with a 95 % interval over the test rows. Its title,
unit and direction come from ``evaluation.metrics``.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from finetune.data.findings import describe
from finetune.evaluation import metrics

Metric = dict[str, Any]
METHODS = {"full": "full fine-tuning", "head": "head only", "lora": "LoRA"}
SPLITS = {
    "official": "official test split",
    "holdout": "holdout of the training data, not the official test split",
    "given": "test split as given by the user",
    "validation": "validation rows, because no test row is read (untested)",
}
BETTER, WORSE = "better", "worse"
UNCLEAR = "not clearly better"


def plain(text: object) -> str:
    """Returns text on one line, without the control characters that terminals interpret."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def title(metric: str) -> str:
    """Returns the title of a metric, for example ``macro F1``."""
    return metrics.spec(metric).title


def also_measured(results: dict[str, Any]) -> list[list[str]]:
    """Returns the table of all metrics except the headline: a header, then one row per metric.

    Columns are the model and every baseline for which all metrics were measured.
    """
    names = [name for name in results["metrics"] if name != results["headline"]]
    scored = {"this model": results["metrics"]} | results["baselines"]
    scored = {name: scores for name, scores in scored.items() if {*names} <= scores.keys()}
    rows = [[title(n), *(measured(n, scores[n]) for scores in scored.values())] for n in names]
    return [["also measured", *scored], *rows]


def method(name: str) -> str:
    """Returns the title of a tuning method, for example ``full fine-tuning``."""
    return METHODS.get(name, name)


def split(test_is: str) -> str:
    """Describes the kind of the test split."""
    return SPLITS.get(test_is, test_is)


def views(data: dict[str, Any]) -> str:
    """Describes the test-time augmentation of a run; empty without."""
    if not data.get("test_views"):
        return ""
    return (
        "Test-time augmentation: a test image's prediction is the mean over it and "
        f"{data['test_views']} augmented views, as in finetune predict; pipeline() uses the image "
        "alone and may score differently."
    )


def _percent(value: float) -> str:
    # Rounds the decimal digits half up: a format specifier would turn 0.8765 into 87.6.
    return str((100 * Decimal(str(value))).quantize(Decimal("0.1"), ROUND_HALF_UP))


def _bare(metric: str, value: float) -> str:
    if metrics.spec(metric).is_share and math.isfinite(value):
        return _percent(value)
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def number(metric: str, value: float) -> str:
    """Formats a value: ``87.7 %`` for a share, otherwise three or four decimals."""
    return _bare(metric, value) + (" %" if metrics.spec(metric).is_share else "")


def interval(metric: str, scores: Metric) -> str:
    """Formats the interval alone: ``[86.1, 89.0]``."""
    return f"[{_bare(metric, scores['low'])}, {_bare(metric, scores['high'])}]"


def measured(metric: str, scores: Metric) -> str:
    """Formats a value with its interval: ``87.7 % [86.1, 89.0]``."""
    return f"{number(metric, scores['value'])} {interval(metric, scores)}"


def share(value: float | None) -> str:
    """Formats a share in percent; a dash where it is undefined."""
    return "-" if value is None else f"{_percent(value)} %"


def verdict(metric: str, baseline: dict[str, Metric]) -> str:
    """Decides whether the model beats a baseline, by the interval of the paired difference."""
    difference = baseline["difference"]
    above, below = (WORSE, BETTER) if _is_loss(metric) else (BETTER, WORSE)
    if difference["low"] > 0:
        return above
    return below if difference["high"] < 0 else UNCLEAR


def sort_key(metric: str, value: float) -> float:
    """Returns the key of a value by which ascending order puts the best first."""
    return value if _is_loss(metric) else -value


def _is_loss(metric: str) -> bool:
    return metrics.spec(metric).greater_is_better is False


def apart(metric: str, baseline: dict[str, Metric]) -> str:
    """Formats the verdict with the paired difference: ``better, +2.0 [+0.6, +3.4]``."""
    return f"{verdict(metric, baseline)}, {signed(metric, baseline['difference'])}"


def signed(metric: str, difference: Metric) -> str:
    """Formats a difference, in percentage points for a share: ``+2.0 [+0.6, +3.4]``."""
    value, low, high = (
        ("+" if difference[key] >= 0 else "") + _bare(metric, difference[key])
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def linear(baselines: dict[str, Any]) -> str | None:
    """Returns the name of the linear baseline; None if there is none."""
    return next((name for name in baselines if "regression" in name), None)


def standing(results: dict[str, Any]) -> str:
    """Summarises in one sentence how the model compares with every baseline."""
    names: dict[str, list[str]] = {}
    for name, scores in results["baselines"].items():
        names.setdefault(verdict(results["headline"], scores), []).append(name)
    if not names:
        return "No baseline was measured."
    parts = {
        WORSE: "worse than {}",
        UNCLEAR: "not clearly better than {} (the difference may be chance)",
        BETTER: "better than {}",
    }
    found = [phrase.format(_and(names[word])) for word, phrase in parts.items() if word in names]
    return f"The model is {'; '.join(found)}."


def kept(seeds: dict[str, Any]) -> str:
    """Says which of several seeds is the model to use, given seeds.json."""
    if not seeds["kept"]:
        return "There are no validation rows to prefer a seed by."
    (seed,) = [s for s, folder in seeds["runs"].items() if folder == seeds["kept"]]
    value = number(seeds["headline"], seeds["validation"][seed])
    title_of = title(seeds["headline"])
    return f"Validation prefers seed {seed} ({title_of} {value} on its rows)."


def over_seeds(seeds: dict[str, Any]) -> str:
    """Says what several seeds reach on the test rows, given seeds.json."""
    headline, values = seeds["headline"], seeds["values"]
    line = f"Over {len(values)} seeds ({', '.join(values)}): mean {title(headline)} "
    line += f"{measured(headline, seeds['mean'])}, 95 % t interval over the seeds"
    if seeds["over_rows"]:
        line += (
            f"; {interval(headline, seeds['over_rows'])} over seeds and rows (pigeonhole bootstrap)"
        )
    worst = str(seeds["worst"])
    return f"{line}; the worst {number(headline, values[worst])} (seed {worst})."


def conclusion(results: dict[str, Any]) -> str:
    """Says in one line whether the model beats the strongest baseline; empty without baselines.

    Where the paired difference is undecided, it names the test rows that would decide it if the
    difference stayed: the interval narrows with the square root of the number of rows.
    """
    headline, baselines = results["headline"], results["baselines"]
    if not baselines:
        return ""

    def place(name: str) -> float:
        return sort_key(headline, baselines[name][headline]["value"])

    name = min(baselines, key=place)
    difference, found = baselines[name]["difference"], verdict(headline, baselines[name])
    answer = {BETTER: "yes", WORSE: "no", UNCLEAR: "undecided"}[found]
    line = f"beats {name}: {answer}, {signed(headline, difference)}"
    if found != UNCLEAR:
        return line
    more = _rows_to_decide(difference, results["metrics"][headline]["n"])
    if more is None:
        return f"{line}; they differ too little for more test rows to decide it"
    return f"{line}; about {rows(more)} more test rows would decide it if the difference stays"


def _rows_to_decide(difference: Metric, count: int) -> int | None:
    """Returns how many more rows exclude 0 from the interval; None above a million.

    Args:
        difference: its interval contains 0.
        count: the rows that were tested.
    """
    value = difference["value"]
    margin = value - difference["low"] if value > 0 else difference["high"] - value
    if abs(value) * 1e3 <= margin or count * ((margin / value) ** 2 - 1) > 1e6:
        return None
    more = max(count * ((margin / value) ** 2 - 1), 1)
    # Two digits: the difference itself is known no better.
    size = 10 ** max(len(str(int(more))) - 2, 0)
    return math.ceil(more / size) * size


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


@dataclass(frozen=True)
class Reference:
    """The comparison of a run with its published number, as text."""

    published: str
    against: str
    caveat: str

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        return [line for line in (self.published, self.against, self.caveat) if line]


def reference(results: dict[str, Any]) -> Reference | None:
    """Compares a run with the published number of its recipe; None if it names none."""
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
    gap = ours["value"] - value
    points = f"{100 * gap:+.1f} points" if metrics.spec(name).is_share else f"{gap:+.4f}"
    covered = "covers" if ours["low"] <= value <= ours["high"] else "does not cover"
    against = f"this run {number(name, ours['value'])}: {points}; its interval {covered} it"
    if elsewhere:
        return Reference(published, against, elsewhere)
    if test_is != "official":
        # Two holdouts of the same data rarely have the same rows.
        return Reference(published, against, f"both on a split of kind {test_is}; rows may differ")
    return Reference(published, against, "both on the official test split")


def counted(per_class: dict[str, dict[str, Any]]) -> str:
    """Returns what is counted of each class: rows, or where a text has several, entities."""
    return "entities" if any("entities" in scores for scores in per_class.values()) else "rows"


def rows(count: int) -> str:
    """Formats a count with thousands separators: ``2,000``."""
    return f"{count:,}"


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    for scale, unit in units:
        if value >= scale:
            scaled = value / scale
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {unit}"
    return f"{value:.0f}"


def parameters(count: int) -> str:
    """Formats a parameter count: ``22.7 M``."""
    return _scaled(count, [(1e9, "B"), (1e6, "M"), (1e3, "k")])


def size(count: int) -> str:
    """Formats bytes in decimal units: ``91.6 MB``."""
    return _scaled(count, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")])


def duration(seconds: float) -> str:
    """Formats seconds: ``6 min 40 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def about(seconds: float) -> str:
    """Formats seconds in a single unit, for narrow columns: ``6.7 min``."""
    return duration(seconds) if seconds < 60 else _scaled(seconds, [(3600, "h"), (60, "min")])


def speed(cost: dict[str, Any]) -> str:
    """Formats the throughput of training: non-padding tokens, or rows where none were counted."""
    if "tokens_per_second" in cost:
        return f"{rows(round(cost['tokens_per_second']))} real tokens a second"
    return f"{rows(round(cost['rows_per_second']))} rows a second"


def trained(cost: dict[str, Any]) -> str:
    """Formats the trainable parameters: ``0.6 M of 23.3 M parameters (2.5 %)``."""
    some, total = cost["trainable_parameters"], cost["total_parameters"]
    part = f"{100 * some / total:.3g} %"
    return f"{parameters(some)} of {parameters(total)} parameters ({part})"


def counts(data: dict[str, Any]) -> str:
    """Formats the number of rows of each split."""
    parts = [f"{rows(data[name])} {name}" for name in ("train", "validation", "test")]
    return ", ".join(parts)


def findings(data: dict[str, Any]) -> list[str]:
    """What the data checks found that is not zero, in words."""
    return describe(data)
