"""The second look for a share of the rows or of the requests, chosen by every trigger.

A request is the rows of a user within an hour. The trigger of a row is used for rows, its mean over a request for requests;
requests are chosen until their rows are the share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.evidence.measure import METHODS, TRUNK, Measured, Method
from benchmarks.evidence.trunks import Logits
from thinktwice.stats.metrics import logloss
from thinktwice.stats.significance import auc_influence
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.support import entropy
from thinktwice.train.measure import fit_calibration

SHARES = (0.1, 0.2, 0.4, 1.0)
TRIGGERS = ("entropy", "moved")  # those that the product may choose
DRAWS = 4  # random choices, whose changes are averaged


def table(measured: Measured, delay: str) -> dict[str, Any] | None:
    """What the second look adds to the first; None if no unit of work is done."""
    first, second, trunk = Method(METHODS["correction"], delay), Method(METHODS["retrieval"], delay), Method(TRUNK)
    seeds = measured.seeds_of(first, second)
    if not seeds:
        return None
    found: dict[tuple[str, str, float], list[tuple[float, np.ndarray]]] = {}
    for seed in seeds:
        z1, z2, base = (measured.logits(m, seed) for m in (first, second, trunk))
        scores = measured.scores(trunk, seed), measured.scores(first, seed)
        assert (
            z1 is not None and z2 is not None and base is not None and scores[0] is not None and scores[1] is not None
        )
        signals = {
            "random": list(np.random.default_rng(seed).random((DRAWS, len(z1)))),
            "entropy": [entropy(sigmoid(z1))],
            "moved": [np.abs(scores[1].test - scores[0].test)],
            "oracle": [np.abs(sigmoid(z2) - sigmoid(z1))],
        }
        before = measured.area(first, seed)
        for name, draws in signals.items():
            for unit in ("rows", "requests"):
                for share in SHARES:
                    chosen = [_chosen(d, share, measured.request if unit == "requests" else None) for d in draws]
                    areas = [auc_influence(measured.label, np.where(c, z2, z1)) for c in chosen]
                    value = float(np.mean([area for area, _ in areas])) - before.value
                    influence = np.mean([part for _, part in areas], axis=0) - before.influence
                    found.setdefault((unit, name, share), []).append((value, influence))
    whole = float(np.mean([value for value, _ in found["rows", "entropy", 1.0]]))
    shares = []
    for (unit, name, share), values in found.items():
        gain = measured.over(values)
        kept = gain["value"] / whole if whole > 0 else None
        shares.append({"unit": unit, "trigger": name, "share": share, "over_first_look": gain, "kept": kept})
    return {"seeds": len(seeds), "trigger": chosen_trigger(measured, delay, seeds), "shares": shares}


def chosen_trigger(measured: Measured, delay: str, seeds: list[int], share: float = 0.4) -> str:
    """The trigger with the lower loss on the earlier validation rows if it asks for ``share`` of them."""
    losses: dict[str, float] = dict.fromkeys(TRIGGERS, 0.0)
    for seed in seeds:
        names = (Method(TRUNK), Method(METHODS["correction"], delay), Method(METHODS["retrieval"], delay))
        scores = [measured.scores(m, seed) for m in names]
        base, first, second = (s.fit for s in scores if s is not None)
        calibrated = [_calibrated(z, measured.fit_label) for z in (first, second)]
        signals = {"entropy": entropy(sigmoid(calibrated[0])), "moved": np.abs(first - base)}
        for name, signal in signals.items():
            mixed = np.where(_chosen(signal, share, None), calibrated[1], calibrated[0])
            losses[name] += logloss(measured.fit_label, mixed)
    return min(losses, key=lambda name: losses[name])


def _calibrated(logit: Logits, label: np.ndarray) -> Logits:
    calibration = fit_calibration(logit, label)
    return calibration.a * logit + calibration.b


def _chosen(signal: Logits, share: float, request: np.ndarray | None) -> np.ndarray:
    """Mask [R] of the rows of the highest ``signal``, or of those of the requests of the highest mean signal."""
    out, target = np.zeros(len(signal), bool), round(share * len(signal))
    if request is None:
        out[np.argsort(-signal, kind="stable")[:target]] = True
        return out
    sizes = np.bincount(request)
    mean = np.bincount(request, signal) / sizes
    order = np.argsort(-mean, kind="stable")
    within = np.cumsum(sizes[order]) <= target
    return np.isin(request, order[within])
