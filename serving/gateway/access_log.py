"""What the access log of a gateway says, counted: every line is in one of the counts."""

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
        torn: last lines that a kill cut.
        broken: other lines that are not an object with the fields of a request.
        answered: 2xx.
        refused: 4xx, by the gateway or a predictor.
        failed: every other status, and requests whose client left.
        fallbacks: answered requests that another arm than the assigned one served.
        misnamed: answers by a server that calls itself otherwise than the gateway file does.
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
    """The access logs of a gateway's folder, oldest first."""
    current = folder / ACCESS_LOG
    return [*sorted(folder.glob("access-*.log")), *([current] if current.is_file() else [])]


def count_lines(files: Iterable[Path]) -> LogCounts:
    """Count access logs, read line by line; nothing in a line stops it."""
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
    found = ["requests"]
    if isinstance(code, int) and 200 <= code < 300:
        found.append("answered")
        if served is not None and served != line["assigned"]:
            found.append("fallbacks")
        if line.get("upstream") is not None and served != line["upstream"]:
            found.append("misnamed")
    else:
        found.append("refused" if isinstance(code, int) and 400 <= code < 500 else "failed")
    return found


def _parsed(raw: bytes) -> dict[str, object] | None:
    """The object in a line; Latin-1 reads any bytes, and ids and arms are ASCII."""
    try:
        found = json.loads(raw.decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and set(ACCESS_COLUMNS.names) <= found.keys()
    return found if whole and found["request_id"] is not None else None
