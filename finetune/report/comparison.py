"""Several runs side by side: ranked, and over seeds."""

import hashlib
from typing import Any

import numpy
import yaml
from rich.console import RenderableType
from rich.table import Table
from scipy.special import stdtrit

from finetune import run_directory
from finetune.report import wording
from finetune.report.tables import as_text, new_table


def compare(runs: list[run_directory.Run]) -> str:
    """Runs ranked by their headline, one table for each set of test rows and metric.

    Under each table stands, for every recipe run with several seeds, the mean with its 95 % t
    interval over the seeds: what another seed may give on the same test rows; and the difference
    from the best such recipe.

    Raises:
        UserError: a directory holds no finished run.
    """
    read = [(run, run.results()) for run in runs]
    parts: list[RenderableType] = []
    for group in _same_test(read):
        parts += [_heading(group[0][1]), _ranking(group), *_over_seeds(group), ""]
    return as_text(*parts)


Read = tuple[run_directory.Run, dict[str, Any]]


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


def _test_rows(run: run_directory.Run) -> str:
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
    names = [results["name"] for _, results in ranked]
    if len(set(names)) < len(names):
        names = [f"{results['name']}/seed-{results['seed']}" for _, results in ranked]
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


def settings_of(run: run_directory.Run) -> dict[str, Any]:
    """What was run, apart from the name, the seed and the folder: equal for seeds of one recipe."""
    return without_seed((run.folder / run_directory.RECIPE).read_text(encoding="utf-8"))


def without_seed(text: str) -> dict[str, Any]:
    """A recipe's settings. Its name is what the callers compare by themselves."""
    said, dropped = yaml.safe_load(text), {"seed", "output_dir"}
    said.pop("name", None)
    return said | {"training": {k: v for k, v in said["training"].items() if k not in dropped}}


def _over_seeds(group: list[Read]) -> list[str]:
    """A line for each recipe run with several seeds, best first, and how far it is from the best.

    The difference is paired: over the seeds that both were run with.
    """
    headline = group[0][1]["headline"]
    found: list[tuple[run_directory.Run, str, dict[str, Any], dict[int, float]]] = []
    for run, results in group:
        name, settings = results["name"], settings_of(run)
        value = results["metrics"][headline]["value"]
        known = next((v for _, n, said, v in found if (n, said) == (name, settings)), None)
        if known is None:
            found.append((run, name, settings, known := {}))
        # A seed that was run twice says nothing new.
        known.setdefault(results["seed"], value)
    names = [name for _, name, _, values in found if len(values) > 1]
    several = [
        # Those of one recipe that differ in flags are told apart by the folder of their seeds.
        (str(run.folder.parent) if names.count(name) > 1 else name, values)
        for run, name, _, values in found
        if len(values) > 1
    ]
    sign = 1 if headline in wording.LOSSES else -1
    several.sort(key=lambda item: sign * float(numpy.mean(list(item[1].values()))))
    lines = []
    for name, values in several:
        mean = wording.measured(headline, _t_interval(list(values.values())))
        seeds = ", ".join(str(seed) for seed in sorted(values))
        said = f"{name}: mean {mean}, 95 % t interval over {len(values)} seeds ({seeds})"
        best, others = several[0]
        shared = values.keys() & others.keys()
        if values is not others and len(shared) > 1:
            less = _t_interval([values[seed] - others[seed] for seed in shared])
            said += f"; less {best} {wording.signed(headline, less)} over {len(shared)} of them"
        lines.append(wording.plain(said))
    return lines


def _t_interval(values: list[float]) -> wording.Metric:
    """The mean of one value a seed with its 95 % t interval (Student 1908)."""
    sample = numpy.array(values)
    n, mean = len(sample), float(sample.mean())
    reach = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / n**0.5)
    return {"value": mean, "low": mean - reach, "high": mean + reach}
