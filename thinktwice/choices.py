"""Allowed values of the parameters of a training run, declared once, as types.

The command line, the checks and the settings read them with :func:`typing.get_args`. This module imports nothing else.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

SplitKind = Literal["time", "random", "days", "dates", "column"]
RecipeName = Literal["default", "dcnv2", "autoint", "ml-1m", "ml-100k", "tiny"]
Pretraining = Literal["none", "dgenctr", "hetegenctr"]
PretrainingOption = Literal["", "none", "dgenctr", "hetegenctr"]  # "": what the recipe names
Mode = Literal[
    "off", "calibrated", "gate", "filter", "uttsi", "matt", "sgctr", "members", "counters", "corrected", "retrieve"
]
SearchMode = Literal["lean", Mode]  # one mode, or all of them within a limit of cost
ChallengerMode = Literal[
    "", "calibrated", "gate", "filter", "uttsi", "matt", "sgctr", "members", "counters", "corrected", "retrieve"
]  # "": no challenger
MAX_COST = 2.0  # default limit: time of a request relative to the plain model
OnlineStoreKind = Literal["sqlite", "redis"]


def listed(choices: Any) -> str:
    """The values of a Literal, for a message."""
    return ", ".join(get_args(choices))
