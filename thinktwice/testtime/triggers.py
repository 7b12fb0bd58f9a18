"""Triggers: which rows are uncertain enough for a second look after their base pass. Every trigger declares its options.

Your own trigger is a subclass of :class:`Trigger`; ``Engine.with_trigger`` installs it. Bundles can contain those of
:data:`AnyTrigger`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thinktwice.calibration import Coefficient
from thinktwice.testtime.options import MAX_COUNT, Options, Share
from thinktwice.testtime.rowhash import uniforms

if TYPE_CHECKING:  # the settings of a run are read without torch
    from thinktwice.testtime.evidence.correction import CounterInputs

ENTROPY_FLOOR = 0.5  # dual signal at entropy 0, as a share of that at entropy 1
REACH = 2.0  # half width of the interval of the trigger ``decision``, in spreads of a logit
_STREAM = np.uint64(0xA5A5A5A5)  # makes the draws of the trigger ``random`` independent of the samplers'


@dataclass(frozen=True)
class BasePass:
    """B rows of one request after their base pass: ``missing`` support 0..1 (from counts), ``entropy`` of the score in bits
    (from the model), calibrated ``logit``, ``row_hash`` uint64 of the content (0 for triggers that do not read it); all [B].
    ``top_k`` is the number of positions that the request fills, if it states one. With a correction: ``moved`` [B], how far it
    moved the logit, and ``read``, the inputs of the correction."""

    missing: np.ndarray
    entropy: np.ndarray
    logit: np.ndarray
    row_hash: np.ndarray
    top_k: int | None = None
    moved: np.ndarray | None = None
    read: CounterInputs | None = None

    @property
    def inputs(self) -> np.ndarray | None:
        """What the correction read, [B, I]; 0 in rows that were not corrected. None without a correction."""
        if self.read is None:
            return None
        out = self.read.joined
        if self.read.unknown is not None:
            out[~self.read.known] = 0
        return out

    def features(self, width: int) -> np.ndarray:
        """Inputs of a linear forecast [B, width]: 1, the entropy, how far the correction moved the logit, and what it read; 0
        without a correction."""
        out = np.zeros((len(self.logit), width))
        out[:, 0], out[:, 1] = 1.0, self.entropy
        if self.moved is not None and (inputs := self.inputs) is not None:
            out[:, 2], out[:, 3:] = self.moved, inputs
        return out


@dataclass(frozen=True)
class Selection:
    """Signal [B] (larger is more uncertain) and the rows that get a second look [B] bool."""

    signal: np.ndarray
    escalate: np.ndarray


class Trigger(Options):
    """Base of all triggers; a subclass has its options as fields and defines :meth:`mark`."""

    uses_counts: ClassVar[bool] = False  # whether the choice depends on training counts
    reads_row_hash: ClassVar[bool] = False
    of_requests: ClassVar[bool] = False  # whether the choice depends on the other rows of the request

    def mark(self, base_pass: BasePass) -> Selection:
        """The rows that get a second look."""
        raise NotImplementedError

    def depth(self, signal: np.ndarray) -> np.ndarray:
        """Depth of the second look [B] in 0..1: the share of its paths that a row gets at this signal."""
        return np.ones(len(signal))


class Always(Trigger):
    """Every row."""

    kind: Literal["always"] = "always"

    def mark(self, base_pass: BasePass) -> Selection:
        return Selection(np.full(len(base_pass.missing), np.inf), np.ones(len(base_pass.missing), bool))


class ThresholdTrigger(Trigger):
    """Base of triggers that mark the rows whose signal is above a threshold; the depth grows with the signal."""

    threshold: Coefficient = 0.0
    signal_max: Coefficient = 1.0  # signal at which a row gets all its paths

    def signal(self, base_pass: BasePass) -> np.ndarray:
        """Uncertainty of each row [B]."""
        raise NotImplementedError

    def mark(self, base_pass: BasePass) -> Selection:
        signal = self.signal(base_pass)
        return Selection(signal, signal > self.threshold)

    def depth(self, signal: np.ndarray) -> np.ndarray:
        width = max(self.signal_max - self.threshold, 1e-12)
        return np.clip((signal - self.threshold) / width, 0.0, 1.0)


class Dual(ThresholdTrigger):
    """Missing support, scaled by the entropy of the score (UTTSI): an uncertain score with full support is label noise, which
    no pass removes."""

    kind: Literal["dual"] = "dual"
    uses_counts: ClassVar[bool] = True

    def signal(self, base_pass: BasePass) -> np.ndarray:
        return base_pass.missing * (ENTROPY_FLOOR + (1 - ENTROPY_FLOOR) * base_pass.entropy)


class Entropy(ThresholdTrigger):
    """Rows whose score is uncertain: there, opinions of equal spread move the probability most."""

    kind: Literal["entropy"] = "entropy"

    def signal(self, base_pass: BasePass) -> np.ndarray:
        return base_pass.entropy


class Moved(ThresholdTrigger):
    """Rows whose logit the correction moved most: where evidence matters, more of it may matter too."""

    kind: Literal["moved"] = "moved"

    def signal(self, base_pass: BasePass) -> np.ndarray:
        return np.zeros(len(base_pass.logit)) if base_pass.moved is None else base_pass.moved


class Predicted(ThresholdTrigger):
    """Rows whose score the second look is expected to change most: a linear forecast from what the first look knows, with
    ``weights`` of :meth:`BasePass.features`. In nats, the forecast divergence of the second probability from the first."""

    kind: Literal["predicted"] = "predicted"
    weights: tuple[Coefficient, ...] = Field(min_length=3, max_length=4096)

    def signal(self, base_pass: BasePass) -> np.ndarray:
        bias, entropy_weight, moved_weight = self.weights[:3]
        signal = bias + entropy_weight * base_pass.entropy
        if base_pass.moved is None or (inputs := base_pass.inputs) is None:
            return signal
        # Not a matrix product, whose bits depend on the number of rows.
        return np.asarray(signal + moved_weight * base_pass.moved + (inputs * _float32(self.weights[3:])).sum(axis=1))


@lru_cache(maxsize=16)
def _float32(weights: tuple[float, ...]) -> np.ndarray:
    return np.asarray(weights, np.float32)


class Random(ThresholdTrigger):
    """Rows chosen by a hash of their content: the control that every other trigger must beat at the same rate."""

    kind: Literal["random"] = "random"
    reads_row_hash: ClassVar[bool] = True

    def signal(self, base_pass: BasePass) -> np.ndarray:
        return uniforms(base_pass.row_hash ^ _STREAM, 1)[:, 0]


class Budget(Trigger):
    """A fixed share of every request, the most uncertain scores first: the cost of a request is known before it is scored.

    Which rows those are depends on the other rows of the request (not on their order).
    """

    kind: Literal["budget"] = "budget"
    share: Share = 0.2
    reads_row_hash: ClassVar[bool] = True
    of_requests: ClassVar[bool] = True

    def mark(self, base_pass: BasePass) -> Selection:
        escalate = np.zeros(len(base_pass.entropy), bool)
        num_rows = int(self.share * len(base_pass.entropy))
        escalate[np.lexsort((base_pass.row_hash, -base_pass.entropy))[:num_rows]] = True
        return Selection(base_pass.entropy, escalate)


class Decision(Trigger):
    """Only rows that may still cross the top-k cut: with k positions to fill, the order elsewhere does not matter.

    A second look moves a logit by about s = s0 + s1 missing + s2 entropy (fitted offline); a row gets one if [z - 2 s, z + 2 s]
    contains the k-th best score of its request. Judged by NDCG@k and top-k regret, not by AUC.
    """

    kind: Literal["decision"] = "decision"
    top_k: int = Field(default=10, ge=1, le=MAX_COUNT)  # for requests that do not state their number of positions
    spread: tuple[Coefficient, Coefficient, Coefficient] = (0.0, 0.0, 0.0)  # s0, s1, s2
    uses_counts: ClassVar[bool] = True
    of_requests: ClassVar[bool] = True

    def mark(self, base_pass: BasePass) -> Selection:
        k, rows = base_pass.top_k or self.top_k, len(base_pass.logit)
        if k >= rows:
            return Selection(np.full(rows, -np.inf), np.zeros(rows, bool))
        cut = np.partition(base_pass.logit, rows - k)[rows - k]
        s0, s1, s2 = self.spread
        spread = np.maximum(s0 + s1 * base_pass.missing + s2 * base_pass.entropy, 0.0)
        signal = REACH * spread - np.abs(base_pass.logit - cut)
        return Selection(signal, (signal >= 0) & (spread > 0))


#: The triggers that a bundle can contain.
AnyTrigger = Annotated[
    Always | Dual | Entropy | Moved | Predicted | Random | Budget | Decision, Field(discriminator="kind")
]
TriggerKind = Literal["always", "dual", "entropy", "moved", "predicted", "random", "budget", "decision"]
