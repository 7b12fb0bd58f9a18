"""Costs that do not depend on a clock."""

from __future__ import annotations

from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.base_pass import Filter
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.cost import MeasuredCost, Ratio

LOOKS = {"feature_paths": 2.5, "grown_paths": 5.0, "redefine": 6.0, "members": 1.45, "retrieve": 1.3}


def exactly(value: float) -> MeasuredCost:
    """A cost without spread."""
    ratio = Ratio(value=value, low=value, high=value)
    return MeasuredCost(**dict(ratio), by_rows=(ratio,) * 3)


def fixed(trial_model: TrialModel, config: TestTimeConfig) -> MeasuredCost:
    """A cost by the parts of a configuration."""
    look = config.second_look
    value = 1.0 if look is None else LOOKS[look.opinion.kind]
    value += 0.3 * isinstance(config.base, Filter) + 0.1 * (config.correction is not None)
    return exactly(value)
