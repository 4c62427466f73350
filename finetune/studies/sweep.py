"""Searches settings with Optuna: ``finetune sweep``.

- A trial is an ordinary run of the recipe with other values, which leaves the test split unread
  (``untested``): its score is that of the validation rows. Only the winner, retrained over seeds,
  is tested.
- What a trial tries depends on the seed, its number and the finished trials, never on the state of
  a process, so a sweep that was killed ends like one that was not. A trial that was killed resumes.
- Several processes with one folder or storage share the study; each trains one trial at a time.
"""

import json
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy
import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from finetune import recipe, run_directory
from finetune.errors import TrainingError, UserError
from finetune.evaluation import metrics
from finetune.recipe import FLAGS, Recipe
from finetune.recipe.strict_yaml import Dumper
from finetune.report import sweep as shown
from finetune.report import wording
from finetune.studies import seeds, space
from finetune.studies.children import Children
from finetune.training.signals import Signals

BASE, SETTINGS, WINNER, DATABASE = "base.yaml", "sweep.json", "winner.yaml", "study.db"
PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "none": optuna.pruners.NopPruner,
}


@dataclass
class Sweep:
    """A study and where its trials are trained."""

    folder: Path
    study: optuna.Study
    space: space.Space
    trials: int
    seed: int
    metric: str | None

    @property
    def base(self) -> str:
        return str(self.folder / BASE)

    @property
    def place(self) -> str:
        """What tells the trials of this folder from those of others that share the storage."""
        return f"{socket.gethostname()}:{self.folder.resolve()}"

    def run(self, number: int) -> run_directory.Run:
        return run_directory.Run(self.folder / "trials" / f"{number:03}")


def run(
    read: Recipe,
    folder: Path,
    search: str,
    trials: int,
    seed: int,
    pruner: str,
    storage: str | None,
    winners: Sequence[int],
) -> str:
    """Runs the trials that are left, then the winner over seeds.

    Args:
        read: the recipe whose keys are searched.
        search: the search space, see ``space.parse``.
        trials: how many the study has in the end.
        seed: of the sampler.
        pruner: a name in ``PRUNERS``.
        storage: a URL as Optuna takes it; SQLite in the folder by default.
        winners: seeds of the winner.

    Returns:
        The result as text.

    Raises:
        UserError: the space does not fit the recipe; the folder holds another sweep.
        TrainingError: no trial has a result.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    given = space.parse(search)
    resolved = recipe.resolve(read)
    settings = {"search": given, "seed": seed, "pruner": pruner, "storage": storage}
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".sweep.lock"):
        _begin(folder, _base(resolved), settings)
        typed = space.typed(given, str(folder / BASE))
        study = optuna.create_study(
            study_name=read.name,
            storage=storage or f"sqlite:///{folder.resolve() / DATABASE}",
            pruner=PRUNERS[pruner](),
            direction="maximize",
            load_if_exists=True,
        )
        own = {key: space.value_of(resolved, key) for key in typed}
        if not study.get_trials() and all(typed[key].has(own[key]) for key in typed):
            # The recipe's own values are what the others have to beat.
            study.enqueue_trial(own)
        run_directory.write_whole(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    sweep = Sweep(folder, study, typed, trials, seed, _metric(resolved))
    with Signals(), Children() as children:
        while (claimed := _claim(sweep)) is not None:
            trial, held = claimed
            with held:
                _train(sweep, trial, children)
    return _finish(sweep, winners, own)


# --- the study -------------------------------------------------------------------------------


def _lock(path: Path) -> filelock.BaseFileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path)


def _base(resolved: Recipe) -> str:
    """Returns the recipe that trials change, without a run directory and notes."""
    training = {k: v for k, v in resolved.training.items() if k != "output_dir"}
    return replace(resolved, training=training).dump()


def _begin(folder: Path, base: str, settings: Mapping[str, Any]) -> None:
    """Writes the recipe of a new sweep, or checks that the one in the folder is the same.

    Raises:
        UserError: it is another.
    """
    if (folder / SETTINGS).is_file():
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        other = [key for key, value in settings.items() if before[key] != value]
        changes = recipe.differences((folder / BASE).read_text(encoding="utf-8"), base)
        if other or changes:
            raise UserError(
                f"{folder}: holds a sweep with another {', '.join([*other, *changes])}; name "
                "another --output_dir"
            )
    run_directory.write_whole(folder / BASE, base)


def _metric(resolved: Recipe) -> str | None:
    """Returns the metric that is expected to rank trials, until the first result says which."""
    kinds = metrics.HEADLINE
    return kinds.get(resolved.task) or kinds.get(resolved.data.problem_type)


def _goodness(headline: str, value: float) -> float:
    return -wording.sort_key(headline, value)


def _claim(sweep: Sweep) -> tuple[optuna.Trial, ExitStack] | None:
    """Returns a trial to train and the lock that it is trained under; None if there is none left.

    A trial that runs but whose lock is free was killed, and is resumed.
    """
    with _lock(sweep.folder / ".sweep.lock"):
        for frozen in sweep.study.get_trials(states=[TrialState.RUNNING]):
            ours = frozen.user_attrs.get("place", sweep.place) == sweep.place
            if ours and (held := _hold(sweep, frozen.number)):
                with held:
                    trial = _suggested(sweep, optuna.Trial(sweep.study, frozen._trial_id))
                    return trial, held.pop_all()
        states = [s for s in TrialState if s != TrialState.WAITING]
        if len(sweep.study.get_trials(deepcopy=False, states=states)) >= sweep.trials:
            return None
        sweep.study.sampler = _sampler(sweep, 0, 0)
        trial = sweep.study.ask()
        trial.set_user_attr("place", sweep.place)
        held = _hold(sweep, trial.number)
        assert held is not None
        with held:
            return _suggested(sweep, trial), held.pop_all()


def _hold(sweep: Sweep, number: int) -> ExitStack | None:
    """Returns the lock of a trial that nobody trains; None if somebody does."""
    stack = ExitStack()
    lock = _lock(sweep.run(number).folder.with_suffix(".lock"))
    try:
        stack.enter_context(lock.acquire(timeout=0))
    except filelock.Timeout:
        return None
    return stack


def _sampler(sweep: Sweep, number: int, place: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of one value of a trial, whose random numbers are its own."""
    (drawn,) = numpy.random.SeedSequence([sweep.seed, number, place]).generate_state(1)
    # Values drawn together would share random numbers, and a part of them may be drawn later.
    return optuna.samplers.TPESampler(seed=int(drawn), multivariate=False)


def _suggested(sweep: Sweep, trial: optuna.Trial) -> optuna.Trial:
    """Chooses the values that a trial has not got yet."""
    for place, (key, values) in enumerate(sweep.space.items()):
        sweep.study.sampler = _sampler(sweep, trial.number, place)
        values.suggest(trial, key)
    return trial


# --- a trial ---------------------------------------------------------------------------------


def _train(sweep: Sweep, trial: optuna.Trial, children: Children) -> None:
    """Trains a trial and tells the study how it ended.

    Raises:
        UserError: the trial's recipe is rejected; the study has the trial as failed.
    """
    run = sweep.run(trial.number)
    flags = {key: space.as_flag(value) for key, value in trial.params.items()}
    metric = sweep.study.user_attrs.get("headline") or sweep.metric
    try:
        results = children.train(
            run,
            sweep.base,
            {**flags, "untested": "true"},
            enough=lambda: bool(metric) and _should_prune(sweep, trial, str(metric), run),
        )
    except (TrainingError, UserError) as error:
        trial.set_user_attr("error", str(error))
        sweep.study.tell(trial, state=TrialState.FAIL)
        print(f"finetune: trial {trial.number} failed: {error}", file=sys.stderr)
        if isinstance(error, UserError):
            raise
    else:
        _tell(sweep, trial, run, results)
    for weights in (run.model, run.checkpoints):
        shutil.rmtree(weights, ignore_errors=True)


def _tell(
    sweep: Sweep, trial: optuna.Trial, run: run_directory.Run, results: dict[str, Any] | None
) -> None:
    """Tells the study the value of a finished trial, or that it was pruned."""
    told = "pruned"
    if results is not None:
        headline = results["headline"]
        sweep.study.set_user_attr("headline", headline)
        scores = results["metrics"][headline]
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("seconds", results["cost"]["total_seconds"])
        # A trial that ended before it was looked at is pruned where one in progress would be.
        if not _should_prune(sweep, trial, headline, run):
            sweep.study.tell(trial, _goodness(headline, scores["value"]))
            told = f"{wording.title(headline)} {wording.measured(headline, scores)}"
    if told == "pruned":
        sweep.study.tell(trial, state=TrialState.PRUNED)
    values = " ".join(f"{key}={space.as_flag(value)}" for key, value in trial.params.items())
    print(f"finetune: trial {trial.number}: {values}: {told}", file=sys.stderr)


def _should_prune(sweep: Sweep, trial: optuna.Trial, metric: str, run: run_directory.Run) -> bool:
    """Reports a run's new evaluations; returns whether the pruner gives the trial up.

    Evaluations are counted, because trials may have steps of different size.
    """
    values = [row[f"eval_{metric}"] for row in run.history() if f"eval_{metric}" in row]
    if not values:
        return False
    reported = sweep.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for step, value in enumerate(values, 1):
        # Asked again, and after a kill: a report that the study has is not repeated.
        if step not in reported:
            trial.report(_goodness(metric, value), step)
        if trial.should_prune():
            return True
    return False


# --- the winner ------------------------------------------------------------------------------


def _finish(sweep: Sweep, winners: Sequence[int], own: Mapping[str, Any]) -> str:
    """Writes the winner's recipe, trains it over seeds, and writes the page.

    Raises:
        TrainingError: no trial has a result.
    """
    study = sweep.study
    if left := study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        return (
            f"{len(left)} trials are still trained by other processes; the last one, or this "
            "command again, trains the winner"
        )
    done = study.get_trials(states=[TrialState.COMPLETE])
    if not done:
        raise TrainingError(f"{sweep.folder}: no trial has a result; their logs are in trials")
    best = max(done, key=lambda trial: (trial.value or 0.0, -trial.number))
    path = sweep.folder / WINNER
    run_directory.write_whole(path, _winner(sweep, best))
    with _lock(sweep.folder / ".winner.lock"):
        given = {"output_dir": str(sweep.folder / "winner")}
        tested = seeds.train(recipe.read(path), str(path), given, winners, overwrite=False)
    page = shown.page(sweep.study, list(sweep.space), dict(own), str(path))
    run_directory.write_whole(sweep.folder / run_directory.REPORT, shown.render(page))
    return f"{shown.text(page)}\n\nOn the test rows:\n\n{tested}"


def _winner(sweep: Sweep, best: FrozenTrial) -> str:
    """Returns the winner as a recipe: what differs from the base."""
    deltas: dict[str, Any] = {"base": BASE}
    resolved = recipe.load(sweep.base, {k: space.as_flag(v) for k, v in best.params.items()})
    for key in best.params:
        section = FLAGS.get(key) or ("tuning" if key in resolved.tuning.options else "training")
        deltas.setdefault(section, {})[key] = space.value_of(resolved, key)
    headline = sweep.study.user_attrs["headline"]
    scores = wording.measured(headline, best.user_attrs["scores"])
    opening = (
        f"# finetune train {sweep.folder / WINNER}\n#\n# Trial {best.number} of "
        f"{len(sweep.study.get_trials(deepcopy=False))}: {wording.title(headline)} {scores} on the "
        "validation rows, by which it was chosen.\n"
    )
    return opening + yaml.dump(deltas, Dumper=Dumper, sort_keys=False)
