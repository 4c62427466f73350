"""A run directory -> report.html: one file that needs no network, no script and no other file."""

import base64
from pathlib import Path
from typing import Any

import jinja2
import numpy
import pandas
from markupsafe import Markup

from finetune import run_directory
from finetune.data import image_files
from finetune.report import figures, wording

WRONG_ROWS = 20
TEXT_LENGTH = 600
THUMBNAIL = 192
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(run: run_directory.Run) -> str:
    """The report of a finished run as HTML, the same text for the same run.

    Raises:
        UserError: the directory holds no finished run.
    """
    results = run.results()
    rows = run.predictions()
    return TEMPLATES.get_template("report.html.j2").render(
        r={"samples": []} | results,
        words=wording,
        bars=_bars(results),
        published=wording.reference(results),
        figures=[
            (caption, note, wide, Markup(svg))
            for caption, note, wide, svg in _figures(run, results, rows)
            if svg
        ],
        pictures=[(name, _inline(data)) for name, data in run.images().items()],
        wrong=_wrong(rows, results["data"]),
        recipe=(run.folder / run_directory.RECIPE).read_text(encoding="utf-8"),
    )


def _bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The model and its baselines: each one's place on a common scale, in percent of its width."""
    headline = results["headline"]
    model = results["metrics"][headline]
    scored = {"this model": model}
    beside = results["baselines"]
    scored |= {name: scores[headline] for name, scores in beside.items()}
    low = min(score["low"] for score in scored.values())
    high = max(score["high"] for score in scored.values())
    scale = 100 / (high - low) if high > low else 0.0
    return [
        {
            "name": name,
            "shown": wording.measured(headline, score),
            "verdict": wording.apart(headline, beside[name]) if name in beside else "",
            "low": round((score["low"] - low) * scale, 2),
            "width": round((score["high"] - score["low"]) * scale, 2),
            "value": round((score["value"] - low) * scale, 2),
        }
        for name, score in scored.items()
    ]


def _figures(
    run: run_directory.Run, results: dict[str, Any], rows: pandas.DataFrame
) -> list[tuple[str, str, bool, str | None]]:
    """Caption, note, whether it takes the whole width, and SVG of each figure."""
    out: list[tuple[str, str, bool, str | None]] = [
        (
            "Learning curves",
            "The dotted line marks the checkpoint that validation chose."
            if results["chosen"]
            else "",
            True,
            figures.learning_curves(run.history(), results),
        )
    ]
    if "confusion" in results:
        names = results["data"]["label_names"]
        note = "Counts, and in colour the share of each true class."
        drawn = figures.confusion(results["confusion"], names)
        out.append(("Confusion matrix", note, len(names) > 5, drawn))
    if "reliability" in results:
        note = (
            "Points above the line are right more often than the model says, below it less often."
        )
        out.append(("Reliability", note, False, figures.reliability(results["reliability"])))
    if results["data"]["problem_type"] == "regression":
        note = "Each point is a test row."
        out.append(("Predicted against true", note, False, figures.scatter(rows)))
    return out


# --- errors ----------------------------------------------------------------------------------


def _wrong(rows: pandas.DataFrame, data: dict[str, Any]) -> list[dict[str, str]] | None:
    """The test rows that the model got wrong with the most confidence, worst first.

    Confidence is the probability of the wrong class, of several labels the one most wrongly
    given or withheld; for a regression it is the size of the error. None where rows are neither
    right nor wrong.
    """
    if "probabilities" not in rows and data["problem_type"] != "regression":
        return None
    if data["problem_type"] == "regression":
        apart = (rows["prediction"] - rows["label"]).to_numpy(dtype=float)
        amount, is_wrong = numpy.abs(apart), apart != 0
        shown = [f"off by {value:+.4g}" for value in apart]
        said, true = ([f"{v:.4g}" for v in rows[c]] for c in ("prediction", "label"))
    else:
        names = data["label_names"]
        predicted, truth = (_members(list(rows[c]), names) for c in ("prediction", "label"))
        probabilities = numpy.stack([numpy.asarray(p, dtype=float) for p in rows["probabilities"]])
        if data["problem_type"] == "single_label_classification":
            sure = numpy.where(predicted, probabilities, 0.0)
        else:
            sure = numpy.where(predicted, probabilities, 1 - probabilities)
        mistaken = predicted != truth
        amount, is_wrong = numpy.where(mistaken, sure, 0.0).max(1), mistaken.any(1)
        shown = [wording.share(value) for value in amount]
        said, true = (
            [", ".join(n for n, on in zip(names, row, strict=True) if on) or "none" for row in m]
            for m in (predicted, truth)
        )
    order = numpy.argsort(-amount, kind="stable")
    columns = [c for c in ("text", "text_pair") if c in rows]
    return [
        {
            "id": str(rows["id"].iloc[i]),
            "text": "\n\n".join(_cut(str(rows[c].iloc[i])) for c in columns),
            "image": _thumbnail(rows["image"].iloc[i]) if "image" in rows else "",
            "label": true[i],
            "prediction": said[i],
            "confidence": shown[i],
        }
        for i in order[is_wrong[order]][:WRONG_ROWS]
    ]


def _inline(png: bytes) -> str:
    """A picture as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _thumbnail(picture: str | bytes) -> str:
    """A test image, small enough to stand in the page; nothing where its file is gone."""
    try:
        image = image_files.decode(picture)
    except image_files.Unusable:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return _inline(figures.png(image))


def _members(cells: list[Any], names: list[str]) -> numpy.ndarray:
    """One name or a list of names a row (N) -> (N, K) bool in the order of ``names``."""
    index = {name: k for k, name in enumerate(names)}
    out = numpy.zeros((len(cells), len(names)), dtype=bool)
    for row, cell in zip(out, cells, strict=True):
        row[[index[name] for name in ([cell] if isinstance(cell, str) else cell)]] = True
    return out


def _cut(text: str) -> str:
    if len(text) <= TEXT_LENGTH:
        return text
    return text[:TEXT_LENGTH].rsplit(maxsplit=1)[0] + " …"
