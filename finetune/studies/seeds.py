"""Trains a recipe with several seeds and aggregates them: ``finetune train --seeds 5``."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import Recipe
from finetune.report import aggregate, files, study, wording
from finetune.studies.children import Children, log_of
from finetune.training.signals import Signals


def parse(text: str) -> list[int]:
    """Reads ``--seeds``: how many, counted from 0, or a list.

    Raises:
        UserError: it is neither, or has fewer than two or a seed twice.
    """
    try:
        listed = "," in text
        seeds = [int(part) for part in text.split(",") if part] if listed else range(int(text))
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len({*seeds}) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text}: takes a number of seeds, such as 5, or a list: 0,7,42")
    return list(seeds)


def train(
    read: Recipe, place: str, flags: Mapping[str, str], seeds: Sequence[int], overwrite: bool
) -> str:
    """Trains what is left of the runs ``seed-N``, and writes what they have in common.

    Args:
        read: the recipe.
        place, flags: what it was read from, as ``finetune train`` takes them.
        overwrite: train all of them anew.

    Returns:
        The result as text.

    Raises:
        UserError: the folder holds other runs; what a run rejects.
        TrainingError: a run failed; the others are kept.
    """
    flags = dict(flags)
    folder = Path(flags.pop("output_dir", Path("runs") / read.name)).expanduser()
    runs = {seed: run_directory.Run(folder / f"seed-{seed}") for seed in seeds}
    if not overwrite:
        resolved = recipe.resolve(read)
        for seed, run in runs.items():
            _check(run, replace(resolved, training=resolved.training | {"seed": seed}))
    done = []

    with Signals(), Children() as children:

        def job(seed: int, threads: int | None) -> dict[str, Any] | None:
            given = {**flags, "seed": str(seed)}
            results = children.train(runs[seed], place, given, threads, overwrite=overwrite)
            assert results is not None
            done.append(seed)
            print(
                f"finetune: {_line(runs[seed], results)} ({len(done)} of {len(seeds)})",
                file=sys.stderr,
            )
            return results

        print(
            f"finetune: {len(seeds)} seeds into {folder}; progress in {log_of(runs[seeds[0]])}",
            file=sys.stderr,
        )
        children.each([lambda threads, seed=seed: job(seed, threads) for seed in seeds])
    return write(folder, runs)


def _check(run: run_directory.Run, resolved: Recipe) -> None:
    """Checks that a finished run is of this recipe.

    Raises:
        UserError: it is not.
    """
    if run.is_finished and not resolved.auto_batch:
        before = (run.folder / run_directory.RECIPE).read_text(encoding="utf-8")
        changes = recipe.differences(before, resolved.dump())
        if changes:
            shown = ", ".join(
                f"{key} was {was} and is {now}" for key, (was, now) in changes.items()
            )
            raise UserError(
                f"{run}: is of another recipe: {shown}; name another --output_dir, or add "
                "--overwrite"
            )


def _line(run: run_directory.Run, results: dict[str, Any]) -> str:
    headline = results["headline"]
    value = wording.number(headline, results["metrics"][headline]["value"])
    took = wording.about(results["cost"]["total_seconds"])
    return f"{run}: {wording.title(headline)} {value}, {took}"


def validated(run: run_directory.Run) -> float | None:
    """Returns the headline metric of a run's model on the validation rows; None without any."""
    results = run.results()
    name, chosen = f"eval_{results['headline']}", results["chosen"]
    rows = [row for row in run.history() if name in row]
    if chosen:
        rows = [row for row in rows if row["step"] == chosen["step"]] or rows
    return rows[-1][name] if rows else None


def _interval(scores: wording.Metric) -> wording.Metric:
    return {key: scores[key] for key in ("value", "low", "high", "n")}


def write(folder: Path, runs: Mapping[int, run_directory.Run]) -> str:
    """Writes seeds.json, a page, and cards and pages of the runs; returns the result as text."""
    read = [(run, run.results()) for run in runs.values()]
    headline = read[0][1]["headline"]
    group = aggregate.Seeds(
        read[0][1]["name"],
        headline,
        {
            seed: found["metrics"][headline]["value"]
            for seed, (_, found) in zip(runs, read, strict=True)
        },
        dict(zip(runs, read, strict=True)),
    )
    values = {seed: validated(run) for seed, run in runs.items()}
    known = {seed: value for seed, value in values.items() if value is not None}
    kept = min(known, key=lambda seed: wording.sort_key(headline, known[seed]), default=None)
    found = {
        "name": group.name,
        "headline": headline,
        "runs": {str(seed): run.folder.name for seed, run in runs.items()},
        "values": {str(seed): value for seed, value in group.values.items()},
        "validation": {str(seed): value for seed, value in values.items()},
        "kept": None if kept is None else runs[kept].folder.name,
        "mean": _interval(group.mean),
        "over_rows": group.over_rows and _interval(group.over_rows),
        "worst": group.worst,
    }
    run_directory.write_whole(folder / run_directory.SEEDS, json.dumps(found, indent=2) + "\n")
    for run in runs.values():
        files.write(run)
    table = (
        ["seed", wording.title(headline), "95 % interval over rows", "validation", "time"],
        [
            [
                str(seed),
                wording.number(headline, results["metrics"][headline]["value"]),
                wording.interval(headline, results["metrics"][headline]),
                "-" if (value := values[seed]) is None else wording.number(headline, value),
                wording.about(results["cost"]["total_seconds"]),
            ]
            for seed, (_, results) in zip(runs, read, strict=True)
        ],
    )
    notes = [f"{group.line()}.", wording.kept(found)]
    page = study.Page(
        f"{group.name}, {len(runs)} seeds",
        wording.number(headline, group.mean["value"]),
        f"mean {wording.title(headline)}, 95 % t interval over seeds "
        f"{wording.interval(headline, group.mean)}",
        notes,
        [study.Section("Seed by seed", "", table)],
    )
    run_directory.write_whole(folder / run_directory.REPORT, study.render(page))
    return study.text(page)
