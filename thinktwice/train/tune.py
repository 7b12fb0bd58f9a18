"""Choice of the settings of fine-tuning on validation; the run with the lowest validation logloss is the result, short or full.

Every candidate has a run of its own. With a budget :mod:`thinktwice.train.search` decides which candidates run; without one, every
L2 and every augmentation runs for a fixed length, and the best for the full one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from thinktwice.models.backbone import Backbone
from thinktwice.train.augment import Augmenter
from thinktwice.train.checkpoint import Checkpoints
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar
from thinktwice.train.run import EvalPoint, Trained, train
from thinktwice.train.search import Search
from thinktwice.train.unread import UnreadRows

STAGE = "finetune"


@dataclass(frozen=True)
class TuningCandidate:
    table_l2: float
    augmentation: Augmentation
    unknown_share: float | None = None  # None: that of the settings
    epochs: float | None = None  # length of the run, or the one that it found; None: that of the settings

    def settings(self, config: FinetuneConfig) -> FinetuneConfig:
        """``config`` with the length and the share of this candidate."""
        own = {"unknown_share": self.unknown_share, "epochs": self.epochs}
        return config.model_copy(update={name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class Trial:
    """Result of one candidate in its run."""

    candidate: TuningCandidate
    best: EvalPoint
    chosen: bool


@dataclass(frozen=True)
class Tuned:
    model: Backbone
    trained: Trained
    chosen: TuningCandidate
    trials: list[Trial]  # empty if there was nothing to choose


@dataclass(frozen=True)
class TrainingParts:
    """What all runs of a tuning share. ``augmenters`` by kind, ``weights`` of the rows [R] or None, ``checkpoints`` or None, ``unread``
    rows that keep their values or None."""

    start: Callable[[], Backbone]
    augmenters: Mapping[Augmentation, Augmenter]
    rows: BlockLoader
    valid: BlockLoader
    seed: int
    label: str = ""
    weights: Tensor | None = None
    checkpoints: Checkpoints | None = None
    unread: UnreadRows | None = None


class _Runs:
    """The runs so far, and the model of the best one."""

    def __init__(self, config: FinetuneConfig, parts: TrainingParts) -> None:
        self.config, self.parts = config, parts
        self.best: tuple[TuningCandidate, Backbone, Trained] | None = None

    def run(
        self,
        candidate: TuningCandidate,
        epochs: float,
        title: str,
        *,
        annealed: bool = False,
        ends: Callable[[float, float], bool] | None = None,
    ) -> Trained:
        """Train a candidate; it is kept if no earlier run has the same or a lower validation logloss."""
        parts, model = self.parts, self.parts.start()
        settings = candidate.settings(self.config)
        checkpoints = None if parts.checkpoints is None else parts.checkpoints.run(_name(candidate, epochs))
        trained = train(
            model,
            parts.augmenters[candidate.augmentation].with_config(settings),
            parts.rows,
            parts.valid,
            settings,
            table_l2=candidate.table_l2,
            epochs=epochs,
            seed=parts.seed,
            bar=Bar(STAGE, parts.label + title),
            checkpoints=checkpoints,
            annealed=annealed,
            ends=ends,
            weights=parts.weights,
            unread=parts.unread,
        )
        if self.best is None or trained.best.valid_logloss < self.best[2].best.valid_logloss:
            self.best = candidate, model, trained
        return trained


def tune(config: FinetuneConfig, parts: TrainingParts) -> Tuned:
    """Choose on validation and train; an over-trained full run does not replace a better trial.

    Raises:
        TrainingError: the loss of a batch is not finite, or a checkpoint is of another training.
    """
    runs = _Runs(config, parts)
    return _within_budget(runs) if config.budget is not None else _fixed_length(runs)


def _within_budget(runs: _Runs) -> Tuned:
    config = runs.config
    assert config.budget is not None
    search = Search.of(config)
    trials: list[tuple[TuningCandidate, EvalPoint]] = []
    kept = 0
    while (point := search.next()) is not None:
        own, longest, before = search.own_length, search.longest(point), runs.best
        candidate = TuningCandidate(point.table_l2, point.augmentation, point.unknown_share, longest)
        title = f"trial {len(trials) + 1}"
        trained = runs.run(candidate, longest, title, annealed=not own, ends=search.ends if own else None)
        length, spent = (trained.best.epoch, trained.curve[-1].epoch) if own else (longest, longest)
        search.tell(point, trained.best.valid_logloss, length, spent)
        if runs.best is not before:
            kept = len(trials)
        trials.append((replace(candidate, epochs=length), trained.best))
    assert runs.best is not None
    record = [Trial(candidate, best, at == kept) for at, (candidate, best) in enumerate(trials)]
    return Tuned(runs.best[1], runs.best[2], trials[kept][0], record)


def _fixed_length(runs: _Runs) -> Tuned:
    """Every L2 under the first augmentation and then every augmentation under the best L2, each for ``trial_epochs``; the best
    pair from the start for ``epochs``.

    L2 and augmentation are tuned in turn instead of in all pairs: they hardly interact, and a trial costs about a third of a
    full run. If ``trial_epochs`` equals ``epochs``, the trials are full runs and the best of them is the result.
    """
    config = runs.config
    kinds = config.augmentations
    total = len(config.table_l2) + len(kinds) - 1
    trials: dict[TuningCandidate, EvalPoint] = {}

    def best_of(candidates: list[TuningCandidate]) -> TuningCandidate:
        for candidate in candidates:
            if total > 1 and candidate not in trials:
                title = f"trial {len(trials) + 1}/{total}"
                trials[candidate] = runs.run(candidate, min(config.trial_epochs, config.epochs), title).best
        return min(candidates, key=lambda c: trials[c].valid_logloss) if trials else candidates[0]

    table_l2 = best_of([TuningCandidate(l2, kinds[0]) for l2 in config.table_l2]).table_l2
    chosen = best_of([TuningCandidate(table_l2, kind) for kind in kinds])
    record = [Trial(c, best, c == chosen) for c, best in trials.items()]
    if runs.best is None or config.trial_epochs < config.epochs:
        runs.run(chosen, config.epochs, "best candidate")
    assert runs.best is not None
    return Tuned(runs.best[1], runs.best[2], chosen, record)


def _name(candidate: TuningCandidate, epochs: float) -> str:
    """Name of a run among the checkpoints."""
    parts = (candidate.table_l2, candidate.augmentation, candidate.unknown_share, epochs)
    return "-".join("" if part is None else str(part) for part in parts)
