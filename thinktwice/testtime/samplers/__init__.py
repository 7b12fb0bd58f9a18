"""Feature paths of uncertain rows, which fields each extra pass of a row keeps: one file per sampler."""

from __future__ import annotations

from collections.abc import Callable

from thinktwice.testtime.config import SamplerKind, TestTimeConfig
from thinktwice.testtime.samplers import bernoulli, exact, matt, uniform
from thinktwice.testtime.samplers.paths import Paths, SamplerInput

SAMPLERS: dict[SamplerKind, Callable[[TestTimeConfig, SamplerInput], Paths]] = {
    "bernoulli": bernoulli.draw,
    "uniform": uniform.draw,
    "enumerate": exact.draw,
    "matt": matt.draw,
}

__all__ = ["SAMPLERS", "Paths", "SamplerInput"]
