"""Choice of table L2 and augmentation on validation: every candidate in a short run, then the best one in a full run.

The result is the run with the lowest validation logloss, short or full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thinktwice.models.backbone import Backbone
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar
from thinktwice.train.run import EvalPoint, Trained, train

STAGE = "finetune"


@dataclass(frozen=True)
class TuningCandidate:
    table_l2: float
    augmentation: Augmentation


@dataclass(frozen=True)
class Trial:
    """Result of one candidate in its short run."""

    candidate: TuningCandidate
    best: EvalPoint
    chosen: bool


@dataclass(frozen=True)
class Tuned:
    model: Backbone
    trained: Trained
    chosen: TuningCandidate
    trials: list[Trial]  # empty if there was nothing to choose


def tune(
    config: FinetuneConfig,
    start: Callable[[], Backbone],
    augmenters: dict[Augmentation, Augmenter],
    rows: BlockLoader,
    valid: BlockLoader,
    *,
    seed: int,
    label: str = "",
) -> Tuned:
    """Try every L2 under the first augmentation and then every augmentation under the best L2, each for ``trial_epochs``;
    train the best pair from ``start`` for ``epochs``. The result is the run with the lowest validation logloss: an over-trained
    full run does not replace a better trial.

    L2 and augmentation are tuned in turn instead of in all pairs: they hardly interact, and a trial costs about a third of a
    full run. If ``trial_epochs`` equals ``epochs``, the trials are full runs and the best of them is the result.
    """

    def run(candidate: TuningCandidate, epochs: float, title: str) -> tuple[Backbone, Trained]:
        model = start()
        trained = train(
            model,
            augmenters[candidate.augmentation],
            rows,
            valid,
            config,
            table_l2=candidate.table_l2,
            epochs=epochs,
            seed=seed,
            bar=Bar(STAGE, label + title),
        )
        return model, trained

    kinds = config.augmentations
    total = len(config.table_l2) + len(kinds) - 1
    trials: dict[TuningCandidate, EvalPoint] = {}
    kept: tuple[TuningCandidate, Backbone, Trained] | None = None

    def keep_if_better(candidate: TuningCandidate, model: Backbone, trained: Trained) -> None:
        nonlocal kept
        if kept is None or trained.best.valid_logloss < kept[2].best.valid_logloss:
            kept = candidate, model, trained

    def best_of(candidates: list[TuningCandidate]) -> TuningCandidate:
        for candidate in candidates:
            if total > 1 and candidate not in trials:
                title = f"trial {len(trials) + 1}/{total}"
                model, trained = run(candidate, min(config.trial_epochs, config.epochs), title)
                trials[candidate] = trained.best
                keep_if_better(candidate, model, trained)
        return min(candidates, key=lambda c: trials[c].valid_logloss) if trials else candidates[0]

    table_l2 = best_of([TuningCandidate(l2, kinds[0]) for l2 in config.table_l2]).table_l2
    chosen = best_of([TuningCandidate(table_l2, kind) for kind in kinds])
    record = [Trial(c, best, c == chosen) for c, best in trials.items()]
    if kept is None or config.trial_epochs < config.epochs:
        keep_if_better(chosen, *run(chosen, config.epochs, "best candidate"))
    assert kept is not None
    return Tuned(kept[1], kept[2], chosen, record)
