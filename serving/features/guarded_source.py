"""Circuit breaker, time limit and bulkhead around an online store: a slow or dead store never hangs a request.

A source with its own time limit is called in the caller's thread; other lookups run in a small thread pool. A lookup that times out
there is abandoned and ends by itself; while all threads hang, further lookups fail at once. After several consecutive failures the
store is not queried for a while (circuit open), then by one lookup at a time until it responds (half-open). The start and the end
of an outage are logged, not every lookup.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from serving.features.lookup import BoundedSource, Entity, FeatureRow, Fetched, Places
from serving.telemetry.state import Trouble
from thinktwice.errors import FeatureStoreError

Value = TypeVar("Value")
Reason = Literal["timeout", "error", "bulkhead_full", "circuit_open"]
FAILURES_TO_OPEN = 5  # consecutive failures that open the circuit
OPEN_SECONDS = 1.0  # after which one lookup probes the store (half-open)

logger = logging.getLogger(__name__)


class LookupFailedError(FeatureStoreError):
    """A lookup failed; ``reason`` is the cause."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class GuardedSource:
    """Limits the time of another source.

    Args:
        source: the store.
        timeout: maximum seconds per lookup; a caller can only lower it.
        threads: maximum number of concurrent lookups, including hanging ones.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        source: BoundedSource,
        *,
        timeout: float,
        threads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._timeout, self._clock = source, timeout, clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lookup")
        self._free = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._probing = False
        self.trouble = Trouble(
            logger,
            "the online store answers again, after {seconds} s and {times} lookups without an answer",
            clock=clock,
        )

    def names(self, entity: Entity) -> tuple[str, ...]:
        """See :class:`serving.features.lookup.FeatureSource`."""
        return self._source.names(entity)

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        """See :class:`serving.features.lookup.FeatureSource`.

        Raises:
            LookupFailedError: the lookup timed out, failed, or was not attempted.
        """
        return self._guarded(
            entity,
            timeout,
            lambda limit: self._source.fetch_within(entity, ids, limit),
            lambda limit: self._source.fetch(entity, list(ids), limit),
        )

    def fetch_request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float | None = None,
        places: Places | None = None,
    ) -> Fetched:
        """See :class:`serving.features.lookup.FeatureSource`.

        Raises:
            LookupFailedError: the lookup timed out, failed, or was not attempted.
        """
        return self._guarded(
            "request",
            timeout,
            lambda limit: self._source.fetch_request_within(user_id, item_ids, feature_ids, limit, places),
            lambda limit: self._source.fetch_request(user_id, list(item_ids), list(feature_ids), limit),
        )

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """See :class:`serving.features.lookup.FeatureSource`.

        Raises:
            LookupFailedError: the lookup timed out, failed, or was not attempted.
        """
        return self._guarded(
            fields[0][0],
            timeout,
            lambda limit: self._source.fetch_fields_within(key, fields, ids, limit),
            lambda _: self._source.fetch_fields(key, list(fields), list(ids)),
        )

    def _guarded(
        self,
        subject: str,
        timeout: float | None,
        inline: Callable[[float], Value | None],
        in_pool: Callable[[float], Value],
    ) -> Value:
        limit = self._timeout if timeout is None else min(self._timeout, timeout)
        if limit <= 0:
            raise LookupFailedError(f"no time is left to look up {subject} features", "timeout")
        half_open = self._start(subject)
        healthy: bool | None = None  # None: a bug in a source says nothing about the store, but it ends a probe too
        try:
            start = time.monotonic()
            rows = None if half_open else inline(limit)
            if rows is None:
                rows = self._on_a_thread(subject, in_pool, limit - (time.monotonic() - start))
            healthy = True
            self.trouble.not_met()
        except TimeoutError:
            timed_out = LookupFailedError(f"{subject} features took longer than {limit * 1000:.0f} ms", "timeout")
            if limit >= self._timeout:  # a shorter limit of the caller says nothing about the store
                healthy = False
                self._log_trouble(timed_out)
            raise timed_out from None
        except LookupFailedError as error:
            self._log_trouble(error)
            raise
        except FeatureStoreError as error:
            healthy = False
            self._log_trouble(error)
            raise LookupFailedError(str(error), "error") from error
        finally:
            self._ended(half_open, healthy)
        return rows

    def _log_trouble(self, error: Exception) -> None:
        self.trouble.met(f"{error}: lookups get defaults until the online store answers")

    def close(self) -> None:
        """Refuse further lookups and close the source."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._source.close()

    def _on_a_thread(self, subject: str, work: Callable[[float], Value], limit: float) -> Value:
        if limit <= 0:
            raise TimeoutError
        if not self._free.acquire(blocking=False):
            raise LookupFailedError(f"lookup pool exhausted: {subject} features were not requested", "bulkhead_full")
        return self._pool.submit(self._run, work, limit).result(limit)

    def _run(self, work: Callable[[float], Value], limit: float) -> Value:
        try:
            return work(limit)
        finally:
            self._free.release()

    def _start(self, subject: str) -> bool:
        """Register a lookup. Returns whether the circuit is half-open and this lookup is the probe."""
        with self._lock:
            if self._failures < FAILURES_TO_OPEN:
                return False
            if self._probing or self._clock() < self._open_until:
                raise LookupFailedError(
                    f"the online store failed {self._failures} times in a row: {subject}", "circuit_open"
                )
            self._probing = True
            return True

    def _ended(self, half_open: bool, healthy: bool | None) -> None:
        with self._lock:
            if half_open:
                self._probing = False
            if healthy:
                self._failures = 0
            elif healthy is False:
                self._failures += 1
                if self._failures >= FAILURES_TO_OPEN:
                    self._open_until = self._clock() + OPEN_SECONDS
