"""Keys of counters: hashes of ids, slots of crossed values, and the order of outcomes that are known at one instant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xxhash

from thinktwice.data.instant.definition import TIE_BITS, Crossed
from thinktwice.schema.values import spell
from thinktwice.splitmix import mix

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def key_hash(value: str | None) -> int:
    """64-bit hash of a spelled id, 0 for a missing one."""
    return 0 if value is None else xxhash.xxh3_64_intdigest(value.encode()) or 1


def ties(users: Hashes, items: Hashes, times: Ints) -> npt.NDArray[np.int64]:
    """Tie-break between outcomes known at one instant: integers [n] below ``2**TIE_BITS`` from the ids' hashes and the
    impressions' times.

    It depends only on values that are the same in training and in serving, and favours neither clicks nor items.
    """
    mixed = mix(users ^ mix(items ^ times.astype(np.uint64)))
    return (mixed >> np.uint64(64 - TIE_BITS)).astype(np.int64)


def slots_of(crossed: tuple[Crossed, ...], values: Mapping[str, object]) -> tuple[int, ...]:
    """The slot of each crossed field in a row of values of any type that :func:`thinktwice.schema.values.spell` reads; -1 is none."""
    return tuple(c.slot(spell(values.get(c.field))) for c in crossed)
