"""Feature paths of uncertain rows, which fields each extra pass of a row keeps: one file per sampler, with its options."""

from thinktwice.testtime.samplers.paths import Paths, SamplerInput

__all__ = ["Paths", "SamplerInput"]
