"""The backend interface, and its reference implementation: eager torch in float32.

Shapes: B or U rows, P paths of a row, N fields, C of them columns, D = dim + 1, n replaceable fields. A backend belongs to one
model, one embedding table (gated or not) and one fill vector per field, which replaces a dropped value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.blocks import FIXED, SIZES, batch_in_blocks, in_blocks, one_thread
from thinktwice.models.fields import FieldSpace
from thinktwice.models.sequences import ListPooling

State = tuple[Tensor, ...]  # what a backend has read of B rows, each [B, ...]

MakeBackend = Callable[[Backbone, Tensor | None, Tensor], "Backend"]  # model, table, fill

CALLS = 64  # calls of one size that are compared


class Backend(ABC):
    """Scores rows of one model.

    Args:
        model: in evaluation mode.
        table: [rows, D], replaces the model's table; None to use the model's.
        fill: [N, D], the vectors of dropped values.
    """

    name: str
    sizes: tuple[int, ...] = FIXED  # block sizes in rows; :func:`verify_sizes` may add more

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor) -> None:
        self.model, self.table, self.fill = model, table, fill

    @abstractmethod
    def read(self, batch: Batch) -> State:
        """Look up the values of B >= 1 rows."""

    def logits(self, state: State, kept: Tensor | None = None) -> Tensor:
        """Logits [B] of B >= 1 rows, in blocks; ``kept`` [B, N] bool says which fields are not dropped."""
        if kept is None:
            return in_blocks(lambda *parts: self.score(parts), *state, sizes=self.sizes)
        return in_blocks(lambda kept, *parts: self.score(parts, kept), kept, *state, sizes=self.sizes)

    @abstractmethod
    def score(self, state: State, kept: Tensor | None = None) -> Tensor:
        """:meth:`logits` of one block."""

    def path_logits(self, state: State, kept: Tensor, mask: Tensor, fields: Tensor, real: Tensor) -> Tensor:
        """Logits [R] of those paths of U >= 1 rows that ``real`` [U, P] bool marks, row by row, in blocks; R >= 1.

        A path drops what ``kept`` [U, N] bool drops, and of ``fields`` [n] what ``mask`` [U, P, n] bool drops.
        """
        row, path = real.nonzero(as_tuple=True)
        kept = kept[row]
        kept[:, fields] &= mask[row, path]
        return self.logits(tuple(part[row] for part in state), kept)


class Embedded(Backend):
    """Reads field vectors x [B, N, D] and scores them with one function of x."""

    def read(self, batch: Batch) -> State:
        return (batch_in_blocks(lambda rows: self.model.embed(rows, self.table), batch, self.sizes),)

    def score(self, state: State, kept: Tensor | None = None) -> Tensor:
        (x,) = state
        return self.dense(x if kept is None else torch.where(kept[..., None], x, self.fill))

    @abstractmethod
    def dense(self, x: Tensor) -> Tensor:
        """Logits [B] of field vectors [B, N, D]."""


class Eager(Embedded):
    """Torch, operation by operation."""

    name = "eager"

    def dense(self, x: Tensor) -> Tensor:
        return self.model.score(x)[:, 0]

    def path_logits(self, state: State, kept: Tensor, mask: Tensor, fields: Tensor, real: Tensor) -> Tensor:
        """See :class:`Backend`; the first layer is updated per path instead of recomputed."""
        x = torch.where(kept[..., None], state[0], self.fill)
        z = in_blocks(lambda x, mask: self.model.score_paths(x, mask, self.fill, fields), x, mask.float())
        return z[real]


def random_rows(model: Backbone, rows: int, seed: int = 0) -> Batch:
    """Rows of uniformly drawn values, unknown values and empty sequences included."""
    generator = torch.Generator().manual_seed(seed)
    fields = model.fields

    def uniform(size: int, width: int) -> Tensor:
        return torch.randint(0, size, (rows, width), generator=generator)

    sequences = {}
    for name, size, length in zip(fields.sequences, fields.values_of_sequences, fields.sequence_lengths, strict=True):
        filled = torch.arange(length) < uniform(length + 1, 1)
        sequences[name] = torch.where(filled, uniform(size, length), 0)
    vectors = {
        name: torch.randn(rows, dim, generator=generator)
        for name, dim in zip(fields.vectors, fields.vector_dims, strict=True)
    }
    ids = torch.cat([uniform(size, 1) for size in fields.num_values], dim=1)
    counters = _random_counters(fields, rows, generator)
    weights = {
        name: torch.rand(sequences[name].shape, generator=generator).clamp_min(0.01) * (sequences[name] != 0)
        for name in fields.weighted
    }
    return Batch(ids, sequences, vectors, counters, weights)


def _random_counters(fields: FieldSpace, rows: int, generator: torch.Generator) -> Tensor | None:
    """Counters [rows, K] around their means, a tenth of them unknown, and all of every tenth row."""
    if fields.counters is None:
        return None
    values = torch.randn(rows, len(fields.counters.means), generator=generator) * torch.tensor(fields.counters.sds)
    values += torch.tensor(fields.counters.means)
    values[torch.rand(values.shape, generator=generator) < 0.1] = torch.nan
    values[9::10] = torch.nan
    return values


def largest_rows(model: Backbone) -> Batch:
    """Two rows with the largest-weight value of each column: one without sequences, vectors and counters, one with full
    ones."""
    fields = model.fields
    worst = [int(part.argmax()) for part in _sizes(model.embedding.table).split(list(fields.num_values))]
    places = dict(zip(fields.columns, worst, strict=True))
    for encoder in model.embedding.sequences:
        if isinstance(encoder, ListPooling):
            places[encoder.name] = 1 + int(_sizes(encoder.values)[1:].argmax()) if len(encoder.values) > 1 else 0
    sequences = {
        name: torch.tensor([[0] * length, [places[of]] * length])
        for name, of, length in zip(fields.sequences, fields.sequence_of, fields.sequence_lengths, strict=True)
    }
    vectors = {
        name: torch.stack([torch.full((dim,), torch.nan), torch.ones(dim)])
        for name, dim in zip(fields.vectors, fields.vector_dims, strict=True)
    }
    counters = None
    if fields.counters is not None:
        counters = torch.full((2, len(fields.counters.means)), torch.finfo(torch.float32).max)
        counters[0] = torch.nan
    weights = {name: (sequences[name] != 0).float() for name in fields.weighted}
    return Batch(torch.tensor([worst, worst]), sequences, vectors, counters, weights)


def _sizes(table: Tensor) -> Tensor:
    """The largest magnitude in each row."""
    low, high = torch.aminmax(table.detach(), dim=1)
    return torch.maximum(-low, high)


def verify_sizes(backend: Backend) -> bool:
    """Let the backend use every block size that gives rows the same bits as :data:`FIXED` on this machine.

    Returns False and changes nothing if a row's bits depend on its position even in blocks of that size.

    A kernel's order of summation depends on the shape and not on the numbers. Random rows, whose bits would differ under any
    other order, are therefore a sufficient test.
    """
    with torch.inference_mode(), one_thread():
        return _verified(backend)


def _verified(backend: Backend) -> bool:
    batch = random_rows(backend.model, max(SIZES))

    def same(size: int) -> bool:
        rows = batch.select(slice(0, min(max(SIZES), CALLS * size)))
        backend.sizes = (size,)
        return torch.equal(backend.logits(backend.read(rows)), expected[: len(rows)])

    backend.sizes = FIXED
    expected = backend.logits(backend.read(batch))
    turned = batch.select(torch.arange(-3, len(batch) - 3))  # every row at another position
    if not torch.equal(backend.logits(backend.read(turned)).roll(-3), expected):
        return False
    backend.sizes = tuple(size for size in SIZES if size in FIXED or same(size))
    return True
