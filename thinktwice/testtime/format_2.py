"""``test_time.json`` of format 2, a flat list of all options: read for existing bundles, never written."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from pydantic import Field

from thinktwice.calibration import MAX_MAGNITUDE, Calibration, Coefficient, SupportCalibration
from thinktwice.choices import Mode
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.options import MAX_COUNT, Factor, Options, Share


class FlatConfig(Options):
    """The options of format 2."""

    mode: Mode = "off"
    strength: Factor = 0.0
    field_strengths: tuple[Factor, ...] = ()
    field_shares: tuple[Share, ...] = ()
    min_count: int = Field(default=0, ge=0, le=MAX_COUNT)
    min_kept: Share = 0.7
    filler: Literal["mask", "mean", "denoiser"] = "mask"
    trigger: Literal["never", "always", "dual", "entropy", "random", "budget", "decision"] = "never"
    threshold: Coefficient = 0.0
    signal_max: Coefficient = 1.0
    entropy_floor: Share = 0.5
    share: Share = 0.2
    top_k: int = Field(default=10, ge=1, le=MAX_COUNT)
    spread: tuple[Coefficient, Coefficient, Coefficient] = (0.0, 0.0, 0.0)
    importance: tuple[Factor, ...] = ()
    sampler: Literal["none", "bernoulli", "uniform", "enumerate", "matt"] = "none"
    max_paths: int = Field(default=8, ge=2, le=64)
    pair_share: Share = 0.0
    typical_pair: float = Field(default=1.0, gt=0, le=1)
    keep_rate: Share = 0.5
    stop_at: Factor = 0.0
    aggregator: Literal["mean", "median", "consistency", "confidence"] = "mean"
    shrink: bool = False
    redefine_rounds: int = Field(default=0, ge=0, le=4)
    members: int = Field(default=0, ge=0, le=2)
    max_path_rows: int = Field(default=1024, ge=0, le=MAX_COUNT)
    calibration: Calibration | None = None
    explored_calibration: Calibration | None = None
    support_calibration: SupportCalibration | None = None
    temperature: float = Field(default=1.0, ge=1e-6, le=MAX_MAGNITUDE)
    salt: int = Field(default=0, ge=0, le=2**63 - 1)


def upgraded(value: object) -> TestTimeConfig:
    """The current equivalent of a configuration of format 2, with the same scores.

    Raises:
        ValueError: it is not a configuration of format 2, or sets an option that has been removed; the message names it.
    """
    flat = FlatConfig.model_validate(value)
    kinds = [name for name in ("sampler", "redefine_rounds", "members") if getattr(flat, name) not in (0, "none")]
    if len(kinds) > 1:
        raise ValueError(f"it sets {' and '.join(kinds)}, of which a configuration has one")
    if flat.trigger != "never" and not kinds:
        raise ValueError(f"its trigger {flat.trigger!r} comes without sampler, redefine_rounds or members")
    if flat.filler != "mask":
        _refuse("filler", flat.filler)
    return TestTimeConfig.model_validate(
        {
            "mode": flat.mode,
            "base": _base(flat),
            "second_look": None if flat.trigger == "never" else _second_look(flat),
            **{
                name: getattr(flat, name)
                for name in ("importance", "calibration", "support_calibration", "temperature")
            },
        }
    )


def from_format_2(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of format 2 converted to format 3, including the configurations in its report.

    Raises:
        ValueError: like :func:`upgraded`.
    """
    out = value | {"format": 3}
    if "config" in value:
        out["config"] = _dumped(value["config"])
    report = value.get("report")
    if isinstance(report, dict):
        report = dict(report)
        if report.get("best") is not None:
            report["best"] = _dumped(report["best"])
        if isinstance(candidates := report.get("candidates"), list):
            report["candidates"] = [
                c | {"config": _dumped(c["config"])} if isinstance(c, dict) and "config" in c else c for c in candidates
            ]
        out["report"] = report
    return out


def _dumped(value: object) -> dict[str, Any]:
    return upgraded(value).model_dump(mode="json")


def _base(flat: FlatConfig) -> dict[str, Any]:
    gated = flat.strength > 0 or len(flat.field_shares) > 0
    if flat.min_count > 0:
        if gated:
            raise ValueError("it sets strength or field_shares and min_count, of which a configuration has one")
        if flat.min_kept != 0.7:
            _refuse("min_kept", flat.min_kept)
        return {"kind": "filter", "min_count": flat.min_count}
    if not gated:
        return {"kind": "plain"}
    return {"kind": "gate"} | {name: getattr(flat, name) for name in ("strength", "field_strengths", "field_shares")}


def _second_look(flat: FlatConfig) -> dict[str, Any]:
    return {
        "trigger": _trigger(flat),
        "opinion": _opinion(flat),
        "calibration": flat.explored_calibration,
        "max_path_rows": flat.max_path_rows,
        "salt": flat.salt,
    }


def _trigger(flat: FlatConfig) -> dict[str, Any]:
    if flat.trigger == "dual" and flat.entropy_floor != 0.5:
        _refuse("entropy_floor", flat.entropy_floor)
    above = ("threshold", "signal_max")
    options = {"always": (), "budget": ("share",), "decision": ("top_k", "spread")}.get(flat.trigger, above)
    return {"kind": flat.trigger} | {name: getattr(flat, name) for name in options}


def _opinion(flat: FlatConfig) -> dict[str, Any]:
    if flat.members > 0:
        return {"kind": "members", "count": flat.members}
    if flat.redefine_rounds > 0:
        return {"kind": "redefine", "rounds": flat.redefine_rounds}
    if flat.aggregator == "median":
        _refuse("aggregator", flat.aggregator)
    if flat.sampler == "uniform":
        _refuse("sampler", flat.sampler)
    shared = {name: getattr(flat, name) for name in ("max_paths", "stop_at", "shrink")}
    shared["aggregator"] = {"kind": flat.aggregator}
    if flat.sampler == "matt":
        return {"kind": "grown_paths", "sampler": {"kind": "matt", "typical_pair": flat.typical_pair}} | shared
    sampler = {"bernoulli": "bernoulli", "enumerate": "exact"}[flat.sampler]
    return {"kind": "feature_paths", "sampler": {"kind": sampler, "pair_share": flat.pair_share}} | shared


def _refuse(name: str, value: object) -> NoReturn:
    raise ValueError(f"it sets {name} to {value!r}, which no version that can read it fits or serves any more")
