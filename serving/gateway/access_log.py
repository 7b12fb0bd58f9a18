"""Counts of a gateway's access log: every line is counted once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from thinktwice.experiment.bootstrap import ACCESS_LOG
from thinktwice.records.served import ACCESS_COLUMNS

LONGEST_LINE = 1 << 20  # bytes


class LogCounts(BaseModel):
    """``lines = requests + broken + torn``; ``requests = answered + refused + failed``.

    Attributes:
        torn: last lines truncated by a kill.
        broken: other lines that are not an object with the fields of a request.
        answered: 2xx.
        refused: 4xx, by the gateway or a predictor.
        failed: every other status, and requests whose client disconnected.
        fallbacks: answered requests that were served by another arm than the assigned one.
        misnamed: answers by a server whose arm name differs from the gateway file.
        by_route: requests by route: ``no-unit``, ``bad-unit``, ``split``, testers, and the ingress rules.
        by_arm: enrolled requests by experiment and assigned arm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int = 0
    torn: int = 0
    broken: int = 0
    requests: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    fallbacks: int = 0
    misnamed: int = 0
    by_route: dict[str, int] = {}
    by_arm: dict[str, int] = {}


def access_logs(folder: Path) -> list[Path]:
    """Access logs in a gateway's folder, oldest first."""
    current = folder / ACCESS_LOG
    return [*sorted(folder.glob("access-*.log")), *([current] if current.is_file() else [])]


def count_lines(files: Iterable[Path]) -> LogCounts:
    """Count the lines of access logs; invalid lines are counted too."""
    total: Counter[str] = Counter()
    routes: Counter[str] = Counter()
    arms: Counter[str] = Counter()
    for file in files:
        with file.open("rb") as handle:
            while raw := handle.readline(LONGEST_LINE):
                if not raw.strip():
                    continue
                total["lines"] += 1
                line = _parsed(raw)
                if line is None:
                    total["broken" if raw.endswith(b"\n") else "torn"] += 1
                    continue
                total.update(_counts(line))
                routes[str(line.get("route") or "none")] += 1
                if line["enrolled"] == "1":
                    arms[f"{line['experiment']}/{line['assigned']}"] += 1
    return LogCounts(**total, by_route=dict(sorted(routes.items())), by_arm=dict(sorted(arms.items())))


def _counts(line: dict[str, object]) -> list[str]:
    code, served = line["code"], line["served"] or None
    names = ["requests"]
    if isinstance(code, int) and 200 <= code < 300:
        names.append("answered")
        if served is not None and served != line["assigned"]:
            names.append("fallbacks")
        if line.get("upstream") is not None and served != line["upstream"]:
            names.append("misnamed")
    else:
        names.append("refused" if isinstance(code, int) and 400 <= code < 500 else "failed")
    return names


def _parsed(raw: bytes) -> dict[str, object] | None:
    """The object in a line, None if it is invalid. Latin-1 decodes any bytes, and ids and arms are ASCII."""
    try:
        value = json.loads(raw.decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    complete = isinstance(value, dict) and set(ACCESS_COLUMNS.names) <= value.keys()
    return value if complete and value["request_id"] is not None else None
