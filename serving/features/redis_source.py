"""Online features read directly from Feast's layout in Redis, several times faster than through the SDK.

All views of an entity are stored in one hash. Its key is Feast's serialization of the entity key (version 3) and the project; its
fields are the murmur3 hash of ``view:feature``, each with a protobuf value, and ``_ts:view`` with the time of the view's row. So one
HMGET per id fetches everything, and all ids go in one pipeline. Small reads run in the caller's thread over an open connection,
because only connecting can take unbounded time. The layout is that of the pinned Feast version: every source compares its keys with
Feast's when it is created.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.features.lookup import Entity, FeatureRow
from thinktwice.data.feature_tables import table_specs
from thinktwice.errors import FeatureStoreError
from thinktwice.schema import LogSchema

STRING = 2  # Feast's enum value of the type
SELF_CHECK = "ä b"
MAX_SMALL_READ = 8  # ids whose answers arrive in one packet
OPEN = 4  # connections kept open for small reads
REST_OF_ANSWER = 0.05  # seconds for the rest of an answer after its first bytes arrived
TRY_AGAIN = 10.0  # seconds to wait after a connection could not be opened


class RedisSource:
    """Reads the hashes that Feast writes.

    Args:
        store: an open Feast store whose online store is Redis; its connection is used.
        schema: defines the views and their features.

    Raises:
        FeatureStoreError: the store is not Redis, or the installed Feast has another key layout.
    """

    def __init__(self, store: Any, schema: LogSchema) -> None:
        from feast.infra.online_stores.helpers import _mmh3
        from feast.infra.online_stores.redis import RedisOnlineStore
        from feast.protos.feast.types.Value_pb2 import Value
        from google.protobuf.timestamp_pb2 import Timestamp

        online = store._get_provider().online_store
        if not isinstance(online, RedisOnlineStore):
            raise FeatureStoreError(
                f"the online store is {type(online).__name__}, not Redis: use the feature reader 'snapshot' or 'feast'"
            )
        self._client = online._get_client(store.config.online_store)
        self._open: list[Any] = []  # idle connections; appended to and popped from by any thread
        self._open_from = 0.0  # monotonic time before which no connection is opened
        self._value, self._timestamp = Value, Timestamp
        self._project = store.project.encode()
        self._prefix: dict[Entity, bytes] = {}
        self._fields: dict[Entity, list[bytes]] = {"user": [], "item": []}
        self._names: dict[Entity, tuple[str, ...]] = {"user": (), "item": ()}
        times: dict[Entity, list[bytes]] = {"user": [], "item": []}
        for spec in table_specs(schema):
            self._prefix[spec.entity] = _prefix(spec.key)
            self._fields[spec.entity] += [_mmh3(f"{spec.name}:{name}") for name in spec.features]
            self._names[spec.entity] += spec.features
            times[spec.entity].append(f"_ts:{spec.name}".encode())
            self._check_layout(spec.key, spec.entity)
        for entity in times:
            self._fields[entity] += times[entity]

    def names(self, entity: Entity) -> tuple[str, ...]:
        """See :class:`serving.features.lookup.FeatureSource`."""
        return self._names[entity]

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        """See :class:`serving.features.lookup.FeatureSource`; the time limit is that of the connection."""
        from redis import RedisError

        names = self._names[entity]
        if not names:
            return [FeatureRow({})] * len(ids)
        fields = self._fields[entity]
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for value in ids:
                    pipe.hmget(self._key(entity, value), fields)
                answers = pipe.execute()
        except RedisError as error:
            raise FeatureStoreError(f"the online store does not answer for {entity} features ({error})") from error
        self._connect_one()
        return [self._row_of(names, answer) for answer in answers]

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """See :class:`serving.features.counters.StateSource`."""
        from feast.infra.online_stores.helpers import _mmh3
        from redis import RedisError

        prefix, names = _prefix(key), [_mmh3(f"{view}:{name}") for view, name in fields]
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for value in ids:
                    text = value.encode()
                    pipe.hmget(prefix + struct.pack("<II", STRING, len(text)) + text + self._project, names)
                answers = pipe.execute()
        except RedisError as error:
            raise FeatureStoreError(f"the online store does not answer for {fields[0][0]} ({error})") from error
        return [[None if raw is None else self._decoded(raw) for raw in answer] for answer in answers]

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> list[FeatureRow] | None:
        """See :class:`serving.features.lookup.BoundedSource`; None for many ids, and while no connection is open.

        A partial answer times out :data:`REST_OF_ANSWER` after its last packet, which may be later than ``timeout``; answers to so
        few ids arrive in one packet.
        """
        from redis import RedisError

        names = self._names[entity]
        if not names:
            return [FeatureRow({})] * len(ids)
        if len(ids) > MAX_SMALL_READ or not self._open:
            return None
        try:
            connection = self._open.pop()
        except IndexError:  # another thread was faster
            return None
        end, fields = time.monotonic() + timeout, self._fields[entity]
        try:
            commands = [("HMGET", self._key(entity, value), *fields) for value in ids]
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers = []
            for _ in ids:
                if not connection.can_read(max(end - time.monotonic(), 0.0)):
                    raise TimeoutError
                answers.append(connection.read_response())
        except TimeoutError:
            connection.disconnect()  # a late answer would be read as the answer to the next command
            raise
        except RedisError:  # the server closed the connection
            connection.disconnect()
            return None
        self._open.append(connection)
        return [self._row_of(names, answer) for answer in answers]

    def close(self) -> None:
        """Close the connections."""
        while self._open:
            self._open.pop().disconnect()
        self._client.close()

    def _connect_one(self) -> None:
        """Open one more connection for :meth:`fetch_within`; not for a cluster, which has no single address."""
        from redis import RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        pool = getattr(self._client, "connection_pool", None)
        if pool is None or len(self._open) >= OPEN or time.monotonic() < self._open_from:
            return
        try:
            once = {
                "socket_timeout": REST_OF_ANSWER,
                "retry": Retry(NoBackoff(), 0),
            }  # a lookup waits for this connection
            connection = pool.connection_class(**{**pool.connection_kwargs, **once})
            connection.connect()
        except RedisError:  # lookups continue with the client's own connections
            self._open_from = time.monotonic() + TRY_AGAIN
            return
        self._open.append(connection)

    def _key(self, entity: Entity, value: str) -> bytes:
        text = value.encode()
        return self._prefix[entity] + struct.pack("<II", STRING, len(text)) + text + self._project

    def _row_of(self, names: tuple[str, ...], answer: list[bytes | None]) -> FeatureRow:
        values = {name: None if raw is None else self._decoded(raw) for name, raw in zip(names, answer, strict=False)}
        newest = [self._seconds(raw) for raw in answer[len(names) :] if raw]
        return FeatureRow(values, max(newest)) if newest else FeatureRow(values)

    def _decoded(self, raw: bytes) -> Any:
        value = self._value.FromString(raw)
        kind = value.WhichOneof("val")
        if kind is None:
            return None
        content = getattr(value, kind)
        if kind == "float_val":  # a Python float would be another number, see thinktwice.schema.values
            return np.float32(content)
        return list(content.val) if kind.endswith("_list_val") else content

    def _seconds(self, raw: bytes) -> float:
        at = self._timestamp.FromString(raw)
        return float(at.seconds) + at.nanos / 1e9

    def _check_layout(self, key: str, entity: Entity) -> None:
        from feast.infra.online_stores.helpers import _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey

        row = EntityKey(join_keys=[key], entity_values=[self._value(string_val=SELF_CHECK)])
        if self._key(entity, SELF_CHECK) != _redis_key(self._project.decode(), row, 3):
            raise FeatureStoreError(
                "the installed Feast writes other Redis keys than this version reads: "
                "install the pinned Feast, or use the feature reader 'feast'"
            )


def _prefix(key: str) -> bytes:
    text = key.encode()
    return struct.pack("<III", 1, STRING, len(text)) + text
