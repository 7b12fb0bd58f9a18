"""The estimated time of a configuration, by formula: the acceptance test must decide the same on every machine.

The prices were measured with the engine at 100 rows per request (`make bench-testtime`). They are those of models whose
base pass takes about a millisecond; a larger model pays less for the same configuration.
"""

from __future__ import annotations

from thinktwice.testtime.base_pass import Filter
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.opinions.config import Retrieve

ESCALATION_COST = 0.15  # choosing uncertain rows and collecting their values, in base passes
PASS_COST = 2.0  # a further pass of a row beside its base pass: it runs in smaller blocks, often through other weights
CORRECTION_COST = 0.08  # the network on counters, for every row
HISTORY_COST = 0.13  # choosing rows and preparing the history of a request that has an escalated row
RETRIEVAL_COST = 0.35  # gathering the neighbours of all rows, and the second network
FILTER_COST = 0.3  # finding the values that a filter replaces, and replacing them


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
