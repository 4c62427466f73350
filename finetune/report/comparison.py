"""Compares runs: ranks them, and shows the seeds of one recipe together."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from rich.console import RenderableType
from rich.table import Table

from finetune import run_directory
from finetune.report import aggregate, wording
from finetune.report.aggregate import Read, settings_of
from finetune.report.tables import as_text, new_table

OnCorrections = Callable[[run_directory.Run, list[str]], wording.Metric]


def compare(runs: list[run_directory.Run], on_corrections: OnCorrections | None = None) -> str:
    """Ranks runs by their headline metric, one table per set of test rows and metric.

    Below each table, every recipe with several seeds has one line: the mean over its seeds with its
    intervals, and the paired difference from the best such recipe. Where a run learned from
    corrections, all are compared on the corrected rows, too.

    Args:
        on_corrections: (run, files of corrections) -> its headline metric on these rows; None
            leaves them out.

    Raises:
        UserError: a directory contains no finished run.
    """
    read = [(run, run.results()) for run in runs]
    parts: list[RenderableType] = []
    for group in _same_test(read):
        parts += [_heading(group[0][1]), _ranking(group), *aggregate.lines(group), ""]
        parts += _corrected(group, on_corrections) if on_corrections else []
    return as_text(*parts)


def _same_test(read: list[Read]) -> list[list[Read]]:
    """Groups runs by test rows and headline, in order of appearance."""
    coarse: dict[tuple, list[Read]] = {}
    for run, results in read:
        data = results["data"]
        key = (data["source"], data["revision"], data["test_is"], data["test"], results["headline"])
        coarse.setdefault(key, []).append((run, results))
    groups = []
    for group in coarse.values():
        if len({results["data"]["fingerprint"] for _, results in group}) == 1:
            groups.append(group)
            continue
        # The fingerprint includes train, so test rows can be equal although it differs.
        fine: dict[str, list[Read]] = {}
        for run, results in group:
            fine.setdefault(_test_rows(run), []).append((run, results))
        groups += fine.values()
    return groups


def _test_rows(run: run_directory.Run) -> str:
    """The sha256 of a run's test rows: ids, texts and labels, in order."""
    frame = run.predictions()
    answers = {"prediction", "probabilities", "abstains"}
    columns = [c for c in frame.columns if c not in answers]
    digest = hashlib.sha256()
    for row in frame[columns].itertuples(index=False):
        cells = [v.tolist() if isinstance(v, numpy.ndarray) else v for v in row]
        digest.update(repr(cells).encode())
    return digest.hexdigest()


def _heading(results: dict[str, Any]) -> str:
    data = results["data"]
    return wording.plain(
        f"{data['source']}, {wording.rows(data['test'])} test rows "
        f"({wording.split(data['test_is'])}), by {wording.title(results['headline'])}"
    )


def _ranking(group: list[Read]) -> Table:
    headline = group[0][1]["headline"]
    values = [results["metrics"][headline]["value"] for _, results in group]
    order = sorted(range(len(group)), key=lambda i: wording.sort_key(headline, values[i]))
    ranked = [group[i] for i in order]
    table = new_table(
        "run",
        "method",
        wording.title(headline),
        "beats\nlinear",
        "trained",
        "train\ntime",
        numbers=(4, 5),
    )
    table.columns[2].no_wrap = True
    for (_, results), name in zip(ranked, _names(ranked), strict=True):
        cost = results["cost"]
        table.add_row(
            name,
            results["method"],
            wording.measured(headline, results["metrics"][headline]),
            _beats_linear(results),
            wording.parameters(cost["trainable_parameters"]),
            wording.about(cost["train_seconds"]),
        )
    table.add_section()
    for name, value in _baselines(group, headline).items():
        table.add_row(name, "", value)
    return table


def _names(ranked: list[Read]) -> list[str]:
    """Returns the names of runs; of one recipe and seed with different flags, their folders."""
    names = [results["name"] for _, results in ranked]
    if len(set(names)) < len(names):
        names = [f"{results['name']}/seed-{results['seed']}" for _, results in ranked]
    return [
        str(run) if names.count(name) > 1 else wording.plain(name)
        for (run, _), name in zip(ranked, names, strict=True)
    ]


def _beats_linear(results: dict[str, Any]) -> str:
    name = wording.linear(results["baselines"])
    if name is None:
        return "-"
    verdict = wording.verdict(results["headline"], results["baselines"][name])
    return {wording.BETTER: "yes", wording.WORSE: "no", wording.UNCLEAR: "unclear"}[verdict]


def _baselines(group: list[Read], headline: str) -> dict[str, str]:
    """Each baseline's value, or its range where runs differ in their training rows."""
    found: dict[str, list[wording.Metric]] = {}
    for _, results in group:
        for name, scores in results["baselines"].items():
            found.setdefault(name, []).append(scores[headline])
    shown = {}
    for name, scores in found.items():
        values = sorted(score["value"] for score in scores)
        if values[0] == values[-1]:
            shown[name] = wording.measured(headline, scores[0])
        else:
            low, high = wording.number(headline, values[0]), wording.number(headline, values[-1])
            shown[name] = f"{low} to {high}"
    return shown


def _corrected(group: list[Read], on_corrections: OnCorrections) -> list[RenderableType]:
    """Compares runs on the rows that users corrected, if one of the runs learned from some."""
    named = [settings_of(run)["data"].get("add_feedback") for run, _ in group]
    if not any(named):
        return []
    # Other comparisons start without it.
    from finetune.data import corrections

    files = list(dict.fromkeys(file for names in named for file in corrections.files(names)))
    if gone := [file for file in files if not Path(file).is_file()]:
        return [f"The corrected rows are not compared: {gone[0]} is gone.", ""]
    headline = group[0][1]["headline"]
    columns = "corrected rows", wording.title(headline), "rows", "trained on"
    table = new_table(*columns, numbers=(2, 3))
    for (run, results), name in zip(group, _names(group), strict=True):
        scores = on_corrections(run, files)
        table.add_row(
            name,
            wording.measured(headline, scores),
            wording.rows(scores["n"]),
            wording.rows(results["data"].get("corrections", 0)),
        )
    note = "What a run was trained on shows what it learned, not what it would say of new rows."
    return [table, note, ""]
