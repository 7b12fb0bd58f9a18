"""The configurations that are worth a trial on one model, each with its parameters fitted on the earlier validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.metrics import logloss
from thinktwice.testtime.config import FitConfig, TestTimeConfig, TriggerKind
from thinktwice.testtime.modes import PRESETS, preset
from thinktwice.testtime.parameters import by_support, calibrated, triggered, typical_pair
from thinktwice.testtime.subject import Subject

STOP_AT = 0.05  # logits: at a click rate of 10 % an error of this size costs 1e-4 of logloss on the rows it touches

#: Refit the free parameters for other counts (the subject's) or another trigger, the mode's own settings kept.
Refit = Callable[[Subject, TriggerKind, int], TestTimeConfig]


@dataclass(frozen=True)
class Candidate:
    """A fitted configuration, its logloss and forward passes per row on the rows it was fitted on, and how to refit it for a
    control."""

    name: str
    config: TestTimeConfig
    fit_logloss: float
    fit_passes: float
    refit: Refit


def candidates(subject: Subject, fit: EncodedRows, off: TestTimeConfig, config: FitConfig) -> list[Candidate]:
    """The best of every mode that ``config`` lets try. A gate or filter whose best strength is 0 is no candidate."""

    def candidate(name: str, refit: Refit, trigger: TriggerKind) -> Candidate:
        settings = refit(subject, trigger, 0)
        logit, passes = subject.logits(settings, fit)
        return Candidate(name, settings, logloss(fit.label, logit), passes, refit)

    def one_pass(name: str, **settings: Any) -> Candidate:
        base = off.model_copy(update=settings)
        return candidate(name, lambda who, _, __: calibrated(who, base, fit), "never")

    def asking(name: str, base: TestTimeConfig, trigger: TriggerKind, share: float = 1.0) -> Candidate:
        def refit(who: Subject, trigger: TriggerKind, salt: int) -> TestTimeConfig:
            salted = base.model_copy(update={"salt": salt})
            return calibrated(who, triggered(who, salted, fit, trigger, share), fit)

        return candidate(name, refit, trigger)

    def tries(*modes: str) -> bool:
        return config.mode == "lean" or config.mode in modes

    def best(found: Iterator[Candidate]) -> Candidate | None:
        return min(found, key=lambda c: c.fit_logloss, default=None)

    out: list[Candidate | None] = []
    gate = (
        best(one_pass("gate", mode="gate", strength=s) for s in config.strengths) if tries("gate", "members") else None
    )
    strength = gate.config.strength if gate is not None else 0.0
    if tries("gate") and strength > 0:
        out.append(gate)
    sieve = (
        best(one_pass("filter", mode="filter", min_count=n) for n in config.min_counts)
        if tries("filter", "uttsi")
        else None
    )
    min_count = sieve.config.min_count if sieve is not None else 0
    if tries("filter") and min_count > 0:
        out.append(sieve)
    if tries("calibrated"):
        base = off.model_copy(update={"mode": "calibrated"})
        out.append(candidate("calibrated by support", lambda who, _, __: by_support(who, base, fit), "never"))
    counted = subject.extras.combinations is not None
    if tries("uttsi"):
        literal = preset("uttsi", off).model_copy(
            update={
                "min_count": min_count,
                "max_paths": max(config.max_paths),
                "pair_share": PRESETS["uttsi"].pair_share if counted else 0.0,
            }
        )
        out.append(asking("uttsi", literal, "dual", config.explored_share))
        exact = literal.model_copy(update={"sampler": "enumerate", "aggregator": "mean", "stop_at": STOP_AT})
        out.append(
            best(
                asking("uttsi, exact", exact.model_copy(update={"max_paths": k}), "dual", config.explored_share)
                for k in config.max_paths
            )
        )
    if tries("matt") and counted:
        update = {"max_paths": max(config.max_paths), "typical_pair": typical_pair(subject, fit)}
        out.append(asking("matt", preset("matt", off).model_copy(update=update), "always"))
    if tries("sgctr"):
        out.append(asking("sgctr", preset("sgctr", off), "always"))
    if tries("members") and subject.extras.members:
        member = preset("members", off)
        for gated in sorted({0.0, strength}):
            chosen = member.model_copy(update={"strength": gated})
            name = "members, gated" if gated else "members"
            out.append(best(asking(name, chosen, "entropy", share) for share in config.member_shares))
        out.append(asking("members, all rows", member, "always"))
    return [c for c in out if c is not None]
