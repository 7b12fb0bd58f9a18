"""A search over settings with optuna whose state is a folder: it continues after a kill, and stops at its budget.

A trial that a kill cut short is tried again, once: settings that need more memory than there is must not end every later process.
The state is a SQLite file, whose transactions a kill leaves whole.
"""

from __future__ import annotations

import fcntl
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import NullPool

from thinktwice.errors import PipelineError, TrainingError, reason

NAME = "tune"
STATE_FILE = "study.db"
LOCK_FILE = "lock"
STARTUP = 5  # trials before any is pruned
# Attributes of the study and of its trials.
IDENTITY = "identity"
SECONDS = "seconds"
GIVEN = "given"  # settings that were not drawn
AGAIN = "again"  # the trial repeats one that was cut short
OWN = (SECONDS, GIVEN, AGAIN)


@dataclass(frozen=True)
class TrialResult:
    """One trial: its settings, the loss or None where it was pruned, failed or was cut short, and seconds."""

    number: int
    state: str  # complete, pruned, fail, or stopped: by a kill
    loss: float | None
    settings: Mapping[str, Any]
    seconds: float
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class StudyResult:
    """All finished trials by number, and the best one."""

    trials: tuple[TrialResult, ...]
    best: TrialResult


def search(
    folder: Path | str,
    objective: Callable[[optuna.Trial, float], float],
    *,
    minutes: float,
    seed: int,
    identity: str,
    first: Mapping[str, Any],
    on_trial: Callable[[TrialResult], None] = lambda result: None,
    clock: Callable[[], float] = time.monotonic,
) -> StudyResult:
    """Minimise ``objective`` until the finished trials have taken ``minutes``, those of earlier processes included.

    Args:
        folder: of the state; the same folder continues the search.
        objective: gets a trial and the instant of ``clock`` at which the budget ends, and returns the loss.
        identity: of what is searched; a folder of another search is refused.
        first: settings of the first trial.
        on_trial: called with every trial that ends.
        clock: seconds.

    Raises:
        PipelineError: the folder is of another search, in use, damaged or full, or no trial gave a loss.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _opened(Path(folder), identity) as study:
        if not study.trials:
            study.enqueue_trial(dict(first), user_attrs={GIVEN: dict(first)})
        while (left := _left(study, 60.0 * minutes)) is not None:
            # The sampler depends on the number of trials and not on the process that draws, so a search can be repeated.
            study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=STARTUP)
            on_trial(_tried(study, objective, left, clock))
        results = tuple(_result(trial) for trial in study.trials if trial.state.is_finished())
    complete = [result for result in results if result.loss is not None]
    if not complete:
        raise PipelineError(f"no trial of the search in {folder} gave a loss: lower the rate, or check the log")
    return StudyResult(results, min(complete, key=lambda result: result.loss or 0.0))


def _left(study: optuna.Study, budget: float) -> float | None:
    """Seconds left of the budget, at least 0; None if the search is over: something was found, or nothing can be trained."""
    done = [trial for trial in study.trials if trial.state.is_finished()]
    left = budget - sum(_seconds(trial) for trial in done)
    if left <= 0 and any(trial.state == TrialState.COMPLETE for trial in done):
        return None
    ended = [trial for trial in done if SECONDS in trial.user_attrs]
    if len(ended) >= STARTUP and all(trial.state == TrialState.FAIL for trial in ended):
        return None
    return max(left, 0.0)


def _tried(
    study: optuna.Study, objective: Callable[[optuna.Trial, float], float], left: float, clock: Callable[[], float]
) -> TrialResult:
    """Run one trial. An error that is not of the training leaves it unfinished, as a kill does."""
    trial = study.ask()
    started = clock()
    loss, state = None, TrialState.FAIL
    try:
        loss = objective(trial, started + left)
        state = TrialState.COMPLETE if math.isfinite(loss) else TrialState.FAIL
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except TrainingError:
        pass
    trial.set_user_attr(SECONDS, clock() - started)
    study.tell(trial, loss if state == TrialState.COMPLETE else None, state)
    return _result(study.trials[trial.number])


@contextmanager
def _opened(folder: Path, identity: str) -> Iterator[optuna.Study]:
    """The study of a folder, for this process alone. Trials that were cut short have ended, and wait to be tried again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / STATE_FILE).absolute()
    with (folder / LOCK_FILE).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"another search works in {folder}: wait for it, or give another folder") from None
        try:
            # The path is not part of an address, in which some characters have a meaning.
            storage = optuna.storages.RDBStorage(
                "sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path), "poolclass": NullPool}
            )
            study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=2),
            )
            known = study.user_attrs.get(IDENTITY)
            if known is None:
                study.set_user_attr(IDENTITY, identity)
            elif known == identity:
                _end_cut_short(study)
        except Exception as error:  # its libraries' classes share no base
            raise PipelineError(
                f"{path} cannot be read ({reason(error)}): remove it, or give another folder"
            ) from error
        if known not in (None, identity):
            raise PipelineError(
                f"{folder} contains a search over another recipe, training set or seed: give another folder, or remove it"
            )
        try:
            yield study
        except StorageInternalError as error:
            raise PipelineError(f"{path} cannot be written ({reason(error)}): mend it and run again") from error


def _end_cut_short(study: optuna.Study) -> None:
    for trial in study.trials:
        if trial.state != TrialState.RUNNING:
            continue
        settings = {**trial.user_attrs.get(GIVEN, {}), **trial.params}
        # Queued before it is ended: a kill in between tries it twice instead of never.
        if settings and AGAIN not in trial.user_attrs:
            study.enqueue_trial(settings, user_attrs={GIVEN: settings, AGAIN: True})
        study.tell(trial.number, state=TrialState.FAIL)


def _seconds(trial: FrozenTrial) -> float:
    """Seconds of a trial; 0 for one that was cut short."""
    return float(trial.user_attrs.get(SECONDS, 0.0))


def _result(trial: FrozenTrial) -> TrialResult:
    loss = trial.value if trial.state == TrialState.COMPLETE else None
    stopped = trial.state == TrialState.FAIL and SECONDS not in trial.user_attrs
    notes = {name: value for name, value in trial.user_attrs.items() if name not in OWN}
    state = "stopped" if stopped else trial.state.name.lower()
    return TrialResult(trial.number, state, loss, dict(trial.params), _seconds(trial), notes)
