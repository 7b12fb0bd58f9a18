"""The estimated time of a configuration, by formula: the acceptance test must decide the same on every machine.

The prices were measured with the engine at 100 rows per request (`make bench-testtime`). They are those of models whose
base pass takes about a millisecond; a larger model pays less for the same configuration.
"""

from __future__ import annotations

from thinktwice.testtime.base_pass import Filter
from thinktwice.testtime.config import TestTimeConfig

ESCALATION_COST = 0.15  # choosing uncertain rows and collecting their values, in base passes
PASS_COST = 2.0  # a further pass of a row beside its base pass: it runs in smaller blocks, often through other weights
FILTER_COST = 0.3  # finding the values that a filter replaces, and replacing them


def estimated_cost(config: TestTimeConfig, passes: float) -> float:
    """Time of a request relative to the plain model's, for ``passes`` forward passes per row."""
    cost = 1.0 + PASS_COST * (passes - 1.0)
    if config.second_look is not None:
        cost += ESCALATION_COST
    if isinstance(config.base, Filter):
        cost += FILTER_COST
    return cost
