"""Run directories -> tables of plain text for a terminal, at most 80 columns wide."""

import hashlib
from collections.abc import Iterable, Sequence
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
import yaml
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from scipy.special import stdtrit

from finetune import ledger, recipe
from finetune.errors import Refusal
from finetune.report import wording

WIDTH = 80
# More classes than this fill the screen; results.json has them all.
MOST_CLASSES = 12
MOST_CONFUSED = 6
RUNS = Path("runs")
# accelerate's own configuration files lie beside the recipes.
NOT_RECIPES = "launch"


def _text(*parts: RenderableType) -> str:
    """What rich makes of some renderables, without colour, markup or trailing blanks."""
    file = StringIO()
    console = Console(
        width=WIDTH, file=file, color_system=None, markup=False, emoji=False, highlight=False
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()


def _table(*headers: str, numbers: Iterable[int] = ()) -> Table:
    """An empty table; ``numbers`` are the columns set to the right and never cut."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, header in enumerate(headers):
        right = i in set(numbers)
        table.add_column(
            header, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return table


# --- one run ---------------------------------------------------------------------------------


def summary(run: ledger.Run) -> str:
    """One screen about a finished run: what it scored, against what, at what cost.

    Raises:
        Refusal: the directory holds no finished run.
    """
    results = run.results()
    parts: list[RenderableType] = [_title(results), _standing(results), "", _others(results)]
    if results.get("per_class"):
        parts += ["", *_classes(results["per_class"])]
    if 0 < len(results.get("confusion", [])) <= MOST_CONFUSED:
        parts += ["", _confusion(results)]
    return _text(*parts, "", _facts(run, results))


def _title(results: dict[str, Any]) -> str:
    what = f"{wording.method(results['method'])} of {results['checkpoint']['name']}"
    return wording.plain(f"{results['name']}: {what}, seed {results['seed']}") + "\n"


def _standing(results: dict[str, Any]) -> Table:
    headline = results["headline"]
    model = results["metrics"][headline]
    table = _table(f"{wording.rows(model['n'])} test rows", wording.title(headline), "the model is")
    table.columns[1].no_wrap = True
    table.add_row("this model", wording.measured(headline, model))
    for name, scores in results["baselines"].items():
        beside = scores[headline]
        table.add_row(name, wording.measured(headline, beside), wording.apart(headline, scores))
    return table


def _others(results: dict[str, Any]) -> Table:
    table = _table("also measured", "95 % interval in brackets")
    for name, scores in results["metrics"].items():
        if name != results["headline"]:
            table.add_row(wording.title(name), wording.measured(name, scores))
    return table


def _classes(per_class: dict[str, Any]) -> list[RenderableType]:
    """The table of classes; the worst of them by F1 where there are too many."""
    named = list(per_class.items())
    left = len(named) - MOST_CLASSES
    if left > 0:
        named.sort(key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0.0))
    table = _table("class", "precision", "recall", "F1", "rows", numbers=range(1, 5))
    for name, scores in named[:MOST_CLASSES]:
        shares = [wording.share(scores[key]) for key in ("precision", "recall", "f1")]
        table.add_row(wording.plain(name), *shares, wording.rows(scores["rows"]))
    if left <= 0:
        return [table]
    note = f"The {MOST_CLASSES} classes of lowest F1; {left} more are in {ledger.RESULTS}."
    return [table, note]


def _confusion(results: dict[str, Any]) -> Table:
    names = [wording.plain(name) for name in results["data"]["label_names"]]
    short = [name if len(name) <= 9 else name[:8] + "…" for name in names]
    table = _table("true, predicted as:", *short, numbers=range(1, len(names) + 1))
    for name, counts in zip(names, results["confusion"], strict=True):
        table.add_row(name, *(wording.rows(count) for count in counts))
    return table


def _facts(run: ledger.Run, results: dict[str, Any]) -> Table:
    cost, data = results["cost"], results["data"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def fact(name: str, lines: Sequence[str]) -> None:
        if lines:
            grid.add_row(name, "\n".join(lines))

    published = wording.reference(results)
    fact("reference", published.lines if published else [])
    fact(
        "cost",
        [
            f"{wording.duration(cost['train_seconds'])} of training, {wording.speed(cost)}",
            f"{wording.size(cost['peak_memory_bytes'])} peak memory, "
            f"{wording.size(cost['model_bytes'])} on disk; {results['device']}",
            f"trained {wording.trained(cost)}",
        ],
    )
    found = wording.findings(data)
    fact(
        "data",
        [
            wording.plain(f"{data['source']}: {wording.counts(data)}"),
            *([", ".join(found)] if found else []),
            f"test: {wording.split(data['test_is'])}",
        ],
    )
    fact("run", [str(run)])
    fact("report", [str(run.folder / ledger.REPORT)])
    return grid


# --- several runs ----------------------------------------------------------------------------


def compare(runs: list[ledger.Run]) -> str:
    """Runs ranked by their headline, one table for each set of test rows and metric.

    Under each table stands, for every recipe run with several seeds, the mean with its 95 % t
    interval over the seeds: what another seed may give on the same test rows.

    Raises:
        Refusal: a directory holds no finished run.
    """
    read = [(run, run.results()) for run in runs]
    parts: list[RenderableType] = []
    for group in _same_test(read):
        parts += [_heading(group[0][1]), _ranking(group), *_over_seeds(group), ""]
    return _text(*parts)


Read = tuple[ledger.Run, dict[str, Any]]


def _same_test(read: list[Read]) -> list[list[Read]]:
    """The runs grouped by what they were tested on and scored by, in order of appearance."""
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
        # The fingerprint covers train too; test rows may be the same where it differs.
        fine: dict[str, list[Read]] = {}
        for run, results in group:
            fine.setdefault(_test_rows(run), []).append((run, results))
        groups += fine.values()
    return groups


def _test_rows(run: ledger.Run) -> str:
    """A digest of the test rows of a run: ids, texts and labels, in order."""
    frame = run.predictions()
    columns = [c for c in frame.columns if c not in {"prediction", "probabilities"}]
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
    sign = 1 if headline in wording.LOSSES else -1
    ranked = sorted(group, key=lambda item: sign * item[1]["metrics"][headline]["value"])
    names = [f"{results['name']}/seed-{results['seed']}" for _, results in ranked]
    table = _table(
        "run",
        "method",
        wording.title(headline),
        "beats\nlinear",
        "trained",
        "train\ntime",
        numbers=(4, 5),
    )
    table.columns[2].no_wrap = True
    for (run, results), name in zip(ranked, names, strict=True):
        cost = results["cost"]
        table.add_row(
            # Runs of one recipe and seed that differ in flags are told apart by their folders.
            str(run) if names.count(name) > 1 else wording.plain(name),
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


def _beats_linear(results: dict[str, Any]) -> str:
    name = wording.linear(results["baselines"])
    if name is None:
        return "-"
    said = wording.verdict(results["headline"], results["baselines"][name])
    return {wording.BETTER: "yes", wording.WORSE: "no", wording.UNCLEAR: "unclear"}[said]


def _baselines(group: list[Read], headline: str) -> dict[str, str]:
    """Each baseline's value, or its range where the runs differ (in their training rows)."""
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


def _settings(run: ledger.Run) -> dict[str, Any]:
    """What was run, apart from the seed and the folder: equal for seeds of one recipe."""
    return _without_seed((run.folder / ledger.RECIPE).read_text(encoding="utf-8"))


def _without_seed(text: str) -> dict[str, Any]:
    said = yaml.safe_load(text)
    dropped = {"seed", "output_dir"}
    return said | {"training": {k: v for k, v in said["training"].items() if k not in dropped}}


def _over_seeds(group: list[Read]) -> list[str]:
    lines = []
    headline = group[0][1]["headline"]
    named = sorted(group, key=lambda item: item[1]["name"])
    for name, members in groupby(named, key=lambda item: item[1]["name"]):
        alike: list[tuple[dict[str, Any], dict[int, float]]] = []
        for run, results in members:
            settings, value = _settings(run), results["metrics"][headline]["value"]
            known = next((values for said, values in alike if said == settings), None)
            if known is None:
                alike.append((settings, known := {}))
            # A seed that was run twice says nothing new.
            known.setdefault(results["seed"], value)
        for _, values in alike:
            if len(values) > 1:
                lines.append(wording.plain(f"{name}: {_seeds(headline, values)}"))
    return lines


def _seeds(headline: str, values: dict[int, float]) -> str:
    """Mean and 95 % t interval (Student 1908) of one value a seed."""
    sample = numpy.array(list(values.values()))
    n, mean = len(sample), float(sample.mean())
    reach = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / n**0.5)
    scores = {"value": mean, "low": mean - reach, "high": mean + reach}
    seeds = ", ".join(str(seed) for seed in sorted(values))
    return f"mean {wording.measured(headline, scores)}, 95 % t interval over {n} seeds ({seeds})"


# --- recipes ---------------------------------------------------------------------------------


def recipes(folder: Path) -> str:
    """Every recipe below a folder, a line each, with its measured and its published number.

    Measured are finished runs below ``runs/`` with the recipe's name and its settings as they are
    now, several seeds by their mean; where there are none, what the recipe itself notes.

    Raises:
        Refusal: there is no such folder, or no recipe in it.
    """
    paths = sorted(p for p in folder.rglob("*.yaml") if NOT_RECIPES not in p.parent.parts)
    if not paths:
        raise Refusal(f"{folder}: no recipe (*.yaml) there; start in the project's own folder")
    rows, unread = [], []
    for path in paths:
        try:
            read = recipe.load(path)
        except Refusal as refusal:
            unread.append(f"not a recipe: {refusal}")
            continue
        published = read.reference
        number = wording.number(published.metric, published.value) if published else ""
        short = str(path.relative_to(folder))
        cells = [short, read.tuning.method, read.model.checkpoint, _measured(read), number]
        rows.append((read.task, cells))
    parts: list[RenderableType] = []
    for task, members in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        parts += [_recipe_table(task, [cells for _, cells in members]), ""]
    parts.append(f"They lie in {folder}/: finetune train {folder}/RECIPE")
    return _text(*parts, *unread)


def _recipe_table(task: str, rows: list[list[str]]) -> Table:
    headers = [task, "method", "checkpoint", "measured", "paper"]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    # One line a recipe: what gives way to the rest is the checkpoint's name.
    room = max(8, WIDTH - sum(widths) + widths[2] - 2 * (len(headers) - 1))
    headers[2] = _fitted(headers[2], room)
    headers[3] += "\n(seeds)"
    table = _table(*headers)
    for path, method, checkpoint, *numbers in rows:
        table.add_row(path, method, _fitted(checkpoint, room), *numbers)
    for column in table.columns[1:]:
        column.no_wrap = True
    return table


def _fitted(name: str, room: int) -> str:
    """A checkpoint's name within ``room`` characters; its owner goes before its letters do."""
    if len(name) > room:
        name = name.replace(":", "/").rpartition("/")[2]
    return name if len(name) <= room else name[: room - 1] + "…"


def _measured(read: recipe.Recipe) -> str:
    note = read.measured
    noted = wording.number(note.metric, note.value) if note else ""
    place = RUNS / read.name
    if not any(place.rglob(ledger.RESULTS)):
        return noted
    settings, values, headline = _without_seed(read.dump()), {}, ""
    for run in ledger.find([str(place)]):
        results = run.results()
        if results["name"] == read.name and _settings(run) == settings:
            headline = results["headline"]
            values[results["seed"]] = results["metrics"][headline]["value"]
    if not values:
        return noted
    mean = float(numpy.mean(list(values.values())))
    return f"{wording.number(headline, mean)} ({len(values)})"
