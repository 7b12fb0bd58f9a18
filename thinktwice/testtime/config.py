"""Configuration of the test-time engine, part of the bundle. Every part of the engine declares its own options."""

from __future__ import annotations

from pydantic import Field, model_validator

from thinktwice.calibration import MAX_MAGNITUDE, Calibration, SupportCalibration
from thinktwice.choices import Mode
from thinktwice.hashing import Sha256
from thinktwice.testtime.base_pass import AnyBase, Filter, Plain
from thinktwice.testtime.opinions.config import AnyOpinion, FeaturePaths, GrownPaths, Retrieve
from thinktwice.testtime.options import MAX_COUNT, Factor, Options
from thinktwice.testtime.triggers import AnyTrigger, Moved, Predicted


class Correction(Options):
    """The correction of base logits by counters, before any other part reads them. Rows without a known counter keep their base
    logit."""

    definition: Sha256 | None = None  # hash of the definition of the counters; None: not recorded
    calibration: Calibration | None = None  # of corrected rows; None: that of the other rows


class SecondLook(Options):
    """Which rows get a second look, and from what."""

    trigger: AnyTrigger
    opinion: AnyOpinion
    calibration: Calibration | None = None  # of rows with a second look; None: that of the other rows
    max_path_rows: int = Field(
        default=1024, ge=0, le=MAX_COUNT
    )  # extra rows per request, the most uncertain scores first
    salt: int = Field(default=0, ge=0, le=2**63 - 1)  # changes the random draws of every row


class TestTimeConfig(Options):
    """One configuration of the engine: a base pass for every row, a correction by counters, and a second look at some rows.

    ``mode`` is the name under which the combination is known; :mod:`thinktwice.testtime.modes` has the published ones.
    """

    __test__ = False  # not a test, despite the name

    mode: Mode = "off"
    base: AnyBase = Plain()
    correction: Correction | None = None
    second_look: SecondLook | None = None
    importance: tuple[Factor, ...] = ()  # weight of each field in the missing support; empty: all unprotected alike
    calibration: Calibration | None = None  # of rows with one pass; None: the model's own
    support_calibration: SupportCalibration | None = None  # replaces ``calibration``
    temperature: float = Field(default=1.0, ge=1e-6, le=MAX_MAGNITUDE)  # of all rows, after calibration

    @property
    def uses_counts(self) -> bool:
        """Whether a score depends on training counts."""
        look = self.second_look
        return (
            self.base.uses_counts
            or self.support_calibration is not None
            or (look is not None and (look.trigger.uses_counts or look.opinion.uses_counts))
        )

    def looking(self, **options: object) -> TestTimeConfig:
        """A copy with other options of its second look, which must exist."""
        assert self.second_look is not None
        return self.model_copy(update={"second_look": self.second_look.model_copy(update=options)})

    @model_validator(mode="after")
    def _evidence_goes_together(self) -> TestTimeConfig:
        look = self.second_look
        retrieves = look is not None and isinstance(look.opinion, Retrieve)
        if look is not None and retrieves != (self.correction is not None):
            problem = "needs a correction" if retrieves else "was not fitted to corrected scores"
            raise ValueError(f"the second look {look.opinion.kind!r} {problem}: fit the test-time parameters again")
        if look is not None and isinstance(look.trigger, Moved | Predicted) and self.correction is None:
            raise ValueError(f"the trigger {look.trigger.kind!r} needs a correction: choose the trigger 'entropy'")
        return self

    @model_validator(mode="after")
    def _paths_alone_keep_a_filter(self) -> TestTimeConfig:
        look = self.second_look
        if isinstance(self.base, Filter) and look and not isinstance(look.opinion, FeaturePaths | GrownPaths):
            raise ValueError(
                f"the second look {look.opinion.kind!r} reads every value, which a filter must prevent: "
                "choose the base pass 'plain' or 'gate', or feature paths for the second look"
            )
        return self
