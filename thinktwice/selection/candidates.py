"""Candidate configurations for one model, each with its parameters fitted on the earlier validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

from thinktwice.choices import Mode
from thinktwice.data.encoded import EncodedRows
from thinktwice.selection.config import FitConfig
from thinktwice.selection.cost import Price
from thinktwice.selection.parameters import (
    BY_THRESHOLD,
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
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.config import Correction, TestTimeConfig
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths, Retrieve
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.triggers import TriggerKind

EVIDENCE_MODES: tuple[Mode, ...] = ("counters", "corrected", "retrieve")  # read counters, and mask no value
STOP_AT = 0.05  # logits: at a click rate of 10 % an error of this size costs 1e-4 of logloss on the rows it touches

#: Refit the free parameters to other counts (the trial model's) or another trigger, with the mode's settings unchanged.
Refit = Callable[[TrialModel, TriggerKind | None, int], TestTimeConfig]


@dataclass(frozen=True)
class Candidate:
    """A fitted configuration, its logloss and forward passes per row on the rows it was fitted on, and how to refit it for a
    control. With ``all_rows`` it looks again at every row where another candidate chooses rows, and ships only if no choice of
    rows proves itself."""

    name: str
    config: TestTimeConfig
    fit_logloss: float
    fit_passes: float
    refit: Refit
    all_rows: bool = False


def counters_candidate(
    trial_model: TrialModel, fit: EncodedRows, off: TestTimeConfig, config: FitConfig
) -> Candidate | None:
    """Counters in the trunk; None if ``config`` does not allow them, or no trunk was trained with them."""
    if config.mode not in ("lean", "counters") or trial_model.counter_model is None:
        return None
    settings = counter_settings(trial_model, off)

    def refit(model: TrialModel, *_: object) -> TestTimeConfig:
        return calibrated(model, settings, fit)

    return _fitted("counters in the trunk", trial_model, fit, refit(trial_model), refit)


def _fitted(name: str, trial_model: TrialModel, fit: EncodedRows, settings: TestTimeConfig, refit: Refit) -> Candidate:
    logit, passes = trial_model.logits(settings, fit)
    return Candidate(name, settings, logloss(fit.label, logit), passes, refit)


def candidates(
    trial_model: TrialModel,
    fit: EncodedRows,
    off: TestTimeConfig,
    config: FitConfig,
    price: Price,
    counting: Candidate | None,
) -> list[Candidate]:
    """The best candidate of every mode that ``config`` allows, ``counting`` (:func:`counters_candidate`) among them. A gate or filter
    whose best strength is 0 is not a candidate.

    Of the triggers and shares of retrieved evidence, those that ``price`` within the limit of cost come first.
    """

    def candidate(name: str, settings: TestTimeConfig, refit: Refit) -> Candidate:
        return _fitted(name, trial_model, fit, settings, refit)

    def escalating(
        name: str, base_of: Callable[[TrialModel], TestTimeConfig], trigger: TriggerKind, share: float
    ) -> Candidate:
        def refit(model: TrialModel, trigger: TriggerKind | None, salt: int) -> TestTimeConfig:
            assert trigger is not None
            salted = base_of(model).looking(salt=salt)
            return calibrated(model, triggered(model, salted, fit, trigger, share), fit)

        return candidate(name, refit(trial_model, trigger, 0), refit)

    maskable = len(trial_model.reliability.maskable_fields) > 0

    def tries(mode: Mode) -> bool:
        return config.mode in ("lean", mode) and (maskable or mode in EVIDENCE_MODES)

    def best(options: Iterable[Candidate]) -> Candidate:
        return min(options, key=lambda c: c.fit_logloss)

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
    if tries("gate") and isinstance(gate_of(trial_model).base, Gate):
        out.append(candidate("gate", gate_of(trial_model), lambda model, _, __: gate_of(model)))
        out.append(candidate("gate by field", finer_gate_of(trial_model), lambda model, _, __: finer_gate_of(model)))
    if tries("gate"):
        plain_gate = shrunk(trial_model, off, fit, config.field_shares)
        if isinstance(plain_gate.base, Gate) and min(plain_gate.base.field_shares) < 1:
            out.append(candidate("gate without counts", plain_gate, lambda model, _, __: plain_gate))
    if tries("filter") and isinstance(filter_of(trial_model).base, Filter):
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
        share = UTTSI_PATHS.sampler.pair_share if counted else 0.0
        literal = UTTSI_PATHS.model_copy(
            update={"max_paths": max(config.max_paths), "sampler": Bernoulli(pair_share=share)}
        )
        ours = FeaturePaths(sampler=Exact(pair_share=share), stop_at=STOP_AT, shrink=literal.shrink)

        def filtered(model: TrialModel, paths: FeaturePaths) -> TestTimeConfig:
            return preset("uttsi", off).model_copy(update={"base": filter_of(model).base}).looking(opinion=paths)

        def uttsi(name: str, paths: FeaturePaths) -> Candidate:
            return escalating(name, lambda model: filtered(model, paths), "dual", config.explored_share)

        out.append(uttsi("uttsi", literal))
        out.append(best(uttsi("uttsi, exact", ours.model_copy(update={"max_paths": k})) for k in config.max_paths))
    if tries("matt") and counted:

        def grown(model: TrialModel) -> TestTimeConfig:
            paths = GrownPaths(max_paths=max(config.max_paths), sampler=Matt(typical_pair=typical_pair(model, fit)))
            return preset("matt", off).looking(opinion=paths)

        out.append(escalating("matt", grown, "always", 1.0))
    if tries("sgctr") and trial_model.extras.heads is not None:
        out.append(escalating("sgctr", lambda _: preset("sgctr", off), "always", 1.0))
    if tries("members") and trial_model.extras.members:
        member = preset("members", off)

        def gated(model: TrialModel) -> TestTimeConfig:
            return member.model_copy(update={"base": finer_gate_of(model).base})

        out.append(best(escalating("members", lambda _: member, "entropy", share) for share in config.member_shares))
        if isinstance(gate_of(trial_model).base, Gate):
            out.append(best(escalating("members, gated", gated, "entropy", share) for share in config.member_shares))
        out.append(replace(escalating("members, all rows", lambda _: member, "always", 1.0), all_rows=True))
    if counting is not None:
        out.append(counting)
    if trial_model.evidence is not None and trial_model.extras.correction is not None:
        definition = trial_model.evidence.definition
        item = trial_model.evidence.data.schema.key_of("item")
        if tries("corrected") and not trial_model.extras.correction.is_zero:
            first = with_correction(preset("corrected", off), definition)
            out.append(
                candidate(
                    "corrected", calibrated(trial_model, first, fit), lambda model, *_: calibrated(model, first, fit)
                )
            )
        if tries("retrieve") and trial_model.extras.retrieval is not None and item is not None:
            looks = with_correction(preset("retrieve", off), definition).looking(opinion=Retrieve(item_field=item))
            triggers: tuple[TriggerKind, ...] = ("entropy", "moved", "predicted")
            by_share = [
                escalating("retrieve", by_trigger(looks, trigger), trigger, share)
                for trigger in triggers
                for share in config.retrieved_shares
            ]
            max_cost = config.max_cost if config.mode == "lean" else float("inf")
            affordable = [
                c for c in by_share if max_cost == float("inf") or price(trial_model, c.config).value <= max_cost
            ]
            out.append(best(affordable or by_share))
            out.append(replace(escalating("retrieve, all rows", lambda _: looks, "always", 1.0), all_rows=True))
    return out


def by_trigger(settings: TestTimeConfig, trigger: TriggerKind) -> Callable[[TrialModel], TestTimeConfig]:
    """``settings``, the same for any model, with rows chosen by ``trigger``."""
    if trigger == "predicted":  # its weights are fitted with its threshold
        return lambda _: settings
    triggered_settings = settings.looking(trigger=BY_THRESHOLD[trigger]())
    return lambda _: triggered_settings


def counter_settings(trial_model: TrialModel, off: TestTimeConfig) -> TestTimeConfig:
    """The mode ``counters`` for the counter model of ``trial_model``, whose groups of counters have no importance."""
    assert trial_model.counter_model is not None
    more = trial_model.counter_model.model.num_fields - len(off.importance)
    importance = (*off.importance, *(0.0 for _ in range(more))) if off.importance else ()
    return preset("counters", off).model_copy(update={"importance": importance})


def with_correction(settings: TestTimeConfig, definition: str) -> TestTimeConfig:
    """``settings`` with a correction by counters of this definition."""
    return settings.model_copy(update={"correction": Correction(definition=definition)})
