"""Fit of the networks over evidence: the correction by counters and the retrieval of outcomes.

Both networks are trained on train rows with logits of trunks that never saw them (:mod:`thinktwice.train.later_blocks`), and
their epoch and size are chosen on the earlier validation rows. The item neighbours of a train row come from the rows that its
trunk was trained on; the shipped neighbours come from all train rows. Shapes: C counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.evidence import Evidence
from thinktwice.data.training_set import TrainingSet
from thinktwice.models.backbone import Backbone
from thinktwice.models.logit_network import Floats
from thinktwice.progress import note
from thinktwice.selection.trunks import Trunk
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard, counter_inputs, known_rows
from thinktwice.testtime.evidence.retrieval import Neighbours, Retrieval, retrieval_inputs
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.report import EvidenceReport, NetworkReport
from thinktwice.train.later_blocks import ScoredBlock, later_blocks
from thinktwice.train.logit_network import Examples, FittedNetwork, fit_network
from thinktwice.train.neighbours import fit_neighbours
from thinktwice.train.record import FinetuneRecord
from thinktwice.train.tune import TuningCandidate

STAGE = "fit_test_time"
MAX_EXAMPLES = 1_000_000  # train rows that a network is trained on; more are subsampled evenly
DAY_US = 86_400_000_000

Logits = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Score = Callable[[EncodedRows], Logits]  # base logits of rows from the shipped model


@dataclass(frozen=True, eq=False)
class Retrieved:
    """The shipped ``neighbours``; retrieved features of the examples [M, 8] and of the rows ``fit`` [V, 8], each with the mask of
    rows whose user has a known outcome."""

    neighbours: Neighbours
    features: Floats
    has_outcome: npt.NDArray[np.bool_]
    fit_features: Floats
    fit_has_outcome: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class EvidenceRows:
    """Rows with evidence, for whatever reads it.

    Attributes:
        rows: train rows [R].
        valid: validation rows [V] in time order; the earlier half, ``fit``, selects.
        valid_positions: [V] positions of the rows ``valid`` in their part.
        training: how the shipped trunk was trained.
    """

    data: TrainingSet
    rows: EncodedRows
    valid: EncodedRows
    valid_positions: Positions
    training: FinetuneRecord

    @property
    def definition(self) -> str:
        """Hash of the definition of the counters."""
        assert self.data.counter_scale is not None
        return self.data.counter_scale.definition

    @property
    def seed(self) -> int:
        """Seed of every training run."""
        return self.training.seed

    @cached_property
    def fit(self) -> EncodedRows:
        return self.valid.take(np.arange(len(self.valid) // 2))

    @cached_property
    def later(self) -> EncodedRows:
        return self.valid.take(np.arange(len(self.valid) // 2, len(self.valid)))

    def of_other_rows(self, seed: int = 0) -> Self:
        """A copy in which every row has the counters and the history of another row."""
        return replace(
            self, rows=_with_evidence_of_others(self.rows, seed), valid=_with_evidence_of_others(self.valid, seed)
        )


@dataclass(frozen=True, eq=False)
class EvidenceFit(EvidenceRows):
    """Inputs for fitting the networks of one trunk: ``blocks`` are scored blocks of the train rows, and ``fit_logits`` the base logits
    of the rows ``fit`` from the shipped model."""

    blocks: list[ScoredBlock]
    fit_logits: Logits

    def controls(self) -> Iterator[tuple[str, CorrectionNetwork, EncodedRows, EncodedRows]]:
        """Controls of the correction: name, the correction fitted to the control's counters, and the rows ``fit`` and ``later`` with
        these counters. A gain that counters of other rows bring as well is not knowledge of the row. Counters a day late show how
        much of a gain needs fresh outcomes."""
        assert self.rows.evidence is not None and self.fit.evidence is not None and self.later.evidence is not None
        counters = np.asarray(self.rows.evidence.counters[self.examples])
        permuted = [of_other_rows(c) for c in (counters, self.fit.evidence.counters, self.later.evidence.counters)]
        yield "other_counters", self.correction(*permuted[:2])[0], *self._with(*permuted[1:])
        late = self.data.late_counters(DAY_US, {"train": self.examples, "valid": self.valid_positions})
        half = len(self.fit)
        fit, later = late["valid"][:half], late["valid"][half:]
        yield "day_late", self.correction(late["train"], fit)[0], *self._with(fit, later)

    def _with(self, fit: Floats, later: Floats) -> tuple[EncodedRows, EncodedRows]:
        return with_counters(self.fit, fit), with_counters(self.later, later)

    @cached_property
    def examples(self) -> npt.NDArray[np.int64]:
        """Positions in ``rows`` of the examples, block by block."""
        return np.concatenate([block.rows for block in self.blocks])

    @cached_property
    def logits(self) -> Logits:
        """Base logits of the examples."""
        return np.concatenate([block.logits for block in self.blocks])

    def correction(self, counters: Floats, fit_counters: Floats) -> tuple[CorrectionNetwork, FittedNetwork]:
        """The correction by counters of the examples and of the validation rows, [M, C] and [V, C].

        Rows without a known counter are neither corrected nor used for training.
        """
        scale = self.data.counter_scale
        assert scale is not None
        standard = Standard(np.asarray(scale.means, np.float32), np.asarray(scale.sds, np.float32))

        def examples(rows: EncodedRows, logits: Logits, values: Floats) -> Examples:
            known = np.flatnonzero(known_rows(values, len(standard.means)))
            inputs = counter_inputs(standard, logits[known], values[known])
            return Examples(inputs, logits[known], rows.label[known], rows.user[known])

        fitted = fit_network(
            examples(self.rows.take(self.examples), self.logits, counters),
            examples(self.fit, self.fit_logits, fit_counters),
            seed=self.seed,
        )
        return CorrectionNetwork(standard, fitted.network), fitted

    def retrieved(self) -> Retrieved | None:
        """Retrieved features of the examples and of the rows ``fit``, the same for every correction; None if no item is known or no
        user of an example has a history."""
        column = self.data.encoder.column_of(self.data.schema.key_of("item"))
        if column is None or self.rows.evidence is None or self.fit.evidence is None:
            return None
        parts = []
        for block in self.blocks:
            earlier = self._neighbours(self.rows.take(block.trained_on), column)
            parts.append(_features(earlier, self.rows.take(block.rows), column))
        features, has_outcome = (np.concatenate(part) for part in zip(*parts, strict=True))
        neighbours = self._neighbours(self.rows, column)
        fit_features, fit_has_outcome = _features(neighbours, self.fit, column)
        if not (has_outcome.any() and fit_has_outcome.any()):
            return None
        return Retrieved(neighbours, features, has_outcome, fit_features, fit_has_outcome)

    def retrieval(
        self, correction: CorrectionNetwork, counters: Floats, retrieved: Retrieved | None
    ) -> tuple[Retrieval, FittedNetwork, int] | None:
        """The retrieval over the first scores of ``correction``, and the number of its examples; None without any."""
        if retrieved is None or self.fit.evidence is None:
            return None
        known = retrieved.features[retrieved.has_outcome]
        sds = known.std(axis=0)
        standard = Standard(known.mean(axis=0), np.where(sds > 1e-6, sds, np.float32(1)).astype(np.float32))

        def examples(rows: EncodedRows, logits: Logits, values: Floats, features: Floats, use: np.ndarray) -> Examples:
            use = np.flatnonzero(use & known_rows(values, correction.num_counters))
            first = correction(logits[use], values[use])
            inputs = retrieval_inputs(correction.standard, standard, first, values[use], features[use])
            return Examples(inputs, first, rows.label[use], rows.user[use])

        train = examples(
            self.rows.take(self.examples), self.logits, counters, retrieved.features, retrieved.has_outcome
        )
        held_out = examples(
            self.fit, self.fit_logits, self.fit.evidence.counters, retrieved.fit_features, retrieved.fit_has_outcome
        )
        if not (len(train) and len(held_out)):
            return None
        fitted = fit_network(train, held_out, seed=self.seed)
        return Retrieval(retrieved.neighbours, standard, fitted.network), fitted, len(train)

    def _neighbours(self, rows: EncodedRows, column: int) -> Neighbours:
        num_items = self.data.encoder.num_values[column]
        return Neighbours(*fit_neighbours(rows.user, rows.ids[:, column], rows.label == 1, num_items))


def _features(neighbours: Neighbours, rows: EncodedRows, column: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    history = None if rows.evidence is None or rows.evidence.history is None else rows.evidence.history()
    assert history is not None
    return neighbours.features(rows.ids[:, column].astype(np.int64), history)


def evidence_rows(data: TrainingSet, trunk: Trunk, positions: Positions) -> EvidenceRows | str:
    """The rows with evidence for ``trunk``, or why nothing can be fitted to them. ``positions`` [V] of the validation rows used, in
    time order.

    Raises:
        BundleError: the record of its training is damaged.
    """
    if data.counter_scale is None:
        return "the schema has no statistics.instant"
    if trunk.training is None:
        return f"{trunk.folder} has no record of its training"
    valid = data.part_with_evidence("valid").take(positions)
    found = EvidenceRows(data, data.part_with_evidence("train"), valid, positions, trunk.training)
    if len(found.fit) == 0 or found.fit.label.min() == found.fit.label.max():
        return "the earlier validation rows are of one class"
    return found


def evidence_fit(found: EvidenceRows, trunk: Backbone, score: Score) -> EvidenceFit | str:
    """The inputs for fitting the networks of ``trunk``, or why they cannot be fitted."""
    data, training = found.data, found.training
    blocks = later_blocks(
        found.rows,
        data.part("valid"),
        trunk.fields,
        trunk.config,
        training.chosen_settings,
        TuningCandidate(training.chosen.table_l2, training.chosen.augmentation),
        split=data.info.split.kind,
        seed=found.seed,
        stage=STAGE,
    )
    blocks = [_subsampled(block, MAX_EXAMPLES // len(blocks)) for block in blocks]
    if not blocks:
        return "the train part cannot be cut into blocks"
    return EvidenceFit(data, found.rows, found.valid, found.valid_positions, training, blocks, score(found.fit))


def network_report(fitted: FittedNetwork, examples: int) -> NetworkReport:
    return NetworkReport(
        examples=examples, epochs=fitted.epochs, scale=fitted.scale, gain=fitted.gain, error=fitted.error
    )


def fit_evidence(inputs: EvidenceFit | str, extras: Extras, *, retrieves: bool) -> tuple[Extras, EvidenceReport]:
    """``extras`` with a correction, and with a retrieval if ``retrieves``, each if it lowers the loss on validation."""
    if isinstance(inputs, str):
        return extras, EvidenceReport(reason=inputs)
    assert inputs.rows.evidence is not None and inputs.fit.evidence is not None
    counters = np.asarray(inputs.rows.evidence.counters[inputs.examples])
    correction, fitted = inputs.correction(counters, inputs.fit.evidence.counters)
    report = EvidenceReport(correction=network_report(fitted, len(counters)))
    note(STAGE, f"correction by counters: {_words(fitted)}")
    extras = replace(extras, correction=correction)
    fitted_retrieval = inputs.retrieval(correction, counters, inputs.retrieved()) if retrieves else None
    if fitted_retrieval is not None:
        retrieval, fitted, examples = fitted_retrieval
        report = report.model_copy(update={"retrieval": network_report(fitted, examples)})
        note(STAGE, f"retrieved evidence: {_words(fitted)}")
        if not retrieval.network.is_zero:
            extras = replace(extras, retrieval=retrieval)
    if correction.is_zero and extras.retrieval is None:
        extras = replace(extras, correction=None)
    return extras, report


def with_counters(rows: EncodedRows, counters: Floats) -> EncodedRows:
    """``rows`` with other counters and without histories."""
    return replace(rows, evidence=Evidence(counters))


def of_other_rows(counters: Floats, seed: int = 0) -> Floats:
    """Counters [n, C] permuted among rows: they contain no information about their row."""
    return np.asarray(counters)[np.random.default_rng(seed).permutation(len(counters))]


def _with_evidence_of_others(rows: EncodedRows, seed: int) -> EncodedRows:
    assert rows.evidence is not None
    return replace(rows, evidence=rows.evidence.take(np.random.default_rng(seed).permutation(len(rows))))


def _subsampled(block: ScoredBlock, limit: int) -> ScoredBlock:
    if len(block.rows) <= limit:
        return block
    positions = np.linspace(0, len(block.rows) - 1, limit).astype(np.int64)
    return replace(block, rows=block.rows[positions], logits=block.logits[positions])


def _words(fitted: FittedNetwork) -> str:
    if fitted.scale == 0:
        return "validation kept nothing of it"
    return f"logloss {-fitted.gain:+.5f} on validation, {fitted.scale:.0%} of it kept"
