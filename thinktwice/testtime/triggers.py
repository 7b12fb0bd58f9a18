"""Which rows are uncertain enough to get a second look, after their base pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thinktwice.testtime.config import TestTimeConfig, TriggerKind
from thinktwice.testtime.rowhash import uniforms

REACH = 2.0  # spreads of a logit that the trigger ``decision`` looks at
_STREAM = np.uint64(0xA5A5A5A5)  # keeps the draws of the trigger ``random`` apart from those of the samplers


@dataclass(frozen=True)
class BasePass:
    """B rows of one request after their base pass: ``missing`` support 0..1 (what counts know), ``entropy`` entropy of the score
    (what the model knows), calibrated ``logit``, ``row_hash`` uint64 of the content; all [B]. ``top_k`` is what the request
    asks for, if it says so."""

    missing: np.ndarray
    entropy: np.ndarray
    logit: np.ndarray
    row_hash: np.ndarray
    top_k: int | None = None


@dataclass(frozen=True)
class Selection:
    """Signal [B] (larger is less certain) and the rows that get a second look [B] bool."""

    signal: np.ndarray
    escalate: np.ndarray


Trigger = Callable[[TestTimeConfig, BasePass], Selection]


def never(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """No row."""
    return Selection(np.full(len(base_pass.missing), -np.inf), np.zeros(len(base_pass.missing), bool))


def always(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Every row."""
    return Selection(np.full(len(base_pass.missing), np.inf), np.ones(len(base_pass.missing), bool))


def dual(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Thin support first, an uncertain score on top (UTTSI): a well supported coin flip is label noise, which no pass removes."""
    signal = base_pass.missing * (config.entropy_floor + (1 - config.entropy_floor) * base_pass.entropy)
    return Selection(signal, signal > config.threshold)


def entropy(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Rows whose score is uncertain: where opinions of equal spread move the probability most."""
    return Selection(base_pass.entropy, base_pass.entropy > config.threshold)


def random(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Rows chosen by a hash of their content: the control that every other trigger must beat at the same rate."""
    signal = uniforms(base_pass.row_hash ^ _STREAM, 1)[:, 0]
    return Selection(signal, signal > config.threshold)


def budget(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """A fixed share of every request, the most uncertain scores first: the cost of a request is known before it is scored.

    Which rows those are depends on the other rows of the request (not on their order).
    """
    escalate = np.zeros(len(base_pass.entropy), bool)
    most = int(config.share * len(base_pass.entropy))
    escalate[np.lexsort((base_pass.row_hash, -base_pass.entropy))[:most]] = True
    return Selection(base_pass.entropy, escalate)


def decision(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Only rows that may still cross the cut of the top k: with k places to fill, the order elsewhere decides nothing.

    A second look moves a logit by about s = s0 + s1 missing + s2 entropy (fitted offline); a row gets one when
    [z - 2 s, z + 2 s] holds the k-th best score of its request. Judged by NDCG@k and top-k regret, not by AUC.
    """
    k, rows = base_pass.top_k or config.top_k, len(base_pass.logit)
    if k >= rows:
        return Selection(np.full(rows, -np.inf), np.zeros(rows, bool))
    cut = np.partition(base_pass.logit, rows - k)[rows - k]
    s0, s1, s2 = config.spread
    spread = np.maximum(s0 + s1 * base_pass.missing + s2 * base_pass.entropy, 0.0)
    signal = REACH * spread - np.abs(base_pass.logit - cut)
    return Selection(signal, (signal >= 0) & (spread > 0))


TRIGGERS: dict[TriggerKind, Trigger] = {
    "never": never,
    "always": always,
    "dual": dual,
    "entropy": entropy,
    "random": random,
    "budget": budget,
    "decision": decision,
}

#: Triggers whose choice depends on the other rows of the request.
OF_REQUESTS: frozenset[TriggerKind] = frozenset({"budget", "decision"})
