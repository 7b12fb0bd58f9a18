"""The published methods and ours as configurations of one engine. What is free is fitted in :mod:`thinktwice.selection.fit`.

| mode | base pass | whom to ask again | second opinion |
| --- | --- | --- | --- |
| off | plain | nobody | |
| calibrated | plain, calibrated by support | nobody | |
| gate | mean-field mixture of value and mask vector | nobody | |
| filter | values without support replaced | nobody | |
| uttsi | filtered | dual signal above a quantile | guided paths, consistency weights, group calibrator |
| matt | plain | everybody | paths grown along frequent combinations, confidence weights |
| sgctr | plain | everybody | features redefined by the denoiser |
| members | plain or gated | the most uncertain scores | one or two independently trained trunks |

UTTSI (arXiv 2605.24989), MATT (2510.08932) and SGCTR (2511.14403) are known by their abstracts and by reviews, without
code: what stands here is a reconstruction that obeys every published statement, and the authors' versions may differ.
"""

from __future__ import annotations

from thinktwice.testtime.config import Mode, TestTimeConfig

SGCTR_ROUNDS = 2

PRESETS: dict[Mode, TestTimeConfig] = {
    "off": TestTimeConfig(),
    "calibrated": TestTimeConfig(mode="calibrated"),
    "gate": TestTimeConfig(mode="gate", strength=1.0),
    "filter": TestTimeConfig(mode="filter", min_count=2),
    "uttsi": TestTimeConfig(
        mode="uttsi",
        min_count=2,
        trigger="dual",
        threshold=0.2,
        sampler="bernoulli",
        pair_share=0.3,
        aggregator="consistency",
        shrink=True,
    ),
    "matt": TestTimeConfig(mode="matt", trigger="always", sampler="matt", aggregator="confidence"),
    "sgctr": TestTimeConfig(mode="sgctr", trigger="always", redefine_rounds=SGCTR_ROUNDS),
    "members": TestTimeConfig(mode="members", trigger="entropy", threshold=0.9, members=1),
}


def preset(mode: Mode, base: TestTimeConfig | None = None) -> TestTimeConfig:
    """The configuration of a mode before anything is fitted; what the mode does not decide is taken from ``base``."""
    if base is None:
        return PRESETS[mode]
    decided = PRESETS[mode].model_dump(exclude_defaults=True) | {"mode": mode}
    return TestTimeConfig.model_validate(base.model_dump() | decided)
