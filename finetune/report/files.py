"""Writes the files that are rendered from a finished run: its model card and report.html."""

from finetune import recipe, run_directory
from finetune.report import card, page


def write(run: run_directory.Run) -> None:
    """Writes the model card and report.html of a finished run.

    Raises:
        UserError: the directory has no finished run.
    """
    write_card(run)
    run.write_report(page.render(run))


def write_card(run: run_directory.Run) -> None:
    """Writes the model card of a finished run, with what was exported from it.

    Raises:
        UserError: the directory has no finished run.
    """
    read = recipe.read(run.folder / run_directory.RECIPE)
    text = card.render(read, run.results(), run.exports(), run.seeds())
    (run.model / "README.md").write_text(text, encoding="utf-8")
