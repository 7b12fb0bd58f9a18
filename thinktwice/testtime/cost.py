"""``cost.json``: the measured time of every configuration that was tried.

It is a file of its own because no other file of a training run contains measured times: all others are the same bytes in every
run with the same inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from thinktwice.errors import BundleError
from thinktwice.versioned import Record, ResultFile, read_result

COST_FILE = "cost.json"


class Ratio(Record):
    """Time of a configuration divided by that of the plain model: median and quartiles over the rounds of a measurement."""

    value: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)


class MeasuredCost(Ratio):
    """The mean of the ratios at all request sizes, with those ``by_rows`` (rows per request, in the order of the file)."""

    by_rows: tuple[Ratio, ...]


class CostFile(ResultFile):
    """Content of ``cost.json``.

    Attributes:
        clock: what was measured.
        backend: that scored the plain model, the one that packaging chooses.
        rows: rows per request.
        rounds: turns of each configuration, taken alternately with the plain model.
        plain_us: median time of a request with the plain model in microseconds, by ``rows``.
        max_cost: the limit that candidates had to keep; None without one.
        candidates: by name.
    """

    FORMAT: ClassVar[int] = 1

    clock: str
    backend: str
    rows: tuple[int, ...]
    rounds: int
    plain_us: tuple[float, ...]
    max_cost: float | None
    candidates: dict[str, MeasuredCost]


def load_costs(folder: Path | str) -> CostFile | None:
    """The file of a folder; None for a folder without one, written before costs were measured.

    Raises:
        BundleError: it is damaged.
    """
    path = Path(folder) / COST_FILE
    return read_result(path, CostFile, BundleError, "fit the test-time parameters again") if path.is_file() else None
