"""What feedback is kept for: a feature store whose counters are pushed, or nothing but outcomes (recording only).

While the service runs without a store of its own choice, it follows the champion: after a promotion the new champion's store gets
every row. That needs the same counters, sequences and statistics, since the state of the log has been counted for them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.feedback.config import FeedbackConfig
from serving.feedback.online import OnlineStore
from thinktwice.data.instant.definition import SECOND_US, Definition, definition_of
from thinktwice.errors import FeatureStoreError, ThinktwiceError, reason
from thinktwice.files import json_bytes, sha256_text
from thinktwice.schema import SCHEMA_FILE, LogSchema, load_schema

RECORDING_WINDOW = 86_400 * SECOND_US  # microseconds after an impression within which a click is joined with it
LOOK_EVERY = 1.0  # seconds between two looks at the champion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A schema, and the store to push to; None if events are only recorded."""

    schema: LogSchema
    store: OnlineStore | None

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()


def open_target(folder: Path, config: FeedbackConfig) -> Target:
    """The target in a folder: a feature store or, to record only, any folder with the schema of a log.

    Raises:
        FeatureStoreError: the folder is not a feature store, or its log has no instant statistics. DataError: it has no schema.
    """
    if config.record_only:
        return Target(load_schema(folder / SCHEMA_FILE), None)
    store = OnlineStore(folder)
    return Target(store.schema, store)


def definition_for(schema: LogSchema, config: FeedbackConfig) -> Definition:
    """The definition of the counters of a schema; to record only, one without counters.

    Raises:
        FeatureStoreError: the log has no instant statistics.
    """
    if config.record_only:
        return Definition(None, None, 0, RECORDING_WINDOW, (), (), (), ())
    definition = definition_of(schema)
    if definition is None:
        raise FeatureStoreError(
            f"the log {schema.name} has no statistics.instant: there are no counters to update: add 'instant' to the "
            "statistics of its schema and train again, or record events for outcomes alone with --record-only"
        )
    return definition


def difference(old: LogSchema, new: LogSchema, config: FeedbackConfig) -> str:
    """What two schemas keep differently for feedback, with both hashes; "" if one state serves both."""
    before, after = kept(old, config), kept(new, config)
    changed = [name for name, value in before.items() if value != after[name]]
    return ", ".join(f"{name} ({_short(after[name])} instead of {_short(before[name])})" for name in changed)


def kept(schema: LogSchema, config: FeedbackConfig) -> dict[str, str]:
    """What the state of a log depends on besides its records, by name, as a hash."""
    keys = [schema.key_of("user"), schema.key_of("item")]
    ids = {"ids": _hash(keys)}
    if config.record_only:
        return ids
    statistics = schema.statistics
    days = None if statistics is None else [list(statistics.windows_days), list(statistics.entities)]
    return {
        "definition of the counters": definition_for(schema, config).hash,
        "sequences": _hash(
            [
                sequence.model_dump(mode="json", exclude_none=True, exclude={"entity"})
                for sequence in schema.computed_sequences
            ]
        ),
        "statistics of whole days": _hash(days),
        **ids,
    }


def _hash(value: object) -> str:
    return sha256_text(json_bytes(value).decode())


def _short(value: str) -> str:
    return value[:12]


class ChampionFollower:
    """Looks at the champion in a thread, and gives its target to the service when it changes.

    Args:
        champion: returns the folder of the present champion's target.
        folder: the one that the service uses.
        use: takes the new target, and closes it when another one follows.
        say: takes a sentence about each change.

    Attributes:
        refused: why the present champion gets no counters; "" while it does.
    """

    def __init__(
        self,
        champion: Callable[[], Path],
        folder: Path,
        schema: LogSchema,
        config: FeedbackConfig,
        use: Callable[[Target], None],
        say: Callable[[str], None],
        every: float = LOOK_EVERY,
    ) -> None:
        self._champion, self._folder, self._schema, self._config = champion, folder, schema, config
        self._use, self._say, self._every = use, say, every
        self._stop = threading.Event()
        self.refused = ""
        self._thread = threading.Thread(target=self._run, name="feedback-champion", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - this thread must survive; the reason is on /healthz
                self._refuse(f"the new champion cannot be read: {reason(error)}")

    def look(self) -> None:
        """Follow the champion once."""
        try:
            folder = self._champion()
            if folder == self._folder:
                self.refused = ""
                return
            target = open_target(folder, self._config)
        except (ThinktwiceError, OSError) as error:  # tried again at the next look: its store may come back
            self._refuse(f"the new champion gets no counters: {reason(error)}")
            return
        if changed := difference(self._schema, target.schema, self._config):
            target.close()
            self._refuse(
                f"the new champion {folder.parent.name} gets no counters, because its schema differs in {changed}: stop the "
                "service, run 'thinktwice feedback replay' and start it again; until then events are recorded"
            )
            return
        self._use(target)
        self._folder, self.refused = folder, ""
        self._say(f"the champion has changed: counters are pushed to {folder}")

    def _refuse(self, why: str) -> None:
        if why != self.refused:
            self.refused = why
            self._say(why)
