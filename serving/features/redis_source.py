"""Online features read directly from Feast's layout in Redis, several times faster than through the SDK.

All views of an entity are stored in one hash. Its key is Feast's serialization of the entity key (version 3) and the project; its
fields are the murmur3 hash of ``view:feature``, each with a protobuf value, and ``_ts:view`` with the time of the view's row. So one
HMGET per id fetches everything, and all ids go in one pipeline. Small reads run in the caller's thread over an open connection,
because only connecting can take unbounded time. The layout is that of the pinned Feast version: every source compares its keys with
Feast's when it is created.
"""

from __future__ import annotations

import math
import struct
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from serving.features.lookup import Entity, FeatureRow, Fetched, Places, States
from serving.features.redis_script import SCRIPT, Hashes, call
from serving.features.redis_tracking import Command, Name, TrackedFields
from serving.features.redis_values import StoredValues
from thinktwice.data.feature_tables import table_specs
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.state import state_type
from thinktwice.data.pushed_views import STATE, WATERMARK, instant_views
from thinktwice.errors import FeatureStoreError
from thinktwice.schema import LogSchema

STRING = 2  # Feast's enum value of the type
SELF_CHECK = "ä b"
MAX_SMALL_READ = 8  # ids whose answers arrive in one packet
OPEN = 4  # connections kept open for small reads
REST_OF_ANSWER = 0.05  # seconds for the rest of an answer after its first bytes arrived
LOG = ("log",)  # name of the watermark among the ids of items
TRY_AGAIN = 10.0  # seconds to wait after a connection could not be opened


class RedisSource:
    """Reads the hashes that Feast writes.

    Args:
        store: an open Feast store whose online store is Redis; its connection is used.
        schema: defines the views and their features.
        states: whether :meth:`fetch_request` is used.

    Raises:
        FeatureStoreError: the store is not Redis, or the installed Feast has another key layout.
    """

    def __init__(self, store: Any, schema: LogSchema, *, states: bool = False) -> None:
        from feast.infra.online_stores.helpers import _mmh3
        from feast.infra.online_stores.redis import RedisOnlineStore
        from feast.protos.feast.types.Value_pb2 import Value

        online = store._get_provider().online_store
        if not isinstance(online, RedisOnlineStore):
            raise FeatureStoreError(
                f"the online store is {type(online).__name__}, not Redis: use the feature reader 'snapshot' or 'feast'"
            )
        self._client = online._get_client(store.config.online_store)
        self._open: list[Any] = []  # idle connections; appended to and popped from by any thread
        self._open_from = 0.0  # monotonic time before which no connection is opened
        self._values = StoredValues(Value)
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
        self._script: str | None = None  # hash of the loaded script; None: not loaded, or the server runs no scripts
        self._tracked: TrackedFields | None = None  # states of items and the watermark, by one request at a time
        self._tracking, self._track_from = threading.Lock(), math.inf  # monotonic time before which none is made
        self._log_key = b""
        if states:
            self._prepare_states(schema)

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
            raise FeatureStoreError(
                f"the online store does not answer for {entity} features ({error}): check that it runs"
            ) from error
        self._connect_one()
        return [self._row_of(names, answer) for answer in answers]

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """See :class:`serving.features.lookup.FeatureSource`."""
        from redis import RedisError

        try:
            with self._client.pipeline(transaction=False) as pipe:
                for command in self._field_commands(key, fields, ids):
                    pipe.execute_command(*command)
                answers = pipe.execute()
        except RedisError as error:
            raise FeatureStoreError(
                f"the online store does not answer for {fields[0][0]} ({error}): check that it runs"
            ) from error
        self._connect_one()
        return [self._decoded(answer) for answer in answers]

    def fetch_fields_within(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float
    ) -> list[list[Any]] | None:
        """See :class:`serving.features.lookup.BoundedSource`; None like :meth:`fetch_within`."""
        if len(ids) > MAX_SMALL_READ:
            return None
        answers = self._over_open(self._field_commands(key, fields, ids), timeout)
        return None if answers is None else [self._decoded(answer) for answer in answers]

    def _field_commands(self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str]) -> list[Command]:
        names = tuple(_field_name(view, name) for view, name in fields)
        prefix = _prefix(key)
        return [("HMGET", self._key_of(prefix, value), *names) for value in ids]

    def _decoded(self, answer: Sequence[bytes | None]) -> list[Any]:
        return [None if raw is None else self._values.decoded(raw) for raw in answer]

    def fetch_request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float | None = None,
        places: Places | None = None,
    ) -> Fetched:
        """See :class:`serving.features.lookup.FeatureSource`: one command if the server runs scripts, else one pipeline. The time
        limit is that of the connection."""
        from redis import RedisError

        groups = self._groups(user_id, item_ids, feature_ids)
        try:
            answers = self._read_at_once(groups)
        except RedisError as error:
            raise FeatureStoreError(
                f"the online store does not answer for the features of a request ({error}): check that it runs"
            ) from error
        self._connect_one()
        self._track()
        return self._fetched(user_id, item_ids, feature_ids, answers)

    def fetch_request_within(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float,
        places: Places | None = None,
    ) -> Fetched | None:
        """See :class:`serving.features.lookup.BoundedSource`; None while no connection is open or the server has no script.

        States that have not changed since an earlier request are not read again. An answer of several packets times out
        :data:`REST_OF_ANSWER` after its last packet, which may be later than ``timeout``.
        """
        start = time.monotonic()
        if self._tracked is None:
            if start >= self._track_from:  # what connects belongs on another thread
                return None
        elif len(feature_ids) <= MAX_SMALL_READ:
            found = self._tracked_request(user_id, item_ids, feature_ids, timeout, places)
            if found is not None:
                return found
            timeout -= time.monotonic() - start
        if self._script is None or not self._open:
            return None
        answers = self._over_open([call(self._script, self._groups(user_id, item_ids, feature_ids))], timeout)
        return None if answers is None else self._fetched(user_id, item_ids, feature_ids, answers[0])

    def _tracked_request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float,
        places: Places | None,
    ) -> Fetched | None:
        """What a request needs, with what is kept; None if another request uses it, or it cannot be used."""
        from redis import RedisError

        if not self._tracking.acquire(blocking=False):
            return None
        try:
            if self._tracked is None:
                return None
            commands: list[Command] = []
            reads_user = user_id is not None and bool(self._user_fields)
            if user_id is not None and reads_user:
                commands.append(("HMGET", self._key("user", user_id), *self._user_fields))
            if self._names["item"]:
                commands += [("HMGET", key, *self._fields["item"]) for key in self._keys("item", feature_ids)]
            names, places = (item_ids, places) if self._item_state else ((), None)
            try:
                read = self._tracked.read(names, commands, timeout, places)
            except (RedisError, TimeoutError) as error:  # a late answer would be read as the answer to the next command
                self._tracked.close()
                self._tracked, self._track_from = None, 0.0
                if isinstance(error, RedisError):
                    return None
                raise
            if read is None:
                return None
            watermark, items, answers = read
        finally:
            self._tracking.release()
        user = answers[0] if reads_user else None
        states = items if self._item_state else [None] * len(item_ids)
        return self._fetched_of(watermark, user, states, answers[reads_user:], len(feature_ids))

    def _track(self) -> None:
        """Open the connection over which unchanged states are kept; a cluster and a server that cannot track have none."""
        from redis import RedisError, ResponseError

        if time.monotonic() < self._track_from or not self._tracking.acquire(blocking=False):
            return
        try:
            if self._tracked is None:
                self._track_from = math.inf
                self._tracked = TrackedFields(
                    self._new_connection(protocol=3), self._state_command, self._state_name, LOG
                )
        except (ResponseError, AttributeError):  # AttributeError: a parser that knows no such messages
            return
        except RedisError:
            self._track_from = time.monotonic() + TRY_AGAIN
        finally:
            self._tracking.release()

    def _state_command(self, name: Name) -> Command:
        if not isinstance(name, str):
            return ("HGET", self._log_key, self._watermark_field)
        return ("HGET", self._key("item", name), self._item_state[0])

    def _state_name(self, key: bytes) -> Name | None:
        prefix, rest = self._prefix.get("item", b""), len(self._project)
        if key == self._log_key:
            return LOG
        return key[len(prefix) + 8 : len(key) - rest].decode() if prefix and key.startswith(prefix) else None

    def _groups(self, user_id: str | None, item_ids: Sequence[str], feature_ids: Sequence[str]) -> list[Hashes]:
        groups = [Hashes([self._log_key], [self._watermark_field])]
        if user_id is not None and self._user_fields:
            groups.append(Hashes(self._keys("user", [user_id]), self._user_fields))
        if self._item_state:
            groups.append(Hashes(self._keys("item", item_ids), self._item_state))
        if self._names["item"]:
            groups.append(Hashes(self._keys("item", feature_ids), self._fields["item"]))
        return groups

    def _fetched(
        self, user_id: str | None, item_ids: Sequence[str], feature_ids: Sequence[str], answers: list[Any]
    ) -> Fetched:
        watermark, done = answers[0], 1
        user: list[bytes | None] | None = None
        if user_id is not None and self._user_fields:
            user, done = answers[done] if len(self._user_fields) > 1 else [answers[done]], done + 1
        items: Sequence[bytes | None] = [None] * len(item_ids)
        if self._item_state:
            items, done = answers[done : done + len(item_ids)], done + len(item_ids)
        return self._fetched_of(watermark, user, items, answers[done:], len(feature_ids))

    def _fetched_of(
        self,
        watermark: bytes | None,
        user: list[bytes | None] | None,
        items: Sequence[bytes | None],
        features: Sequence[list[bytes | None]],
        number: int,
    ) -> Fetched:
        """What was read: the fields of the user, the states of items, and the features of ``number`` items."""
        row, state = FeatureRow({}), None
        if user is not None:
            if self._user_has_state:
                *user, raw = user
                state = None if raw is None else self._state_of_user(raw)
            row = self._row_of(self._names["user"], user) if self._names["user"] else row
        rows = [FeatureRow({})] * number
        if self._names["item"]:
            rows = [self._row_of(self._names["item"], answer) for answer in features]
        instant = None if watermark is None else self._values.decoded(watermark)
        return Fetched(row, rows, States(state, items, instant, self._header))

    def _read_at_once(self, groups: Sequence[Hashes]) -> list[Any]:
        from redis.exceptions import NoScriptError

        if self._script is not None:
            try:
                return list(self._client.execute_command(*call(self._script, groups)))
            except NoScriptError:  # the server was restarted
                self._load_script()
                if self._script is not None:
                    return list(self._client.execute_command(*call(self._script, groups)))
        with self._client.pipeline(transaction=False) as pipe:
            for group in groups:
                for key in group.keys:
                    pipe.hmget(key, group.fields)
            answers = pipe.execute()
        single = [len(group.fields) == 1 for group in groups for _ in group.keys]
        return [answer[0] if alone else answer for answer, alone in zip(answers, single, strict=True)]

    def _load_script(self) -> None:
        """Load the script; a cluster, whose hashes are on several servers, and a server that forbids scripts get a pipeline."""
        from redis import RedisError, ResponseError

        self._script = None
        if getattr(self._client, "connection_pool", None) is None:
            return
        try:
            loaded = self._client.script_load(SCRIPT)
            self._script = loaded.decode() if isinstance(loaded, bytes) else loaded
        except ResponseError:
            return
        except RedisError as error:
            raise FeatureStoreError(f"the online store does not answer ({error}): check that it runs") from error

    def _prepare_states(self, schema: LogSchema) -> None:
        from feast.infra.online_stores.helpers import _mmh3

        views = {view.kind: view for view in instant_views(schema)}
        self._watermark_field = _mmh3(f"{views['log'].name}:{WATERMARK}")
        self._log_key = self._key_of(_prefix(views["log"].key), schema.name)
        state: dict[Entity, list[bytes]] = {"user": [], "item": []}
        for entity in state:
            if entity in views:
                self._prefix[entity] = _prefix(views[entity].key)
                state[entity] = [_mmh3(f"{views[entity].name}:{STATE}")]
                self._check_layout(views[entity].key, entity)
        self._user_has_state, self._item_state = bool(state["user"]), state["item"]
        self._user_fields = [*self._fields["user"], *state["user"]]
        definition = definition_of(schema)
        assert definition is not None
        header = self._values.header
        self._header = header(state_type(definition, "item").itemsize) if self._item_state else b""
        self._user_header = header(state_type(definition, "user").itemsize) if self._user_has_state else b""
        if getattr(self._client, "connection_pool", None) is not None:
            self._track_from = 0.0
        self._load_script()

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> list[FeatureRow] | None:
        """See :class:`serving.features.lookup.BoundedSource`; None for many ids, and while no connection is open.

        A partial answer times out :data:`REST_OF_ANSWER` after its last packet, which may be later than ``timeout``; answers to so
        few ids arrive in one packet.
        """
        names = self._names[entity]
        if not names:
            return [FeatureRow({})] * len(ids)
        if len(ids) > MAX_SMALL_READ or not self._open:
            return None
        fields = self._fields[entity]
        answers = self._over_open([("HMGET", self._key(entity, value), *fields) for value in ids], timeout)
        return None if answers is None else [self._row_of(names, answer) for answer in answers]

    def _over_open(self, commands: Sequence[Command], timeout: float) -> list[Any] | None:
        """The answers to commands over a connection that is open already; None if there is none, or the server closed it or lost
        the script."""
        from redis import RedisError

        end = time.monotonic() + timeout
        try:
            connection = self._open.pop()
        except IndexError:
            return None
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers = []
            for _ in commands:
                if not connection.can_read(max(end - time.monotonic(), 0.0)):
                    raise TimeoutError
                answers.append(connection.read_response())
        except TimeoutError:
            connection.disconnect()  # a late answer would be read as the answer to the next command
            raise
        except RedisError:
            connection.disconnect()
            return None
        self._open.append(connection)
        return answers

    def close(self) -> None:
        """Close the connections."""
        while self._open:
            self._open.pop().disconnect()
        with self._tracking:
            self._track_from = math.inf
            if self._tracked is not None:
                self._tracked.close()
                self._tracked = None
        self._client.close()

    def _connect_one(self) -> None:
        """Open one more connection for :meth:`fetch_within`; not for a cluster, which has no single address."""
        from redis import RedisError

        if len(self._open) >= OPEN or time.monotonic() < self._open_from:
            return
        if getattr(self._client, "connection_pool", None) is None:
            return
        try:
            self._open.append(self._new_connection())
        except RedisError:  # lookups continue with the client's own connections
            self._open_from = time.monotonic() + TRY_AGAIN

    def _new_connection(self, **settings: Any) -> Any:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        pool = self._client.connection_pool
        once = {"socket_timeout": REST_OF_ANSWER, "retry": Retry(NoBackoff(), 0)}  # a lookup waits for this connection
        connection = pool.connection_class(**{**pool.connection_kwargs, **once, **settings})
        connection.connect()
        return connection

    def _key(self, entity: Entity, value: str) -> bytes:
        return self._key_of(self._prefix[entity], value)

    def _keys(self, entity: Entity, values: Sequence[str]) -> list[bytes]:
        prefix, project = self._prefix[entity], self._project
        texts = [value.encode() for value in values]
        starts = {size: prefix + struct.pack("<II", STRING, size) for size in set(map(len, texts))}
        return [starts[len(text)] + text + project for text in texts]

    def _key_of(self, prefix: bytes, value: str) -> bytes:
        text = value.encode()
        return prefix + struct.pack("<II", STRING, len(text)) + text + self._project

    def _row_of(self, names: tuple[str, ...], answer: list[bytes | None]) -> FeatureRow:
        values = {
            name: None if raw is None else self._values.decoded(raw) for name, raw in zip(names, answer, strict=False)
        }
        newest = [self._values.seconds(raw) for raw in answer[len(names) :] if raw]
        return FeatureRow(values, max(newest)) if newest else FeatureRow(values)

    def _state_of_user(self, raw: bytes) -> Any:
        header = self._user_header
        return raw[len(header) :] if raw.startswith(header) else self._values.decoded(raw)

    def _check_layout(self, key: str, entity: Entity) -> None:
        from feast.infra.online_stores.helpers import _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey

        row = EntityKey(join_keys=[key], entity_values=[self._values.type(string_val=SELF_CHECK)])
        if self._key(entity, SELF_CHECK) != _redis_key(self._project.decode(), row, 3):
            raise FeatureStoreError(
                "the installed Feast writes other Redis keys than this version reads: "
                "install the pinned Feast, or use the feature reader 'feast'"
            )


@lru_cache
def _field_name(view: str, name: str) -> bytes:
    from feast.infra.online_stores.helpers import _mmh3

    return bytes(_mmh3(f"{view}:{name}"))


def _prefix(key: str) -> bytes:
    text = key.encode()
    return struct.pack("<III", 1, STRING, len(text)) + text
