"""What is printed when a run begins."""

from finetune import run_directory
from finetune.data import findings
from finetune.models import changed_base, parameters
from finetune.recipe import Recipe
from finetune.training.job import Job


def describe(recipe: Recipe, job: Job, run: run_directory.Run) -> str:
    """Returns a run's data, notes and trained parameters, a line each."""
    data, count = job.data, parameters.count_parameters(job.model)
    notes = [*job.notes, *changed_base.describe(job.model), *findings.describe(data.report)]
    if data.rejected:
        notes.append(f"rejected rows are listed in {run_directory.REJECTED}")
    lines = [
        f"{recipe.model.checkpoint} on {data.source}: {len(data.train)} train, "
        f"{len(data.validation)} validation, {len(data.test)} test ({data.test_is})",
        *notes,
        f"{recipe.tuning.method} trains {count['trainable_parameters']:,} of "
        f"{count['total_parameters']:,} parameters",
        f"-> {run}",
    ]
    return "\n".join(lines)
