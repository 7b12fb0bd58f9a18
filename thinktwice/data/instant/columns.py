"""Storage forms of states: bytes, or plain columns of integers and lists of integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.state import State, StateKind, empty_states, state_type
from thinktwice.errors import FeatureStoreError


@dataclass(frozen=True)
class StateColumn:
    """One column of a state: an integer, or with ``length`` a list of that many integers."""

    name: str
    type: Literal["int32", "int64"]
    length: int | None


def state_columns(definition: Definition, kind: StateKind) -> tuple[StateColumn, ...]:
    """The columns of a state. Feature stores have no unsigned integers: uint16 becomes int32, uint32 becomes int64."""
    out = []
    described = state_type(definition, kind)
    for name in described.names or ():
        base, shape = described[name].base, described[name].shape
        narrow = np.can_cast(base, np.int32)
        out.append(StateColumn(name, "int32" if narrow else "int64", shape[0] if shape else None))
    return tuple(out)


def to_columns(states: State) -> dict[str, list[Any]]:
    """Column -> the values of n states: integers, or lists of integers."""
    return {name: states[name].tolist() for name in states.dtype.names or ()}


def from_columns(definition: Definition, kind: StateKind, columns: Mapping[str, Iterable[Any]]) -> State:
    """States [n] from the result of :func:`to_columns`; a state with None in every column is empty.

    Raises:
        FeatureStoreError: a column is missing, or a value does not fit it.
    """
    described = state_type(definition, kind)
    names = described.names or ()
    try:
        cells = [list(columns[name]) for name in names]
        states = empty_states(definition, kind, len(cells[0]))
        for row, values in enumerate(zip(*cells, strict=True)):
            if any(value is not None for value in values):
                for name, value in zip(names, values, strict=True):
                    if np.shape(value) != described[name].shape:
                        raise ValueError(f"{name!r} is of shape {np.shape(value)}, not {described[name].shape}")
                    states[name][row] = value
    except KeyError as error:
        raise FeatureStoreError(f"the {kind} states lack the column {error.args[0]!r}: fill the store again") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise FeatureStoreError(f"the {kind} states cannot be read ({error}): fill the store again") from error
    return states


def to_bytes(states: State) -> list[bytes]:
    """Each of n states as bytes, of the size of :func:`thinktwice.data.instant.state.state_type`."""
    return [state.tobytes() for state in states]


def from_bytes(definition: Definition, kind: StateKind, rows: Iterable[bytes | None], header: bytes = b"") -> State:
    """States [n] from the result of :func:`to_bytes`; None is an empty state.

    Args:
        header: bytes that precede each state.

    Raises:
        FeatureStoreError: the bytes have the length of another definition, or another header.
    """
    described, empty = _stored_form(definition, kind, header)
    filled = [empty if row is None else row for row in rows]
    if wrong := set(map(len, filled)) - {described.itemsize}:
        raise FeatureStoreError(
            f"a {kind} state has {wrong.pop() - len(header)} bytes, its definition "
            f"{described.itemsize - len(header)}: fill the store again"
        )
    if not all(row.startswith(header) for row in filled):
        raise FeatureStoreError(f"a stored value is not a {kind} state: fill the store again")
    return np.frombuffer(bytearray(b"".join(filled)), described)  # a bytearray: the states can be written


@lru_cache(maxsize=16)
def _stored_form(definition: Definition, kind: StateKind, header: bytes) -> tuple[np.dtype[Any], bytes]:
    """The type of a state with its header, and an empty one."""
    bare = state_type(definition, kind)
    names, fields = bare.names or (), dict(bare.fields or {})
    form: dict[str, Any] = {
        "names": list(names),
        "formats": [bare[name] for name in names],
        "offsets": [fields[name][1] + len(header) for name in names],
        "itemsize": bare.itemsize + len(header),
    }
    described: np.dtype[Any] = np.dtype(form) if header else bare  # type: ignore[call-overload]
    return described, header + empty_states(definition, kind)[0].tobytes()
