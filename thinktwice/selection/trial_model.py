"""A trained model whose test-time configurations are fitted and judged: everything that is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from thinktwice.calibration import Calibration
from thinktwice.data.encoded import EncodedRows
from thinktwice.models.backbone import Backbone
from thinktwice.selection.evidence import EvidenceFit
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.scores import Raw

KEPT = 4  # raw scores kept


@dataclass(frozen=True, eq=False)
class TrialModel:
    """A model with its own calibration, the counts of its training rows, and extras of some modes. ``evidence`` fits
    corrections for controls. ``counter_model`` is the same trunk trained with counters among its inputs; it scores the
    configurations of the mode ``counters``."""

    model: Backbone
    calibration: Calibration
    reliability: Reliability
    extras: Extras
    evidence: EvidenceFit | None = None
    counter_model: TrialModel | None = None
    _kept: dict[tuple[TestTimeConfig, int], tuple[EncodedRows, Raw]] = field(
        init=False, repr=False, default_factory=dict
    )  # by settings and identity of the rows, which are kept alive with their scores

    def of(self, config: TestTimeConfig) -> TrialModel:
        """The model that a configuration belongs to."""
        if config.mode != "counters":
            return self
        assert self.counter_model is not None
        return self.counter_model

    def engine(self, config: TestTimeConfig) -> Engine:
        model = self.of(config)
        return Engine(model.model, model.reliability, config, model.calibration, model.extras)

    def raw(self, config: TestTimeConfig, rows: EncodedRows) -> Raw:
        """Uncalibrated scores, without a cap on extra rows. The latest ones are kept, because a fit scores the same rows with the same
        settings and other calibrations."""
        key = _without_finish(config), id(rows)
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = rows, raw_rows(self.engine(config), rows)
        return self._kept[key][1]

    def logits(self, config: TestTimeConfig, rows: EncodedRows) -> tuple[np.ndarray, float]:
        """Calibrated log-odds [R] and forward passes per row."""
        raw = self.raw(config, rows)
        return self.engine(config).finish(raw).logit, float(raw.num_paths.mean())

    def shuffled(self, seed: int = 0) -> TrialModel:
        """A control: the same model with counts permuted among values. A gain from real support disappears under it."""
        combinations = self.extras.combinations
        extras = replace(self.extras, combinations=None if combinations is None else combinations.shuffled(seed))
        return replace(self, reliability=self.reliability.shuffled(seed), extras=extras)


def _without_finish(config: TestTimeConfig) -> TestTimeConfig:
    """``config`` without what only :meth:`Engine.finish` reads. A trigger reads calibrated scores, so with a second look that is
    the calibration of looked-at rows alone."""
    if config.second_look is not None:
        return config.looking(calibration=None)
    return config.model_copy(update={"calibration": None, "support_calibration": None, "temperature": 1.0})
