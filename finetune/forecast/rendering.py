"""Shows a forecast as plain text, at most 80 columns wide."""

from rich.table import Table

from finetune.forecast.hardware import Estimate
from finetune.forecast.measuring import Forecast
from finetune.report import tables, wording


def text(forecast: Forecast, estimates: list[Estimate]) -> str:
    """Returns the forecast for this machine, and a table of other cards where there are any."""
    seconds = forecast.train_seconds
    low, high = (wording.duration(max(seconds[key], 0.0)) for key in ("low", "high"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    each = wording.duration(forecast.step_seconds)
    parts = [f"{wording.rows(forecast.steps)} steps of {each}"]
    if forecast.evaluations:
        took = wording.duration(forecast.evaluation_seconds)
        parts.append(f"{wording.rows(forecast.evaluations)} evaluations of {took}")
    grid.add_row("training", f"{wording.duration(seconds['value'])} [{low}, {high}]")
    grid.add_row("", ", ".join(parts))
    grid.add_row(
        "besides",
        f"{wording.duration(forecast.preparation_seconds)} to read and load, "
        f"{wording.duration(forecast.test_seconds)} to test; baselines and scores come on top",
    )
    grid.add_row("memory", f"{wording.size(forecast.peak_memory_bytes)} at the longest batch")
    grid.add_row("disk", f"up to {wording.size(forecast.disk_bytes)} while it trains")
    grid.add_row("measured", f"{forecast.measured} steps on {forecast.device}")
    head = wording.plain(f"{forecast.name}: forecast for this machine")
    if not estimates:
        return tables.as_text(head, "", grid)
    table = tables.new_table("by formula, not measured", "training", "memory", "")
    for found in estimates:
        time = f"{wording.about(found.fast)} to {wording.about(found.slow)}"
        room = f"{wording.size(round(found.memory_bytes))} of {found.card.memory:g} GB"
        table.add_row(found.card.title, time, room, "" if found.fits else "does not fit")
    return tables.as_text(head, "", grid, "", table)
