"""A small network that changes logits and gives a row the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinktwice.models.blocks import BASE_ROWS, ESCALATED_ROWS, FIXED, in_blocks, one_thread

Floats = npt.NDArray[np.float32]
HIDDEN = (64, 32)
NAMES = tuple(f"{kind}{layer}" for layer in range(len(HIDDEN) + 1) for kind in ("weight", "bias"))
MAX_LOGIT = 8.0  # logits are clipped to this magnitude before they enter the network
LOGIT_SCALE = 0.5
BLOCK_SIZES = ((ESCALATED_ROWS, BASE_ROWS), FIXED)  # shapes of a call, the cheaper choice first
PROBED_BLOCKS = 4  # blocks of random rows that check the kernels of this machine


@dataclass(frozen=True, eq=False)
class Network:
    """Layers [I, 64], [64, 32] and [32, 1] with their biases and ReLU between them; ``arrays`` in the order of :data:`NAMES`."""

    arrays: tuple[Floats, ...]

    @property
    def width(self) -> int:
        """Number I of inputs."""
        return int(self.arrays[0].shape[0])

    @cached_property
    def is_zero(self) -> bool:
        """Whether it changes nothing: its last layer is 0."""
        return not (self.arrays[-2].any() or self.arrays[-1].any())

    def __call__(self, inputs: Floats) -> npt.NDArray[np.float64]:
        """Changes [n] of the logits of rows with these inputs [n, I]."""
        if len(inputs) == 0 or self.is_zero:
            return np.zeros(len(inputs))
        rows = torch.from_numpy(np.ascontiguousarray(inputs))
        if torch.is_inference_mode_enabled() and torch.get_num_threads() == 1:  # within an engine
            return np.asarray(self._forward(rows).double().numpy())
        with torch.inference_mode(), one_thread():
            return np.asarray(self._forward(rows).double().numpy())

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        """Matrix products in blocks of the first set of shapes that gives a row the same bits in every block on this machine.
        If even a single shape gives different bits at different positions: sums in a fixed order, which are thirty times
        slower."""
        for sizes in BLOCK_SIZES:
            forward = partial(self._in_blocks, sizes=sizes)
            if self.same_bits(forward):
                return forward
        return self._in_order

    def same_bits(self, forward: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``forward`` gives random rows the same bits at other positions, in smaller calls and alone.

        A kernel's order of summation depends on shapes and positions and not on the numbers, so random rows are a sufficient
        test.
        """
        rows = torch.randn(PROBED_BLOCKS * BASE_ROWS, self.width, generator=torch.Generator().manual_seed(0))
        expected = forward(rows)
        turned = all(torch.equal(forward(rows.roll(n, 0)).roll(-n), expected) for n in (1, 3, 8, 61))
        smaller = all(
            torch.equal(torch.cat([forward(part) for part in rows.split(size)]), expected)
            for size in (31, ESCALATED_ROWS, 100)
        )
        alone = all(torch.equal(forward(rows[n : n + 1]), expected[n : n + 1]) for n in (0, 1, 77, 127))
        return turned and smaller and alone

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.array(a)) for a in self.arrays)

    def _in_blocks(self, x: Tensor, sizes: tuple[int, ...] = FIXED) -> Tensor:
        w0, b0, w1, b1, w2, b2 = self._tensors

        def block(x: Tensor) -> Tensor:
            hidden = torch.addmm(b1, torch.addmm(b0, x, w0).relu_(), w1).relu_()
            return torch.addmm(b2, hidden, w2)[:, 0]

        return in_blocks(block, x, sizes=sizes)

    def _in_order(self, x: Tensor) -> Tensor:
        for layer in range(len(HIDDEN) + 1):
            weight, bias = self._tensors[2 * layer : 2 * layer + 2]
            out = bias.repeat(len(x), 1)
            for column in range(x.shape[1]):
                out += x[:, column, None] * weight[column]
            x = out.relu() if layer < len(HIDDEN) else out
        return x[:, 0]


def logit_input(logit: npt.NDArray[np.float64]) -> Floats:
    """Logits [n], clipped, as the first input [n, 1] of a network."""
    return (LOGIT_SCALE * np.clip(logit, -MAX_LOGIT, MAX_LOGIT)).astype(np.float32)[:, None]
