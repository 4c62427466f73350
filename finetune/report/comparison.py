"""Compares runs: ranks them, and averages the seeds of one recipe."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import yaml
from rich.console import RenderableType
from rich.table import Table
from scipy.special import stdtrit

from finetune import run_directory
from finetune.report import wording
from finetune.report.tables import as_text, new_table

OnCorrections = Callable[[run_directory.Run, list[str]], wording.Metric]


def compare(runs: list[run_directory.Run], on_corrections: OnCorrections | None = None) -> str:
    """Ranks runs by their headline metric, one table per set of test rows and metric.

    Below each table, every recipe with several seeds has one line: the mean over its seeds, the
    95 % t interval of that mean on these test rows, and the paired difference from the best such
    recipe. Where a run learned from corrections, all are compared on the corrected rows, too.

    Args:
        on_corrections: (run, files of corrections) -> its headline metric on these rows; None
            leaves them out.

    Raises:
        UserError: a directory contains no finished run.
    """
    read = [(run, run.results()) for run in runs]
    parts: list[RenderableType] = []
    for group in _same_test(read):
        parts += [_heading(group[0][1]), _ranking(group), *_over_seeds(group), ""]
        parts += _corrected(group, on_corrections) if on_corrections else []
    return as_text(*parts)


Read = tuple[run_directory.Run, dict[str, Any]]


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


def settings_of(run: run_directory.Run) -> dict[str, Any]:
    """Returns a run's settings without name, seed and folder: equal for seeds of one recipe."""
    return without_seed((run.folder / run_directory.RECIPE).read_text(encoding="utf-8"))


def without_seed(text: str) -> dict[str, Any]:
    """Returns the settings of a recipe's YAML without name, seed and folder."""
    settings, dropped = yaml.safe_load(text), {"seed", "output_dir"}
    settings.pop("name", None)
    data, seed = settings["data"], settings["training"].get("seed")
    if data.get("sample_seed") == seed:
        # Each seed has training rows of its own.
        data = {key: value for key, value in data.items() if key != "sample_seed"}
    training = {k: v for k, v in settings["training"].items() if k not in dropped}
    return settings | {"data": data, "training": training}


def _over_seeds(group: list[Read]) -> list[str]:
    """One line per recipe with several seeds, best first, with its difference from the best.

    The difference is paired over the seeds that both have. The linear baseline has a line of its
    own where each seed has other training rows.
    """
    headline = group[0][1]["headline"]
    found: list[tuple[run_directory.Run, str, dict[str, Any], dict[int, float]]] = []
    for run, results in group:
        name, settings = results["name"], settings_of(run)
        value = results["metrics"][headline]["value"]
        known = next((v for _, n, s, v in found if (n, s) == (name, settings)), None)
        if known is None:
            found.append((run, name, settings, known := {}))
        # Running a seed twice adds no information.
        known.setdefault(results["seed"], value)
    names = [name for _, name, _, values in found if len(values) > 1]
    several = [
        # Runs of one recipe with different flags are shown by the folder of their seeds.
        (str(run.folder.parent) if names.count(name) > 1 else name, values)
        for run, name, _, values in found
        if len(values) > 1
    ]
    several += _linear_over_seeds(group)
    several.sort(key=lambda item: wording.sort_key(headline, _mean(item[1])))
    lines = []
    for name, values in several:
        mean = wording.measured(headline, _t_interval(list(values.values())))
        seeds = ", ".join(str(seed) for seed in sorted(values))
        line = f"{name}: mean {mean}, 95 % t interval over {len(values)} seeds ({seeds})"
        best, others = several[0]
        shared = values.keys() & others.keys()
        if values is not others and len(shared) > 1:
            difference = _t_interval([values[seed] - others[seed] for seed in shared])
            line += f"; difference from {best} {wording.signed(headline, difference)} "
            line += f"over {len(shared)} shared seeds"
        lines.append(wording.plain(line))
    return lines


def _linear_over_seeds(group: list[Read]) -> list[tuple[str, dict[int, float]]]:
    """The linear baseline's value by seed, if its training rows differ between seeds."""
    found: dict[str, dict[int, float]] = {}
    for _, results in group:
        if name := wording.linear(results["baselines"]):
            value = results["baselines"][name][results["headline"]]["value"]
            found.setdefault(name, {}).setdefault(results["seed"], value)
    return [(name, values) for name, values in found.items() if len(set(values.values())) > 1]


def _mean(values: dict[int, float]) -> float:
    return float(numpy.mean(list(values.values())))


def _t_interval(values: list[float]) -> wording.Metric:
    """The mean of one value per seed with its 95 % t interval (Student 1908)."""
    sample = numpy.array(values)
    n, mean = len(sample), float(sample.mean())
    reach = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / n**0.5)
    return {"value": mean, "low": mean - reach, "high": mean + reach}
