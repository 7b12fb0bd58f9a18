"""The feedback service: one thread makes events durable, another follows the log and pushes.

The second thread reads only the log, as a replay does, so there is one path from an event to the store. A store that is down blocks
neither thread: events are durable, rows stay marked and are written when the store responds again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from serving.feedback.book import LOG_KEY, Book
from serving.feedback.clock import SteadyClock
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import EventLog, Position, read
from serving.feedback.join import play
from serving.feedback.online import OnlineStore
from serving.feedback.records import Record, recorded
from serving.feedback.target import Target, definition_for, kept
from serving.telemetry.state import Trouble
from thinktwice.data.instant.columns import to_bytes
from thinktwice.data.instant.state import empty_states
from thinktwice.errors import FeatureStoreError, OverloadedError
from thinktwice.monitor.feedback import STATE_FILE
from thinktwice.records.events import Click, Impression
from thinktwice.schema import LogSchema

PUSH_ROWS = 500  # rows per write to the store
TOGETHER = 5_000  # events per flush to disk
HANGS = 5.0  # seconds without a response after which the store counts as hanging
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds between attempts on a store that does not respond

logger = logging.getLogger(__name__)


class Recorder:
    """Writes events durably, in batches.

    Args:
        log: the event log; the recorder is its only writer until :meth:`close`.
        on_durable: called after every write, from the recorder's thread.

    Attributes:
        counts: events ``accepted``, ``refused_queue`` (queue full) and ``refused_disk`` (could not be written).
    """

    def __init__(
        self, log: EventLog, config: FeedbackConfig, on_durable: Callable[[], None], clock: SteadyClock | None = None
    ) -> None:
        self._log, self._config, self._on_durable = log, config, on_durable
        self.clock = clock or SteadyClock(log.last_at)
        self._changed = threading.Condition()
        self._queue: deque[tuple[Sequence[Impression | Click], Future[int]]] = deque()
        self._waiting, self._ending = 0, False
        self.counts: Counter[str] = Counter()
        self.writable = True
        self._trouble = Trouble(logger, "the event log can be written again, after {seconds} s", calm=0.0)
        self._thread = threading.Thread(target=self._run, name="feedback-log", daemon=True)
        self._thread.start()

    def submit(self, events: Sequence[Impression | Click]) -> Future[int]:
        """Queue events. The future returns their number when they are durable, or raises the error.

        Raises:
            OverloadedError: the queue is full; none of these events was accepted.
        """
        done: Future[int] = Future()
        with self._changed:
            if self._ending or self._waiting + len(events) > self._config.queue:
                self.counts["refused_queue"] += len(events)
                status = 503 if self._ending else 429
                why = "the service ends" if self._ending else f"{self._waiting} events wait for the disk"
                raise OverloadedError(f"{why}: send these events again", retry_after=1.0, status=status)
            self._queue.append((events, done))
            self._waiting += len(events)
            self._changed.notify()
        return done

    def close(self, limit: float = 10.0) -> None:
        """Write the queued events and stop."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(limit)

    def _run(self) -> None:
        while True:
            batch, ended = self._next()
            if not batch and ended:
                return
            events = [event for group, _ in batch for event in group]
            at = max(self._log.last_at, self.clock.now())
            records = [recorded(event, at) for event in events] or [Record("tick", at)]
            try:
                self._log.append(records)
            except Exception as error:  # noqa: BLE001 - waiting callers must be notified in any case
                self._failed(batch, error)
                time.sleep(0 if ended else self._config.tick)
                continue
            self.writable = True
            self._trouble.not_met()
            with self._changed:
                self.counts["accepted"] += len(events)
                self._waiting -= len(events)
            for group, done in batch:
                done.set_result(len(group))
            self._on_durable()

    def _next(self) -> tuple[list[tuple[Sequence[Impression | Click], Future[int]]], bool]:
        """The queued events, or none after a tick; and whether the service is stopping."""
        with self._changed:
            if not self._queue and not self._ending:
                self._changed.wait(self._config.tick)
            batch, number = [], 0
            while self._queue and number < TOGETHER:
                batch.append(self._queue.popleft())
                number += len(batch[-1][0])
            return batch, self._ending

    def _failed(self, batch: list[tuple[Sequence[Impression | Click], Future[int]]], error: Exception) -> None:
        self.writable = False
        self._trouble.met(f"{error}; events are refused until then")
        number = sum(len(group) for group, _ in batch)
        with self._changed:
            self.counts["refused_disk"] += number
            self._waiting -= number
        for _, done in batch:
            done.set_exception(OverloadedError(f"{error}: send these events again", retry_after=5.0, status=503))


class Follower:
    """Applies the records of a log to a book and pushes the changes.

    Args:
        end: returns the position after the last durable record.
        store: None: nothing is pushed.

    Attributes:
        push_failures: writes that the store did not accept.
        lag: seconds from the record of the oldest event of the last batch to the end of its push.
    """

    def __init__(
        self,
        folder: Path,
        book: Book,
        schema: LogSchema,
        end: Callable[[], Position],
        store: OnlineStore | None,
        now: Callable[[], int],
    ) -> None:
        self._folder, self._book, self._schema, self._end = folder, book, schema, end
        self._store, self._now = store, now
        self._next: Target | None = None  # replaces the store at the next step
        self._own: Target | None = None  # the one that replaced it, closed here
        self._wake, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._try_at, self._wait = 0.0, FIRST_WAIT
        self._pushed_stamp, self.store_down = -1, False
        self._events_since: int | None = None  # `at` of the first record that has not been pushed
        self.push_failures, self.pushed_rows, self.lag, self.error = 0, 0, 0.0, ""
        self.to_push = book.num_to_push()
        self._push_began: float | None = None
        self._trouble = Trouble(logger, "the online store takes rows again, after {seconds} s", calm=0.0)
        self._thread = threading.Thread(target=self._run, name="feedback-push", daemon=True)

    def start(self) -> None:
        """Start to follow the log."""
        self._thread.start()

    def wake(self) -> None:
        """Notify that the log has new records."""
        self._wake.set()

    def use(self, target: Target) -> None:
        """Push to another store from the next step on, beginning with every row."""
        with self._lock:
            replaced, self._next = self._next, target
        if replaced is not None:
            replaced.close()
        self._wake.set()

    def close(self, limit: float = 10.0) -> None:
        """Apply and push the available records, for at most ``limit`` seconds; the remaining ones follow at the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join(limit)
        for target in (self._own, self._next):
            if target is not None:
                target.close()

    def counts(self) -> dict[str, int]:
        """Counts of events and outcomes."""
        with self._lock:
            return dict(self._book.counts)

    @property
    def watermark(self) -> int:
        return self._book.watermark

    @property
    def behind(self) -> bool:
        """Whether there are records that have not been applied."""
        return self._book.position < self._end()

    @property
    def hangs(self) -> bool:
        """Whether the online store has neither accepted nor refused rows for :data:`HANGS` seconds."""
        start = self._push_began
        return start is not None and time.monotonic() - start > HANGS

    def _run(self) -> None:
        while True:
            self._wake.wait(min(0.25, self._wait))
            self._wake.clear()
            stopping = self._stop.is_set()
            try:
                while self.step():
                    pass
                self.error = ""
            except Exception as error:  # noqa: BLE001 - this thread must survive; /healthz reports the error, and the log has every event
                self.error = str(error) or type(error).__name__
                logger.error("feedback: the log cannot be followed (%s: %s)", type(error).__name__, error)
                self._stop.wait(1.0)
            if stopping:
                return

    def step(self) -> bool:
        """Apply some records and push. Returns whether there are more records."""
        self._switch()
        records, position = read(self._folder, self._book.position, self._end())
        if records:
            with self._lock, self._book.transaction():
                for record in records:
                    play(self._book, self._schema, record)
                self._book.position = position
            if self._events_since is None:
                self._events_since = records[0].at
        if self._store is not None and time.monotonic() >= self._try_at:
            self._push_began = time.monotonic()
            try:
                self._push(self._store)
            finally:
                self._push_began = None
        return bool(records) and self.behind

    def _switch(self) -> None:
        with self._lock:
            target, self._next = self._next, None
        if target is None:
            return
        old, self._own = self._own, target
        self._store, self._schema = target.store, target.schema
        if old is not None:
            old.close()
        if target.store is not None:
            with self._lock:
                push_everything(self._book, target.store)
            self._wait, self._try_at, self._pushed_stamp = FIRST_WAIT, 0.0, -1
            self.to_push, self.store_down = self._book.num_to_push(), False

    def _push(self, store: OnlineStore) -> None:
        try:
            if self.to_push or self._book.stamp != self._pushed_stamp:
                self.pushed_rows += push_changes(self._book, store, self._lock)
                self._pushed_stamp = self._book.stamp
        except FeatureStoreError as error:
            self.push_failures += 1
            self._trouble.met(f"{error}: rows wait until it answers")
            self._wait = min(LONGEST_WAIT, 2 * self._wait)
            self._try_at = time.monotonic() + self._wait
            self.to_push, self.store_down = self._book.num_to_push(), True
            return
        self._trouble.not_met()
        self._wait, self.to_push, self.store_down = FIRST_WAIT, 0, False
        if self._events_since is not None:
            self.lag, self._events_since = max(0.0, (self._now() - self._events_since) / 1e6), None


def push_everything(book: Book, store: OnlineStore) -> None:
    """Mark every row to be pushed if the book was pushed to another store before."""
    if book.fact("store", "") != store.identity:
        book.push_all()
        with book.transaction():
            book.set_fact("store", store.identity)


def push_changes(book: Book, store: OnlineStore, lock: AbstractContextManager[Any] | None = None) -> int:
    """Write the rows to push, then the watermark. Returns the number of rows.

    Args:
        lock: held while the book is changed.

    Raises:
        FeatureStoreError: the store does not accept them.
    """
    number, guard = 0, lock or nullcontext()
    while rows := book.to_push(PUSH_ROWS):
        store.write(rows)
        with guard:
            book.pushed(rows)
        number += len(rows)
    if book.stamp:
        state = book.content("log", LOG_KEY) or to_bytes(empty_states(book.definition, "log"))[0]
        store.write_watermark(state, book.watermark, book.stamp)
    return number


class Feedback:
    """Both threads on one log and one feature store.

    Args:
        folder: of the log; also contains the state.
        store: None: counters are kept and nothing is pushed.

    Raises:
        FeatureStoreError: the schema has no instant statistics, or the state has another definition.
        ServerError: another process uses the log.
        DataError: the log is damaged.
    """

    def __init__(self, folder: Path, schema: LogSchema, store: OnlineStore | None, config: FeedbackConfig) -> None:
        self.log = EventLog(folder)
        try:
            self.book = open_book(folder / STATE_FILE, schema, config)
            if store is not None:
                push_everything(self.book, store)
        except BaseException:
            self.log.close()
            raise
        self.clock = SteadyClock(self.log.last_at)
        self.follower = Follower(folder, self.book, schema, lambda: self.log.end, store, self.clock.now)
        self.recorder = Recorder(self.log, config, self.follower.wake, self.clock)
        self.follower.start()
        self.follower.wake()

    def close(self) -> None:
        """Write all submitted events durably, push them, and stop."""
        self.recorder.close()
        self.follower.close()
        self.book.close()
        self.log.close()


def open_book(path: Path | str, schema: LogSchema, config: FeedbackConfig) -> Book:
    """The book of a log.

    Raises:
        FeatureStoreError: it was written for another definition, lateness, sequences or statistics.
    """
    book = Book(path, definition_for(schema, config), config.lateness_us)
    try:
        with book.transaction_of_facts():
            for name, value in kept(schema, config).items():
                if (actual := book.fact(f"kept {name}", value)) != value:
                    raise FeatureStoreError(
                        f"the state {path} was counted for other {name} than the feature store has ({actual} instead of {value}): "
                        "build it from the log again with 'thinktwice feedback replay'"
                    )
                book.set_fact(f"kept {name}", value)
    except BaseException:
        book.close()
        raise
    return book


def rebuild(folder: Path, book: Book, schema: LogSchema, until: Position | None = None) -> None:
    """Apply a whole log, or its records up to a position, to an empty book."""
    while True:
        records, position = read(folder, book.position, until)
        if not records:
            return
        with book.transaction():
            for record in records:
                play(book, schema, record)
            book.position = position
