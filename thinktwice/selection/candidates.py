"""The configurations that are worth a trial on one model, each with its parameters fitted on the earlier validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from thinktwice.data.encoded import EncodedRows
from thinktwice.selection.config import FitConfig
from thinktwice.selection.parameters import (
    best_filter,
    best_gate,
    by_field,
    by_support,
    calibrated,
    shrunk,
    triggered,
    typical_pair,
)
from thinktwice.selection.subject import Subject
from thinktwice.stats.metrics import logloss
from thinktwice.testtime.config import TestTimeConfig, TriggerKind
from thinktwice.testtime.modes import PRESETS, preset

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

    def candidate(name: str, settings: TestTimeConfig, refit: Refit) -> Candidate:
        logit, passes = subject.logits(settings, fit)
        return Candidate(name, settings, logloss(fit.label, logit), passes, refit)

    def escalating(
        name: str, base_of: Callable[[Subject], TestTimeConfig], trigger: TriggerKind, share: float
    ) -> Candidate:
        def refit(who: Subject, trigger: TriggerKind, salt: int) -> TestTimeConfig:
            salted = base_of(who).model_copy(update={"salt": salt})
            return calibrated(who, triggered(who, salted, fit, trigger, share), fit)

        return candidate(name, refit(subject, trigger, 0), refit)

    def tries(*modes: str) -> bool:
        return config.mode == "lean" or config.mode in modes

    def best(found: Iterable[Candidate]) -> Candidate:
        return min(found, key=lambda c: c.fit_logloss)

    @cache
    def gate_of(who: Subject) -> TestTimeConfig:
        return best_gate(who, off, fit, config.strengths)

    @cache
    def finer_gate_of(who: Subject) -> TestTimeConfig:
        return by_field(who, gate_of(who), fit, config.field_factors)

    @cache
    def filter_of(who: Subject) -> TestTimeConfig:
        return best_filter(who, off, fit, config.min_counts)

    out: list[Candidate] = []
    if tries("gate") and gate_of(subject).strength > 0:
        out.append(candidate("gate", gate_of(subject), lambda who, _, __: gate_of(who)))
        out.append(candidate("gate by field", finer_gate_of(subject), lambda who, _, __: finer_gate_of(who)))
    if tries("gate"):
        plain_gate = shrunk(subject, off, fit, config.field_shares)
        if min(plain_gate.field_shares) < 1:
            out.append(candidate("gate without counts", plain_gate, lambda who, _, __: plain_gate))
    if tries("filter") and filter_of(subject).min_count > 0:
        out.append(candidate("filter", filter_of(subject), lambda who, _, __: filter_of(who)))
    if tries("calibrated"):
        base = off.model_copy(update={"mode": "calibrated"})
        out.append(
            candidate(
                "calibrated by support", by_support(subject, base, fit), lambda who, _, __: by_support(who, base, fit)
            )
        )
    counted = subject.extras.combinations is not None
    if tries("uttsi"):

        def literal(who: Subject, **settings: Any) -> TestTimeConfig:
            share = PRESETS["uttsi"].pair_share if counted else 0.0
            basis = {"min_count": filter_of(who).min_count, "max_paths": max(config.max_paths), "pair_share": share}
            return preset("uttsi", off).model_copy(update=basis | settings)

        out.append(escalating("uttsi", literal, "dual", config.explored_share))
        ours: dict[str, Any] = {"sampler": "enumerate", "aggregator": "mean", "stop_at": STOP_AT}
        out.append(
            best(
                escalating("uttsi, exact", partial(literal, **ours, max_paths=k), "dual", config.explored_share)
                for k in config.max_paths
            )
        )
    if tries("matt") and counted:

        def grown(who: Subject) -> TestTimeConfig:
            update = {"max_paths": max(config.max_paths), "typical_pair": typical_pair(who, fit)}
            return preset("matt", off).model_copy(update=update)

        out.append(escalating("matt", grown, "always", 1.0))
    if tries("sgctr") and subject.extras.heads is not None:
        out.append(escalating("sgctr", lambda _: preset("sgctr", off), "always", 1.0))
    if tries("members") and subject.extras.members:
        member = preset("members", off)

        def gated(who: Subject) -> TestTimeConfig:
            gate = finer_gate_of(who)
            return member.model_copy(update={"strength": gate.strength, "field_strengths": gate.field_strengths})

        out.append(best(escalating("members", lambda _: member, "entropy", share) for share in config.member_shares))
        if gate_of(subject).strength > 0:
            out.append(best(escalating("members, gated", gated, "entropy", share) for share in config.member_shares))
        out.append(escalating("members, all rows", lambda _: member, "always", 1.0))
    return out
