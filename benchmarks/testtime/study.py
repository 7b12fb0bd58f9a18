"""One run of the study: every method on one trunk, fitted on validation, scored on test once; kept on disk.

A run is a data set, a backbone, a regime (``tuned`` or ``overtrained`` trunk) and a training seed. It stores the log-odds of
every method on all test rows, from which tables are computed, and a record of the fitted parameters. The reference of every
difference is ``plain``, the trunk with a Platt calibration fitted on validation, so that calibration alone is no gain.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from benchmarks.testtime.fillers import BlindConfig, BlindLook, BlindPaths, Filled, Uniform, keep_rate
from benchmarks.testtime.trunks import Setting, Trunk, Trunks
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.files import atomic_file, read_json, write_json
from thinktwice.models import Calibration
from thinktwice.selection.candidates import STOP_AT
from thinktwice.selection.config import FitConfig
from thinktwice.selection.fit import count_check, field_importance, fit_extras, fit_mode
from thinktwice.selection.parameters import (
    NEVER_FIRES,
    best_filter,
    best_gate,
    by_field,
    by_support,
    calibrated,
    fit_base,
    fit_spread,
    shrunk,
    triggered,
    typical_pair,
)
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.calibration import fit_temperature
from thinktwice.testtime import calibrate
from thinktwice.testtime.aggregators import Mean
from thinktwice.testtime.base_pass import Gate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.opinions.config import GrownPaths, Members
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.scores import Raw
from thinktwice.testtime.triggers import Always, Decision, Dual, Entropy, TriggerKind
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import fit_calibration, logits_of

Baselines = Literal["none", "masks", "joint", "all"]  # those that need separate training

FORMAT = 2
MEMBERS = 3  # trunks of an ensemble, the first included
FIT_ROWS, TEST_ROWS = 24_000, 30_000  # subsampled evenly over time; smaller data sets are used whole
SIGNAL = "signal/"  # of triggers, among the stored arrays
LIST, TOP_K = 100, 10
PATHS = 8
SHARE = 0.2
SALTS = (0, 1, 2)
DISTILLED = (0.5, 1.0)
FIT = FitConfig()


@dataclass(frozen=True)
class Run:
    """Identity of a run, and which of the separately trained baselines it includes."""

    data: str
    backbone: str
    regime: str
    seed: int
    baselines: Baselines

    @property
    def name(self) -> str:
        return f"{self.data}-{self.backbone}-{self.regime}-{self.seed}"


@dataclass(frozen=True)
class Scores:
    """Log-odds [R] on test per method (sampled methods once per path seed, ``name@salt``) and facts of the run."""

    logits: dict[str, np.ndarray]
    facts: dict[str, Any]


class Notes:
    """Collects the scores of one run."""

    def __init__(self) -> None:
        self.logits: dict[str, np.ndarray] = {}
        self.signals: dict[str, np.ndarray] = {}
        self.facts: dict[str, Any] = {"passes": {}, "configs": {}}

    def add(self, name: str, logit: np.ndarray, passes: float = 1.0, config: TestTimeConfig | None = None) -> None:
        self.logits[name] = np.asarray(logit, np.float64)
        self.facts["passes"][name] = passes
        if config is not None:
            self.facts["configs"][name] = config.model_dump(mode="json", exclude={"importance"})


def run(trunks: Trunks, which: Run) -> Scores:
    """The scores of one run, computed if they are not on disk."""
    folder = trunks.work / "runs"
    arrays, record = folder / f"{which.name}.safetensors", folder / f"{which.name}.json"
    key = f"{FORMAT} {which.baselines}"
    if record.is_file() and read_json(record)["key"] == key:
        return Scores(load_file(str(arrays)), read_json(record))
    notes = _score(trunks, which)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(arrays) as temporary:
        signals = {f"{SIGNAL}{name}": value for name, value in notes.signals.items()}
        save_file({name: z.astype(np.float32) for name, z in (notes.logits | signals).items()}, str(temporary))
    write_json(record, notes.facts | {"key": key})
    return Scores(load_file(str(arrays)), read_json(record))


def trunk_of(trunks: Trunks, which: Run, ahead: int = 0) -> Trunk:
    seed = which.seed + ahead
    if which.regime == "overtrained":
        return trunks.overtrained(seed, which.backbone)
    return trunks.plain(seed, which.backbone)


def _score(trunks: Trunks, which: Run) -> Notes:
    train, valid, test = trunks.train_rows, thinned(trunks.valid_rows, FIT_ROWS), test_rows(trunks.data)
    first, second, third = (trunk_of(trunks, which, ahead) for ahead in range(MEMBERS))
    notes = Notes()
    reliability = Reliability.fit(train.ids, train.label, trunks.fields)
    extras = fit_extras(first.model, reliability, train, (second.model, third.model), FIT)
    trial_model = TrialModel(first.model, first.calibration, reliability, extras)
    off = TestTimeConfig(importance=field_importance(first.model, reliability, valid))
    count_auc, warnings = count_check(first.model, reliability, valid)
    notes.facts |= {"count_auc": count_auc, "warnings": warnings, "kappa": reliability.kappa.tolist()}
    _plain(notes, trial_model, off, valid, test)
    _one_pass(notes, trial_model, off, valid, test)
    _paths(notes, trial_model, off, valid, test)
    _members(notes, trial_model, off, valid, test)
    _lists(notes, trial_model, off, valid, test)
    _lean(notes, trial_model, thinned(trunks.valid_rows, FIT.max_rows), test)
    if which.baselines in ("masks", "all"):
        _trained(notes, trunks, which, MASKS, valid, test)
    if which.baselines == "all":
        _trained(notes, trunks, which, TRAINED, valid, test)
        _rare(notes, trunks, which, valid, test)
        _dropout(notes, trunks, which, valid, test)
    if which.baselines in ("joint", "all"):
        _distilled(notes, trunks, which, valid, test)
        _joint_members(notes, trunks, which, valid, test)
    return notes


def thinned(rows: EncodedRows, limit: int) -> EncodedRows:
    """At most ``limit`` of the rows, evenly spaced, in time order."""
    order = np.argsort(rows.time, kind="stable")
    return rows.take(order[np.unique(np.linspace(0, len(order) - 1, min(limit, len(order))).astype(np.int64))])


def test_rows(data: TrainingSet) -> EncodedRows:
    """The test rows of every table."""
    return thinned(data.part("test"), TEST_ROWS)


def _plain(notes: Notes, trial_model: TrialModel, off: TestTimeConfig, valid: EncodedRows, test: EncodedRows) -> None:
    z_valid, z = (trial_model.raw(off, rows).z for rows in (valid, test))
    platt = fit_calibration(z_valid, valid.label)
    notes.add("plain", calibrate.apply(platt, z))
    notes.add("uncalibrated", z)
    notes.add("temperature", z / fit_temperature(z_valid, valid.label))


def _fitted(notes: Notes, name: str, trial_model: TrialModel, config: TestTimeConfig, test: EncodedRows) -> None:
    logit, passes = trial_model.logits(config, test)
    notes.add(name, logit, passes, config)


def _one_pass(
    notes: Notes, trial_model: TrialModel, off: TestTimeConfig, valid: EncodedRows, test: EncodedRows
) -> None:
    shuffled = trial_model.shuffled()
    gate = best_gate(trial_model, off, valid, FIT.strengths)
    _fitted(notes, "gate", trial_model, gate, test)
    _fitted(notes, "gate by field", trial_model, by_field(trial_model, gate, valid, FIT.field_factors), test)
    _fitted(notes, "gate without counts", trial_model, shrunk(trial_model, off, valid, FIT.field_shares), test)
    _fitted(notes, "gate, s = 1", trial_model, calibrated(trial_model, preset("gate", off), valid), test)
    always = max(
        gate.base.strength if isinstance(gate.base, Gate) else 0.0, 1.0
    )  # a gate fitted to 0 would be unaffected by shuffling
    rigid = calibrated(shuffled, off.model_copy(update={"mode": "gate", "base": Gate(strength=always)}), valid)
    _fitted(notes, "control: gate, shuffled counts", shuffled, rigid, test)
    refitted = best_gate(shuffled, off, valid, FIT.strengths)
    _fitted(notes, "control: gate refitted, shuffled counts", shuffled, refitted, test)
    _fitted(notes, "filter", trial_model, best_filter(trial_model, off, valid, FIT.min_counts), test)
    _fitted(notes, "calibrated by support", trial_model, by_support(trial_model, off, valid), test)


def _paths(notes: Notes, trial_model: TrialModel, off: TestTimeConfig, valid: EncodedRows, test: EncodedRows) -> None:
    base = best_filter(trial_model, off, valid, FIT.min_counts).base
    shuffled = trial_model.shuffled()
    paths = UTTSI_PATHS.model_copy(update={"max_paths": PATHS})
    literal = preset("uttsi", off).model_copy(update={"base": base}).looking(opinion=paths)
    grown = GrownPaths(max_paths=PATHS, sampler=Matt(typical_pair=typical_pair(trial_model, valid)))
    matt = preset("matt", off).looking(opinion=grown)
    at_random = BlindPaths(max_paths=PATHS, sampler=Uniform(keep_rate=keep_rate(trial_model, valid.ids)))
    blind = BlindConfig(
        mode="uttsi", second_look=BlindLook(trigger=Always(), opinion=at_random), importance=off.importance
    )

    def guided(model: TrialModel, base: TestTimeConfig, trigger: TriggerKind = "dual") -> TestTimeConfig:
        return calibrated(model, triggered(model, base, valid, trigger, SHARE), valid)

    for salt in SALTS:
        _fitted(notes, f"uttsi@{salt}", trial_model, guided(trial_model, literal.looking(salt=salt)), test)
        _fitted(notes, f"matt@{salt}", trial_model, calibrated(trial_model, matt.looking(salt=salt), valid), test)
        _fitted(
            notes, f"random masks@{salt}", trial_model, calibrated(trial_model, blind.looking(salt=salt), valid), test
        )
        random = guided(trial_model, literal.looking(salt=salt), "random")
        _fitted(notes, f"control: uttsi, random trigger@{salt}", trial_model, random, test)
    by_subset = {"sampler": Exact(pair_share=paths.sampler.pair_share), "aggregator": Mean(), "stop_at": STOP_AT}
    exact = literal.looking(opinion=paths.model_copy(update=by_subset))
    _fitted(notes, "uttsi, exact", trial_model, guided(trial_model, exact), test)
    fillers: tuple[Literal["mean", "denoiser"], ...] = ("mean", "denoiser")
    for filler in fillers:
        filled = Filled.of(trial_model, filler)
        _fitted(notes, f"uttsi, exact, filler {filler}", filled, guided(filled, exact), test)
    _fitted(notes, "sgctr", trial_model, calibrated(trial_model, preset("sgctr", off), valid), test)
    _fitted(notes, "control: uttsi, shuffled counts", shuffled, guided(shuffled, literal), test)
    _fitted(notes, "control: matt, shuffled counts", shuffled, calibrated(shuffled, matt, valid), test)
    everybody = literal.looking(trigger=Always())
    _fitted(notes, "uttsi, all rows", trial_model, calibrated(trial_model, everybody, valid), test)


def _members(notes: Notes, trial_model: TrialModel, off: TestTimeConfig, valid: EncodedRows, test: EncodedRows) -> None:
    base = preset("members", off)
    for count in (1, 2):
        everybody = base.looking(trigger=Always(), opinion=Members(count=count))
        _fitted(notes, f"{count + 1} seeds", trial_model, calibrated(trial_model, everybody, valid), test)
    for share in (0.1, SHARE, 0.25):
        chosen = calibrated(trial_model, triggered(trial_model, base, valid, "entropy", share), valid)
        _fitted(notes, f"members, {share:.0%} by entropy", trial_model, chosen, test)
    notes.signals = {
        "entropy": trial_model.raw(base.looking(trigger=Entropy(threshold=NEVER_FIRES)), test).signal,
        "dual": trial_model.raw(base.looking(trigger=Dual(threshold=NEVER_FIRES)), test).signal,
        "rarity": trial_model.raw(off, test).missing,
    }
    dual = calibrated(trial_model, triggered(trial_model, base, valid, "dual", SHARE), valid)
    _fitted(notes, f"members, {SHARE:.0%} by dual", trial_model, dual, test)
    for salt in SALTS:
        salted = base.looking(salt=salt)
        random = calibrated(trial_model, triggered(trial_model, salted, valid, "random", SHARE), valid)
        _fitted(notes, f"control: members, {SHARE:.0%} at random@{salt}", trial_model, random, test)


def _lists(notes: Notes, trial_model: TrialModel, off: TestTimeConfig, valid: EncodedRows, test: EncodedRows) -> None:
    """Requests of ``LIST`` rows with ``TOP_K`` positions: the trigger ``decision``, a budget, and entropy and chance at the
    rate of ``decision``."""
    base = preset("members", off)
    spread = fit_spread(trial_model, base, valid)
    cut = fit_base(trial_model, base, valid).looking(trigger=Decision(spread=spread, top_k=TOP_K))
    on_valid = _in_lists(trial_model, cut, valid)
    share = float(on_valid.escalated.mean())
    configs = {"decision": _group_calibrated(cut, on_valid, valid)}
    triggers: dict[str, TriggerKind] = {"entropy": "entropy", "chance": "random", "budget": "budget"}
    for name, trigger in triggers.items():
        chosen = triggered(trial_model, base, valid, trigger, share)
        configs[name] = _group_calibrated(chosen, _in_lists(trial_model, chosen, valid), valid)
    for name, config in configs.items():
        raw = _in_lists(trial_model, config, test)
        notes.add(
            f"lists: members by {name}",
            trial_model.engine(config).finish(raw).logit,
            float(raw.num_paths.mean()),
            config,
        )


def _in_lists(trial_model: TrialModel, config: TestTimeConfig, rows: EncodedRows) -> Raw:
    engine = trial_model.engine(config)
    parts = [engine.raw(rows.batch(slice(s, s + LIST))) for s in range(0, len(rows), LIST)]
    return Raw(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Raw)))


def _group_calibrated(config: TestTimeConfig, raw: Raw, rows: EncodedRows) -> TestTimeConfig:
    escalated = raw.escalated
    plain = config.model_copy(update={"calibration": fit_calibration(raw.z[~escalated], rows.label[~escalated])})
    return plain.looking(calibration=fit_calibration(raw.z[escalated], rows.label[escalated]))


def _lean(notes: Notes, trial_model: TrialModel, valid: EncodedRows, test: EncodedRows) -> None:
    one_member = replace(trial_model, extras=replace(trial_model.extras, members=trial_model.extras.members[:1]))
    config, report = fit_mode(one_member, valid, FIT)
    _fitted(notes, "lean", one_member, config, test)
    notes.facts["lean"] = {
        "mode": report.best_name if report.accepted else "off",
        "sentence": report.sentence,
        "candidates": [
            c.model_dump(mode="json", include={"name", "passes", "change", "controls", "accepted", "reasons"})
            for c in report.candidates
        ],
    }


def _platt(model: torch.nn.Module, valid: EncodedRows, test: EncodedRows) -> np.ndarray:
    z_valid, z = (logits_of(model, BlockLoader(rows)) for rows in (valid, test))  # type: ignore[arg-type]
    return calibrate.apply(fit_calibration(z_valid, valid.label), z)


#: Trunks whose training differs from that of the plain one.
MASKS: dict[str, dict[str, Any]] = {
    "mask_block": {"augmentation": "mask_block"},
    "mask_loo": {"augmentation": "mask_loo"},
    # Only the mask makes a value unknown in training.
    "mask_block alone": {"augmentation": "mask_block", "unknown_share": 0.0},
    "mask_loo alone": {"augmentation": "mask_loo", "unknown_share": 0.0},
    "nothing unknown in training": {"unknown_share": 0.0},
}
TRAINED: dict[str, dict[str, Any]] = {"field dropout": {"unknown_share": 0.1}, "wider, 2 x FLOPs": {"wider": 2.0}}


def _trained(
    notes: Notes, trunks: Trunks, which: Run, kinds: dict[str, dict[str, Any]], valid: EncodedRows, test: EncodedRows
) -> None:
    basis = Setting(backbone=which.backbone, seed=which.seed)
    for name, change in kinds.items():
        notes.add(name, _platt(trunks.get(replace(basis, **change)).model, valid, test))


def _rare(notes: Notes, trunks: Trunks, which: Run, valid: EncodedRows, test: EncodedRows) -> None:
    for least in (2, 5, 10):
        model = trunks.get(Setting(backbone=which.backbone, seed=which.seed, rare=least)).model
        rows = [trunks.rare_unknown(part, least) for part in (valid, test)]
        notes.add(f"unknown below {least}", _platt(model, *rows))


def _distilled(notes: Notes, trunks: Trunks, which: Run, valid: EncodedRows, test: EncodedRows) -> None:
    for soft in DISTILLED:
        model = trunks.distilled(soft, MEMBERS, which.seed, which.backbone).model
        notes.add(f"distilled from {MEMBERS}, soft {soft:g}", _platt(model, valid, test))


def _dropout(notes: Notes, trunks: Trunks, which: Run, valid: EncodedRows, test: EncodedRows) -> None:
    dropped = trunks.get(Setting(backbone=which.backbone, seed=which.seed, dropout=0.1)).model
    notes.add("dropout 0.1", _platt(dropped, valid, test))
    for salt in SALTS:
        logits = [mc_dropout(dropped, rows, salt) for rows in (valid, test)]
        notes.add(f"mc dropout@{salt}", calibrate.apply(fit_calibration(logits[0], valid.label), logits[1]), PATHS)


def mc_dropout(model: Any, rows: EncodedRows, seed: int) -> np.ndarray:
    """Mean logit [R] of ``PATHS`` passes with the trunk's dropout left on (arXiv 1506.02142)."""
    model.train()
    total = np.zeros(len(rows))
    loader = BlockLoader(rows)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(PATHS):
            total += np.concatenate([model(batch).numpy() for batch in loader.in_order(8192)])
    model.eval()
    return total / PATHS


def _joint_members(notes: Notes, trunks: Trunks, which: Run, valid: EncodedRows, test: EncodedRows) -> None:
    """Members that share tables or weights: all of them on every row, and the others only for the most uncertain fifth."""
    for kind, words in (("shared_tables", "3 trunks, one table"), ("rank_one", "3 rank-one members")):
        joint = trunks.members(kind, MEMBERS, which.seed, which.backbone)  # type: ignore[arg-type]
        models = [t.model for t in joint]
        z = [np.mean([logits_of(m, BlockLoader(rows)) for m in models], axis=0) for rows in (valid, test)]
        notes.add(words, calibrate.apply(fit_calibration(z[0], valid.label), z[1]), float(MEMBERS))
        notes.add(f"{words}: the first alone", _platt(models[0], valid, test))
        reliability = Reliability.fit(trunks.train_rows.ids, trunks.train_rows.label, trunks.fields)
        trial_model = TrialModel(models[0], Calibration(), reliability, Extras(members=tuple(models[1:])))
        off = TestTimeConfig()
        all_members = preset("members", off).looking(opinion=Members(count=MEMBERS - 1))
        chosen = triggered(trial_model, all_members, valid, "entropy", SHARE)
        _fitted(
            notes,
            f"{words}, the others for {SHARE:.0%} by entropy",
            trial_model,
            calibrated(trial_model, chosen, valid),
            test,
        )
