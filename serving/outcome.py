"""Outcomes of a request."""

from __future__ import annotations

from typing import Literal, get_args

Outcome = Literal["ok", "invalid", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
