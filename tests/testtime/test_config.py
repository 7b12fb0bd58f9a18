"""Configurations that mean nothing are refused, and the published methods are what their table says."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from thinktwice.errors import PipelineError
from thinktwice.selection.config import FitConfig, search
from thinktwice.selection.cost import ESCALATION_COST, FILTER_COST, PASS_COST, estimated_cost
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.config import Mode
from thinktwice.testtime.modes import PRESETS, preset


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trigger": "dual"}, "has nobody to ask: give a sampler, members or redefine_rounds"),
        ({"sampler": "matt", "members": 1}, "three kinds of second opinion: choose one"),
        ({"redefine_rounds": 1, "members": 1}, "three kinds of second opinion: choose one"),
        ({"strength": 1.0, "min_count": 2}, "choose one of them"),
        ({"sampler": "bernoulli", "aggregator": "confidence"}, "use both"),
        ({"max_paths": 1}, "max_paths"),
        ({"temperature": 0.0}, "temperature"),
        ({"sampler": "grid"}, "sampler"),
        ({"field_shares": (1.0, 0.5), "min_count": 2}, "two base passes"),
        ({"members": 1, "trigger": "always", "min_count": 2}, "set min_count to 0"),
        ({"members": 3}, "less than or equal to 2"),
        ({"paths": 3}, "paths"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TestTimeConfig.model_validate(settings)


def test_who_asks_and_who_needs_counts() -> None:
    escalates = {mode for mode, config in PRESETS.items() if config.escalates}
    assert escalates == {"uttsi", "matt", "sgctr", "members"}
    assert not TestTimeConfig(sampler="bernoulli").escalates  # nobody triggers it
    uses = {mode for mode, config in PRESETS.items() if config.uses_counts}
    assert uses == {"gate", "filter", "uttsi", "matt", "sgctr"}
    assert TestTimeConfig(trigger="decision", members=1).uses_counts
    assert not TestTimeConfig(trigger="always", sampler="uniform").uses_counts


def test_every_mode_has_a_preset_of_its_name() -> None:
    assert {mode: config.mode for mode, config in PRESETS.items()} == {mode: mode for mode in PRESETS}
    assert PRESETS["off"] == TestTimeConfig()
    assert (PRESETS["matt"].trigger, PRESETS["matt"].sampler, PRESETS["matt"].aggregator) == (
        "always",
        "matt",
        "confidence",
    )


def test_a_preset_keeps_what_its_mode_does_not_decide() -> None:
    base = TestTimeConfig(importance=(0.5, 0.5), salt=7, max_path_rows=3)
    for mode in PRESETS:
        found = preset(mode, base)
        assert (found.mode, found.importance, found.salt, found.max_path_rows) == (mode, (0.5, 0.5), 7, 3)
        assert found.trigger == PRESETS[mode].trigger
    assert preset("uttsi") == PRESETS["uttsi"]


def test_a_search_names_its_choices() -> None:
    settings = FitConfig(max_rows=500, max_cost=1.5)
    modes: tuple[Mode, ...] = ("gate", "members")
    for mode in ("lean", *modes):
        assert search(mode, settings) == settings.model_copy(update={"mode": mode})
    with pytest.raises(PipelineError, match="mode 'fast' is unknown: choose one of lean, off, calibrated, gate"):
        search("fast", settings)


def test_reckoned_cost() -> None:
    assert estimated_cost(TestTimeConfig(), 1.0) == 1.0
    assert estimated_cost(TestTimeConfig(mode="gate", strength=1.0), 1.0) == 1.0
    assert estimated_cost(TestTimeConfig(mode="filter", min_count=2), 1.0) == pytest.approx(1 + FILTER_COST)
    assert estimated_cost(PRESETS["members"], 1.1) == pytest.approx(1 + ESCALATION_COST + 0.1 * PASS_COST)
    assert estimated_cost(PRESETS["uttsi"], 2.0) == pytest.approx(1 + FILTER_COST + ESCALATION_COST + PASS_COST)
