"""Several seeds of one recipe: mean, intervals, worst seed, and differences between recipes.

Two sources of chance differ between runs: the seed, and which rows are tested. Student's interval
covers the seeds on these rows; the pigeonhole bootstrap (Owen 2007) covers both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy
import yaml

from finetune import run_directory
from finetune.evaluation import intervals
from finetune.report import wording

Read = tuple[run_directory.Run, dict[str, Any]]
Statistic = Callable[[numpy.ndarray], float]
# Above this, corrected for the number of comparisons, a difference may be chance.
LEVEL = 0.05


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


@dataclass
class Seeds:
    """The headline metric of one recipe, seed by seed.

    Attributes:
        values: the metric by seed.
        runs: the runs by seed; none for a baseline.
    """

    name: str
    headline: str
    values: dict[int, float] = field(default_factory=dict)
    runs: dict[int, Read] = field(default_factory=dict)

    @property
    def mean(self) -> wording.Metric:
        """The mean with Student's interval over the seeds."""
        return intervals.student(list(self.values.values()))

    @cached_property
    def over_rows(self) -> wording.Metric | None:
        """The mean with an interval over seeds and rows; None where rows cannot be resampled."""
        found = list(self.statistics.values())
        return intervals.pigeonhole(found, self.rows) if found else None

    @property
    def rows(self) -> int:
        """How many rows the runs were tested on."""
        _, results = next(iter(self.runs.values()))
        return results["data"]["test"]

    @property
    def worst(self) -> int:
        """The seed with the worst value."""
        return max(self.values, key=lambda seed: wording.sort_key(self.headline, self.values[seed]))

    @cached_property
    def statistics(self) -> dict[int, Statistic]:
        """The metric of each seed's run as a function of its test rows; empty where it is none."""
        # Loads torch, which a comparison of single runs does not need.
        from finetune import tasks

        found = {}
        for seed, (run, results) in self.runs.items():
            task, rows = tasks.find(results["task"]), run.predictions()
            statistic = task.statistic(self.headline, rows, results["data"])
            # Rows that do not give the measured value cannot give its interval.
            if statistic is None or not numpy.isclose(
                statistic(numpy.arange(len(rows))), self.values[seed], atol=1e-6
            ):
                return {}
            found[seed] = statistic
        return found

    def minus(self, other: "Seeds") -> wording.Metric | None:
        """Returns the difference from another recipe on the seeds and rows that both have.

        None for fewer than two shared seeds. ``seeds`` counts them, and ``rows`` says whether the
        interval is also over rows.
        """
        shared = [seed for seed in self.values if seed in other.values]
        if len(shared) < 2:
            return None
        ours, theirs = self.statistics, other.statistics
        if not ours or not theirs:
            found = intervals.student([self.values[s] - other.values[s] for s in shared])
            return {**found, "seeds": len(shared), "rows": False}

        def apart(seed: int) -> Statistic:
            return lambda rows: ours[seed](rows) - theirs[seed](rows)

        found = intervals.pigeonhole([apart(seed) for seed in shared], self.rows)
        return {**found, "seeds": len(shared), "rows": True}

    def line(self) -> str:
        """Returns mean, intervals and worst seed in one line."""
        named = ", ".join(str(seed) for seed in sorted(self.values))
        line = f"{self.name}: mean {wording.measured(self.headline, self.mean)}, "
        line += f"95 % t interval over {len(self.values)} seeds ({named}); "
        if rows := self.over_rows:
            line += f"{wording.interval(self.headline, rows)} over seeds and rows; "
        value = wording.number(self.headline, self.values[self.worst])
        return line + f"the worst {value} (seed {self.worst})"


def groups(read: Sequence[Read]) -> list[Seeds]:
    """Returns the recipes of which there are several seeds, best first.

    The linear baseline is among them where each seed has other training rows. All runs have the
    same test rows and headline.
    """
    headline = read[0][1]["headline"]
    found: list[tuple[Seeds, dict[str, Any]]] = []
    for run, results in read:
        settings = settings_of(run)
        known = next((g for g, s in found if (g.name, s) == (results["name"], settings)), None)
        if known is None:
            found.append((known := Seeds(results["name"], headline), settings))
        # Running a seed twice adds no information.
        if results["seed"] not in known.values:
            known.values[results["seed"]] = results["metrics"][headline]["value"]
            known.runs[results["seed"]] = run, results
    several = [group for group, _ in found if len(group.values) > 1]
    names = [group.name for group, _ in found if len(group.values) > 1]
    for group in several:
        if names.count(group.name) > 1:
            # Runs of one recipe with different flags are shown by the folder of their seeds.
            first, _ = next(iter(group.runs.values()))
            group.name = str(first.folder.parent)
    several += _linear(read)
    return sorted(several, key=lambda group: wording.sort_key(headline, group.mean["value"]))


def _linear(read: Sequence[Read]) -> list[Seeds]:
    """The linear baseline's value by seed, if its training rows differ between seeds."""
    found: dict[str, Seeds] = {}
    for _, results in read:
        if name := wording.linear(results["baselines"]):
            value = results["baselines"][name][results["headline"]]["value"]
            group = found.setdefault(name, Seeds(name, results["headline"]))
            group.values.setdefault(results["seed"], value)
    return [group for group in found.values() if len(set(group.values.values())) > 1]


def lines(read: Sequence[Read]) -> list[str]:
    """One line per recipe with several seeds, best first, with its difference from the best."""
    found = groups(read)
    if not found:
        return []
    best, *others = found
    apart = {id(other): other.minus(best) for other in others}
    known = [difference for difference in apart.values() if difference]
    corrected = iter(intervals.holm([difference["p"] for difference in known]))
    shown = [wording.plain(best.line())]
    for other in others:
        line = other.line()
        if difference := apart[id(other)]:
            p = next(corrected)
            line += f"; difference from {best.name} {wording.signed(best.headline, difference)} "
            line += f"over {difference['seeds']} shared seeds"
            line += " and all rows" if difference["rows"] else ""
            line += ", may be noise" if p > LEVEL else ", clear"
            line += f" (p = {p:.2g})"
        shown.append(wording.plain(line))
    if known:
        count = f"{len(known)} comparison{'s' * (len(known) > 1)}"
        shown.append(f"{count} with the best; p is corrected for that number (Holm 1979).")
    return shown
