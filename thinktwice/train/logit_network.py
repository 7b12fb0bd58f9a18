"""Training of a network that changes logits, scaled to the share of its changes that lowers the held-out loss.

Shapes: M training rows, V held out rows, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from thinktwice.models.logit_network import HIDDEN, Floats, Network
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.significance import clusters_of, paired_mean
from thinktwice.threads import reproducible
from thinktwice.train.measure import fit_calibration

RATE, BATCH, EPOCHS = 2e-3, 1024, 6
SCALES = (0.25, 0.5, 0.75, 1.0)  # shares of the changes that are tried, in addition to 0
ONE_ERROR = 0.6827  # confidence of an interval of one standard error on each side

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows with their ``inputs`` [n, I], ``logit`` before the change, ``label`` and ``user`` (-1 without), all [n]."""

    inputs: Floats
    logit: Logits
    label: npt.NDArray[np.float32]
    user: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.logit)


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A trained network: ``epochs`` until the weights that were kept, ``scale`` of the changes (0: none), ``gain``: logloss of
    the held-out rows without the network minus with it, both recalibrated on them, and its ``standard_error``, clustered by
    user."""

    network: Network
    epochs: int
    scale: float
    gain: float
    error: float


@reproducible()
def fit_network(train: Examples, held_out: Examples, *, seed: int = 0) -> FittedNetwork:
    """Train on ``train``, the last layer initialised to 0; epoch and scale are those with the lowest loss on ``held_out``.

    The scale is 0 unless the loss falls by more than one standard error. The same arguments give the same bits.
    """
    layers = _start(train.inputs.shape[1], seed)
    before = _loss(held_out, held_out.logit)
    best: tuple[float, int, tuple[Floats, ...]] | None = None
    for epoch, _ in enumerate(_epochs(layers, train, seed), start=1):
        arrays = tuple(layer.detach().numpy().copy() for layer in layers)
        loss = float(_loss(held_out, held_out.logit + Network(arrays)(held_out.inputs)).mean())
        if best is None or loss < best[0]:
            best = loss, epoch, arrays
    assert best is not None
    _, epochs, arrays = best
    change = Network(arrays)(held_out.inputs)
    losses = {scale: _loss(held_out, held_out.logit + scale * change) for scale in SCALES}
    scale = min(SCALES, key=lambda s: float(losses[s].mean()))
    interval = paired_mean(losses[scale] - before, clusters_of(held_out.user), ONE_ERROR)
    error = (interval.high - interval.low) / 2
    if not interval.high < 0:
        return FittedNetwork(scaled(arrays, 0.0), 0, 0.0, 0.0, error)
    return FittedNetwork(scaled(arrays, scale), epochs, scale, -interval.value, error)


def scaled(arrays: tuple[Floats, ...], scale: float) -> Network:
    """The network with these layers, its output multiplied by ``scale``."""
    return Network((*arrays[:-2], *(np.float32(scale) * a for a in arrays[-2:])))


def _loss(rows: Examples, logit: Logits) -> Logits:
    """Row losses [n] of logits [n] after a recalibration, so that a change of slope and offset alone is no gain."""
    calibration = fit_calibration(logit, rows.label)
    return row_logloss(rows.label, calibration.a * logit + calibration.b)


def _start(width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers: list[Tensor] = []
    widths = (width, *HIDDEN)
    for rows, columns in pairwise(widths):
        layers += [torch.randn(rows, columns, generator=generator) * (2 / rows) ** 0.5, torch.zeros(columns)]
    layers += [torch.zeros(HIDDEN[-1], 1), torch.zeros(1)]
    return [layer.requires_grad_() for layer in layers]


def _epochs(layers: list[Tensor], train: Examples, seed: int) -> Iterator[None]:
    """Train ``layers`` in place, one epoch at a time."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(layers, lr=RATE)
    inputs, logit = torch.from_numpy(train.inputs), torch.from_numpy(train.logit.astype(np.float32))
    label = torch.from_numpy(train.label)
    w0, b0, w1, b1, w2, b2 = layers
    for _ in range(EPOCHS):
        for index in torch.randperm(len(train), generator=generator).split(BATCH):
            hidden = torch.relu(torch.relu(inputs[index] @ w0 + b0) @ w1 + b1)
            change = (hidden @ w2 + b2)[:, 0]
            loss = F.binary_cross_entropy_with_logits(logit[index] + change, label[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield
