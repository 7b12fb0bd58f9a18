"""The part of a log that a run reads: impressions from ``since`` (inclusive) until ``until`` (exclusive)."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from thinktwice.data.reading import Chunk
from thinktwice.errors import DataError
from thinktwice.schema import LogSchema
from thinktwice.schema.times import FORMS, instant_of
from thinktwice.schema.values import one_array
from thinktwice.validate.parse import log_times


@dataclass(frozen=True)
class Window:
    """Instants in microseconds, None for no border; a time without an offset is local to the zone of the schema."""

    since: int | None
    until: int | None

    def __bool__(self) -> bool:
        return self.since is not None or self.until is not None

    def inside(self, chunk: Chunk, schema: LogSchema) -> Chunk:
        """The rows inside. Rows whose time is missing or cannot be read stay, for the validation to quarantine."""
        assert schema.time.column is not None
        values = one_array(chunk.table.column(schema.time.column))
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        micros = log_times(schema, values).micros
        keep = micros.is_null()
        after = micros >= self.since if self.since is not None else micros.is_not_null()
        before = micros < self.until if self.until is not None else micros.is_not_null()
        keep = keep | (after & before).fill_null(False)
        return Chunk(chunk.table.filter(keep.to_arrow()), chunk.ordinals[keep.to_numpy()], chunk.unparsable)


def window_of(since: str, until: str, schema: LogSchema) -> Window:
    """The window named by ``--since`` and ``--until``; empty texts mean no border.

    Raises:
        DataError: one is not a time, they are in the wrong order, or the log has no clock.
    """
    if not since and not until:
        return Window(None, None)
    if schema.time.column is None:
        raise DataError("--since and --until need times, but the schema's time has the format 'order': leave them out")
    window = Window(_instant("--since", since, schema), _instant("--until", until, schema))
    if window.since is not None and window.until is not None and window.since >= window.until:
        raise DataError(f"--since {since} is not before --until {until}: swap them")
    return window


def _instant(option: str, text: str, schema: LogSchema) -> int | None:
    if not text:
        return None
    try:
        return instant_of(text, schema.zone)
    except ValueError as error:
        raise DataError(f"{option} {text!r} is not a time: write it like {FORMS}") from error
