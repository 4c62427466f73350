"""Draws the figures of a run as SVG elements for an HTML page, and sheets of images as PNG files.

It is one file because the figures share one style and one way to become text. The same numbers
give the same bytes. Text is kept as text. Ids start with the name of the figure,
so that several figures can be on one page.
"""

import io
import re
import warnings
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from finetune.evaluation import metrics
from finetune.report import wording

# Okabe and Ito 2008: distinguishable with color vision deficiency.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
INK = "#222222"
# With more classes than this the numbers in the cells are not readable.
MOST_CLASSES = 30
# A point is about 100 bytes of SVG.
MOST_POINTS = 2000
# More curves in one figure cannot be told apart.
MOST_CURVES = 8
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure, size in inches. The text column of the page is 9 inches wide."""
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, label: str) -> str:
    """Returns the figure as one ``<svg>`` element; ``label`` is its name for screen readers."""
    file = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Label names may be in any script. The browser has the glyphs that the font here lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    # Its style rule would apply to the whole page. The root's attributes do the same.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box
    root = f'<svg {box[0]} role="img" stroke-linejoin="round" width="100%"'
    drawn = re.sub(r"<svg[^>]*>", f'{root} aria-label="{label}">', svg, count=1)
    return drawn.strip()


# --- training --------------------------------------------------------------------------------


def learning_curves(history: list[dict[str, Any]], results: dict[str, Any]) -> str | None:
    """Plots the loss, and the validation headline metric where it was measured, over the steps.

    Args:
        history: the lines of history.jsonl.

    Returns:
        SVG, or None where no loss was logged.
    """
    headline = results["headline"]
    trained, validated = _curve(history, "loss"), _curve(history, "eval_loss")
    scored = _curve(history, f"eval_{headline}")
    if not len(trained[0]):
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(9, 3.2)
        panels = figure.subplots(1, 2 if len(scored[0]) else 1, squeeze=False)[0]
        panels[0].plot(*trained, color=BLUE, label="training")
        if len(validated[0]):
            panels[0].plot(*validated, "o--", color=ORANGE, label="validation", markersize=5)
        panels[0].set_title("Loss")
        panels[0].set_ylim(bottom=0)
        if len(scored[0]):
            panels[1].plot(*scored, "o--", color=ORANGE, markersize=5)
            panels[1].set_title(f"Validation {wording.title(headline)}")
            if metrics.spec(headline).is_share:
                panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1, symbol=" %"))
        for panel in panels:
            panel.set_xlim(0, 1.02 * max(trained[0].max(), *validated[0], results["steps"]))
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if results["chosen"]:
                step = results["chosen"]["step"]
                panel.axvline(step, color=GREY, linestyle=":", label=f"chosen, step {step}")
        panels[0].legend()
        return _svg(figure, "curves", "Learning curves")


def _curve(history: list[dict[str, Any]], name: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns the steps (M,) and values (M,) logged under a name; non-finite values become NaN."""
    logged = [(row["step"], row[name]) for row in history if name in row]
    steps, values = numpy.array(logged, dtype=float).reshape(-1, 2).T
    return steps, numpy.where(numpy.isfinite(values), values, numpy.nan)


# --- classes ---------------------------------------------------------------------------------


def confusion(counts: list[list[int]], names: list[str]) -> str | None:
    """Draws the confusion matrix, colored by row share: rows are true classes, columns predicted.

    Args:
        counts: K x K.
        names: the K label names.

    Returns:
        SVG, or None for more than 30 classes.
    """
    table = numpy.array(counts)
    k = len(table)
    if k > MOST_CLASSES:
        return None
    shares = table / numpy.maximum(table.sum(1, keepdims=True), 1)
    names = [_short(name) for name in names]
    side = min(9.0, max(4.2, 0.95 * k + 1.6))
    with matplotlib.rc_context(STYLE):
        figure = _figure(side, side * (0.82 if k <= 4 else 0.94))
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        # Counts and shares need space. With many classes there is only space for the counts.
        size = max(6.0, min(11.0, 95 / k))
        for (i, j), count in numpy.ndenumerate(table):
            text = f"{count:,}\n{100 * shares[i, j]:.1f} %" if k <= 10 else f"{count or ''}"
            color = "white" if shares[i, j] > 0.55 else INK
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=color, size=size)
        small = max(7.0, min(10.0, 150 / k))
        turned = {"rotation": 45, "ha": "right"} if k > 3 else {}
        axes.set_xticks(numpy.arange(k) + 0.5, names, fontsize=small, **turned)
        axes.set_yticks(numpy.arange(k) + 0.5, names, fontsize=small)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return _svg(figure, "confusion", "Confusion matrix")


def _short(name: str) -> str:
    name = wording.plain(name)
    return name if len(name) <= 18 else name[:17] + "…"


def reliability(bins: dict[str, list[float]]) -> str:
    """Plots accuracy over confidence, with the diagonal of a calibrated model and the row counts.

    Args:
        bins: ``confidence``, ``accuracy`` and ``count`` of each filled bin.

    Returns:
        SVG.
    """
    confidence, accuracy, count = (
        numpy.array(bins[key], dtype=float) for key in ("confidence", "accuracy", "count")
    )
    with matplotlib.rc_context(STYLE):
        figure = _figure(4.6, 4.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
        upper.plot(confidence, accuracy, color=BLUE, linewidth=1)
        areas = 18 + 160 * count / count.max()
        upper.scatter(confidence, accuracy, s=areas, color=BLUE, edgecolors="white", zorder=3)
        upper.set_ylabel("accuracy")
        upper.set_ylim(-0.02, 1.05)
        upper.legend(loc="upper left")
        lower.bar(confidence, count, width=0.045, color=BLUE)
        lower.set_ylabel("rows")
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        lower.set_xlabel("confidence (probability of the predicted class)")
        lower.set_xlim(min(0.5, confidence.min()) - 0.04, 1.04)
        for axis in (upper.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        return _svg(figure, "reliability", "Reliability diagram")


# --- numbers ---------------------------------------------------------------------------------


def scatter(rows: pandas.DataFrame) -> str:
    """Plots predicted over true values of a regression, with the line of a perfect model.

    Args:
        rows: columns label and prediction (N,); more than 2,000 rows are thinned evenly.

    Returns:
        SVG.
    """
    every = -(-len(rows) // MOST_POINTS)
    shown = rows.iloc[::every]
    with matplotlib.rc_context(STYLE):
        figure = _figure(4.6, 4.6)
        axes: Axes = figure.subplots()
        both = shown[["label", "prediction"]].to_numpy(dtype=float)
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="perfect")
        axes.scatter(both[:, 0], both[:, 1], s=14, color=BLUE, alpha=0.4, linewidths=0)
        axes.set_xlabel("true value")
        axes.set_ylabel("predicted value")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="upper left")
        if every > 1:
            axes.set_title(f"{len(shown):,} of {len(rows):,} rows")
        return _svg(figure, "scatter", "Predicted against true values")


# --- several runs ----------------------------------------------------------------------------


def parallel_coordinates(
    values: list[list[Any]], scores: list[float], names: list[str], metric: str
) -> str:
    """Draws each trial of a sweep as a line through its values; the best is dark.

    Args:
        values: (T, K) of T trials, best first: numbers, texts or booleans.
        scores: (T,) the metric of each trial.
        names: the K keys.

    Returns:
        SVG.
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(9, 3.8)
        axes: Axes = figure.subplots()
        columns = [*zip(*values, strict=True), tuple(scores)]
        heights, ends = zip(*(_heights(list(column)) for column in columns), strict=True)
        for rank in range(len(values) - 1, -1, -1):
            line = [column[rank] for column in heights]
            best = rank == 0
            axes.plot(
                line, color=BLUE if best else GREY, alpha=1 if best else 0.35, zorder=2 + best
            )
        for place, marks in enumerate(ends):
            axes.axvline(place, color=INK, linewidth=0.8)
            for height, label in marks:
                axes.text(place + 0.02, height, label, fontsize=8, va="center")
        axes.set_xticks(range(len(columns)), [*names, wording.title(metric)])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.05, len(columns) - 1 + 0.25)
        axes.set_ylim(-0.05, 1.05)
        return _svg(figure, "trials", "Parallel coordinates of all trials")


def _heights(column: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Returns the places of values on an axis from 0 to 1, and the marks of the axis.

    Numbers that are drawn over more than a factor of 30 are placed by their logarithm.
    """
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in column):
        known = sorted({str(value) for value in column})
        places = {name: i / max(len(known) - 1, 1) for i, name in enumerate(known)}
        return [places[str(value)] for value in column], [(y, x) for x, y in places.items()]
    low, high = min(column), max(column)
    scaled = numpy.array(column, dtype=float)
    if low > 0 and high / low > 30:
        scaled = numpy.log(scaled)
    spread = numpy.ptp(scaled)
    found = (scaled - scaled.min()) / spread if spread else numpy.full(len(scaled), 0.5)
    marks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if spread else [(0.5, f"{low:.3g}")]
    return found.tolist(), marks


def power_law(
    rows: list[int],
    measured: numpy.ndarray,
    fitted: tuple[Any, Any, Any, Any],
    title: str,
) -> str:
    """Draws a metric over the number of training rows, and the curve fitted to it.

    Args:
        rows: M numbers of training rows.
        measured: (M, 3) metric, low and high end of its interval.
        fitted: rows, metric, low and high of the curve, each (L,).

    Returns:
        SVG.
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(9, 3.8)
        axes: Axes = figure.subplots()
        places, middle, low, high = fitted
        axes.fill_between(places, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(places, middle, color=BLUE, label="power law, 95 % interval")
        value, lowest, highest = measured.T
        reach = numpy.clip([value - lowest, highest - value], 0, None)
        axes.errorbar(rows, value, reach, fmt="o", color=ORANGE, label="measured")
        axes.set_xscale("log")
        axes.set_xticks(rows, [f"{count:,}" for count in rows])
        axes.minorticks_off()
        axes.set_xlabel("training rows")
        axes.set_ylabel(title)
        axes.legend()
        return _svg(figure, "power", "Power law over training rows")


# --- decisions -------------------------------------------------------------------------------


def ranking(rows: pandas.DataFrame, names: list[str], positive: str | None) -> str | None:
    """Plots precision over recall and the ROC curve of some classes.

    Args:
        rows: columns label, a name or a list of names, and probabilities (N, K).
        names: the K label names.
        positive: the only class of two that is drawn; the second, if None. Of more than two classes
            the ``MOST_CURVES`` with the fewest rows are.

    Returns:
        SVG, or None if no class has rows with and without it.
    """
    from sklearn import metrics as sk

    probabilities = numpy.stack([numpy.asarray(p, float) for p in rows["probabilities"]])
    sets = [{label} if isinstance(label, str) else set(label) for label in rows["label"]]
    one_of_two = len(names) == 2 and all(len(each) == 1 for each in sets)
    shown = [positive or names[1]] if one_of_two else names
    truth = {name: numpy.array([name in each for each in sets]) for name in shown}
    shown = [name for name in shown if truth[name].any() and not truth[name].all()]
    shown = sorted(shown, key=lambda name: truth[name].sum())[:MOST_CURVES]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(9, 4.2)
        left, right = figure.subplots(1, 2)
        for name in shown:
            true, score = truth[name], probabilities[:, names.index(name)]
            precision, recall, _ = sk.precision_recall_curve(true, score, drop_intermediate=True)
            false, found, _ = sk.roc_curve(true, score)
            average, area = sk.average_precision_score(true, score), sk.roc_auc_score(true, score)
            color = {"color": BLUE} if len(shown) == 1 else {}
            label = f"{_short(name)} {average:.3f}"
            left.step(*_thinned(recall, precision), where="post", label=label, **color)
            right.plot(*_thinned(false, found), label=f"{_short(name)} {area:.3f}", **color)
        left.set(xlabel="recall", ylabel="precision", title="Precision and recall")
        right.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        right.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        for axes, title in ((left, "average precision"), (right, "area under the curve")):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
            axes.legend(title=title, fontsize=8, title_fontsize=8)
        return _svg(figure, "ranking", "Precision-recall and ROC curves")


def _thinned(x: numpy.ndarray, y: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns at most ``MOST_POINTS`` / 4 points of a curve, with both ends."""
    kept = numpy.unique(numpy.linspace(0, len(x) - 1, min(len(x), MOST_POINTS // 4)).astype(int))
    return x[kept], y[kept]


def coverage(rows: pandas.DataFrame, names: list[str], marks: list[dict[str, Any]]) -> str:
    """Plots the accuracy of the surest predictions over their share of the rows.

    Args:
        rows: columns label, prediction and probabilities (N, K).
        marks: ``coverage`` and ``confidence`` of points to mark.

    Returns:
        SVG.
    """
    place = {name: k for k, name in enumerate(names)}
    sure = numpy.array(
        [p[place[n]] for p, n in zip(rows["probabilities"], rows["prediction"], strict=True)]
    )
    correct = (rows["prediction"] == rows["label"]).to_numpy()
    right = correct[numpy.argsort(-sure, kind="stable")].cumsum()
    share = numpy.arange(1, len(right) + 1) / len(right)
    with matplotlib.rc_context(STYLE):
        figure = _figure(4.6, 4.2)
        axes: Axes = figure.subplots()
        axes.plot(*_thinned(share, right / (share * len(right))), color=BLUE)
        for mark in marks:
            label = f"probability {100 * mark['confidence']:.0f} % or more"
            axes.axvline(mark["coverage"], color=GREY, linestyle=":", label=label)
        axes.set(xlabel="share of rows predicted", ylabel="accuracy of these", xlim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.legend(loc="lower left")
        return _svg(figure, "coverage", "Accuracy over coverage")
