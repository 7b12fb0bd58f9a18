"""The engine: one base pass for every row, paths for the unsure ones, one calibrated score.

Rows are scored in padded blocks of one fixed shape, so that matrix kernels see the same sizes whatever the request is.
Draws belong to the row's content. The guarantee: while the cap on path rows does not bind, a row gives the same bits
(tolerance 0) alone, among 500, in any order and after a restart, on the same machine with the same libraries.

The cap binds when more rows are unsure than it has path rows, or their paths together are more than it has. It then
decides by the rows themselves, largest signal first, so that the same rows are admitted in any order; an admitted row
keeps its full score, and a row that is left out has the exact score of its base pass and is marked in ``left_out``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.errors import BundleError
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import Calibration
from thinktwice.testtime import calibrate, samplers, trigger
from thinktwice.testtime.aggregate import aggregate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.masks import base_mask
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.rowhash import hash_rows
from thinktwice.testtime.store import load_test_time

BLOCK = 128  # rows of one forward call, paths included
CHUNK = 4096  # rows that score_rows holds at once
UNBOUNDED = 1 << 60


@dataclass(frozen=True)
class Raw:
    """Scores before calibration, per row [B]: base logit ``z0``, final logit ``z``, ``missing`` support, trigger
    ``signal``, number of forward passes ``num_paths``, the mask of unsure rows ``left_out`` by the cap, and that of the
    rows that were ``explored``."""

    z0: np.ndarray
    z: np.ndarray
    missing: np.ndarray
    signal: np.ndarray
    num_paths: np.ndarray
    left_out: np.ndarray

    @property
    def explored(self) -> np.ndarray:
        return self.num_paths > 1


@dataclass(frozen=True)
class Scored:
    """Scores of B rows.

    logit [B] float64 calibrated log-odds; probability [B] float64; uncertainty [B] float64 in 0..1, the mean of the
    entropy of the probability in bits (what the model leaves open) and of the missing support of the row's values (what
    training has not seen), in every mode alike; num_paths [B] int64 forward passes of the row, at least 1; left_out [B] bool
    unsure rows that the cap left with their base score; path_rows the rows scored beyond one per row.
    """

    logit: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    num_paths: np.ndarray
    left_out: np.ndarray
    path_rows: int

    @property
    def capped(self) -> bool:
        """Whether the cap on path rows was binding."""
        return bool(self.left_out.any())


class Engine:
    """Scores encoded rows with one model under one configuration. Holds no state between calls.

    Raises:
        BundleError: counts or importance belong to a model with other fields.
    """

    def __init__(
        self, model: Backbone, reliability: Reliability, config: TestTimeConfig, calibration: Calibration | None = None
    ) -> None:
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
        self.model = model.eval()
        self.reliability = reliability
        self.config = config
        self.calibration = config.calibration or calibration or Calibration()
        self.explored_calibration = config.explored_calibration or self.calibration
        with torch.inference_mode():
            self._fill = model.fill()

    @staticmethod
    def load(folder: Path | str, model: Backbone, calibration: Calibration | None = None) -> Engine:
        """The engine of the test-time parameters in ``folder``; ``calibration`` is the model's own."""
        shipped = load_test_time(folder)
        return Engine(model, shipped.reliability, shipped.config, calibration)

    def score(self, batch: Batch, max_path_rows: int | None = None) -> Scored:
        """Score a request.

        Args:
            batch: B encoded rows.
            max_path_rows: lowers the configured cap on extra rows for this request; it cannot raise it, for the cap is
                the operator's. At 0 every row gets its base pass alone: model cost and scores of the base pass.
        """
        return self.finish(self.raw(batch, max_path_rows))

    def finish(self, raw: Raw) -> Scored:
        """Calibrate raw scores."""
        base = calibrate.apply(self.calibration, raw.z)
        logit = np.where(raw.explored, calibrate.apply(self.explored_calibration, raw.z), base)
        probability = calibrate.sigmoid(logit)
        uncertainty = 0.5 * (raw.missing + trigger.entropy(probability))
        path_rows = int(raw.num_paths.sum()) - len(raw.z)
        return Scored(logit, probability, uncertainty, raw.num_paths, raw.left_out, path_rows)

    @torch.inference_mode()
    def raw(self, batch: Batch, max_path_rows: int | None = None) -> Raw:
        """Like :meth:`score`, before calibration."""
        ids = batch.ids.numpy()
        cap = self.config.max_path_rows
        if max_path_rows is not None:
            cap = min(cap, max_path_rows)
        r = self.reliability.of(ids)
        mask = base_mask(self.config, self.reliability, ids)
        explores = self.config.mode == "uttsi" and len(batch) > 0
        z0, x = self._base_pass(batch, mask, keep=explores and cap > 0)
        missing = trigger.epistemic(r, self.reliability.open_fields, self.config.importance)
        num_paths, left_out = np.ones(len(batch), np.int64), np.zeros(len(batch), bool)
        if not explores:
            return Raw(z0, z0, missing, np.full(len(batch), -np.inf), num_paths, left_out)
        bits = trigger.entropy(calibrate.sigmoid(calibrate.apply(self.calibration, z0)))
        row_hash = hash_rows(batch, self.config.salt)
        signal = trigger.signal(self.config, missing, bits, row_hash)
        wanted = trigger.num_paths(self.config, signal)
        left_out = wanted > 0
        if x is None:
            return Raw(z0, z0, missing, signal, num_paths, left_out)
        chosen = _by_signal(signal, row_hash, wanted)[:cap]  # every admitted row costs at least one path row
        left_out[chosen] = False
        kept = np.ones_like(r, bool) if mask is None else mask > 0
        paths = samplers.draw(
            self.config.sampler, kept[chosen], r[chosen], wanted[chosen], row_hash[chosen], self.config.max_paths
        )
        over = (np.cumsum(paths.used) > cap) & (paths.used > 0)
        left_out[chosen[over]] = True
        chosen, paths = _admit(chosen, paths, over)
        if len(chosen) == 0:
            return Raw(z0, z0, missing, signal, num_paths, left_out)
        z = z0.copy()
        z[chosen] = self._explore(x, z0[chosen], r[chosen], kept[chosen], missing[chosen], chosen, paths)
        num_paths[chosen] += paths.used
        return Raw(z0, z, missing, signal, num_paths, left_out)

    def _base_pass(
        self, batch: Batch, mask: np.ndarray | None, *, keep: bool
    ) -> tuple[np.ndarray, torch.Tensor | None]:
        """Logits [B] float64 of the base pass, and the field vectors [B, N, D] if paths may need them."""
        logits, vectors = [], []
        for start in range(0, len(batch), BLOCK):
            rows = slice(start, start + BLOCK)
            x = self.model.embed(_padded_batch(batch.select(rows)))
            real = min(BLOCK, len(batch) - start)
            if mask is None:
                z = self.model.score(x)
            else:
                z = self.model.score(x, _padded(torch.from_numpy(mask[rows]))[:, None], self._fill)
            logits.append(z[:real, 0])
            if keep:
                vectors.append(x[:real])
        z0 = torch.cat(logits).double().numpy() if logits else np.zeros(0)
        return z0, torch.cat(vectors) if vectors else None

    def _explore(
        self,
        x: torch.Tensor,
        z0: np.ndarray,
        r: np.ndarray,
        kept: np.ndarray,
        missing: np.ndarray,
        rows: np.ndarray,
        paths: samplers.Paths,
    ) -> np.ndarray:
        """Final logits [U] of explored rows: all their paths scored together, aggregated, shrunk to the base score."""
        most = paths.mask.shape[1]
        owner, place = np.nonzero(np.arange(most)[None] < paths.used[:, None])  # [Q] path rows
        mask = torch.from_numpy(paths.mask[owner, place].astype(np.float32))
        source = torch.from_numpy(rows[owner])
        scored = []
        for start in range(0, len(owner), BLOCK):
            block = slice(start, start + BLOCK)
            z = self.model.score(_padded(x[source[block]]), _padded(mask[block])[:, None], self._fill)
            scored.append(z[: len(owner[block]), 0])
        z_all = np.repeat(z0[:, None], most + 1, axis=1)
        z_all[owner, place + 1] = torch.cat(scored).double().numpy()
        weight = np.concatenate([paths.base_weight[:, None], paths.weight], axis=1)
        masks = np.concatenate([kept[:, None], paths.mask], axis=1)  # [U, K + 1, N]
        support = (masks * r[:, None]).sum(axis=2) / np.maximum(masks.sum(axis=2), 1)
        combined = aggregate(self.config.aggregator, z_all, weight, support)
        return (1.0 - missing) * z0 + missing * combined


def raw_rows(engine: Engine, rows: EncodedRows) -> Raw:
    """Raw scores of any number of rows, in chunks and without a cap on path rows."""
    config = engine.config.model_copy(update={"max_path_rows": UNBOUNDED})
    free = Engine(engine.model, engine.reliability, config, engine.calibration)
    with one_thread():
        parts = [free.raw(rows.batch(slice(s, s + CHUNK))) for s in range(0, len(rows), CHUNK)]
    return Raw(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Raw)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Small blocks gain nothing from several threads, and lose much when cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _by_signal(signal: np.ndarray, row_hash: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Unsure rows, largest signal first; equal signals in the order of their hashes, so that row order does not matter."""
    unsure = np.flatnonzero(wanted > 0)
    return unsure[np.lexsort((row_hash[unsure], -signal[unsure]))]


def _admit(chosen: np.ndarray, paths: samplers.Paths, over: np.ndarray) -> tuple[np.ndarray, samplers.Paths]:
    """The rows whose paths fit under the cap together; rows without a path of their own need none."""
    fits = ~over & (paths.used > 0)
    return chosen[fits], samplers.Paths(paths.mask[fits], paths.weight[fits], paths.base_weight[fits], paths.used[fits])


def _padded(value: torch.Tensor) -> torch.Tensor:
    """``value`` with zero rows added up to BLOCK."""
    missing = BLOCK - value.shape[0]
    return value if missing == 0 else torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])


def _padded_batch(batch: Batch) -> Batch:
    return Batch(
        _padded(batch.ids),
        {k: _padded(v) for k, v in batch.sequences.items()},
        {k: _padded(v) for k, v in batch.vectors.items()},
    )
