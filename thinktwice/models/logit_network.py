"""A small network that changes logits and gives a row the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinktwice.models.blocks import BASE_ROWS, ESCALATED_ROWS, FIXED, in_blocks, one_thread

Floats = npt.NDArray[np.float32]
Forward = Callable[..., Tensor]
HIDDEN = (64, 32)
NAMES = tuple(f"{kind}{layer}" for layer in range(len(HIDDEN) + 1) for kind in ("weight", "bias"))
MAX_LOGIT = 8.0  # logits are clipped to this magnitude before they enter the network
LOGIT_SCALE = 0.5
STEP = 4
SIZES = tuple(range(STEP, BASE_ROWS + 1, STEP))  # numbers of rows of a call
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

    def __call__(self, inputs: Floats, rest: Floats | None = None) -> npt.NDArray[np.float64]:
        """Changes [n] of the logits of rows with these inputs [n, F]. ``rest`` [n, I - F] are the remaining inputs, None if they
        are all 0: a row has the same bits with and without zeros."""
        if len(inputs) == 0 or self.is_zero:
            return np.zeros(len(inputs))
        return self.changes(*(np.ascontiguousarray(part) for part in (inputs, rest) if part is not None)).astype(
            np.float64
        )

    def changes(self, *parts: Floats) -> Floats:
        """Changes [n] float32 of the logits of n >= 1 rows with these contiguous inputs [n, F], followed by the remaining inputs [n, I
        - F] unless they are all 0."""
        first, tensors = parts[0].shape[1], map(torch.from_numpy, parts)
        forward = self._forwards.get(first) or self._forward(first)
        if torch.is_inference_mode_enabled() and torch.get_num_threads() == 1:  # within an engine
            return np.asarray(forward(*tensors).numpy())
        with torch.inference_mode(), one_thread():
            return np.asarray(forward(*tensors).numpy())

    def _forward(self, first: int) -> Forward:
        """The computation for rows whose first ``first`` inputs are given separately: matrix products in blocks of the sizes that
        give a row the same bits on this machine. If even blocks of one size give different bits at different positions: sums in
        a fixed order, which are thirty times slower."""
        if first not in self._forwards:
            with torch.inference_mode(), one_thread():
                candidates = (partial(self._in_blocks, sizes=sizes) for sizes in (_sizes(self.width, first), FIXED))
                self._forwards[first] = next((f for f in candidates if self.same_bits(f, first)), self._in_order)
        return self._forwards[first]

    @cached_property
    def _forwards(self) -> dict[int, Forward]:
        return {}

    def same_bits(self, forward: Forward, first: int) -> bool:
        """Whether ``forward`` gives random rows the same bits at other positions, in smaller calls and alone, and without
        inputs after the ``first`` that are 0.

        A kernel's order of summation depends on shapes and positions and not on the numbers, so random rows are a sufficient
        test.
        """
        rows = _random_rows(self.width)

        def computed(part: Tensor) -> Tensor:
            return forward(part[:, :first].contiguous(), part[:, first:].contiguous())

        expected = computed(rows)
        turned = all(torch.equal(computed(rows.roll(n, 0)).roll(-n), expected) for n in (1, 3, 8, 61))
        smaller = all(
            torch.equal(torch.cat([computed(part) for part in rows.split(size)]), expected)
            for size in (31, ESCALATED_ROWS, 100)
        )
        alone = all(torch.equal(computed(rows[n : n + 1]), expected[n : n + 1]) for n in (0, 1, 77, 127))
        rows[::2, first:] = 0
        zeros = torch.equal(computed(rows)[::2], forward(rows[::2, :first].contiguous()))
        return turned and smaller and alone and zeros

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.array(a)) for a in self.arrays)

    def _in_blocks(self, *parts: Tensor, sizes: tuple[int, ...] = FIXED) -> Tensor:
        if len(parts[0]) in sizes:
            return self._block(*parts)
        return in_blocks(self._block, *parts, sizes=sizes)

    def _block(self, x: Tensor, rest: Tensor | None = None) -> Tensor:
        _, b0, w1, b1, w2, b2 = self._tensors
        start, end = self._split(x.shape[1])
        hidden = torch.addmm(b0, x, start)
        if rest is not None:
            hidden.addmm_(rest, end)
        hidden = torch.addmm(b1, hidden.relu_(), w1).relu_()
        return torch.addmm(b2, hidden, w2).view(-1)

    def _split(self, first: int) -> tuple[Tensor, Tensor]:
        """The weights of the first ``first`` inputs and of the others; kept, because a slice takes as long as a small product."""
        if first not in self._splits:
            weights = self._tensors[0]
            self._splits[first] = weights[:first], weights[first:]
        return self._splits[first]

    @cached_property
    def _splits(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}

    def _in_order(self, *parts: Tensor) -> Tensor:
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for layer in range(len(HIDDEN) + 1):
            weight, bias = self._tensors[2 * layer : 2 * layer + 2]
            out = bias.repeat(len(x), 1)
            for column in range(x.shape[1]):
                out += x[:, column, None] * weight[column]
            x = out.relu() if layer < len(HIDDEN) else out
        return x[:, 0]


@lru_cache
def _sizes(width: int, first: int) -> tuple[int, ...]:
    """Those of :data:`SIZES` whose products give a row of a network the same bits as those of the largest blocks.

    Bits depend on the machine and on the numbers of inputs, and not on the weights.
    """
    network, rows = _random_network(width), _random_rows(width)
    rows = torch.cat([rows, rows.roll(61, 0)])
    ahead, rest = rows[:, :first].contiguous(), rows[:, first:].contiguous()
    expected = [network._in_blocks(*parts, sizes=FIXED) for parts in ((ahead, rest), (ahead,))]

    def same(size: int) -> bool:
        number = len(rows) // size * size
        return all(
            torch.equal(network._in_blocks(*(part[:number] for part in parts), sizes=(size,)), out[:number])
            for parts, out in zip(((ahead, rest), (ahead,)), expected, strict=True)
        )

    return tuple(size for size in SIZES if size in FIXED or same(size))


def _random_network(width: int) -> Network:
    generator, widths = torch.Generator().manual_seed(1), (width, *HIDDEN, 1)
    shapes = [shape for rows, columns in pairwise(widths) for shape in ((rows, columns), (columns,))]
    return Network(tuple(torch.randn(shape, generator=generator).numpy() for shape in shapes))


def _random_rows(width: int) -> Tensor:
    """Inputs of blocks of rows, to check the kernels of this machine with."""
    return torch.randn(PROBED_BLOCKS * BASE_ROWS, width, generator=torch.Generator().manual_seed(0))


def padded_rows(rows: int) -> int:
    """The next number of rows that a call computes: inputs of so many rows, the last ones 0, are not copied."""
    return -(-rows // STEP) * STEP


def logit_input(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Logits [n] as the first input of a network: clipped and scaled."""
    return LOGIT_SCALE * np.minimum(np.maximum(logit, -MAX_LOGIT), MAX_LOGIT)  # np.clip takes twice as long
