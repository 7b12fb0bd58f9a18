"""Circuit breaker, time limit and bulkhead around an online store: a slow or dead store never hangs a request.

A source that bounds itself answers in the caller's thread; other lookups run in a few threads of their own. One that is late
there is left to end by itself; while all threads hang, further lookups fail at once. After some failures in a row the store
is not asked for a while (circuit open), then by one lookup at a time until it answers (half-open). The log says when it begins
to fail and when it has recovered, not for every lookup.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from serving.features.lookup import BoundedSource, Entity, FeatureRow
from serving.telemetry.state import Trouble
from thinktwice.errors import FeatureStoreError

if TYPE_CHECKING:
    from serving.features.counters import StateSource

Found = TypeVar("Found")
Reason = Literal["timeout", "error", "bulkhead_full", "circuit_open"]
FAILURES_TO_OPEN = 5  # in a row, after which the circuit opens
OPEN_SECONDS = 1.0  # after which one lookup probes the store (half-open)

logger = logging.getLogger(__name__)


class LookupFailedError(FeatureStoreError):
    """A lookup gave nothing; ``reason`` says why in one word."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class GuardedSource:
    """Bounds the time of another source.

    Args:
        source: the store.
        timeout: seconds a lookup may take; a caller may only lower it.
        threads: lookups that may be under way at once, hanging ones included.
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
            LookupFailedError: timed out, failed, or not tried.
        """
        return self._guarded(
            entity,
            timeout,
            lambda limit: self._source.fetch_within(entity, ids, limit),
            lambda limit: self._source.fetch(entity, list(ids), limit),
        )

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """See :class:`serving.features.counters.StateSource`.

        Raises:
            LookupFailedError: timed out, failed, or not tried.
        """
        source = cast("StateSource", self._source)
        return self._guarded(
            fields[0][0], timeout, lambda _: None, lambda _: source.fetch_fields(key, list(fields), list(ids))
        )

    def _guarded(
        self,
        what: str,
        timeout: float | None,
        at_once: Callable[[float], list[Found] | None],
        on_a_thread: Callable[[float], list[Found]],
    ) -> list[Found]:
        limit = self._timeout if timeout is None else min(self._timeout, timeout)
        if limit <= 0:
            raise LookupFailedError(f"no time is left to look up {what} features", "timeout")
        half_open = self._start(what)
        good: bool | None = None  # a bug in a source says nothing about the store, but it ends a probe too
        try:
            began = time.monotonic()
            found = None if half_open else at_once(limit)
            if found is None:
                found = self._on_a_thread(what, on_a_thread, limit - (time.monotonic() - began))
            good = True
            self.trouble.not_met()
        except TimeoutError:
            timed_out = LookupFailedError(f"{what} features took longer than {limit * 1000:.0f} ms", "timeout")
            if limit >= self._timeout:  # a caller in a hurry says nothing about the store
                good = False
                self._log_trouble(timed_out)
            raise timed_out from None
        except LookupFailedError as error:
            self._log_trouble(error)
            raise
        except FeatureStoreError as error:
            good = False
            self._log_trouble(error)
            raise LookupFailedError(str(error), "error") from error
        finally:
            self._ended(half_open, good)
        return found

    def _log_trouble(self, error: Exception) -> None:
        self.trouble.met(f"{error}: lookups get defaults until the online store answers")

    def close(self) -> None:
        """Stop taking lookups and close the source."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._source.close()

    def _on_a_thread(self, what: str, work: Callable[[float], list[Found]], limit: float) -> list[Found]:
        if limit <= 0:
            raise TimeoutError
        if not self._free.acquire(blocking=False):
            raise LookupFailedError(f"lookup pool exhausted: {what} features were not requested", "bulkhead_full")
        return self._pool.submit(self._run, work, limit).result(limit)

    def _run(self, work: Callable[[float], list[Found]], limit: float) -> list[Found]:
        try:
            return work(limit)
        finally:
            self._free.release()

    def _start(self, what: str) -> bool:
        """Whether the circuit is half-open and this lookup is the probe."""
        with self._lock:
            if self._failures < FAILURES_TO_OPEN:
                return False
            if self._probing or self._clock() < self._open_until:
                raise LookupFailedError(
                    f"the online store failed {self._failures} times in a row: {what}", "circuit_open"
                )
            self._probing = True
            return True

    def _ended(self, half_open: bool, good: bool | None) -> None:
        with self._lock:
            if half_open:
                self._probing = False
            if good:
                self._failures = 0
            elif good is False:
                self._failures += 1
                if self._failures >= FAILURES_TO_OPEN:
                    self._open_until = self._clock() + OPEN_SECONDS
