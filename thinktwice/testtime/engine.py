"""The engine: a base pass for every row, a correction by counters, a second opinion for uncertain rows, one calibrated score.

Reliability is read before any forward pass, so a filtered pass is the base pass; a gate is folded into the embedding table when
the engine is created, so a gated pass costs the same as a plain one. Rows are scored in padded blocks of fixed shapes, and
random draws depend on the row's content only. The guarantee: while the cap on extra rows does not bind, a row gives the same
bits
(tolerance 0) alone, among 500, in any order and after a restart, with any number of threads, on the same machine with the
same libraries. A trigger may read the request as a whole (``budget``, ``decision``); then the same holds for the request, in
any order, instead of the row.

The cap binds when the uncertain rows need more extra passes than it allows. Rows are then admitted by the most uncertain score
first, so that the same rows are admitted in any order. An admitted row keeps its full score; a row that is not admitted has the
exact score of its base pass, or its corrected score, and is marked in ``capped_rows``.

A request without evidence, and a row without a known counter, has the exact score of its base pass and is not marked in
``corrected``. A model that reads counters itself scores such a row with its vectors of unknown counters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import zip_longest

import numpy as np
import torch

from thinktwice.calibration import Calibration
from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.evidence import Evidence
from thinktwice.errors import DataError
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Eager, MakeBackend, State
from thinktwice.models.backends.folded import Folded, can_fold
from thinktwice.models.backends.lower import BFloat16
from thinktwice.models.blocks import ESCALATED_ROWS, one_thread
from thinktwice.testtime import calibrate
from thinktwice.testtime.checks import check
from thinktwice.testtime.config import SecondLook, TestTimeConfig
from thinktwice.testtime.evidence.correction import CounterInputs, known_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions import members, paths, redefine, retrieve
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths, Members, Redefine, Retrieve
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.rowhash import hash_rows
from thinktwice.testtime.samplers import Paths
from thinktwice.testtime.scores import Raw, Scored
from thinktwice.testtime.support import entropy, missing_support
from thinktwice.testtime.triggers import BasePass, Trigger

CHUNK = 4096  # rows that raw_rows scores at once
UNBOUNDED = 1 << 60


class Engine:
    """Scores encoded rows with one model under one configuration. Keeps no state between calls.

    Args:
        make_backend: of the model.
        make_members: of the further trunks, in their order, where each needs a file of its own.

    Raises:
        BundleError: counts, importance or extras belong to another model, or something that the configuration needs is missing.
    """

    def __init__(
        self,
        model: Backbone,
        reliability: Reliability,
        config: TestTimeConfig,
        calibration: Calibration | None = None,
        extras: Extras | None = None,
        make_backend: MakeBackend = Eager,
        make_members: Sequence[MakeBackend] = (),
    ) -> None:
        self.extras = extras or Extras()
        check(model, reliability, config, self.extras)
        self.model = model.eval()
        self.reliability = reliability
        self.config = config
        look = config.second_look
        self.trigger: Trigger | None = None if look is None else look.trigger
        self.calibration = config.calibration or calibration or Calibration()
        self.corrected_calibration = (config.correction and config.correction.calibration) or self.calibration
        self.explored_calibration = (look and look.calibration) or self.corrected_calibration
        opinion = None if look is None else look.opinion
        self._item_column = model.fields.columns.index(opinion.item_field) if isinstance(opinion, Retrieve) else -1
        self._members = tuple(m.eval() for m in self.extras.members[: 0 if look is None else look.opinion.num_members])
        with torch.inference_mode(), one_thread():
            self.backend = make_backend(model, self._gated(model), model.fill().detach())
            self.member_backends = [
                self._of_member(m, make) for m, make in zip_longest(self._members, make_members[: len(self._members)])
            ]

    def with_trigger(self, trigger: Trigger) -> Engine:
        """A copy of the engine with this trigger instead of the configured one.

        Raises:
            ValueError: the configuration has no second look.
        """
        if self.config.second_look is None:
            raise ValueError(
                f"mode {self.config.mode!r} has no second look: add one to the configuration to use a trigger"
            )
        out = copy.copy(self)
        out.trigger = trigger
        return out

    @property
    def reads_counters(self) -> bool:
        """Whether scores depend on the counters of a request's rows: :meth:`score` then needs evidence."""
        return self.config.correction is not None or self.model.fields.counters is not None

    @property
    def max_path_rows(self) -> int:
        """The configured cap on extra rows of a request; 0 without a second look."""
        look = self.config.second_look
        return 0 if look is None else look.max_path_rows

    @property
    def reads_history(self) -> bool:
        """Whether a second look reads the outcomes of the user."""
        look = self.config.second_look
        return look is not None and isinstance(look.opinion, Retrieve)

    def uncapped(self) -> Engine:
        """A copy of the engine without a cap on extra rows, for work without a deadline: every row has the score it would have
        alone."""
        out = copy.copy(self)
        if self.config.second_look is not None:
            out.config = self.config.looking(max_path_rows=UNBOUNDED)
        return out

    def score(
        self,
        batch: Batch,
        max_path_rows: int | None = None,
        top_k: int | None = None,
        evidence: Evidence | None = None,
    ) -> Scored:
        """Score a request.

        Args:
            batch: B encoded rows.
            max_path_rows: lowers the configured cap on extra rows for this request; it cannot raise the cap, which the operator
            sets. At 0 every row gets only its base pass and its correction.
            top_k: number of positions that the request fills, for the trigger ``decision``.
            evidence: of the B rows; None if it was not read or there is no time to use it: all counters are then unknown. An
            engine that does not read counters (:attr:`reads_counters`) ignores it.

        Raises:
            DataError: the evidence is of another number of rows or counters, or contains an infinite number.
        """
        return self.finish(self.raw(batch, max_path_rows, top_k, evidence))

    def finish(self, raw: Raw) -> Scored:
        """Calibrate raw scores: rows with and without a second opinion share one ranking."""
        escalated, nobody = raw.escalated, np.zeros(len(raw.z), bool)
        some_escalated = np.count_nonzero(escalated) > 0  # any() takes three times as long
        logit = self._first_logit(raw.z, raw.missing, raw.corrected)
        if some_escalated:
            logit = np.where(escalated, calibrate.apply(self.explored_calibration, raw.z), logit)
        if some_escalated or np.count_nonzero(raw.corrected):  # rows that did not move have the same bits
            both = np.empty((2, len(logit)))
            both[0], both[1] = logit, self._base_logit(raw.z0, raw.missing)
            both /= self.config.temperature
            logit, (probability, base) = both[0], calibrate.sigmoid(both)
        else:
            logit = logit / self.config.temperature
            probability = base = calibrate.sigmoid(logit)
        return Scored(
            logit,
            probability,
            uncertainty=0.5 * (raw.missing + entropy(probability)),
            num_paths=raw.num_paths,
            capped_rows=raw.capped_rows,
            path_rows=int(raw.num_paths.sum()) - len(raw.z) if some_escalated else 0,
            corrected=raw.counted,
            base_probability=base,
            thin_support=escalated & (raw.missing > raw.entropy) if some_escalated else nobody,
        )

    def first_logit(self, raw: Raw) -> np.ndarray:
        """Calibrated log-odds [B] as they were before any second look."""
        return self._first_logit(raw.first, raw.missing, raw.corrected) / self.config.temperature

    def raw(
        self,
        batch: Batch,
        max_path_rows: int | None = None,
        top_k: int | None = None,
        evidence: Evidence | None = None,
    ) -> Raw:
        """Like :meth:`score`, before calibration."""
        with torch.inference_mode(), one_thread():
            return self._raw(batch, max_path_rows, top_k, evidence)

    def _raw(self, batch: Batch, max_path_rows: int | None, top_k: int | None, evidence: Evidence | None) -> Raw:
        batch, counted = self._with_counters(batch, evidence)
        ids = batch.ids.numpy()
        config, rows = self.config, len(batch)
        r = self.reliability.of(ids)
        kept = config.base.kept(self.reliability, ids, r)
        z0, state = self._base_pass(batch, kept)
        missing = missing_support(r, self.reliability.maskable_fields, config.importance)
        num_paths, capped_rows = np.ones(rows, np.int64), np.zeros(rows, bool)
        first, inputs = self._corrected(z0, evidence)
        corrected = np.zeros(rows, bool) if inputs is None else inputs.known
        counted = corrected if counted is None else counted | corrected
        look, trigger = config.second_look, self.trigger
        if look is None or trigger is None or rows == 0:
            signal = np.full(rows, -np.inf)
            return Raw(z0, first, missing, signal, num_paths, capped_rows, first, corrected, counted, np.zeros(rows))
        cap = look.max_path_rows if max_path_rows is None else min(look.max_path_rows, max_path_rows)
        logit = self._first_logit(first, missing, corrected)
        score_entropy = entropy(calibrate.sigmoid(logit / config.temperature))

        def found(z: np.ndarray, signal: np.ndarray) -> Raw:
            return Raw(z0, z, missing, signal, num_paths, capped_rows, first, corrected, counted, score_entropy)

        row_hash = hash_rows(batch, look.salt) if trigger.reads_row_hash else np.zeros(rows, np.uint64)
        moved = np.abs(first - z0)
        selection = trigger.mark(BasePass(missing, score_entropy, logit, row_hash, top_k, moved, inputs))
        capped_rows = selection.escalate.copy()
        if config.correction is not None:  # without evidence there is nothing to retrieve
            capped_rows &= corrected & (evidence is not None and evidence.history is not None)
        selected = np.flatnonzero(capped_rows)
        cost_of_one = _cost_of_one(look)
        if not trigger.reads_row_hash and len(selected) and (cost_of_one is None or len(selected) * cost_of_one > cap):
            row_hash[selected] = hash_rows(batch.select(torch.from_numpy(selected)), look.salt)
        # Ties are broken by row hash, so that the order of rows does not matter when the cap binds. No more rows are planned
        # than could be admitted at one pass each.
        if len(selected) > (cap if isinstance(look.opinion, Retrieve) else 1):
            selected = selected[np.lexsort((row_hash[selected], -score_entropy[selected]))]
        selected = selected[:cap]
        if len(selected) == 0:
            return found(first, selection.signal)
        if isinstance(look.opinion, Retrieve):
            capped_rows[selected] = False
            z = self._retrieved(ids[selected, self._item_column], selected, first, inputs, evidence, num_paths)
            return found(z, selection.signal)
        depth = trigger.depth(selection.signal)
        kept = np.ones(r.shape, bool) if kept is None else kept

        def escalated(chosen: np.ndarray) -> EscalatedRows:
            position = torch.from_numpy(chosen)
            return EscalatedRows(
                self.backend,
                batch.select(position),
                tuple(part[position] for part in state),
                first[chosen],
                r[chosen],
                kept[chosen],
                missing[chosen],
                depth[chosen],
                row_hash[chosen],
                self.reliability.maskable_fields,
            )

        whole = escalated(selected)
        opinion = look.opinion
        planned = paths.plan(opinion, self.extras, whole) if isinstance(opinion, FeaturePaths | GrownPaths) else None
        cost = np.full(len(selected), cost_of_one) if planned is None else planned.used
        fits = (np.cumsum(cost) <= cap) | (cost == 0)
        capped_rows[selected[fits]] = False
        admitted = np.flatnonzero(fits & (cost > 0))  # cost 0: the only path of the row is its base pass
        chosen = selected[admitted]
        if len(chosen) == 0:
            return found(first, selection.signal)
        if len(chosen) < len(selected):
            whole, planned = escalated(chosen), None if planned is None else planned.rows(admitted)
        answer = self._answer(look, whole, planned)
        z = first.copy()
        z[chosen] = answer.z
        num_paths[chosen] += answer.passes
        return found(z, selection.signal)

    def _with_counters(self, batch: Batch, evidence: Evidence | None) -> tuple[Batch, np.ndarray | None]:
        """The batch with the counters that its model reads, and the rows [B] with a known one; None if it reads none."""
        counters = self.model.fields.counters
        if counters is None or evidence is None:
            return batch, None
        _check_rows(evidence, len(batch))
        known = known_rows(evidence.counters, len(counters.means))
        values = torch.from_numpy(np.array(evidence.counters))
        return replace(batch, counters=values), known

    def _corrected(self, z0: np.ndarray, evidence: Evidence | None) -> tuple[np.ndarray, CounterInputs | None]:
        """First logits [B] and what the correction read, None if nothing; it changes the rows with a known counter."""
        correction = self.extras.correction
        if self.config.correction is None or correction is None or evidence is None:
            return z0, None
        _check_rows(evidence, len(z0))
        inputs = CounterInputs.of(correction.standard, z0, evidence.counters)
        if correction.is_zero:
            return z0, inputs
        first = z0 + correction.changes(inputs)
        return first if inputs.unknown is None else np.where(inputs.known, first, z0), inputs

    def _retrieved(
        self,
        items: np.ndarray,
        chosen: np.ndarray,
        first: np.ndarray,
        inputs: CounterInputs | None,
        evidence: Evidence | None,
        num_paths: np.ndarray,
    ) -> np.ndarray:
        """Logits [B] with retrieved outcomes for the rows ``chosen`` [U] of these ``items`` [U]; their passes are added to
        ``num_paths`` [B]."""
        assert self.extras.retrieval is not None and inputs is not None and evidence is not None
        history = evidence.history_of(chosen)
        answer = retrieve.answer(first[chosen], items, inputs, chosen, history, self.extras.retrieval)
        z = first.copy()
        z[chosen] = answer.z
        num_paths[chosen] += answer.passes
        return z

    def _answer(self, look: SecondLook, escalated: EscalatedRows, planned: Paths | None) -> SecondPass:
        opinion = look.opinion
        if isinstance(opinion, Members):
            return members.answer(escalated, self.member_backends)
        if isinstance(opinion, Redefine):
            assert self.extras.heads is not None
            return redefine.answer(escalated, self.extras.heads, opinion.rounds)
        assert planned is not None and not isinstance(opinion, Retrieve)
        return paths.answer(opinion, escalated, planned)

    def _base_pass(self, batch: Batch, kept: np.ndarray | None) -> tuple[np.ndarray, State]:
        """Logits [B] float64 of the base pass, and the backend's state of the rows."""
        if len(batch) == 0:
            return np.zeros(0), ()
        state = self.backend.read(batch)
        z0 = self.backend.logits(state, None if kept is None else torch.from_numpy(kept))
        return z0.double().numpy(), state

    def _first_logit(self, z: np.ndarray, missing: np.ndarray, corrected: np.ndarray) -> np.ndarray:
        """Calibrated log-odds [B] of first logits z [B]."""
        number = np.count_nonzero(corrected)
        if number == 0:
            return self._base_logit(z, missing)
        logit = calibrate.apply(self.corrected_calibration, z)
        return logit if number == len(corrected) else np.where(corrected, logit, self._base_logit(z, missing))

    def _base_logit(self, z: np.ndarray, missing: np.ndarray) -> np.ndarray:
        if self.config.support_calibration is not None:
            return calibrate.apply_support(self.config.support_calibration, z, missing)
        return calibrate.apply(self.calibration, z)

    def _of_member(self, member: Backbone, make: MakeBackend | None) -> Backend:
        """The backend of a further trunk: the given one, else that of the model where it can score any trunk, else eager torch."""
        table = self.backend.table if member.embedding.table is self.model.embedding.table else self._gated(member)
        if make is not None:
            return make(member, table, self.backend.fill)
        if isinstance(self.backend, BFloat16):
            return BFloat16(member, table, self.backend.fill)
        if isinstance(self.backend, Folded) and can_fold(member):
            return Folded(member, table, self.backend.fill)
        eager = Eager(member, table, self.backend.fill)
        eager.sizes = (ESCALATED_ROWS,)
        return eager

    def _gated(self, model: Backbone) -> torch.Tensor | None:
        """The table with every value mixed with its field's mask vector by the gate; None without a gate."""
        keep = self.config.base.keep_of_table(self.reliability)
        return None if keep is None else model.embedding.gated(torch.from_numpy(keep))


def _check_rows(evidence: Evidence, rows: int) -> None:
    if len(evidence) != rows:
        raise DataError(
            f"the evidence has {len(evidence)} rows and the request {rows}: pass one row of evidence per row"
        )


def _cost_of_one(look: SecondLook) -> int | None:
    """Forward passes of a second look per row; None for paths, whose number varies by row."""
    if isinstance(look.opinion, Members):
        return look.opinion.count
    if isinstance(look.opinion, Retrieve):
        return 1
    return redefine.num_passes(look.opinion.rounds) if isinstance(look.opinion, Redefine) else None


def raw_rows(engine: Engine, rows: EncodedRows) -> Raw:
    """Raw scores of any number of rows with eager torch, in chunks (each one request) and without a cap on extra rows."""
    if engine.backend.name != Eager.name or engine.backend.sizes != Eager.sizes:
        eager = Engine(engine.model, engine.reliability, engine.config, engine.calibration, engine.extras)
        engine = eager if engine.trigger is None else eager.with_trigger(engine.trigger)
    free = engine.uncapped()
    evidence = rows.evidence if engine.reads_counters else None
    chunks = [slice(s, min(s + CHUNK, len(rows))) for s in range(0, len(rows), CHUNK)]
    parts = [free.raw(rows.batch(c), evidence=None if evidence is None else evidence.take(c)) for c in chunks]
    return Raw(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Raw)))
