"""Networks on disk: layers, and the standardisation of inputs, as arrays in one safetensors file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from thinktwice.calibration import MAX_MAGNITUDE
from thinktwice.errors import BundleError
from thinktwice.files import atomic_file
from thinktwice.mapped import map_tensors
from thinktwice.models.logit_network import HIDDEN, NAMES, Floats, Network

TYPES: dict[str, type[np.generic]] = dict.fromkeys((*NAMES, "means", "sds"), np.float32)


def write_network(path: Path, network: Network, means: Floats, sds: Floats) -> None:
    """Write a network whose inputs are standardised by ``means`` and ``sds`` [C]."""
    arrays = dict(zip(NAMES, network.arrays, strict=True)) | {"means": means, "sds": sds}
    with atomic_file(path) as temporary:
        save_file({name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}, str(temporary))


def read_network(path: Path) -> tuple[Network, Floats, Floats]:
    """The network, means and standard deviations that :func:`write_network` wrote.

    Raises:
        BundleError: the file is missing or damaged; the message names the problem.
    """
    arrays = {name: np.array(array) for name, array in map_tensors(path, TYPES).items()}
    widths = (arrays["weight0"].shape[:1] or (0,))[0], *HIDDEN, 1
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        shapes |= {f"weight{layer}": (rows, columns), f"bias{layer}": (columns,)}
    shapes |= {"means": arrays["sds"].shape, "sds": (arrays["sds"].size,)}
    problem = ""
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            problem = f"{name!r} has shape {list(array.shape)} instead of {list(shapes[name])}"
        elif not (np.isfinite(array).all() and (np.abs(array) <= MAX_MAGNITUDE).all()) and name not in ("means", "sds"):
            problem = f"{name!r} contains numbers that are not finite, or above {MAX_MAGNITUDE:,.0f}"
        elif not np.isfinite(array).all() or (name == "sds" and (array <= 0).any()):
            problem = f"{name!r} contains numbers that are not finite, or not above 0"
    if problem:
        raise BundleError(f"{path} is damaged ({problem}): fit the test-time parameters again")
    return Network(tuple(arrays[name] for name in NAMES)), arrays["means"], arrays["sds"]
