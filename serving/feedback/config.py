"""Settings of the feedback service."""

from __future__ import annotations

from pydantic import Field

from thinktwice.frozen import Frozen


class FeedbackConfig(Frozen):
    """Settings of the service.

    Attributes:
        lateness: seconds by which events may arrive late and still be counted in order.
        queue: events that may wait for the disk; further ones are refused.
        tick: seconds without an event after which a tick is recorded.
        record_only: events are joined and recorded for outcomes; nothing is counted and nothing is pushed.
    """

    lateness: float = Field(default=0.0, ge=0, le=86_400)
    queue: int = Field(default=20_000, ge=1)
    tick: float = Field(default=0.25, gt=0, le=60)
    record_only: bool = False

    @property
    def lateness_us(self) -> int:
        """:attr:`lateness` in microseconds."""
        return round(self.lateness * 1e6)
