"""Shows a sweep: its trials best first, what each key matters, and the figure of all trials."""

from typing import TYPE_CHECKING, Any

from finetune.report import figures, wording
from finetune.report.study import Page, Section
from finetune.report.study import render as render
from finetune.report.study import text as text

if TYPE_CHECKING:
    import optuna

# Fewer finished trials say nothing about what matters.
FEWEST = 4
IMPORTANCE_SEED = 0


def page(study: "optuna.Study", keys: list[str], own: dict[str, Any], winner: str) -> Page:
    """Returns a sweep as a page.

    Args:
        keys: the keys that were searched.
        own: the recipe's own values of them.
        winner: the file of the winner's recipe.
    """
    from optuna.trial import TrialState

    headline = study.user_attrs["headline"]
    every = study.get_trials(deepcopy=False)
    done = [t for t in every if t.state == TrialState.COMPLETE]
    done.sort(key=lambda t: (-float(t.value or 0.0), t.number))
    counts = {s: sum(t.state == s for t in every) for s in (TrialState.PRUNED, TrialState.FAIL)}
    best = done[0]
    header = ["trial", *keys, wording.title(headline), "time"]
    rows = [
        [
            str(trial.number),
            *(_shown(trial.params[key]) for key in keys),
            wording.measured(headline, trial.user_attrs["scores"]),
            wording.about(trial.user_attrs["seconds"]),
        ]
        for trial in done
    ]
    notes = [
        f"{len(every)} trials: {len(done)} finished, {counts[TrialState.PRUNED]} pruned, "
        f"{counts[TrialState.FAIL]} failed. All are scored on the validation rows; no trial has "
        "read the test split.",
        _beside(headline, done, own),
        f"The winner is trial {best.number}: {winner}.",
    ]
    sections = [
        Section(
            "Trials, best first",
            "Brackets hold 95 % intervals over validation rows.",
            (header, rows),
        )
    ]
    if matters := _importance(study, done):
        table = ["key", "importance"], [[k, wording.share(v)] for k, v in matters.items()]
        note = (
            "Share of the variance between trials that a key explains (fANOVA, Hutter et al. 2014)."
        )
        sections.append(Section("What matters", note, table))
    drawn = figures.parallel_coordinates(
        [[trial.params[key] for key in keys] for trial in done],
        [trial.user_attrs["scores"]["value"] for trial in done],
        keys,
        headline,
    )
    sections.append(Section("All trials", "A line is a trial; the best is dark.", svg=drawn))
    scores = best.user_attrs["scores"]
    return Page(
        f"{study.study_name}: sweep over {', '.join(keys)}",
        wording.number(headline, scores["value"]),
        f"{wording.title(headline)} of the best trial on the validation rows "
        f"{wording.interval(headline, scores)}",
        [note for note in notes if note],
        sections,
    )


def _beside(headline: str, done: list[Any], own: dict[str, Any]) -> str:
    """Says how the recipe's own values did, where a trial has them."""
    for rank, trial in enumerate(done, 1):
        if trial.params == own:
            value = wording.number(headline, trial.user_attrs["scores"]["value"])
            return f"The recipe's own values are trial {trial.number}, rank {rank}: {value}."
    return ""


def _importance(study: "optuna.Study", done: list[Any]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    alone = len(done[0].params) < 2
    if alone or len(done) < FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=IMPORTANCE_SEED))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
