"""Encoder from clean values to model indices, fitted on the training part only and stored in the bundle."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from thinktwice.data.crosses import CrossIndex, pair_counts
from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.encoder_file import ENCODER_FILE as ENCODER_FILE
from thinktwice.data.encoder_file import FORMAT, EncoderFile
from thinktwice.data.list_columns import encode_lists, stack_vectors, with_shares
from thinktwice.data.sides import Side, join
from thinktwice.data.training_set_info import CutVocabulary
from thinktwice.data.vocabulary import NULL as NULL
from thinktwice.data.vocabulary import VOCABULARY_FILE as VOCABULARY_FILE
from thinktwice.data.vocabulary import continued, read_vocabularies, value_counts, write_vocabularies
from thinktwice.errors import BundleError, DataError, reason
from thinktwice.files import read_json, write_json
from thinktwice.schema import EVENT_TIME, LABEL, Cross, LogField, LogSchema, ModelField
from thinktwice.schema.fields import ROW_WEIGHT, fields_of_rows
from thinktwice.schema.numbers import borders, number, numbers
from thinktwice.schema.values import as_series, spell, spelled


def canonical(value: Any) -> str:
    """A categorical value as stored in vocabularies: its spelling (:func:`thinktwice.schema.values.spell`), or :data:`NULL`
    for a missing one."""
    return spell(value) or NULL


def hash_user(value: str | None) -> int:
    """Stable 63-bit hash of a user id, for grouping rows by user; -1 for no user."""
    return -1 if value is None else xxhash.xxh3_64_intdigest(value.encode()) >> 1


@dataclass(frozen=True)
class _SidePlan:
    """How some fields are encoded: their columns; position among these, name and index (None for a number) of the fields with values;
    position, cross and positions of the two parents of the crosses; and the sequences and vectors."""

    columns: tuple[int, ...]
    values: tuple[tuple[int, str, Mapping[str, int] | None], ...]
    crosses: tuple[tuple[int, CrossIndex, int, int], ...]
    sequences: tuple[ModelField, ...]
    vectors: tuple[ModelField, ...]


class Encoder:
    """Vocabularies and bucket bounds of one model.

    Attributes:
        fields: all model fields in order.
        row_fields: what a row has values of: the fields without crosses, which are computed from them, and the weights of lists.
        columns: the categorical and numeric ones; column c of ``ids`` is ``columns[c]``.
        num_values: indices per column, the unknown index 0 included.
        cut: vocabularies that ``min_count`` or ``max_values`` has limited; of an encoder just fitted, empty for a stored one.
        widens: float32 and float16 values are widened to float64 before they are read, as earlier versions did in training;
            otherwise they are read as their shortest decimal form.
    """

    def __init__(
        self,
        fields: tuple[ModelField, ...],
        user_key: str | None,
        vocabularies: dict[str, list[str]],
        bounds: dict[str, np.ndarray],
        *,
        widens: bool = False,
    ) -> None:
        self.widens = widens
        self.cut: dict[str, CutVocabulary] = {}
        self.fields = fields
        self.row_fields = fields_of_rows(fields)
        self.user_key = user_key
        self.columns = tuple(f for f in fields if f.kind in ("categorical", "numeric"))
        self.sequences = tuple(f for f in fields if f.kind == "sequence")
        self.vectors = tuple(f for f in fields if f.kind == "vector")
        self.bounds = bounds
        self._borders = {name: values.tolist() for name, values in bounds.items()}
        self._values = vocabularies
        self._index = {n: {v: i + 1 for i, v in enumerate(values)} for n, values in vocabularies.items()}
        self.num_values = tuple(
            len(vocabularies[f.name]) + 1 if f.kind == "categorical" else len(bounds[f.name]) + 2 for f in self.columns
        )
        self._plans: dict[frozenset[str], _SidePlan] = {}
        place = {f.name: c for c, f in enumerate(self.columns)}
        self.crosses = tuple(
            CrossIndex.of(
                place[f.name],
                (place[f.crossed[0]], place[f.crossed[1]]),
                vocabularies[f.name],
                self._index[f.crossed[0]],
                self._index[f.crossed[1]],
            )
            for f in self.columns
            if f.crossed
        )

    @staticmethod
    def fit(table: pa.Table, schema: LogSchema, before: Encoder | None = None) -> Encoder:
        """Learn vocabularies (most frequent value first) and bucket bounds from the rows of ``table``.

        Bounds are midway between two neighbouring values, see :func:`thinktwice.schema.numbers.borders`.

        Args:
            before: an encoder of the same fields to continue. Its values keep their indices, whatever the limits of the schema, and
                new ones follow them; its bounds are kept.
        """
        fields = schema.model_fields_in_order()
        described: dict[str, LogField | Cross] = {f.name: f for f in schema.fields}
        described |= {cross.name: cross for cross in schema.crosses}
        vocabularies: dict[str, list[str]] = {}
        bounds: dict[str, np.ndarray] = {}
        cut: dict[str, CutVocabulary] = {}
        for f in fields:
            if f.crossed:
                vocabularies[f.name] = []  # below, from the other fields
            elif f.kind == "categorical" or f.has_own_values:
                counts = value_counts(table[f.name])
                if f.origin == "key":  # a row without an id has the vector of an unknown one
                    counts = counts.filter(pl.col("value") != NULL)
                earlier = [] if before is None else before._values[f.name]
                vocabularies[f.name], lost = continued(counts, described.get(f.name), earlier)
                if lost is not None:
                    cut[f.name] = lost
            elif f.kind == "numeric" and before is not None:
                bounds[f.name] = before.bounds[f.name]
            elif f.kind == "numeric":
                bounds[f.name] = _bounds(
                    numbers(table[f.name]).drop_nulls().to_numpy(), described.get(f.name), f.buckets
                )
        encoder = Encoder(fields, schema.key_of("user"), vocabularies, bounds)
        if encoder.crosses:
            ids = encoder.encode_table(table).ids
            for one in encoder.crosses:
                a, b = one.parents
                name, parents = encoder.columns[one.column].name, (encoder.columns[a].name, encoder.columns[b].name)
                counts = pair_counts(ids[:, a], ids[:, b], (vocabularies[parents[0]], vocabularies[parents[1]]))
                earlier = [] if before is None else before._values[name]
                vocabularies[name], lost = continued(counts, described[name], earlier)
                if lost is not None:
                    cut[name] = lost
            encoder = Encoder(fields, schema.key_of("user"), vocabularies, bounds)
        encoder.cut = cut
        return encoder

    def continues(self, before: Encoder) -> bool:
        """Whether every value and every bucket of an encoder of the same fields has the same index here."""
        return all(self._values[name][: len(values)] == values for name, values in before._values.items()) and all(
            np.array_equal(self.bounds[name], values) for name, values in before.bounds.items()
        )

    @property
    def list_values(self) -> tuple[int, ...]:
        """Indices of each field of kind list, in order, the index 0 of padding included."""
        return tuple(len(self._values[f.name]) + 1 for f in self.sequences if f.has_own_values)

    def column_of(self, name: str | None) -> int | None:
        """The column of a categorical or numeric field in ``ids``; None for other names."""
        return next((c for c, f in enumerate(self.columns) if f.name == name), None)

    def value_of(self, name: str, index: int) -> str | None:
        """The value of an index of a categorical field, None for unknown."""
        return None if index == 0 else self._values[name][index - 1]

    def values_of(self, name: str) -> tuple[str, ...]:
        """All values of a categorical field in training, without the missing value; empty for other fields."""
        return tuple(v for v in self._values.get(name, ()) if v != NULL)

    def index_of(self, name: str, value: Any) -> int:
        """The index of a value of a categorical field, 0 for unknown."""
        return self._index[name].get(canonical(value), 0)

    def encode_table(self, table: pa.Table) -> EncodedRows:
        """Encode clean rows; columns that the model does not use are ignored. Labels and times may be absent."""
        rows = table.num_rows
        ids = np.zeros((rows, len(self.columns)), np.int32)
        for c, f in enumerate(self.columns):
            if f.crossed:
                continue
            column = self.widened(table[f.name])
            if f.kind == "categorical":
                ids[:, c] = self._lookup(f.name, spelled(column).fill_null(NULL))
            else:
                ids[:, c] = self._bucket(f.name, numbers(column).fill_null(math.nan).to_numpy())
        for cross in self.crosses:
            cross.fill(ids)
        sequences, weights = {}, {}
        for f in self.sequences:
            given = table[f.weights] if f.weights else None
            sequences[f.name], of_elements = self._encode_list(f, table[f.name], given)
            if of_elements is not None:
                weights[f.name] = of_elements
        vectors = {f.name: stack_vectors(as_series(table[f.name]), f.dim) for f in self.vectors}
        label = as_series(table[LABEL]).to_numpy().astype(np.float32) if LABEL in table.column_names else None
        time = as_series(table[EVENT_TIME]).dt.epoch("us") if EVENT_TIME in table.column_names else None
        weight = as_series(table[ROW_WEIGHT]).to_numpy() if ROW_WEIGHT in table.column_names else None
        return EncodedRows(
            ids,
            sequences,
            vectors,
            np.zeros(rows, np.float32) if label is None else label,
            self._hash_users(table),
            np.zeros(rows, np.int64) if time is None else time.to_numpy().astype(np.int64),
            weight=None if weight is None else weight.astype(np.float32),
            weights=weights,
        )

    def widened(self, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """float32 and float16 values as this encoder reads them (see :attr:`widens`); other arrays as they are."""
        narrow = pa.types.is_float32(values.type) or pa.types.is_float16(values.type)
        return values.cast(pa.float64()) if self.widens and narrow else values

    def _plain(self, value: Any) -> Any:
        return float(value) if self.widens and isinstance(value, (np.float32, np.float16)) else value

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Encode request rows, one mapping per row; an absent field is a missing value."""
        import torch

        side = self.encode_side(rows, [f.name for f in self.fields])
        return Batch(
            torch.from_numpy(side.ids),
            {name: torch.from_numpy(block) for name, block in side.sequences.items()},
            {name: torch.from_numpy(block) for name, block in side.vectors.items()},
            weights={name: torch.from_numpy(block) for name, block in side.weights.items()},
        )

    def encode_side(self, rows: Sequence[Mapping[str, Any]], names: Collection[str]) -> Side:
        """Encode the fields ``names`` of some rows; other values in the rows are ignored. A cross is left out, unless its two fields are
        among the names: :meth:`join` adds it."""
        plan = self._plan(names if isinstance(names, frozenset) else frozenset(names))
        ids = np.empty((len(rows), len(plan.columns)), np.int64)
        for position, name, index in plan.values:
            if index is not None:
                ids[:, position] = [
                    index.get(v if type(v := row.get(name)) is str and v else canonical(self._plain(v)), 0)
                    for row in rows
                ]
            else:
                values = [v if type(v := row.get(name)) is float else self._number(v) for row in rows]
                if len(values) == 1:  # as of the user of a request
                    ids[0, position] = 0 if values[0] != values[0] else bisect_right(self._borders[name], values[0]) + 1
                else:
                    ids[:, position] = self._bucket(name, np.asarray(values, np.float64))
        for position, cross, a, b in plan.crosses:
            ids[:, position] = cross.index(ids[:, a], ids[:, b])
        sequences, weights = {}, {}
        for f in plan.sequences:
            if f.weights:
                sequences[f.name], weights[f.name] = self._encode_weighted(f, rows)
                continue
            index, block = self._index[f.of], np.zeros((len(rows), f.length), np.int64)
            for r, row in enumerate(rows):
                # Cut as a log is: to the newest values that are not missing, known or not.
                given = row.get(f.name)
                words = (v if type(v) is str else spell(self._plain(v)) for v in (() if given is None else given))
                known = [i for word in islice(filter(None, words), f.length) if (i := index.get(word, 0))]
                block[r, : len(known)] = known
            sequences[f.name] = block
        vectors = {}
        for f in plan.vectors:
            matrix = np.full((len(rows), f.dim), np.nan, np.float32)
            for r, row in enumerate(rows):
                value = row.get(f.name)
                if value is not None and len(value) == f.dim:
                    matrix[r] = value
            vectors[f.name] = matrix
        return Side(plan.columns, ids, sequences, vectors, weights)

    def _plan(self, names: frozenset[str]) -> _SidePlan:
        """What :meth:`encode_side` does for these names, found once."""
        plan = self._plans.get(names)
        if plan is None:
            columns = [
                c for c, f in enumerate(self.columns) if f.name in names and all(name in names for name in f.crossed)
            ]
            place = {c: position for position, c in enumerate(columns)}
            plan = self._plans[names] = _SidePlan(
                tuple(columns),
                tuple(
                    (place[c], f.name, self._index[f.name] if f.kind == "categorical" else None)
                    for c in columns
                    if not (f := self.columns[c]).crossed
                ),
                tuple(
                    (place[cross.column], cross, place[cross.parents[0]], place[cross.parents[1]])
                    for cross in self.crosses
                    if cross.column in place
                ),
                tuple(f for f in self.sequences if f.name in names),
                tuple(f for f in self.vectors if f.name in names),
            )
        return plan

    def _encode_weighted(self, f: ModelField, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Indices [n, L] and weights [n, L] of a list with weights. Elements that are unknown, missing or of weight 0 are left out."""
        index = self._index[f.of]
        block, given = np.zeros((len(rows), f.length), np.int64), np.zeros((len(rows), f.length))
        for r, row in enumerate(rows):
            words, weights = row.get(f.name), row.get(f.weights)
            words = () if words is None else words
            weights = (1.0,) * len(words) if weights is None or len(weights) == 0 else weights
            if len(weights) != len(words):
                raise DataError(
                    f"row {r}: {f.weights!r} has {len(weights)} weights for {len(words)} elements of {f.name!r}: "
                    "give one for each element, or none"
                )
            position = 0
            for word, weight in zip(words, weights, strict=True):
                i = index.get(word if type(word) is str else spell(self._plain(word)) or "", 0)
                if i and weight > 0 and position < f.length:
                    block[r, position], given[r, position] = i, weight
                    position += 1
        return with_shares(block, given)

    def join(self, shared: Side, own: Side) -> Batch:
        """The batch of n rows: the one row of ``shared`` joined with each of the n rows of ``own``, which together have all fields."""
        present = {*shared.columns, *own.columns}
        return join(shared, own, tuple(cross for cross in self.crosses if cross.column not in present))

    def save(self, folder: Path | str) -> None:
        """Write ``encoder.json`` and ``vocabularies.arrow`` into ``folder``."""
        folder = Path(folder)
        write_vocabularies(folder / VOCABULARY_FILE, self._values)
        write_json(
            folder / ENCODER_FILE,
            {
                "format": 1 if self.widens else FORMAT,
                "fields": [f.model_dump() for f in self.fields],
                "user_key": self.user_key,
                "vocabulary_fields": list(self._values),
                "bounds": {n: [float(b) for b in values] for n, values in self.bounds.items()},
            },
        )

    @staticmethod
    def load(folder: Path | str) -> Encoder:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: a file is missing, damaged, or the two do not fit each other.
        """
        folder = Path(folder)
        try:
            value = read_json(folder / ENCODER_FILE)
            if (
                isinstance(value, dict)
                and type(written := value.get("format", 1)) is int
                and written not in (1, FORMAT)
            ):
                raise BundleError(
                    f"encoder in {folder} is of format {written!r}, this version reads 1 and {FORMAT}: upgrade"
                )
            content = EncoderFile.model_validate(value)
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder / ENCODER_FILE} cannot be read ({reason(error)}): build it again") from error
        try:
            vocabularies = read_vocabularies(folder / VOCABULARY_FILE, content.vocabulary_fields)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BundleError(f"{folder / VOCABULARY_FILE} cannot be read ({reason(error)}): build it again") from error
        bounds = {name: np.asarray(values, np.float64) for name, values in content.bounds.items()}
        try:
            return Encoder(content.fields, content.user_key, vocabularies, bounds, widens=content.format == 1)
        except ValueError as error:
            raise BundleError(f"{folder / VOCABULARY_FILE} cannot be read ({reason(error)}): build it again") from error

    def _number(self, value: Any) -> float:
        parsed = number(self._plain(value))
        return math.nan if parsed is None else parsed

    def _lookup(self, name: str, values: pl.Series) -> np.ndarray:
        words = pl.DataFrame(
            {
                "value": pl.Series(self._values[name], dtype=pl.String),
                "index": np.arange(1, len(self._values[name]) + 1),
            }
        )
        joined = values.alias("value").to_frame().join(words, on="value", how="left", maintain_order="left")
        return joined["index"].fill_null(0).to_numpy().astype(np.int32)

    def _bucket(self, name: str, values: np.ndarray) -> np.ndarray:
        index = np.searchsorted(self.bounds[name], values, side="right") + 1
        index[np.isnan(values)] = 0
        return index.astype(np.int32)

    def _encode_list(
        self, f: ModelField, column: pa.ChunkedArray, weights: pa.ChunkedArray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return encode_lists(f, column, weights, self.widened, lambda values: self._lookup(f.of, values))

    def _hash_users(self, table: pa.Table) -> np.ndarray:
        if self.user_key is None or self.user_key not in table.column_names:
            return np.full(table.num_rows, -1, np.int64)
        users = spelled(table[self.user_key])
        unique = users.unique()
        hashed = pl.DataFrame({"user": unique, "hash": pl.Series([hash_user(u) for u in unique], dtype=pl.Int64)})
        joined = (
            users.alias("user").to_frame().join(hashed, on="user", how="left", maintain_order="left", nulls_equal=True)
        )
        return joined["hash"].to_numpy().astype(np.int64)


def _bounds(values: np.ndarray, field: LogField | Cross | None, buckets: int) -> np.ndarray:
    """Bucket bounds of a numeric field: given, of equal width on a logarithmic scale, or of quantiles."""
    if not isinstance(field, LogField):
        return borders(values, buckets)
    if field.boundaries is not None:
        return np.asarray(field.boundaries, np.float64)
    if field.scale == "quantiles" or not len(values):
        return borders(values, buckets)
    low, high = (float(np.sign(v) * np.log1p(abs(v))) for v in (values.min(), values.max()))
    steps = np.linspace(low, high, buckets + 1)[1:-1]
    return np.unique(np.sign(steps) * np.expm1(np.abs(steps)))
