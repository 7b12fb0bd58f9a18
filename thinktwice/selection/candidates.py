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
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import logloss
from thinktwice.testtime.config import TestTimeConfig, TriggerKind
from thinktwice.testtime.modes import PRESETS, preset

STOP_AT = 0.05  # logits: at a click rate of 10 % an error of this size costs 1e-4 of logloss on the rows it touches

#: Refit the free parameters for other counts (the trial model's) or another trigger, the mode's own settings kept.
Refit = Callable[[TrialModel, TriggerKind, int], TestTimeConfig]


@dataclass(frozen=True)
class Candidate:
    """A fitted configuration, its logloss and forward passes per row on the rows it was fitted on, and how to refit it for a
    control."""

    name: str
    config: TestTimeConfig
    fit_logloss: float
    fit_passes: float
    refit: Refit


def candidates(trial_model: TrialModel, fit: EncodedRows, off: TestTimeConfig, config: FitConfig) -> list[Candidate]:
    """The best of every mode that ``config`` lets try. A gate or filter whose best strength is 0 is no candidate."""

    def candidate(name: str, settings: TestTimeConfig, refit: Refit) -> Candidate:
        logit, passes = trial_model.logits(settings, fit)
        return Candidate(name, settings, logloss(fit.label, logit), passes, refit)

    def escalating(
        name: str, base_of: Callable[[TrialModel], TestTimeConfig], trigger: TriggerKind, share: float
    ) -> Candidate:
        def refit(model: TrialModel, trigger: TriggerKind, salt: int) -> TestTimeConfig:
            salted = base_of(model).model_copy(update={"salt": salt})
            return calibrated(model, triggered(model, salted, fit, trigger, share), fit)

        return candidate(name, refit(trial_model, trigger, 0), refit)

    def tries(*modes: str) -> bool:
        return config.mode == "lean" or config.mode in modes

    def best(found: Iterable[Candidate]) -> Candidate:
        return min(found, key=lambda c: c.fit_logloss)

    @cache
    def gate_of(model: TrialModel) -> TestTimeConfig:
        return best_gate(model, off, fit, config.strengths)

    @cache
    def finer_gate_of(model: TrialModel) -> TestTimeConfig:
        return by_field(model, gate_of(model), fit, config.field_factors)

    @cache
    def filter_of(model: TrialModel) -> TestTimeConfig:
        return best_filter(model, off, fit, config.min_counts)

    out: list[Candidate] = []
    if tries("gate") and gate_of(trial_model).strength > 0:
        out.append(candidate("gate", gate_of(trial_model), lambda model, _, __: gate_of(model)))
        out.append(candidate("gate by field", finer_gate_of(trial_model), lambda model, _, __: finer_gate_of(model)))
    if tries("gate"):
        plain_gate = shrunk(trial_model, off, fit, config.field_shares)
        if min(plain_gate.field_shares) < 1:
            out.append(candidate("gate without counts", plain_gate, lambda model, _, __: plain_gate))
    if tries("filter") and filter_of(trial_model).min_count > 0:
        out.append(candidate("filter", filter_of(trial_model), lambda model, _, __: filter_of(model)))
    if tries("calibrated"):
        base = off.model_copy(update={"mode": "calibrated"})
        out.append(
            candidate(
                "calibrated by support",
                by_support(trial_model, base, fit),
                lambda model, _, __: by_support(model, base, fit),
            )
        )
    counted = trial_model.extras.combinations is not None
    if tries("uttsi"):

        def literal(model: TrialModel, **settings: Any) -> TestTimeConfig:
            share = PRESETS["uttsi"].pair_share if counted else 0.0
            basis = {"min_count": filter_of(model).min_count, "max_paths": max(config.max_paths), "pair_share": share}
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

        def grown(model: TrialModel) -> TestTimeConfig:
            update = {"max_paths": max(config.max_paths), "typical_pair": typical_pair(model, fit)}
            return preset("matt", off).model_copy(update=update)

        out.append(escalating("matt", grown, "always", 1.0))
    if tries("sgctr") and trial_model.extras.heads is not None:
        out.append(escalating("sgctr", lambda _: preset("sgctr", off), "always", 1.0))
    if tries("members") and trial_model.extras.members:
        member = preset("members", off)

        def gated(model: TrialModel) -> TestTimeConfig:
            gate = finer_gate_of(model)
            return member.model_copy(update={"strength": gate.strength, "field_strengths": gate.field_strengths})

        out.append(best(escalating("members", lambda _: member, "entropy", share) for share in config.member_shares))
        if gate_of(trial_model).strength > 0:
            out.append(best(escalating("members, gated", gated, "entropy", share) for share in config.member_shares))
        out.append(escalating("members, all rows", lambda _: member, "always", 1.0))
    return out
