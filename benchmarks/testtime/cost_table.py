"""Costs of the modes with the configurations fitted in the study: two data sets, two backbones, two kinds of trunk."""

from __future__ import annotations

from typing import Any

from benchmarks.testtime import latency, study
from benchmarks.testtime.fillers import BlindConfig
from benchmarks.testtime.plan import Part, trunks_of
from thinktwice.selection.fit import fit_extras
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.reliability import Reliability

MODES = (
    "lean",
    "gate",
    "filter",
    "members, 10% by entropy",
    "members, 20% by entropy",
    "2 seeds",
    "3 seeds",
    "uttsi@0",
    "uttsi, exact",
    "random masks@0",
    "matt@0",
    "sgctr",
)
ROUNDS, QUICK_ROUNDS = 12, 3


def cost_table(parts: tuple[Part, ...], quick: bool) -> list[dict[str, Any]]:
    """Per data set, backbone and regime the costs of ``MODES`` as fitted with seed 0; ``lean`` is the shipped configuration."""
    out = []
    for part in parts:
        if part.data not in ("sim_strong", "sim_quick", "ml_time") or part.backbone == "autoint":
            continue
        trunks = trunks_of(part.data)
        train = trunks.train_rows
        reliability = Reliability.fit(train.ids, train.label, trunks.fields)
        for regime in part.regimes:
            run = next(r for r in part.runs() if r.regime == regime)
            configs = study.run(trunks, run).facts["configs"]
            chain = [study.trunk_of(trunks, run, ahead) for ahead in range(study.MEMBERS)]
            extras = fit_extras(chain[0].model, reliability, train, (), study.FIT)
            extras = Extras(extras.combinations, extras.heads, tuple(t.model for t in chain[1:]))
            trial_model = TrialModel(chain[0].model, chain[0].calibration, reliability, extras)
            chosen = {"off": TestTimeConfig()}
            chosen |= {m.split("@")[0]: _config(m, configs[m]) for m in MODES if m in configs}
            costs = latency.measure(
                trial_model, chosen, study.test_rows(trunks.data), QUICK_ROUNDS if quick else ROUNDS
            )
            where = {"data": part.data, "backbone": part.backbone, "regime": regime}
            out += [where | entry for entry in costs]
    return out


def _config(name: str, value: dict[str, Any]) -> TestTimeConfig:
    return (BlindConfig if name.startswith("random masks") else TestTimeConfig).model_validate(value)
