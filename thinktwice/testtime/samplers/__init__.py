"""Samplers: the fields that each extra pass of an uncertain row keeps; one file per sampler, with its options."""

from thinktwice.testtime.samplers.paths import Paths, SamplerInput

__all__ = ["Paths", "SamplerInput"]
