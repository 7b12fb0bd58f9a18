"""Configurations that mean nothing are refused, and the published methods are what their table says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.choices import Mode
from thinktwice.errors import PipelineError
from thinktwice.selection.config import FitConfig, search
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.aggregators import Confidence
from thinktwice.testtime.base_pass import Gate
from thinktwice.testtime.config import SecondLook
from thinktwice.testtime.modes import PRESETS, preset
from thinktwice.testtime.opinions.config import GrownPaths, Members
from thinktwice.testtime.triggers import Always, Decision

LOOK: dict[str, Any] = {"trigger": {"kind": "dual"}, "opinion": {"kind": "feature_paths"}}


def look(**change: object) -> dict[str, Any]:
    return {"second_look": LOOK | change}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"second_look": {"trigger": {"kind": "dual"}}}, "opinion\\s+Field required"),
        ({"second_look": {"opinion": {"kind": "members"}}}, "trigger\\s+Field required"),
        (look(opinion={"kind": "members", "rounds": 2}), "rounds\\s+Extra inputs"),
        (look(opinion={"kind": "redefine", "sampler": {"kind": "matt"}}), "sampler\\s+Extra inputs"),
        (look(opinion={"kind": "feature_paths", "sampler": {"kind": "matt"}}), "Input tag 'matt'"),
        (look(opinion={"kind": "feature_paths", "aggregator": {"kind": "confidence"}}), "Input tag 'confidence'"),
        (look(opinion={"kind": "feature_paths", "max_paths": 1}), "max_paths"),
        (look(opinion={"kind": "feature_paths", "sampler": {"kind": "grid"}}), "Input tag 'grid'"),
        (look(opinion={"kind": "members", "count": 3}), "less than or equal to 2"),
        (look(trigger={"kind": "always", "threshold": 0.1}), "threshold\\s+Extra inputs"),
        (look(trigger={"kind": "budget", "top_k": 3}), "top_k\\s+Extra inputs"),
        (look(trigger={"kind": "never"}), "Input tag 'never'"),
        ({"base": {"kind": "gate", "strength": 1.0, "min_count": 2}}, "min_count\\s+Extra inputs"),
        ({"base": {"kind": "filter", "min_count": 2, "field_shares": (1.0, 0.5)}}, "field_shares\\s+Extra inputs"),
        ({"base": {"kind": "filter", "min_count": 0}}, "greater than or equal to 1"),
        (
            {"base": {"kind": "filter", "min_count": 2}} | look(opinion={"kind": "members"}),
            "'members' reads every value",
        ),
        ({"base": {"kind": "filter", "min_count": 2}} | look(opinion={"kind": "redefine"}), "'redefine' reads every"),
        ({"temperature": 0.0}, "temperature"),
        ({"paths": 3}, "paths"),
        ({"trigger": "dual", "sampler": "matt"}, "sampler\\s+Extra inputs"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TestTimeConfig.model_validate(settings)


def test_what_needs_counts() -> None:
    uses = {mode for mode, config in PRESETS.items() if config.uses_counts}
    assert uses == {"gate", "filter", "uttsi", "matt", "sgctr"}
    members = SecondLook(trigger=Decision(), opinion=Members())
    assert TestTimeConfig(second_look=members).uses_counts
    assert not TestTimeConfig(second_look=members.model_copy(update={"trigger": Always()})).uses_counts
    assert not TestTimeConfig(base=Gate(field_shares=(0.5,))).uses_counts
    assert TestTimeConfig(support_calibration=SupportCalibration()).uses_counts


def test_every_mode_has_a_preset_of_its_name() -> None:
    assert {mode: config.mode for mode, config in PRESETS.items()} == {mode: mode for mode in PRESETS}
    assert PRESETS["off"] == TestTimeConfig()
    assert {mode for mode, config in PRESETS.items() if config.second_look} == {
        "uttsi",
        "matt",
        "sgctr",
        "members",
        "retrieve",
    }
    assert {mode for mode, config in PRESETS.items() if config.correction} == {"corrected", "retrieve"}
    matt = PRESETS["matt"].second_look
    assert matt is not None and matt.trigger == Always()
    assert isinstance(matt.opinion, GrownPaths) and matt.opinion.aggregator == Confidence()


def test_a_preset_keeps_what_its_mode_does_not_decide() -> None:
    base = TestTimeConfig(importance=(0.5, 0.5), temperature=1.5, calibration=Calibration(a=2.0))
    for mode in PRESETS:
        found = preset(mode, base)
        assert (found.mode, found.importance, found.temperature) == (mode, (0.5, 0.5), 1.5)
        assert found.calibration == Calibration(a=2.0)
        for part in ("base", "correction", "second_look"):
            assert getattr(found, part) == getattr(PRESETS[mode], part)
    assert preset("uttsi") == PRESETS["uttsi"]


def test_a_search_names_its_choices() -> None:
    settings = FitConfig(max_rows=500, max_cost=1.5)
    modes: tuple[Mode, ...] = ("gate", "members")
    for mode in ("lean", *modes):
        assert search(mode, settings) == settings.model_copy(update={"mode": mode})
    with pytest.raises(PipelineError, match="mode 'fast' is unknown: choose one of lean, off, calibrated, gate"):
        search("fast", settings)
    assert search("lean", settings, 3.0).max_cost == 3.0 and FitConfig().max_cost == 2.0
    for wrong in (0.5, float("nan"), float("inf"), -1.0):
        with pytest.raises(PipelineError, match="give a number of at least 1"):
            search("lean", settings, wrong)
