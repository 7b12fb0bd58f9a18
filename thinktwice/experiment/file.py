"""The experiment file: one versioned YAML that declares everything before the first user is enrolled.

It declares arms, coverage, primary metric, guardrails, horizon and looks, α, minimums, and the action of each data-quality
check; nothing can be added later. While an experiment runs only ``coverage`` may change (``changes.py``).
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from thinktwice.errors import ExperimentError
from thinktwice.experiment.metrics import is_metric, metric_names, quantile_share
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen, WrittenCount, WrittenNumber
from thinktwice.strict_yaml import mapping

FORMAT = 1
BUCKETS = 10_000
MAX_UNIT_BYTES = 256
UNIT = re.compile(rf"[A-Za-z0-9_.:@=+-]{{1,{MAX_UNIT_BYTES}}}")  # the gateway matches the same expression
CONTROL = "control"  # name of the first arm, and arm of units in no experiment
RESERVED = frozenset({"none", "override", "tester", "holdout"})  # values of the header x-experiment

Method = Literal["group_sequential", "sequence", "fixed"]
Action = Literal["hold", "roll_back", "warn"]


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,40}", value):
        raise ValueError(f"{value!r} must be 1 to 40 of a-z, 0-9 and '-'")
    if value in RESERVED:
        raise ValueError(f"{value!r} is reserved ({', '.join(sorted(RESERVED))}), choose another")
    return value


def _unit(value: str) -> str:
    if not UNIT.fullmatch(value):
        raise ValueError(f"unit {value[:40]!r} must be 1 to {MAX_UNIT_BYTES} of A-Z a-z 0-9 _ . : @ = + -")
    return value


def _metric(value: str) -> str:
    if not is_metric(value):
        raise ValueError(f"no metric {value!r}; there are {metric_names()}")
    return value


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"coverage {value} is not a fraction between 0 and 1; for 5 % write 0.05")
    if abs(value * BUCKETS - round(value * BUCKETS)) > 1e-6:
        raise ValueError(f"coverage {value} must be a multiple of 0.0001 (one bucket of {BUCKETS:,})")
    return round(value * BUCKETS) / BUCKETS


Slug = Annotated[str, AfterValidator(_slug)]
UnitId = Annotated[str, AfterValidator(_unit)]
MetricName = Annotated[str, AfterValidator(_metric)]
Coverage = Annotated[WrittenNumber, AfterValidator(_share)]


class Arm(Frozen):
    """The model of one arm: a bundle, in its own test-time mode or in another one."""

    name: Slug
    bundle: str = Field(min_length=1, max_length=200)  # hash or version of the bundle
    mode: str | None = None  # test-time mode; None: the bundle's own


class RampStep(Frozen):
    """The next coverage, allowed after so many days and enrolled units of each arm at the step before."""

    coverage: Coverage
    after_days: WrittenNumber = Field(default=1.0, ge=0)
    after_units: WrittenCount = Field(default=0, ge=0)


class Primary(Frozen):
    """The metric that decides, and the direction that is better."""

    metric: MetricName = "ctr"
    better: Literal["increase", "decrease"] = "increase"


class Guardrail(Frozen):
    """A metric that must not get worse by more than a margin (one-sided, always valid)."""

    metric: MetricName
    worse: Literal["increase", "decrease", "either"]
    margin: WrittenNumber = Field(ge=0)
    relative: bool = False  # the margin is a share of the control's magnitude


class Horizon(Frozen):
    """Length of the experiment and number of looks."""

    days: WrittenNumber = Field(gt=0, le=366)
    looks: WrittenCount = Field(ge=1, le=100)
    units: WrittenCount | None = Field(
        default=None, ge=2
    )  # planned enrolled units at the end: α is spent by units, not days


class Minimum(Frozen):
    """No decision before both are reached (except a roll-back for a guardrail or a check)."""

    days: WrittenNumber = Field(default=7.0, ge=0)
    units: WrittenCount = Field(default=1000, ge=2)  # enrolled units of every arm


class Checks(Frozen):
    """Actions of failed data-quality checks."""

    sample_ratio: Action = "hold"
    exposure_loss: Action = "hold"
    unexplained_rows: Action = "hold"
    duplicate_requests: Action = "hold"
    assignment: Action = "hold"  # a recomputed arm differs from the logged one
    version_changed: Action = "hold"
    unit_in_two_arms: Action = "hold"
    pre_exposure_bias: Action = "hold"
    unequal_replicas: Action = "hold"
    log_write_failures: Action = "hold"
    fallback_share: Action = "hold"
    clock_skew: Action = "warn"
    late_outcomes: Action = "warn"


class Limits(Frozen):
    """Limits of the checks: larger shares fail."""

    exposure_loss: WrittenNumber = Field(default=0.01, ge=0, le=1)
    unexplained_rows: WrittenNumber = Field(default=0.01, ge=0, le=1)
    duplicate_requests: WrittenNumber = Field(default=0.001, ge=0, le=1)
    unit_in_two_arms: WrittenNumber = Field(default=0.001, ge=0, le=1)
    fallback_share: WrittenNumber = Field(default=0.01, ge=0, le=1)
    late_outcomes: WrittenNumber = Field(default=0.05, ge=0, le=1)


class PrePeriod(Frozen):
    """Days before the experiment, whose sums per unit reduce variance (CUPED)."""

    days: WrittenCount = Field(default=14, ge=1, le=90)


class ExperimentFile(Frozen):
    """One experiment.

    Attributes:
        salt: salt of the hash that assigns units; shared by the experiments of an exclusive group, different otherwise.
        buckets: half-open range of the 10,000 buckets that belong to this experiment; default: all except the holdout.
        holdout: highest buckets, reserved from all experiments.
        arms: the first one is named ``control``.
        coverage: enrolled share of the owned buckets; the rest is served control and not enrolled.
        horizon: None: the experiment has no end and needs the method ``sequence``.
    """

    version: Literal[1]
    name: Slug
    unit: str = Field(default="user_id", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")
    salt: Slug
    exclusive_group: Slug | None = None
    buckets: tuple[WrittenCount, WrittenCount] = (0, BUCKETS)
    holdout: WrittenCount = Field(default=0, ge=0, lt=BUCKETS)
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=10)
    coverage: Coverage = 0.0
    ramp: tuple[RampStep, ...] = ()
    primary: Primary = Primary()
    guardrails: tuple[Guardrail, ...] = ()
    slices: tuple[str, ...] = Field(default=(), max_length=20)
    horizon: Horizon | None = None
    method: Method | None = None
    alpha: WrittenNumber = Field(default=0.05, gt=0, lt=0.5)
    guardrail_alpha: WrittenNumber = Field(default=0.05, gt=0, lt=0.5)
    minimum: Minimum = Minimum()
    pre_period: PrePeriod | None = None
    checks: Checks = Checks()
    limits: Limits = Limits()
    testers: dict[Slug, tuple[UnitId, ...]] = Field(default_factory=dict)

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def treatments(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    @property
    def test(self) -> Method:
        """The declared method, or the default: group sequential with a horizon, a sequence without."""
        return self.method or ("sequence" if self.horizon is None else "group_sequential")

    @property
    def arm_width(self) -> int:
        """Buckets of each arm's range."""
        return (self.buckets[1] - self.buckets[0]) // len(self.arms)

    @property
    def enrolled_width(self) -> int:
        """Enrolled buckets of each arm."""
        return round(self.coverage * BUCKETS) * self.arm_width // BUCKETS

    def identity(self) -> str:
        """Hash of everything except the coverage: files with the same identity are the same experiment."""
        content = self.model_dump(mode="json", exclude={"coverage"})
        return sha256_text(json.dumps(content, sort_keys=True))[:16]

    @model_validator(mode="before")
    @classmethod
    def _default_buckets(cls, content: Any) -> Any:
        holdout = content.get("holdout", 0) if isinstance(content, dict) else None
        if type(holdout) is int and content.get("buckets") is None:
            return {**content, "buckets": (0, BUCKETS - holdout)}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentFile:
        _check_arms(self)
        _check_buckets(self)
        _check_ramp(self)
        _check_test(self)
        return self


def _check_arms(file: ExperimentFile) -> None:
    names = [arm.name for arm in file.arms]
    if names[0] != CONTROL:
        raise ValueError(f"arms: the first arm must be named {CONTROL!r}, not {names[0]!r}")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"arms: {name!r} appears twice")
    if unknown := sorted(set(file.testers) - set(names)):
        raise ValueError(f"testers: no arm {unknown[0]!r}; there are {', '.join(names)}")
    testers = [unit for units in file.testers.values() for unit in units]
    if len(testers) > 500:
        raise ValueError(f"testers: {len(testers)} units; at most 500 are routed one by one")
    for unit in testers:
        if testers.count(unit) > 1:
            raise ValueError(f"testers: {unit!r} appears twice")


def _check_buckets(file: ExperimentFile) -> None:
    start, stop = file.buckets
    top = BUCKETS - file.holdout
    if not 0 <= start < stop <= BUCKETS:
        raise ValueError(f"buckets [{start}, {stop}] must be a range within 0 to {BUCKETS:,}")
    if stop > top:
        raise ValueError(f"buckets [{start}, {stop}] reach into the holdout, which begins at {top:,}")
    if file.exclusive_group is None and (start, stop) != (0, top):
        raise ValueError(f"buckets [{start}, {stop}] need an exclusive_group; without one they are [0, {top}]")
    if file.arm_width < 1:
        raise ValueError(f"buckets [{start}, {stop}] contain fewer than one bucket for each of {len(file.arms)} arms")


def _check_ramp(file: ExperimentFile) -> None:
    steps = [step.coverage for step in file.ramp]
    if any(b <= a for a, b in itertools.pairwise(steps)) or (steps and steps[0] <= 0):
        raise ValueError(f"ramp: coverages must increase from above 0, not {steps}")
    for coverage in (*steps, *((file.coverage,) if file.coverage else ())):
        if round(coverage * BUCKETS) * file.arm_width // BUCKETS < 1:
            least = -(-BUCKETS // file.arm_width) / BUCKETS
            raise ValueError(
                f"coverage {coverage} of {file.arm_width:,} buckets an arm enrols no users: give at least {least}, one bucket an arm"
            )


def _check_test(file: ExperimentFile) -> None:
    if file.horizon is None and file.test != "sequence":
        raise ValueError(f"method {file.test!r} needs a horizon; without one use 'sequence'")
    if file.horizon is not None and file.horizon.days < file.minimum.days:
        raise ValueError(f"the horizon of {file.horizon.days} days ends before minimum.days {file.minimum.days}")
    if file.horizon is not None and file.horizon.units is not None:
        fewest = len(file.arms) * file.minimum.units
        if file.horizon.units < fewest:
            raise ValueError(
                f"the horizon of {file.horizon.units:,} units ends before minimum.units {file.minimum.units:,} of each of "
                f"{len(file.arms)} arms: plan {fewest:,} units or more, or lower minimum.units"
            )
    metrics = [quantile_share(guardrail.metric) or guardrail.metric for guardrail in file.guardrails]
    for guardrail, metric in zip(file.guardrails, metrics, strict=True):
        if metrics.count(metric) > 1:
            raise ValueError(f"guardrails: {guardrail.metric!r} appears twice")
    if file.primary.metric.startswith("latency_"):
        raise ValueError(f"primary metric {file.primary.metric!r}: a quantile is a guardrail, not a primary metric")
    for name in file.slices:
        if file.slices.count(name) > 1:  # its rows would be added twice
            raise ValueError(f"slices: {name!r} appears twice")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name):
            raise ValueError(f"slices: {name!r} must be letters, digits and '_'")


def parse_experiment(text: str, where: str) -> ExperimentFile:
    """Read an experiment from YAML text; ``where`` names it in messages.

    Raises:
        ExperimentError: it is not YAML, has a duplicate key, or a field is wrong; all wrong fields are named.
    """
    content = mapping(text, where, ExperimentError)
    if type(content.get("version")) is not int or content["version"] != FORMAT:
        raise ExperimentError(f"{where}: version is {content.get('version')!r}; this thinktwice reads version {FORMAT}")
    try:
        return ExperimentFile.model_validate(content)
    except ValidationError as error:
        raise ExperimentError(f"{where}: " + "; ".join(_sentences(error))) from None


def load_experiment(path: Path | str) -> ExperimentFile:
    """Read an experiment file.

    Raises:
        ExperimentError: see :func:`parse_experiment`, or the file is missing or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExperimentError(f"no experiment file {path}: `thinktwice experiment new` writes one") from None
    except OSError as error:
        raise ExperimentError(
            f"experiment file {path} cannot be read ({error.strerror or error}): give the path of a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ExperimentError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None
    return parse_experiment(text, str(path))


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for issue in error.errors():
        location = ".".join(str(part) for part in issue["loc"])
        value: Any = issue.get("input")
        shown = (
            "" if isinstance(value, dict | list | ExperimentFile) or value is None else f" (found {str(value)[:60]!r})"
        )
        message = issue["msg"].removeprefix("Value error, ")
        if isinstance(value, bool) and issue["type"] == "string_type":
            shown = f" (found {value}; YAML does not read true and false as text: put quotes around it)"
        sentences.append(f"{location}: {message}{shown}" if location else message)
    return sentences
