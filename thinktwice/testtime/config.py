"""What the test-time engine does: `TestTimeConfig` ships in the bundle, `FitConfig` says how it is found on validation rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from thinktwice.models.store import MAX_MAGNITUDE, Calibration, Coefficient
from thinktwice.testtime.calibrate import SupportCalibration

Mode = Literal["off", "calibrated", "gate", "filter", "uttsi", "matt", "sgctr", "members"]
TriggerKind = Literal["never", "always", "dual", "entropy", "random", "budget", "decision"]
SamplerKind = Literal["none", "bernoulli", "uniform", "enumerate", "matt"]
FillerKind = Literal["mask", "mean", "denoiser"]
AggregatorKind = Literal["mean", "median", "consistency", "confidence"]
MAX_COUNT = 2**31 - 1


Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TestTimeConfig(_Frozen):
    """One configuration of the engine: a base pass for every row, and at most one kind of second opinion for some rows.

    The base pass is plain, gated (``strength``) or filtered (``min_count``). The second opinion is several feature paths
    (``sampler``), further trunks (``members``) or features redefined by the denoiser (``redefine_rounds``). ``mode`` is the
    name under which the combination is known; :mod:`thinktwice.testtime.modes` has the published ones.
    """

    __test__ = False  # the name starts with "Test", and it is no test

    mode: Mode = "off"
    # the base pass
    strength: Factor = 0.0  # gate: a value weighs c / (c + strength * kappa) against its mask vector
    field_strengths: tuple[Factor, ...] = ()  # gate: factor of each field's strength; empty: 1 for all
    field_shares: tuple[
        Share, ...
    ] = ()  # gate: weight of each field's values however often they came; empty: 1 for all
    min_count: int = Field(
        default=0, ge=0, le=MAX_COUNT
    )  # filter: values seen less often are replaced by their mask vector
    min_kept: Share = 0.7  # share of all fields that a filter keeps at least
    filler: FillerKind = "mask"
    # whom to ask again
    trigger: TriggerKind = "never"
    threshold: Coefficient = 0.0  # rows with a trigger signal above it are uncertain (dual, entropy, random)
    signal_max: Coefficient = 1.0  # signal at which a row gets max_paths
    entropy_floor: Share = 0.5  # dual signal of a row whose base score is certain
    share: Share = 0.2  # budget: of the rows of a request
    top_k: int = Field(default=10, ge=1, le=MAX_COUNT)  # decision: places of a request that does not say so itself
    spread: tuple[Coefficient, Coefficient, Coefficient] = (
        0.0,
        0.0,
        0.0,
    )  # decision: change of a logit = s0 + s1 missing + s2 entropy
    importance: tuple[Factor, ...] = ()  # weight of each field in the epistemic signal; empty: all unprotected alike
    # the second opinion
    sampler: SamplerKind = "none"
    max_paths: int = Field(default=8, ge=2, le=64)  # per row, beside the base pass
    pair_share: Share = 0.0  # weight of pair support beside value support in the draws
    typical_pair: float = Field(default=1.0, gt=0, le=1)  # matt: support of a combination that is surely taken
    keep_rate: Share = 0.5  # uniform: probability of keeping a field
    stop_at: Factor = 0.0  # half width of the mean's interval, in logits, at which paths stop; 0: never
    aggregator: AggregatorKind = "mean"
    shrink: bool = False  # weigh the paths by the missing support of the row, the base pass by the rest
    redefine_rounds: int = Field(default=0, ge=0, le=4)
    members: int = Field(default=0, ge=0, le=2)
    max_path_rows: int = Field(
        default=1024, ge=0, le=MAX_COUNT
    )  # extra rows per request; the most uncertain scores come first
    # from logits to probabilities
    calibration: Calibration | None = None  # of rows with one pass; None: the model's own
    explored_calibration: Calibration | None = None  # of rows with a second opinion; None: as above
    support_calibration: SupportCalibration | None = None  # takes the place of ``calibration``
    temperature: float = Field(default=1.0, ge=1e-6, le=MAX_MAGNITUDE)  # of all rows, after the above
    salt: int = Field(default=0, ge=0, le=2**63 - 1)  # changes the drawn paths of every row

    @property
    def escalates(self) -> bool:
        """Whether any row may get a second opinion."""
        return self.trigger != "never" and (self.sampler != "none" or self.members > 0 or self.redefine_rounds > 0)

    @property
    def uses_counts(self) -> bool:
        """Whether a score depends on how often a value came."""
        return (
            self.strength > 0
            or self.min_count > 0
            or self.trigger in ("dual", "decision")
            or self.redefine_rounds > 0
            or self.sampler in ("bernoulli", "enumerate", "matt")
            or self.support_calibration is not None
        )

    @model_validator(mode="after")
    def _consistent(self) -> TestTimeConfig:
        kinds = [self.sampler != "none", self.members > 0, self.redefine_rounds > 0]
        if sum(kinds) > 1:
            raise ValueError(
                "paths (sampler), members and redefine_rounds are three kinds of second opinion: choose one of them"
            )
        if self.trigger != "never" and not any(kinds):
            raise ValueError(
                f"trigger {self.trigger!r} has nobody to ask: give a sampler, members or redefine_rounds, or set it to 'never'"
            )
        gated = self.strength > 0 or len(self.field_shares) > 0
        if gated and self.min_count > 0:
            raise ValueError(
                "a gate (strength, field_shares) and a filter (min_count) are two base passes: choose one of them"
            )
        if self.min_count > 0 and (self.members > 0 or self.redefine_rounds > 0):
            raise ValueError(
                "members and redefine_rounds see every value: set min_count to 0, or give a sampler instead"
            )
        if self.aggregator == "confidence" and self.sampler != "matt":
            raise ValueError(
                "the aggregator 'confidence' weighs paths by what the sampler 'matt' knows of them: use both"
            )
        return self
