"""Vocabularies: the values of a field that have an index, in the order of their indices, and the file that contains them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from thinktwice.data.training_set_info import CutVocabulary
from thinktwice.files import atomic_file
from thinktwice.schema import Cross, LogField
from thinktwice.schema.values import as_series, spelled

NULL = "\u0000null"  # a missing categorical value is a value like any other if it occurred in training
VOCABULARY_FILE = "vocabularies.arrow"
_COLUMNS = pa.schema([("field", pa.string()), ("value", pa.string())])


def value_counts(column: pa.ChunkedArray) -> pl.DataFrame:
    """The values of a column or of its lists and how often each occurs, most frequent first."""
    values = as_series(column)
    if isinstance(values.dtype, pl.List):
        words = values.explode(empty_as_null=True, keep_nulls=True).drop_nulls()
    else:
        words = spelled(column).fill_null(NULL)
    counts = pl.DataFrame({"value": words}, schema={"value": pl.String}).group_by("value").len()
    return counts.sort(["len", "value"], descending=[True, False])


def continued(
    counts: pl.DataFrame, field: LogField | Cross | None, earlier: list[str]
) -> tuple[list[str], CutVocabulary | None]:
    """The values that get an index: the ``earlier`` ones in their order, then new ones within the limits of the field. And what the
    limits have cut."""
    known = pl.col("value").is_in(pl.Series(earlier, dtype=pl.String).implode())
    new = kept = counts.filter(~known) if earlier else counts
    if field is not None:
        room = new.height if field.max_values is None else max(0, field.max_values - len(earlier))
        kept = new.filter(pl.col("len") >= field.min_count).head(room)
    if kept.height == new.height:
        return earlier + kept["value"].to_list(), None
    total = int(counts["len"].sum())
    lost = int(new["len"].sum()) - int(kept["len"].sum())
    limited = CutVocabulary(kept=len(earlier) + kept.height, cut=new.height - kept.height, share=lost / total)
    return earlier + kept["value"].to_list(), limited


def write_vocabularies(path: Path, vocabularies: Mapping[str, list[str]]) -> None:
    """Write the values by field."""
    names = [name for name, values in vocabularies.items() for _ in values]
    words = [word for values in vocabularies.values() for word in values]
    table = pa.table([pa.array(names, pa.string()), pa.array(words, pa.string())], schema=_COLUMNS)
    with atomic_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def read_vocabularies(path: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Values by field, in the order of the file."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        if file.schema.remove_metadata() != _COLUMNS:
            raise ValueError("it does not have the columns 'field' and 'value' of strings")
        table = file.read_all()
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
        out: dict[str, list[str]] = {name: [] for name in names}
        for name, word in zip(table["field"].to_pylist(), table["value"].to_pylist(), strict=True):
            if name not in out:
                raise ValueError(f"it contains values of the unknown field {name!r}")
            out[name].append(word)
    for name, words in out.items():
        if len(set(words)) < len(words):
            raise ValueError(f"a value of {name!r} appears twice")
    return out
