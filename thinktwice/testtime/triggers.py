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
class Seen:
    """B rows of one request after their base pass: ``missing`` support 0..1 (what counts know), ``bits`` entropy of the score
    (what the model knows), calibrated ``logit``, ``row_hash`` uint64 of the content; all [B]. ``top_k`` is what the request
    asks for, if it says so."""

    missing: np.ndarray
    bits: np.ndarray
    logit: np.ndarray
    row_hash: np.ndarray
    top_k: int | None = None


@dataclass(frozen=True)
class Marked:
    """Signal [B] (larger is less certain) and the rows that get a second look [B] bool."""

    signal: np.ndarray
    unsure: np.ndarray


Trigger = Callable[[TestTimeConfig, Seen], Marked]


def never(config: TestTimeConfig, seen: Seen) -> Marked:
    """No row."""
    return Marked(np.full(len(seen.missing), -np.inf), np.zeros(len(seen.missing), bool))


def always(config: TestTimeConfig, seen: Seen) -> Marked:
    """Every row."""
    return Marked(np.full(len(seen.missing), np.inf), np.ones(len(seen.missing), bool))


def dual(config: TestTimeConfig, seen: Seen) -> Marked:
    """Thin support first, an uncertain score on top (UTTSI): a well supported coin flip is label noise, which no pass removes."""
    signal = seen.missing * (config.entropy_floor + (1 - config.entropy_floor) * seen.bits)
    return Marked(signal, signal > config.threshold)


def entropy(config: TestTimeConfig, seen: Seen) -> Marked:
    """Rows whose score is uncertain: where opinions of equal spread move the probability most."""
    return Marked(seen.bits, seen.bits > config.threshold)


def random(config: TestTimeConfig, seen: Seen) -> Marked:
    """Rows chosen by a hash of their content: the control that every other trigger must beat at the same rate."""
    signal = uniforms(seen.row_hash ^ _STREAM, 1)[:, 0]
    return Marked(signal, signal > config.threshold)


def budget(config: TestTimeConfig, seen: Seen) -> Marked:
    """A fixed share of every request, the most uncertain scores first: the cost of a request is known before it is scored.

    Which rows those are depends on the other rows of the request (not on their order).
    """
    unsure = np.zeros(len(seen.bits), bool)
    most = int(config.share * len(seen.bits))
    unsure[np.lexsort((seen.row_hash, -seen.bits))[:most]] = True
    return Marked(seen.bits, unsure)


def decision(config: TestTimeConfig, seen: Seen) -> Marked:
    """Only rows that may still cross the cut of the top k: with k places to fill, the order elsewhere decides nothing.

    A second look moves a logit by about s = s0 + s1 missing + s2 entropy (fitted offline); a row gets one when
    [z - 2 s, z + 2 s] holds the k-th best score of its request. Judged by NDCG@k and top-k regret, not by AUC.
    """
    k, rows = seen.top_k or config.top_k, len(seen.logit)
    if k >= rows:
        return Marked(np.full(rows, -np.inf), np.zeros(rows, bool))
    cut = np.partition(seen.logit, rows - k)[rows - k]
    s0, s1, s2 = config.spread
    spread = np.maximum(s0 + s1 * seen.missing + s2 * seen.bits, 0.0)
    signal = REACH * spread - np.abs(seen.logit - cut)
    return Marked(signal, (signal >= 0) & (spread > 0))


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
