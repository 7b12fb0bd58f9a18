"""The cap on extra rows: never exceeded, the most uncertain scores first, nobody gets half an opinion."""

from __future__ import annotations

import numpy as np
import pytest

from tests.testtime import wide
from tests.testtime.wide import EXACT, MATT, MEMBERS, SGCTR, UTTSI, but
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.modes import preset
from thinktwice.testtime.triggers import Always, Budget, Decision

ROWS = 400
VALUES = ("logit", "probability", "uncertainty", "num_paths")
ESCALATING: dict[str, tuple[TestTimeConfig, int]] = {  # with the most that one row may cost
    "uttsi": (UTTSI, 8),
    "uttsi, exact": (EXACT, 8),
    "uttsi, stops": (but(UTTSI, stop_at=0.3, trigger=Always()), 8),
    "matt": (MATT, 8),
    "members": (but(MEMBERS, trigger=Always()), 1),
    "members, two": (but(MEMBERS, count=2, trigger=Always()), 2),
    "sgctr": (SGCTR, 5),
    "budget": (but(MEMBERS, count=2, trigger=Budget(share=0.5)), 2),
    "decision": (but(SGCTR, trigger=Decision(spread=(1.0, 0.0, 0.0))), 5),
}


@pytest.mark.parametrize("name", ESCALATING)
def test_the_most_open_scores_are_admitted_in_full_and_the_others_keep_their_base_score(
    name: str, big: wide.Wide
) -> None:
    config, most = ESCALATING[name]
    engine, batch = big.engine(config), big.batch(slice(0, ROWS))
    free, base = engine.score(batch), engine.score(batch, max_path_rows=0)
    bits = wide.entropy_of(engine.raw(batch).z0)
    order = np.random.default_rng(1).permutation(ROWS)
    wanted = free.num_paths > 1
    assert not free.capped
    assert base.path_rows == 0 and base.capped_rows[wanted].all()
    for cap in (1, 7, 40, free.path_rows - 1):
        found, shuffled = engine.score(batch, cap), engine.score(big.batch(order), cap)
        out = found.capped_rows
        assert found.capped and out.any()
        assert cap - most < found.path_rows <= cap or name in ("uttsi, stops", "uttsi, exact", "matt")
        assert found.path_rows <= cap
        admitted = found.num_paths > 1
        assert not (admitted & out).any()
        assert not admitted.any() or not (out & wanted).any() or bits[admitted].min() >= bits[out & wanted].max()
        for field in VALUES:
            value = getattr(found, field)
            assert np.array_equal(value[out], getattr(base, field)[out]), field
            assert np.array_equal(value[~out], getattr(free, field)[~out]), field
            assert np.array_equal(getattr(shuffled, field), value[order]), field
        assert np.array_equal(shuffled.capped_rows, out[order])
    assert np.array_equal(engine.score(batch, free.path_rows + most * ROWS).logit, free.logit)


@pytest.mark.parametrize("name", ESCALATING)
def test_a_cap_of_zero_is_the_base_pass(name: str, big: wide.Wide) -> None:
    config = ESCALATING[name][0]
    batch = big.batch(slice(0, ROWS))
    base = TestTimeConfig(mode="filter", base=config.base)
    expected = big.engine(base).score(batch)
    for found in (
        big.engine(config).score(batch, max_path_rows=0),
        big.engine(but(config, max_path_rows=0)).score(batch),
        big.engine(but(config, max_path_rows=0)).score(batch, 10**6),
    ):
        assert np.array_equal(found.probability, expected.probability)
        assert np.array_equal(found.uncertainty, expected.uncertainty)
        assert found.path_rows == 0 and found.capped


@pytest.mark.parametrize("name", ESCALATING)
def test_an_argument_lowers_the_configured_cap_and_never_raises_it(name: str, big: wide.Wide) -> None:
    engine, batch = big.engine(but(ESCALATING[name][0], max_path_rows=40)), big.batch(slice(0, ROWS))
    configured, asked, less = engine.score(batch), engine.score(batch, 10**9), engine.score(batch, 10)
    assert configured.capped and 20 <= configured.path_rows <= 40
    assert np.array_equal(asked.num_paths, configured.num_paths)
    assert np.array_equal(asked.logit, configured.logit)
    assert 0 < less.path_rows <= 10


def test_a_row_that_costs_more_than_the_cap_is_left_out(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 50))
    for config, most in (ESCALATING["members, two"], ESCALATING["sgctr"]):
        assert big.engine(config).score(batch, most - 1).path_rows == 0
        assert big.engine(config).score(batch, most).path_rows == most


def test_left_out_rows_have_the_calibration_of_one_pass(big: wide.Wide) -> None:
    plain = wide.UTTSI.model_copy(update={"calibration": wide.CALIBRATION.model_copy(update={"b": 3.0})})
    config = plain.looking(calibration=wide.CALIBRATION)
    engine, batch = big.engine(config), big.batch(slice(0, ROWS))
    found, raw = engine.score(batch, 20), engine.raw(batch, 20)
    assert raw.capped_rows.any()
    assert np.array_equal(found.logit[raw.capped_rows], 1.3 * raw.z0[raw.capped_rows] + 3.0)


def test_the_shipped_cap_does_not_bind_for_500_rows_of_the_usual_share(big: wide.Wide) -> None:
    shipped = preset("uttsi").second_look
    assert shipped is not None and shipped.max_path_rows == 1024
    usual = but(UTTSI, max_path_rows=shipped.max_path_rows)
    scored = big.engine(usual).score(big.batch(slice(0, 500)))
    assert 0.2 < (scored.num_paths > 1).mean() < 0.5
    assert not scored.capped
