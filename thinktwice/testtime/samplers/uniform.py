"""Blind random paths: every unprotected field stays with the same probability. The baseline of every guided sampler."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.samplers.bernoulli import antithetic
from thinktwice.testtime.samplers.paths import Paths, SamplerInput


def draw(config: TestTimeConfig, inputs: SamplerInput) -> Paths:
    return antithetic(np.full(inputs.kept.shape, config.keep_rate), inputs, config.max_paths)
