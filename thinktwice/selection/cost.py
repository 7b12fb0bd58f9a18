"""The estimated time of a configuration, by formula, so that the acceptance test decides the same on every machine.

The constants were measured with the engine at 100 rows per request (`make bench-testtime`), on models whose base pass takes
about a millisecond; for a larger model the same configuration is relatively cheaper.
"""

from __future__ import annotations

from thinktwice.testtime.base_pass import Filter
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.opinions.config import Retrieve

ESCALATION_COST = 0.15  # choosing uncertain rows and collecting their values, in base passes
PASS_COST = 2.0  # a further pass of a row, in base passes: it runs in smaller blocks, often with other weights
CORRECTION_COST = 0.08  # the network on counters, for every row
HISTORY_COST = 0.13  # choosing rows and preparing the history of a request that has an escalated row
RETRIEVAL_COST = 0.35  # gathering the neighbours of all rows, and the second network
FILTER_COST = 0.3  # finding and replacing the values of a filter


def estimated_cost(config: TestTimeConfig, passes: float) -> float:
    """Time of a request relative to the plain model's, for ``passes`` forward passes per row."""
    look = config.second_look
    retrieves = look is not None and isinstance(look.opinion, Retrieve)
    cost = 1.0 + (RETRIEVAL_COST if retrieves else PASS_COST) * (passes - 1.0)
    if config.correction is not None:
        cost += CORRECTION_COST
    if look is not None:
        cost += HISTORY_COST if retrieves else ESCALATION_COST
    if isinstance(config.base, Filter):
        cost += FILTER_COST
    return cost
