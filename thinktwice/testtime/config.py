"""What the test-time engine does with a request; it ships in the bundle. Every part of it declares its own options."""

from __future__ import annotations

from pydantic import Field, model_validator

from thinktwice.calibration import MAX_MAGNITUDE, Calibration, SupportCalibration
from thinktwice.choices import Mode
from thinktwice.testtime.base_pass import AnyBase, Filter, Plain
from thinktwice.testtime.opinions.config import AnyOpinion, FeaturePaths, GrownPaths
from thinktwice.testtime.options import MAX_COUNT, Factor, Options
from thinktwice.testtime.triggers import AnyTrigger


class SecondLook(Options):
    """Which rows are looked at again, and by what."""

    trigger: AnyTrigger
    opinion: AnyOpinion
    calibration: Calibration | None = None  # of rows with a second look; None: that of the others
    max_path_rows: int = Field(
        default=1024, ge=0, le=MAX_COUNT
    )  # extra rows per request, the most uncertain scores first
    salt: int = Field(default=0, ge=0, le=2**63 - 1)  # changes what is drawn for every row


class TestTimeConfig(Options):
    """One configuration of the engine: a base pass for every row, and a second look at some of them.

    ``mode`` is the name under which the combination is known; :mod:`thinktwice.testtime.modes` has the published ones.
    """

    __test__ = False  # the name starts with "Test", and it is no test

    mode: Mode = "off"
    base: AnyBase = Plain()
    second_look: SecondLook | None = None
    importance: tuple[Factor, ...] = ()  # weight of each field in the missing support; empty: all unprotected alike
    calibration: Calibration | None = None  # of rows with one pass; None: the model's own
    support_calibration: SupportCalibration | None = None  # takes the place of ``calibration``
    temperature: float = Field(default=1.0, ge=1e-6, le=MAX_MAGNITUDE)  # of all rows, after the above

    @property
    def uses_counts(self) -> bool:
        """Whether a score depends on how often a value came."""
        look = self.second_look
        return (
            self.base.uses_counts
            or self.support_calibration is not None
            or (look is not None and (look.trigger.uses_counts or look.opinion.uses_counts))
        )

    def looking(self, **options: object) -> TestTimeConfig:
        """The same with other options of its second look, which must be there."""
        assert self.second_look is not None
        return self.model_copy(update={"second_look": self.second_look.model_copy(update=options)})

    @model_validator(mode="after")
    def _paths_alone_keep_a_filter(self) -> TestTimeConfig:
        look = self.second_look
        if isinstance(self.base, Filter) and look and not isinstance(look.opinion, FeaturePaths | GrownPaths):
            raise ValueError(
                f"the second look {look.opinion.kind!r} sees every value, which a filter is there to prevent: "
                "choose the base pass 'plain' or 'gate', or feature paths for the second look"
            )
        return self
