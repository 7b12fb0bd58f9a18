"""The correction: a change of every row's base logit by its counters, from a network trained on logits of later rows.

Shapes: n rows, C counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thinktwice.errors import BundleError, DataError
from thinktwice.models.logit_network import Floats, Network, logit_input
from thinktwice.testtime.evidence.arrays import read_network, write_network

CORRECTION_FILE = "correction.safetensors"
CLIP = 4.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Standard:
    """Standardisation of C inputs: ``means`` and ``sds`` [C], float32, the latter above 0."""

    means: Floats
    sds: Floats

    def __call__(self, values: Floats) -> Floats:
        """Values [n, C] in standard deviations from their means, clipped at 4; unknown is 0."""
        out = np.empty_like(values)
        self.write(values, np.isnan(values), out)
        return out

    def write(self, values: Floats, unknown: npt.NDArray[np.bool_], out: Floats) -> None:
        """Like a call, into ``out`` [n, C]; ``unknown`` [n, C] marks the unknown values."""
        np.subtract(values, self.means, out=out)
        with np.errstate(over="ignore"):  # an overflow is clipped to 4
            out /= self.sds
        np.minimum(np.maximum(out, -CLIP, out=out), CLIP, out=out)
        out[unknown] = 0


def known_rows(counters: Floats, num_counters: int) -> npt.NDArray[np.bool_]:
    """Rows [n] with at least one known counter; a row without one keeps its base logit.

    Raises:
        DataError: the number or type of the counters is wrong, or one is infinite.
    """
    if counters.ndim != 2 or counters.shape[1] != num_counters or counters.dtype != np.float32:
        raise DataError(
            f"counters are {counters.dtype} of shape {list(counters.shape)} and the model reads float32 of shape "
            f"[rows, {num_counters}]: compute them by the definition in the bundle's schema"
        )
    if (bad := np.isinf(counters)).any():
        row, column = np.argwhere(bad)[0].tolist()
        raise DataError(f"counter {column} of row {row} is infinite: use NaN for an unknown counter")
    return np.asarray((~np.isnan(counters)).any(axis=1))


def counter_inputs(standard: Standard, logit: npt.NDArray[np.float64], counters: Floats) -> Floats:
    """Inputs [n, 1 + 2 C] of rows: their logits [n], standardised counters, and indicators of unknown counters."""
    width = counters.shape[1]
    out, unknown = np.empty((len(counters), 1 + 2 * width), np.float32), np.isnan(counters)
    out[:, :1] = logit_input(logit)
    standard.write(counters, unknown, out[:, 1 : 1 + width])
    out[:, 1 + width :] = unknown
    return out


@dataclass(frozen=True, eq=False)
class CorrectionNetwork:
    """The network over :func:`counter_inputs` of the base logit."""

    standard: Standard
    network: Network

    @property
    def num_counters(self) -> int:
        return len(self.standard.means)

    def __call__(self, logit: npt.NDArray[np.float64], counters: Floats) -> npt.NDArray[np.float64]:
        """Corrected logits [n]."""
        return logit + self.network(counter_inputs(self.standard, logit, counters))

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
