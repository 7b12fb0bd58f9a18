"""Feature paths of a row: partial views of it, scored together in one call of a fixed shape.

The first layer of a path is the base pass's, updated in the fields that the path drops. With ``stop_at`` the paths are scored
in rounds (two, two, the remaining), and a row whose mean is precise enough stops after a round.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from thinktwice.testtime.aggregators import Passes
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass
from thinktwice.testtime.samplers import Paths, SamplerInput


def plan(config: FeaturePaths | GrownPaths, extras: Extras, escalated: EscalatedRows) -> Paths:
    """The paths of every row, before any of them is scored."""
    fields = escalated.maskable_fields
    r = _maskable_support(escalated)
    pairs = triples = None
    if extras.combinations is not None and config.needs_combinations:
        ids = escalated.batch.ids.numpy()
        known = extras.combinations.reliability(ids)
        every = extras.combinations.pair_matrix(ids, escalated.r.shape[1])
        pairs = np.ascontiguousarray(every[:, fields[:, None], fields[None]])
        triples = _triples(extras, known, fields)
    kept = escalated.kept[:, fields]
    inputs = SamplerInput(kept, r, pairs, triples, config.wanted(escalated.depth), escalated.row_hash)
    return config.sampler.draw(inputs, config.max_paths)


def answer(config: FeaturePaths | GrownPaths, escalated: EscalatedRows, paths: Paths) -> SecondPass:
    """One logit per row from its base pass and its paths."""
    fields = torch.from_numpy(escalated.maskable_fields)
    num_paths = paths.mask.shape[1]
    z = np.repeat(escalated.z0[:, None], num_paths + 1, axis=1)
    used = paths.used.copy()
    going = np.arange(len(used))
    for first, last in _rounds(config.stop_at, num_paths):
        going = going[used[going] > first]
        if len(going) == 0:
            break
        real = np.arange(first, last)[None] < used[going, None]
        row, path = real.nonzero()
        mask = torch.from_numpy(paths.mask[going, first:last])
        z[going[row], first + 1 + path] = _scored(escalated, going, mask, fields, torch.from_numpy(real))
        if config.stop_at > 0 and last < num_paths:
            known = np.minimum(used[going], last)
            settled = ~paths.exact[going] & (half_width(z[going, : last + 1], known) < config.stop_at)
            used[going[settled]] = known[settled]
    real = np.arange(num_paths)[None] < used[:, None]
    weight = np.concatenate([paths.base_weight[:, None], np.where(real, paths.weight, 0.0)], axis=1)
    confidence = np.concatenate([paths.base_confidence[:, None], paths.confidence], axis=1)
    combined = config.aggregator.combine(Passes(z, weight, _support(escalated, paths), confidence))
    if config.shrink:
        combined = (1.0 - escalated.missing) * escalated.z0 + escalated.missing * combined
    return SecondPass(combined, used)


def half_width(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Half width [U] of the 90 % interval of the mean of a row's first ``known`` + 1 logits in z [U, k + 1]."""
    counted = np.arange(z.shape[1])[None] <= known[:, None]
    count = known + 1.0
    mean = (z * counted).sum(axis=1) / count
    variance = (((z - mean[:, None]) ** 2) * counted).sum(axis=1) / np.maximum(count - 1, 1)
    quantile = np.asarray([0.0, *stats.t.ppf(0.95, np.arange(1, z.shape[1]))])
    return np.where(known > 0, quantile[known] * np.sqrt(variance / count), np.inf)


def _rounds(stop_at: float, num_paths: int) -> list[tuple[int, int]]:
    if stop_at == 0 or num_paths <= 2:
        return [(0, num_paths)]
    return [(0, 2), (2, num_paths)] if num_paths <= 4 else [(0, 2), (2, 4), (4, num_paths)]


def _scored(
    escalated: EscalatedRows, going: np.ndarray, mask: torch.Tensor, fields: torch.Tensor, real: torch.Tensor
) -> np.ndarray:
    """Logits [R] of the ``real`` [G, P] paths of the rows ``going`` [G]."""
    state = tuple(part[going] for part in escalated.state)
    z = escalated.backend.path_logits(state, torch.from_numpy(escalated.kept[going]), mask, fields, real)
    return z.double().numpy()


def _support(escalated: EscalatedRows, paths: Paths) -> np.ndarray:
    """Mean support [U, K + 1] of the fields that each pass keeps, the protected ones included."""
    n, total = len(escalated.maskable_fields), escalated.r.shape[1]
    masks = np.concatenate([escalated.kept[:, None, escalated.maskable_fields], paths.mask], axis=1)
    supported = (masks * _maskable_support(escalated)[:, None]).sum(axis=2)
    return (supported + total - n) / np.maximum(masks.sum(axis=2) + total - n, 1)


def _maskable_support(escalated: EscalatedRows) -> np.ndarray:
    """Support [U, n] of the unprotected fields, contiguous: in another layout the bits of sums depend on U."""
    return np.ascontiguousarray(escalated.r[:, escalated.maskable_fields])


def _triples(extras: Extras, known: np.ndarray, fields: np.ndarray) -> np.ndarray | None:
    """Support of value triples [U, n, n, n]; NaN for those that are not counted."""
    assert extras.combinations is not None
    triples = extras.combinations.triples
    if not triples:
        return None
    position = {int(f): i for i, f in enumerate(fields)}
    out = np.full((len(known), len(fields), len(fields), len(fields)), np.nan)
    first = len(extras.combinations.pairs)
    for number, (a, b, c) in enumerate(triples):
        i, j, k = position[a], position[b], position[c]
        for order in ((i, j, k), (i, k, j), (j, i, k), (j, k, i), (k, i, j), (k, j, i)):
            out[(slice(None), *order)] = known[:, first + number]
    return out
