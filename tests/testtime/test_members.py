"""Further trunks: the mean of logits, looked up as often as there are tables, gated like the base pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.testtime import wide
from tests.testtime.wide import CALIBRATION, MEMBERS, but
from thinktwice.data.encoded import Batch
from thinktwice.models import Backbone
from thinktwice.testtime.base_pass import Gate, Plain
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.triggers import Always

ALL = but(MEMBERS, trigger=Always())


def logits(model: Backbone, batch: Batch, table: torch.Tensor | None = None) -> np.ndarray:
    with torch.inference_mode():
        return model.score(model.embed(batch, table))[:, 0].double().numpy()


@pytest.mark.parametrize("number", [1, 2])
def test_the_score_is_the_mean_logit_of_all_trunks(number: int, big: wide.Wide) -> None:
    batch = big.batch(slice(0, 200))
    raw = big.engine(but(ALL, count=number)).raw(batch)
    each = [logits(m, batch) for m in (big.model, *big.extras.members[:number])]
    np.testing.assert_allclose(raw.z, np.mean(each, axis=0), atol=2e-6)
    np.testing.assert_allclose(raw.z0, each[0], atol=2e-6)
    assert (raw.num_paths == 1 + number).all()
    assert np.abs(raw.z - raw.z0).max() > 0.5


def test_gated_members_are_gated_alike(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 100))
    keep = torch.from_numpy(big.reliability.of_table(0.5))
    for shared, members in ((False, big.extras.members), (True, (big.sharer,))):
        config = but(ALL, count=len(members), base=Gate(strength=0.5))
        each = [logits(m, batch, m.embedding.gated(keep)) for m in (big.model, *members)]
        raw = big.engine(config, shared=shared).raw(batch)
        np.testing.assert_allclose(raw.z, np.mean(each, axis=0), atol=2e-6)
        assert np.abs(raw.z - big.engine(but(config, base=Plain()), shared=shared).raw(batch).z).max() > 0.1


def test_only_the_rows_that_are_asked_change(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    some, everybody = big.engine(MEMBERS).raw(batch), big.engine(ALL).raw(batch)
    asked = some.escalated
    assert 0 < asked.sum() < 300
    assert np.array_equal(some.z[asked], everybody.z[asked])
    assert np.array_equal(some.z[~asked], some.z0[~asked])


def test_a_shared_table_is_looked_up_once_and_an_own_one_again(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[tuple[bool, int]] = []
    embed = Backbone.embed

    def spy(self: Backbone, batch: Batch, table: torch.Tensor | None = None) -> torch.Tensor:
        lookups.append((self is big.model, len(batch)))
        return embed(self, batch, table)

    monkeypatch.setattr(Backbone, "embed", spy)
    scored = big.engine(ALL, shared=True).score(big.batch(slice(0, 100)))
    assert scored.path_rows == 100
    assert lookups == [(True, 128)]
    lookups.clear()
    assert big.engine(ALL).score(big.batch(slice(0, 100))).path_rows == 100
    assert lookups == [(True, 128)] + [(False, 32)] * 4


def test_a_member_that_agrees_with_the_model_changes_nothing(big: wide.Wide) -> None:
    engine = Engine(big.model, big.reliability, ALL, CALIBRATION, Extras(members=(big.model,)))
    raw = engine.raw(big.batch(slice(0, 100)))
    np.testing.assert_allclose(raw.z, raw.z0, atol=1e-6)
    assert (raw.num_paths == 2).all()


def test_members_beyond_the_configured_number_are_not_asked(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 50))
    one = Engine(big.model, big.reliability, ALL, CALIBRATION, Extras(members=big.extras.members[:1]))
    assert np.array_equal(one.raw(batch).z, big.engine(ALL).raw(batch).z)
