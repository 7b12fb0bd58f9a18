"""The correction: a change of every row's base logit by its counters, from a network trained on logits of later rows.

Shapes: n rows, C counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thinktwice.errors import BundleError, DataError
from thinktwice.models.blocks import BASE_ROWS
from thinktwice.models.logit_network import LOGIT_SCALE, MAX_LOGIT, Floats, Network, padded_rows
from thinktwice.testtime.evidence.arrays import read_network, write_network

CORRECTION_FILE = "correction.safetensors"
CLIP = 4.0  # standard deviations
Logits = npt.NDArray[np.float64]
Unknown = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Standard:
    """Standardisation of C inputs: ``means`` and ``sds`` [C], float32, the latter above 0."""

    means: Floats
    sds: Floats

    def __call__(self, values: Floats) -> Floats:
        """Values [n, C] in standard deviations from their means, clipped at 4; unknown is 0."""
        out = np.minimum(np.maximum(values, self._bounds[0]), self._bounds[1])
        out -= self.means
        out /= self.sds
        np.copyto(out, 0, where=np.isnan(values))
        return out

    def write(self, logit: Logits, values: Floats, out: Floats) -> None:
        """Write logits [n] as they enter a network, and values [n, C] in standard deviations, into the first columns of ``out``
        [m, at least 1 + C]; what follows row n is set to 0, and NaN stays NaN."""
        rows, width = values.shape
        out[rows:] = 0
        out[:rows, 0], out[:rows, 1 : 1 + width] = logit, values
        for start in range(0, rows, BASE_ROWS):
            block = out[start : min(start + BASE_ROWS, rows), : 1 + width]
            low, high, means, sds = (part[: len(block)] for part in self._with_logit)
            np.maximum(block, low, out=block)
            np.minimum(block, high, out=block)
            np.subtract(block, means, out=block)
            np.divide(block, sds, out=block)

    @cached_property
    def _with_logit(self) -> tuple[Floats, ...]:
        """Bounds, means and standard deviations [128, 1 + C], those of a logit first: the same in every row, because numpy takes twice
        as long to repeat a row as to read it."""
        ends = (-MAX_LOGIT, MAX_LOGIT, 0.0, 1 / LOGIT_SCALE)
        parts = (*self._bounds, self.means, self.sds)
        return tuple(np.tile(np.r_[np.float32(e), p], (BASE_ROWS, 1)) for e, p in zip(ends, parts, strict=True))

    @cached_property
    def _bounds(self) -> tuple[Floats, Floats]:
        """The values [C] that are 4 standard deviations from the means, or so large that their differences are finite."""
        limit = float(np.finfo(np.float32).max) / 2
        reach = CLIP * self.sds.astype(np.float64)
        low, high = (np.clip(self.means + side * reach, -limit, limit).astype(np.float32) for side in (-1, 1))
        return low, high


def unknown_values(counters: Floats, num_counters: int) -> Unknown | None:
    """Marks of the unknown counters [n, C]; None if every one is known.

    Raises:
        DataError: the number or type of the counters is wrong, or one is infinite.
    """
    if counters.ndim != 2 or counters.shape[1] != num_counters or counters.dtype != np.float32:
        raise DataError(
            f"counters are {counters.dtype} of shape {list(counters.shape)} and the model reads float32 of shape "
            f"[rows, {num_counters}]: compute them by the definition in the bundle's schema"
        )
    if np.isfinite(counters).all():
        return None
    if (bad := np.isinf(counters)).any():
        row, column = np.argwhere(bad)[0].tolist()
        raise DataError(f"counter {column} of row {row} is infinite: use NaN for an unknown counter")
    return np.isnan(counters)


def known_rows(counters: Floats, num_counters: int) -> npt.NDArray[np.bool_]:
    """Rows [n] with at least one known counter; a row without one keeps its base logit.

    Raises:
        DataError: see :func:`unknown_values`.
    """
    return CounterInputs.rows_of(unknown_values(counters, num_counters), len(counters), num_counters)


@dataclass(frozen=True, eq=False)
class CounterInputs:
    """Inputs of n rows to the networks that read counters.

    Attributes:
        first: [m, 1 + C] logits and standardised counters, m >= n rows as a network computes them; 0 after row n.
        unknown: [n, C] marks of the unknown counters; None if every one is known.
        known: [n] rows with at least one known counter.
    """

    first: Floats
    unknown: Unknown | None
    known: npt.NDArray[np.bool_]

    @staticmethod
    def of(standard: Standard, logit: Logits, counters: Floats) -> CounterInputs:
        """The inputs of rows with these logits [n] and counters [n, C].

        Raises:
            DataError: see :func:`unknown_values`.
        """
        width, rows = len(standard.means), len(counters)
        unknown = unknown_values(counters, width)
        first = np.empty((padded_rows(rows), 1 + width), np.float32)
        standard.write(logit, counters, first)
        if unknown is not None:
            np.copyto(first[:rows, 1:], 0, where=unknown)
        return CounterInputs(first, unknown, CounterInputs.rows_of(unknown, rows, width))

    @staticmethod
    def rows_of(unknown: Unknown | None, rows: int, width: int) -> npt.NDArray[np.bool_]:
        if unknown is not None:
            return np.asarray(~unknown.all(axis=1))
        known = np.empty(rows, np.bool_)
        known.fill(width > 0)
        return known

    def __len__(self) -> int:
        return len(self.known)

    def indicators(self, rows: npt.NDArray[np.int64] | None = None) -> tuple[Floats, ...]:
        """Indicators of the unknown counters of all or some rows, padded like :attr:`first`; none if all of theirs are known."""
        if self.unknown is None:
            return ()
        unknown = self.unknown if rows is None else self.unknown[rows]
        if not np.count_nonzero(unknown):
            return ()
        out = np.zeros((padded_rows(len(unknown)), unknown.shape[1]), np.float32)
        out[: len(unknown)] = unknown
        return (out,)

    @property
    def joined(self) -> Floats:
        """[n, 1 + 2 C]: logits, standardised counters and indicators of unknown counters."""
        rows, width = len(self), self.first.shape[1]
        out = np.zeros((rows, 2 * width - 1), np.float32)
        out[:, :width] = self.first[:rows]
        if self.unknown is not None:
            out[:, width:] = self.unknown
        return out


def counter_inputs(standard: Standard, logit: Logits, counters: Floats) -> Floats:
    """Inputs [n, 1 + 2 C] of rows: their logits [n], standardised counters, and indicators of unknown counters."""
    return CounterInputs.of(standard, logit, counters).joined


@dataclass(frozen=True, eq=False)
class CorrectionNetwork:
    """The network over :func:`counter_inputs` of the base logit. A row has the same bits in any request and in training's
    evaluations."""

    standard: Standard
    network: Network

    @property
    def num_counters(self) -> int:
        return len(self.standard.means)

    def __call__(self, logit: Logits, counters: Floats) -> Logits:
        """Corrected logits [n]."""
        return logit + self.changes(CounterInputs.of(self.standard, logit, counters))

    def changes(self, inputs: CounterInputs) -> Floats:
        """Changes [n] float32 of the logits of rows with these inputs."""
        if len(inputs) == 0 or self.is_zero:
            return np.zeros(len(inputs), np.float32)
        return self.network.changes(inputs.first, *inputs.indicators())[: len(inputs)]

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing; then only a second look uses the counters."""
        return self.network.is_zero

    def save(self, folder: Path | str) -> None:
        """Write ``correction.safetensors`` into ``folder``."""
        write_network(Path(folder) / CORRECTION_FILE, self.network, self.standard.means, self.standard.sds)

    @staticmethod
    def load(folder: Path | str) -> CorrectionNetwork:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / CORRECTION_FILE
        network, means, sds = read_network(path)
        if network.width != 1 + 2 * len(means):
            raise BundleError(
                f"{path} is damaged ({network.width} inputs for {len(means)} counters): fit the test-time parameters again"
            )
        return CorrectionNetwork(Standard(means, sds), network)
