"""Configurations as format 2 wrote them, in one flat list: each is read as the one that scores to the same bits.

``tests/frozen/flat_configs.json`` holds configurations drawn from all that format 2 could say and this version still serves, and
what the version that wrote it answered for the first rows of :mod:`tests.testtime.wide`.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.testtime import wide
from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.choices import Mode
from thinktwice.errors import BundleError
from thinktwice.models.backends import Eager
from thinktwice.models.backends.folded import Folded
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.aggregators import Confidence, Consistency, Mean
from thinktwice.testtime.base_pass import Filter, Gate, Plain
from thinktwice.testtime.config import SecondLook
from thinktwice.testtime.format_2 import FlatConfig, upgraded
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths, Members, Redefine
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.store import TEST_TIME_FILE, TestTime, read_config, save_test_time
from thinktwice.testtime.triggers import Always, Budget, Decision, Dual, Entropy, Random

FROZEN = Path(__file__).resolve().parents[1] / "frozen" / "flat_configs.json"
GOLDEN: dict[str, Any] = json.loads(FROZEN.read_text(encoding="utf-8"))
BACKENDS = {"eager": Eager, "folded": Folded}
ROWS = 24


def kernels() -> str:
    version = torch.__version__.split("+")[0]
    return f"torch {version}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.parametrize("answer", GOLDEN["answers"], ids=range(len(GOLDEN["answers"])))
def test_a_flat_configuration_scores_to_the_same_bits(answer: dict[str, Any], big: wide.Wide) -> None:
    engine = big.engine(upgraded(answer["config"]), make_backend=BACKENDS[answer["backend"]])
    scored = engine.score(big.batch(slice(0, ROWS)))
    for name in ("probability", "uncertainty"):
        found, expected = getattr(scored, name), np.array([float.fromhex(v) for v in answer[name]])
        if kernels() == GOLDEN["kernels"]:
            assert found.tolist() == expected.tolist(), name
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert scored.num_paths.tolist() == answer["num_paths"]
    assert scored.capped_rows.astype(int).tolist() == answer["capped_rows"]


def test_the_frozen_answers_come_from_configurations_of_every_part() -> None:
    found = [upgraded(answer["config"]) for answer in GOLDEN["answers"]]
    looks = [config.second_look for config in found if config.second_look is not None]
    assert {config.base.kind for config in found} == {"plain", "gate", "filter"}
    kinds = {look.trigger.kind for look in looks}
    assert kinds == {"always", "dual", "entropy", "random", "budget", "decision"}
    assert {look.opinion.kind for look in looks} == {"feature_paths", "grown_paths", "members", "redefine"}
    assert sum(max(answer["num_paths"]) > 1 for answer in GOLDEN["answers"]) > 60


def flat(config: TestTimeConfig) -> dict[str, Any]:
    """The configuration as format 2 wrote it."""
    out: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("mode", "importance", "calibration", "support_calibration", "temperature")
    }
    out |= _options(config.base)
    if config.second_look is None:
        return out
    look, opinion = config.second_look, config.second_look.opinion
    out |= {"trigger": look.trigger.kind} | _options(look.trigger)
    out |= {"explored_calibration": look.calibration, "max_path_rows": look.max_path_rows, "salt": look.salt}
    if isinstance(opinion, Members):
        return out | {"members": opinion.count}
    if isinstance(opinion, Redefine):
        return out | {"redefine_rounds": opinion.rounds}
    sampler = "enumerate" if isinstance(opinion.sampler, Exact) else opinion.sampler.kind
    paths = {name: getattr(opinion, name) for name in ("max_paths", "stop_at", "shrink")}
    return out | paths | {"aggregator": opinion.aggregator.kind, "sampler": sampler} | _options(opinion.sampler)


def _options(part: Any) -> dict[str, Any]:
    return {name: value for name, value in part.model_dump().items() if name != "kind"}


FACTORS, SHARES, NUMBERS = st.floats(0, 1e6), st.floats(0, 1), st.floats(-1e6, 1e6)
MANY = st.integers(0, 2**31 - 1)
GATES = st.builds(
    Gate, strength=FACTORS, field_strengths=st.tuples(FACTORS), field_shares=st.just(()) | st.tuples(SHARES, SHARES)
).filter(lambda gate: gate.strength > 0 or len(gate.field_shares) > 0)  # without both it is the plain pass
TRIGGERS = (
    st.builds(Always)
    | st.sampled_from([Dual, Entropy, Random]).flatmap(lambda t: st.builds(t, threshold=NUMBERS, signal_max=NUMBERS))
    | st.builds(Budget, share=SHARES)
    | st.builds(Decision, top_k=st.integers(1, 2**31 - 1), spread=st.tuples(NUMBERS, NUMBERS, NUMBERS))
)
CALIBRATIONS = st.none() | st.builds(Calibration, a=NUMBERS, b=NUMBERS)


def paths_of(kind: Any, samplers: Any, aggregators: list[Any]) -> st.SearchStrategy[Any]:
    options: dict[str, Any] = {"max_paths": st.integers(2, 64), "stop_at": FACTORS, "shrink": st.booleans()}
    return st.builds(kind, sampler=samplers, aggregator=st.sampled_from(aggregators), **options)


PATHS = paths_of(
    FeaturePaths,
    st.sampled_from([Bernoulli, Exact]).flatmap(lambda sampler: st.builds(sampler, pair_share=SHARES)),
    [Mean(), Consistency()],
) | paths_of(
    GrownPaths,
    st.builds(Matt, typical_pair=st.floats(0, 1, exclude_min=True)),
    [Mean(), Consistency(), Confidence()],
)
OPINIONS = PATHS | st.builds(Members, count=st.integers(1, 2)) | st.builds(Redefine, rounds=st.integers(1, 4))


@st.composite
def configs(draw: st.DrawFn) -> TestTimeConfig:
    base = draw(st.builds(Plain) | GATES | st.builds(Filter, min_count=st.integers(1, 2**31 - 1)))
    look = SecondLook(
        trigger=draw(TRIGGERS),
        opinion=draw(PATHS if isinstance(base, Filter) else OPINIONS),
        calibration=draw(CALIBRATIONS),
        max_path_rows=draw(MANY),
        salt=draw(st.integers(0, 2**63 - 1)),
    )
    return TestTimeConfig(
        mode=draw(st.sampled_from(get_args(Mode))),
        base=base,
        second_look=draw(st.none() | st.just(look)),
        importance=tuple(draw(st.lists(FACTORS, max_size=4))),
        calibration=draw(CALIBRATIONS),
        support_calibration=draw(st.none() | st.builds(SupportCalibration, a=NUMBERS, d=NUMBERS)),
        temperature=draw(st.floats(1e-6, 1e6)),
    )


@given(configs())
def test_every_configuration_comes_back_from_its_json_and_from_its_flat_form(config: TestTimeConfig) -> None:
    assert TestTimeConfig.model_validate_json(config.model_dump_json()) == config
    assert upgraded(flat(config)) == config
    assert upgraded(FlatConfig.model_validate(flat(config)).model_dump(mode="json")) == config


GONE = {
    "sampler": {"sampler": "uniform", "trigger": "always"},
    "aggregator": {"sampler": "bernoulli", "trigger": "always", "aggregator": "median"},
    "filler": {"min_count": 2, "filler": "mean"},
    "min_kept": {"min_count": 2, "min_kept": 0.0},
    "entropy_floor": {"members": 1, "trigger": "dual", "entropy_floor": 0.0},
}


@pytest.mark.parametrize("name", GONE)
def test_an_option_that_has_gone_is_named_and_not_dropped(name: str, big: wide.Wide, tmp_path: Path) -> None:
    save_test_time(tmp_path, TestTime(TestTimeConfig(), big.reliability, None))
    content = json.loads((tmp_path / TEST_TIME_FILE).read_text())
    (tmp_path / TEST_TIME_FILE).write_text(json.dumps(content | {"format": 2, "config": GONE[name]}))
    with pytest.raises(BundleError, match=f"it sets {name} to .*: fit the test-time parameters again"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trigger": "dual"}, "trigger 'dual' comes without sampler, redefine_rounds or members"),
        ({"sampler": "matt", "members": 1}, "sampler and members, of which a configuration has one"),
        ({"redefine_rounds": 1, "members": 1}, "redefine_rounds and members, of which a configuration has one"),
        ({"strength": 1.0, "min_count": 2}, "of which a configuration has one"),
        ({"sampler": "bernoulli", "trigger": "always", "aggregator": "confidence"}, "Input tag 'confidence'"),
        ({"members": 1, "trigger": "always", "min_count": 2}, "'members' reads every value"),
        ({"members": 3}, "less than or equal to 2"),
        ({"paths": 3}, "Extra inputs"),
        ({"max_paths": 1}, "max_paths"),
        (["members"], "valid dictionary"),
    ],
)
def test_what_format_2_refused_is_refused(settings: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upgraded(settings)


def test_parts_that_a_flat_configuration_never_used_do_not_matter() -> None:
    """Format 2 wrote every option of every part, used or not."""
    unused = {"sampler": "matt", "aggregator": "confidence", "shrink": True, "threshold": 0.4, "top_k": 3}
    assert upgraded(unused) == TestTimeConfig()
