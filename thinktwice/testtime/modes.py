"""The published methods and ours as configurations of one engine. Free parameters are fitted in
:mod:`thinktwice.selection.fit`.

| mode | base pass | escalated rows | second opinion |
| --- | --- | --- | --- |
| off | plain | none | |
| calibrated | plain, calibrated by support | none | |
| gate | mean-field mixture of value and mask vector | none | |
| filter | values without support replaced | none | |
| uttsi | filtered | dual signal above a quantile | guided paths, consistency weights, group calibrator |
| matt | plain | all | paths grown along frequent combinations, confidence weights |
| sgctr | plain | all | features redefined by the denoiser |
| members | plain or gated | the most uncertain scores | one or two independently trained trunks |
| counters | plain, of a trunk that also reads counters | none | |
| corrected | plain, corrected by counters | none | |
| retrieve | plain, corrected by counters | the most uncertain scores, or those moved most | the user's outcomes on similar items |

UTTSI (arXiv 2605.24989), MATT (2510.08932) and SGCTR (2511.14403) are known by their abstracts and by reviews, without
code: these are reconstructions that agree with every published statement; the authors' versions may differ.
"""

from __future__ import annotations

from thinktwice.choices import Mode
from thinktwice.testtime.aggregators import Consistency
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.config import Correction, SecondLook, TestTimeConfig
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths, Members, Redefine, Retrieve
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.triggers import Always, Dual, Entropy

SGCTR_ROUNDS = 2
UTTSI_PATHS = FeaturePaths(sampler=Bernoulli(pair_share=0.3), aggregator=Consistency(), shrink=True)

PRESETS: dict[Mode, TestTimeConfig] = {
    "off": TestTimeConfig(),
    "calibrated": TestTimeConfig(mode="calibrated"),
    "gate": TestTimeConfig(mode="gate", base=Gate(strength=1.0)),
    "filter": TestTimeConfig(mode="filter", base=Filter(min_count=2)),
    "uttsi": TestTimeConfig(
        mode="uttsi",
        base=Filter(min_count=2),
        second_look=SecondLook(trigger=Dual(threshold=0.2), opinion=UTTSI_PATHS),
    ),
    "matt": TestTimeConfig(mode="matt", second_look=SecondLook(trigger=Always(), opinion=GrownPaths())),
    "sgctr": TestTimeConfig(
        mode="sgctr", second_look=SecondLook(trigger=Always(), opinion=Redefine(rounds=SGCTR_ROUNDS))
    ),
    "members": TestTimeConfig(
        mode="members", second_look=SecondLook(trigger=Entropy(threshold=0.9), opinion=Members(count=1))
    ),
    "counters": TestTimeConfig(mode="counters"),
    "corrected": TestTimeConfig(mode="corrected", correction=Correction()),
    "retrieve": TestTimeConfig(
        mode="retrieve",
        correction=Correction(),
        second_look=SecondLook(trigger=Entropy(threshold=0.9), opinion=Retrieve()),
    ),
}


def preset(mode: Mode, base: TestTimeConfig | None = None) -> TestTimeConfig:
    """The configuration of a mode before anything is fitted; options that the mode does not set are taken from ``base``."""
    if base is None:
        return PRESETS[mode]
    decided = PRESETS[mode]
    return base.model_copy(
        update={"mode": mode} | {name: getattr(decided, name) for name in ("base", "correction", "second_look")}
    )
