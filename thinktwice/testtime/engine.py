"""The engine: one base pass for every row, a second opinion for the uncertain ones, one calibrated score.

Reliability is read before any forward pass, so a filtered pass is the base pass; a gate is folded into the embedding table
when the engine is made, so a gated pass costs what a plain one costs. Rows are scored in padded blocks of fixed shapes and
draws belong to the row's content. The guarantee: while the cap on extra rows does not bind, a row gives the same bits
(tolerance 0) alone, among 500, in any order and after a restart, with any number of threads, on the same machine with the
same libraries. Two triggers look at the request as a whole (``budget``, ``decision``); for them the request, in any order,
takes the place of the row.

The cap binds when the uncertain rows want more extra passes than it allows. It then decides by the rows themselves, the most
uncertain score first, so that the same rows are admitted in any order; an admitted row keeps its full score, and a row that is
left out has the exact score of its base pass and is marked in ``capped_rows``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import numpy as np
import torch

from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.errors import BundleError
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, State
from thinktwice.models.backends.folded import Folded, can_fold
from thinktwice.models.blocks import ESCALATED_ROWS, one_thread
from thinktwice.models.store import Calibration
from thinktwice.testtime import calibrate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.fillers import FILLERS
from thinktwice.testtime.masks import filter_mask
from thinktwice.testtime.opinions import EscalatedRows, SecondPass, members, paths, redefine
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.rowhash import hash_rows
from thinktwice.testtime.samplers import Paths
from thinktwice.testtime.support import entropy, missing_support
from thinktwice.testtime.triggers import TRIGGERS, BasePass, Trigger

CHUNK = 4096  # rows that raw_rows holds at once
UNBOUNDED = 1 << 60


@dataclass(frozen=True)
class Raw:
    """Scores before calibration, per row [B]: base logit ``z0``, final logit ``z``, ``missing`` support, trigger
    ``signal``, number of forward passes ``num_paths``, the mask of uncertain rows ``capped_rows`` by the cap."""

    z0: np.ndarray
    z: np.ndarray
    missing: np.ndarray
    signal: np.ndarray
    num_paths: np.ndarray
    capped_rows: np.ndarray

    @property
    def escalated(self) -> np.ndarray:
        """Rows [B] with a second opinion."""
        return self.num_paths > 1


@dataclass(frozen=True)
class Scored:
    """Scores of B rows.

    logit [B] float64 calibrated log-odds; probability [B] float64; uncertainty [B] float64 in 0..1, the mean of the
    entropy of the probability in bits (what the model leaves open) and of the missing support of the row's values (what
    training has not seen), in every mode alike; num_paths [B] int64 forward passes of the row, at least 1; capped_rows [B] bool
    uncertain rows that the cap left with their base score; path_rows the rows scored beyond one per row.
    """

    logit: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    num_paths: np.ndarray
    capped_rows: np.ndarray
    path_rows: int

    @property
    def capped(self) -> bool:
        """Whether the cap on extra rows was binding."""
        return bool(self.capped_rows.any())


class Engine:
    """Scores encoded rows with one model under one configuration. Holds no state between calls.

    Raises:
        BundleError: counts, importance or extras belong to another model, or something that the configuration needs is
            not there.
    """

    def __init__(
        self,
        model: Backbone,
        reliability: Reliability,
        config: TestTimeConfig,
        calibration: Calibration | None = None,
        extras: Extras | None = None,
        make_backend: MakeBackend = Eager,
    ) -> None:
        self.extras = extras or Extras()
        _check(model, reliability, config, self.extras)
        self.model = model.eval()
        self.reliability = reliability
        self.config = config
        self.trigger: Trigger = TRIGGERS[config.trigger]
        self.calibration = config.calibration or calibration or Calibration()
        self.explored_calibration = config.explored_calibration or self.calibration
        self._members = tuple(m.eval() for m in self.extras.members[: config.members])
        with torch.inference_mode(), one_thread():
            fill = FILLERS[config.filler](model, reliability)
            self.backend = make_backend(model, self._gated(model), fill)
            self.member_backends = [self._of_member(m) for m in self._members]

    def with_trigger(self, trigger: Trigger) -> Engine:
        """The same engine with a trigger of your own. ``config.trigger`` must not be ``never``; its other options still apply."""
        out = copy.copy(self)
        out.trigger = trigger
        return out

    def uncapped(self) -> Engine:
        """The same engine without a cap on extra rows, for work without a deadline: every row has the score it has alone."""
        out = copy.copy(self)
        out.config = self.config.model_copy(update={"max_path_rows": UNBOUNDED})
        return out

    def score(self, batch: Batch, max_path_rows: int | None = None, top_k: int | None = None) -> Scored:
        """Score a request.

        Args:
            batch: B encoded rows.
            max_path_rows: lowers the configured cap on extra rows for this request; it cannot raise it, for the cap is
                the operator's. At 0 every row gets its base pass alone: model cost and scores of the base pass.
            top_k: places that the request fills, for the trigger ``decision``.
        """
        return self.finish(self.raw(batch, max_path_rows, top_k))

    def finish(self, raw: Raw) -> Scored:
        """Calibrate raw scores: rows with and without a second opinion share one ranking."""
        logit = np.where(
            raw.escalated,
            calibrate.apply(self.explored_calibration, raw.z),
            self._base_logit(raw.z, raw.missing),
        )
        logit = logit / self.config.temperature
        probability = calibrate.sigmoid(logit)
        uncertainty = 0.5 * (raw.missing + entropy(probability))
        path_rows = int(raw.num_paths.sum()) - len(raw.z)
        return Scored(logit, probability, uncertainty, raw.num_paths, raw.capped_rows, path_rows)

    def raw(self, batch: Batch, max_path_rows: int | None = None, top_k: int | None = None) -> Raw:
        """Like :meth:`score`, before calibration."""
        with torch.inference_mode(), one_thread():
            return self._raw(batch, max_path_rows, top_k)

    def _raw(self, batch: Batch, max_path_rows: int | None, top_k: int | None) -> Raw:
        ids = batch.ids.numpy()
        config, rows = self.config, len(batch)
        cap = config.max_path_rows if max_path_rows is None else min(config.max_path_rows, max_path_rows)
        r = self.reliability.of(ids)
        kept = (
            filter_mask(self.reliability, ids, r, config.min_count, config.min_kept) if config.min_count > 0 else None
        )
        z0, state = self._base_pass(batch, kept)
        missing = missing_support(r, self.reliability.maskable_fields, config.importance)
        num_paths, capped_rows = np.ones(rows, np.int64), np.zeros(rows, bool)
        if not config.escalates or rows == 0:
            return Raw(z0, z0, missing, np.full(rows, -np.inf), num_paths, capped_rows)
        logit = self._base_logit(z0, missing)
        score_entropy = entropy(calibrate.sigmoid(logit / config.temperature))
        row_hash = np.zeros(rows, np.uint64)
        by_hash = config.trigger in ("random", "budget")
        if by_hash:
            row_hash = hash_rows(batch, config.salt)
        selection = self.trigger(config, BasePass(missing, score_entropy, logit, row_hash, top_k))
        capped_rows = selection.escalate.copy()
        selected = np.flatnonzero(selection.escalate)
        if not by_hash and len(selected) and (config.sampler != "none" or len(selected) * self._cost_of_one > cap):
            row_hash[selected] = hash_rows(batch.select(torch.from_numpy(selected)), config.salt)
        # Equal scores in the order of their hashes, so that the order of rows does not matter where the cap binds.
        # No more are planned than could be admitted if each took one pass.
        selected = selected[np.lexsort((row_hash[selected], -score_entropy[selected]))][:cap]
        if len(selected) == 0:
            return Raw(z0, z0, missing, selection.signal, num_paths, capped_rows)
        wanted = _depth(config, selection.signal)
        kept = np.ones(r.shape, bool) if kept is None else kept

        def escalated(chosen: np.ndarray) -> EscalatedRows:
            position = torch.from_numpy(chosen)
            return EscalatedRows(
                self.backend,
                batch.select(position),
                tuple(part[position] for part in state),
                z0[chosen],
                r[chosen],
                kept[chosen],
                missing[chosen],
                wanted[chosen],
                row_hash[chosen],
                self.reliability.maskable_fields,
            )

        whole = escalated(selected)
        planned = paths.plan(config, self.extras, whole) if config.sampler != "none" else None
        cost = np.full(len(selected), self._cost_of_one) if planned is None else paths.cost(config, planned)
        fits = (np.cumsum(cost) <= cap) | (cost == 0)
        capped_rows[selected[fits]] = False
        admitted = np.flatnonzero(fits & (cost > 0))  # a row whose only path is its base pass needs no more
        chosen = selected[admitted]
        if len(chosen) == 0:
            return Raw(z0, z0, missing, selection.signal, num_paths, capped_rows)
        if len(chosen) < len(selected):
            whole, planned = escalated(chosen), None if planned is None else planned.rows(admitted)
        opinion = self._answer(whole, planned)
        z = z0.copy()
        z[chosen] = opinion.z
        num_paths[chosen] += opinion.passes
        return Raw(z0, z, missing, selection.signal, num_paths, capped_rows)

    @property
    def _cost_of_one(self) -> int:
        """Forward passes that a second opinion takes when it is not paths, whose number differs from row to row."""
        return len(self._members) or redefine.num_passes(self.config.redefine_rounds)

    def _answer(self, escalated: EscalatedRows, planned: Paths | None) -> SecondPass:
        if self.config.members > 0:
            return members.answer(escalated, self.member_backends)
        if planned is None:
            assert self.extras.heads is not None
            return redefine.answer(escalated, self.extras.heads, self.config.redefine_rounds)
        return paths.answer(self.config, self.extras, escalated, planned)

    def _base_pass(self, batch: Batch, kept: np.ndarray | None) -> tuple[np.ndarray, State]:
        """Logits [B] float64 of the base pass, and what the backend has read of the rows."""
        if len(batch) == 0:
            return np.zeros(0), ()
        state = self.backend.read(batch)
        z0 = self.backend.logits(state, None if kept is None else torch.from_numpy(kept))
        return z0.double().numpy(), state

    def _base_logit(self, z: np.ndarray, missing: np.ndarray) -> np.ndarray:
        if self.config.support_calibration is not None:
            return calibrate.apply_support(self.config.support_calibration, z, missing)
        return calibrate.apply(self.calibration, z)

    def _of_member(self, member: Backbone) -> Backend:
        table = self.backend.table if member.embedding.table is self.model.embedding.table else self._gated(member)
        if isinstance(self.backend, Folded) and can_fold(member):
            return Folded(member, table, self.backend.fill)
        eager = Eager(member, table, self.backend.fill)
        eager.sizes = (ESCALATED_ROWS,)
        return eager

    def _gated(self, model: Backbone) -> torch.Tensor | None:
        """The table with every value mixed with its field's mask vector as the gate says; None without a gate."""
        config = self.config
        if config.strength == 0 and not config.field_shares:
            return None
        keep = self.reliability.of_table(config.strength, config.field_strengths, config.field_shares)
        return model.embedding.gated(torch.from_numpy(keep))


def _check(model: Backbone, reliability: Reliability, config: TestTimeConfig, extras: Extras) -> None:
    if reliability.num_values != model.fields.num_values:
        raise BundleError(
            f"counts describe {sum(reliability.num_values)} values and the model has {model.fields.num_rows}: "
            "counts and weights must come from the same bundle"
        )
    if config.importance and len(config.importance) != model.num_fields:
        raise BundleError(
            f"test-time importance names {len(config.importance)} fields and the model has {model.num_fields}: "
            "fit the test-time parameters for this model"
        )
    for name in ("field_strengths", "field_shares"):
        found = getattr(config, name)
        if found and len(found) != model.num_fields:
            raise BundleError(
                f"{name} names {len(found)} fields and the model has {model.num_fields}: "
                "fit the test-time parameters for this model"
            )
    if config.members > len(extras.members):
        raise BundleError(
            f"the configuration asks {config.members} further trunks and {len(extras.members)} are there: "
            "package the members with the model, or fit the test-time parameters without them"
        )
    for position, member in enumerate(extras.members):
        if member.fields != model.fields:
            raise BundleError(
                f"member {position} knows other fields or vocabularies than the model: train it on the same data"
            )
    heads, maskable_fields = extras.heads, reliability.maskable_fields
    if heads is not None and (
        heads.fields.tolist() != maskable_fields.tolist()
        or heads.weight.shape[1:] != (model.hidden_width + 1, model.dim + 1)
    ):
        raise BundleError("prediction heads are of another model: fit the test-time parameters for this model")
    if extras.combinations is not None and extras.combinations.num_values != model.fields.num_values:
        raise BundleError(
            f"combination counts describe {sum(extras.combinations.num_values)} values and the model has "
            f"{model.fields.num_rows}: fit the test-time parameters for this model"
        )
    if extras.combinations is not None:
        for triple in extras.combinations.triples:
            if not set(triple) <= set(maskable_fields.tolist()):
                raise BundleError(
                    f"combination counts name the columns {triple}, and not all of them are open: "
                    "fit the test-time parameters for this model"
                )
    if heads is None and (config.redefine_rounds > 0 or config.filler == "denoiser"):
        raise BundleError(
            f"mode {config.mode!r} needs prediction heads and there are none: fit the test-time parameters again"
        )
    if extras.combinations is None and (config.sampler == "matt" or config.pair_share > 0):
        raise BundleError(
            f"mode {config.mode!r} needs combination counts and there are none: fit the test-time parameters again"
        )


def _depth(config: TestTimeConfig, signal: np.ndarray) -> np.ndarray:
    """Paths [B] that rows of a signal [B] get if they are uncertain: even numbers from 2 to ``max_paths`` with the signal."""
    most = 2 * (config.max_paths // 2)
    if config.trigger in ("always", "budget", "decision"):
        return np.full(len(signal), most, np.int64)
    width = max(config.signal_max - config.threshold, 1e-12)
    depth = np.clip((signal - config.threshold) / width, 0.0, 1.0)
    return np.minimum(2 * np.maximum(np.ceil(config.max_paths / 2 * depth), 1).astype(np.int64), most)


def raw_rows(engine: Engine, rows: EncodedRows) -> Raw:
    """Raw scores of any number of rows, in chunks (each one request) and without a cap on extra rows."""
    free = Engine(
        engine.model,
        engine.reliability,
        engine.config.model_copy(update={"max_path_rows": UNBOUNDED}),
        engine.calibration,
        engine.extras,
    ).with_trigger(engine.trigger)
    parts = [free.raw(rows.batch(slice(s, s + CHUNK))) for s in range(0, len(rows), CHUNK)]
    return Raw(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Raw)))
