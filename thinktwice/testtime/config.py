"""What the test-time engine does: `TestTimeConfig` ships in the bundle, `FitConfig` says how it is found on validation rows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from thinktwice.models.store import Calibration

Mode = Literal["off", "gate", "filter", "uttsi"]
TriggerKind = Literal["never", "always", "dual", "entropy", "random"]
SamplerKind = Literal["bernoulli", "enumerate"]
AggregatorKind = Literal["mean", "median", "consistency"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TestTimeConfig(_Frozen):
    """One configuration of the engine.

    ``off`` is the plain model. ``gate`` mixes every unprotected value with its field's mask vector, weight
    c / (c + strength * kappa). ``filter`` replaces values seen fewer than ``min_count`` times. ``uttsi`` filters every row
    and scores several guided paths of the rows that the trigger finds unsure.
    """

    __test__ = False  # the name starts with "Test", and it is no test

    mode: Mode = "off"
    strength: float = Field(default=0.0, ge=0)
    min_count: int = Field(default=0, ge=0)
    min_kept: float = Field(default=0.7, ge=0, le=1)  # share of all fields that a filter keeps at least
    trigger: TriggerKind = "never"
    threshold: float = 0.0  # rows with a trigger signal above it are unsure
    signal_max: float = 1.0  # signal at which a row gets max_paths
    entropy_floor: float = Field(default=0.5, ge=0, le=1)  # dual signal of a row whose base score is certain
    sampler: SamplerKind = "bernoulli"
    aggregator: AggregatorKind = "consistency"
    max_paths: int = Field(default=8, ge=2, le=64)  # per row, beside the base pass
    max_path_rows: int = Field(default=1024, ge=0)  # per request; the rows with the largest signal come first
    importance: tuple[float, ...] = ()  # weight of each field in the epistemic signal; empty: all unprotected alike
    calibration: Calibration | None = None  # of rows with one pass; None: the model's own
    explored_calibration: Calibration | None = None  # of rows with paths; None: as above
    salt: int = Field(default=0, ge=0)  # changes the drawn paths of every row

    @model_validator(mode="after")
    def _consistent(self) -> TestTimeConfig:
        if self.mode != "uttsi" and self.trigger != "never":
            raise ValueError(f"mode {self.mode!r} scores no paths: its trigger must be 'never', not {self.trigger!r}")
        return self


class FitConfig(_Frozen):
    """How the engine is fitted on validation rows. The grids hold 0 (no effect) on purpose."""

    max_rows: int = Field(default=40_000, ge=100)  # validation rows used; more are thinned evenly over time
    strengths: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
    min_counts: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20)
    explored_share: float = Field(default=0.2, gt=0, lt=1)  # share of rows that the trigger of `uttsi` finds unsure
    max_paths: int = Field(default=8, ge=2, le=64)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # of the acceptance interval, all candidates together
