"""Renders a run directory as report.html: one file without network access or scripts."""

import base64
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas
from markupsafe import Markup

from finetune import run_directory, tasks
from finetune.report import decided, figures, wording

WRONG_ROWS = 20
# Rows with labels that are probably wrong; the run's label_errors.csv has more.
SUSPECTS = 30
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(run: run_directory.Run) -> str:
    """Returns the report of a finished run as HTML, the same text for the same run.

    Raises:
        UserError: the directory has no finished run.
    """
    results = run.results()
    rows = run.predictions()
    return TEMPLATES.get_template("report.html.j2").render(
        r={"samples": [], "augmented": []} | results,
        words=wording,
        decided=decided.lines(results),
        suspects=run.label_errors()[:SUSPECTS],
        bars=_bars(results),
        published=wording.reference(results),
        figures=[
            (caption, note, wide, Markup(svg))
            for caption, note, wide, svg in _figures(run, results, rows)
            if svg
        ],
        pictures=[(name, _inline(data)) for name, data in run.images().items()],
        wrong=_mistakes(results, rows),
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
    if "per_class" in results and "probabilities" in rows:
        names = results["data"]["label_names"]
        note = "Of the test rows; with many classes, those that are rarest there."
        drawn = figures.ranking(rows, names, results["data"].get("positive"))
        out.append(("Precision, recall and ROC", note, True, drawn))
    if "abstain" in results:
        note = "From the surest prediction on: what is right if the others are left to people."
        drawn = figures.coverage(rows, results["data"]["label_names"], results["abstain"])
        out.append(("Accuracy and coverage", note, False, drawn))
    if results["data"]["problem_type"] == "regression":
        note = "Each point is a test row."
        out.append(("Predicted against true", note, False, figures.scatter(rows)))
    return out


def _mistakes(results: dict[str, Any], rows: pandas.DataFrame) -> list[dict[str, str]] | None:
    """The worst wrong predictions, as the task shows them; None where the task has none."""
    mistakes = tasks.find(results["task"]).mistakes(rows, results["data"], WRONG_ROWS)
    if mistakes is None:
        return None
    return [
        asdict(mistake)
        | {
            "image": _inline(mistake.image) if mistake.image else "",
            "confidence": mistake.confidence
            if isinstance(mistake.confidence, str)
            else wording.share(mistake.confidence),
        }
        for mistake in mistakes
    ]


def _inline(png: bytes) -> str:
    """Returns an image as a URL that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
