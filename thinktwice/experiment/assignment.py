"""Assignment of units to arms: a pure function of salt and unit, which Envoy and other languages can reproduce.

    bucket = xxh64("<salt>:<unit>", seed 0) mod 10,000

An experiment owns a range of buckets. Each of its arms has an equal part of the range and enrols the first ``coverage`` of
it; the rest is served control and is *not enrolled*. Raising the coverage moves no enrolled unit, and control is as large
as each treatment at every step. (If the treatment grew and everything else were control, a fifth of the control's users
would move during a ramp, and a trend over time would look like an effect.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from thinktwice.experiment.changes import check_together
from thinktwice.experiment.file import BUCKETS, CONTROL, UNIT, ExperimentFile
from thinktwice.xxh64 import xxh64_of_texts

Reason = Literal["split", "outside", "holdout", "tester", "no_unit", "bad_unit"]
NO_EXPERIMENT, HOLDOUT, TESTER, OVERRIDE = "none", "holdout", "tester", "override"


@dataclass(frozen=True)
class Range:
    """Half-open range of buckets with the same treatment; ``experiment`` is a name, ``none`` or ``holdout``."""

    start: int
    stop: int
    experiment: str
    arm: str
    enrolled: bool

    @property
    def width(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Assignment:
    """The assignment of one request. ``bucket`` is None without a valid unit."""

    experiment: str
    arm: str
    enrolled: bool
    bucket: int | None
    reason: Reason


@dataclass(frozen=True)
class BucketLayout:
    """The split of one salt: ranges that cover all 10,000 buckets in order, and testers by unit (experiment, arm)."""

    salt: str
    ranges: tuple[Range, ...]
    testers: dict[str, tuple[str, str]]


def bucket_of(salt: str, unit: str) -> int:
    """Bucket 0..9999 of a unit. The bytes hashed are UTF-8."""
    return xxhash.xxh64_intdigest(f"{salt}:{unit}".encode()) % BUCKETS


def layout_of(experiments: Sequence[ExperimentFile]) -> BucketLayout:
    """The split of one experiment, or of all experiments of one exclusive group.

    Raises:
        ExperimentError: they conflict.
        ValueError: there are none, or their salts differ.
    """
    if not experiments:
        raise ValueError("a split needs at least one experiment")
    check_together(experiments)
    salts = {e.salt for e in experiments}
    if len(salts) > 1:
        raise ValueError(f"one split has one salt, not {', '.join(sorted(salts))}")
    ranges: list[Range] = []
    for experiment in sorted(experiments, key=lambda e: e.buckets):
        _fill(ranges, experiment.buckets[0], NO_EXPERIMENT)
        for index, arm in enumerate(experiment.arms):
            start = experiment.buckets[0] + index * experiment.arm_width
            end = start + experiment.arm_width
            middle = start + experiment.enrolled_width
            _append(ranges, Range(start, middle, experiment.name, arm.name, True))
            _append(ranges, Range(middle, end, experiment.name, CONTROL, False))
        _append(ranges, Range(end, experiment.buckets[1], experiment.name, CONTROL, False))
    top = BUCKETS - experiments[0].holdout
    _fill(ranges, top, NO_EXPERIMENT)
    _fill(ranges, BUCKETS, HOLDOUT)
    testers = {unit: (e.name, arm) for e in experiments for arm, units in e.testers.items() for unit in units}
    return BucketLayout(salts.pop(), tuple(ranges), testers)


def unit_problem(unit: str | None) -> Literal["no_unit", "bad_unit"] | None:
    """Why a unit cannot be assigned; None if it can. Leading and trailing blanks of a header are ignored."""
    if unit is None or not unit.strip(" \t"):
        return "no_unit"
    return None if UNIT.fullmatch(unit.strip(" \t")) else "bad_unit"


def assign(layout: BucketLayout, unit: str | None) -> Assignment:
    """The arm of a unit; a missing or invalid one gets control and is not enrolled."""
    problem = unit_problem(unit)
    if problem is not None or unit is None:
        return Assignment(NO_EXPERIMENT, CONTROL, False, None, problem or "no_unit")
    unit = unit.strip(" \t")
    bucket = bucket_of(layout.salt, unit)
    if unit in layout.testers:
        _, arm = layout.testers[unit]
        return Assignment(TESTER, arm, False, bucket, "tester")
    range_ = next(r for r in layout.ranges if r.start <= bucket < r.stop)
    reason: Reason = (
        "holdout" if range_.experiment == HOLDOUT else "outside" if range_.experiment == NO_EXPERIMENT else "split"
    )
    return Assignment(range_.experiment, range_.arm, range_.enrolled, bucket, reason)


def buckets_of(salt: str, unit: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Buckets int16 [N] of units [N]; -1 for a missing or invalid one. Equal to :func:`bucket_of` for all others."""
    trimmed = pc.utf8_trim(unit.cast(pa.large_string()), " \t")
    valid = pc.fill_null(pc.match_substring_regex(trimmed, f"^(?:{UNIT.pattern})$"), False)
    bucket = (xxh64_of_texts(trimmed, f"{salt}:") % np.uint64(BUCKETS)).astype(np.int16)
    return np.where(valid.to_numpy(zero_copy_only=False), bucket, np.int16(-1))


def places_of(layout: BucketLayout, bucket: np.ndarray) -> np.ndarray:
    """Index [N] into ``layout.ranges`` of each bucket [N]; -1 if there is none. Testers are ignored."""
    table = np.empty(BUCKETS, np.int64)
    for index, range_ in enumerate(layout.ranges):
        table[range_.start : range_.stop] = index
    return np.where(bucket < 0, -1, table[np.clip(bucket, 0, BUCKETS - 1)])


def _append(ranges: list[Range], new: Range) -> None:
    """Add a range; one of width 0 is skipped, equal neighbours are merged."""
    if new.width <= 0:
        return
    last = ranges[-1] if ranges else None
    if last and (last.experiment, last.arm, last.enrolled) == (new.experiment, new.arm, new.enrolled):
        ranges[-1] = Range(last.start, new.stop, last.experiment, last.arm, last.enrolled)
    else:
        ranges.append(new)


def _fill(ranges: list[Range], stop: int, experiment: str) -> None:
    """Control, not enrolled, up to ``stop``."""
    start = ranges[-1].stop if ranges else 0
    _append(ranges, Range(start, stop, experiment, CONTROL, False))
