"""Redefined features: only what lacks support moves, towards what its row makes likely, at a known cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.testtime import wide
from tests.testtime.wide import CALIBRATION, SGCTR, but
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.opinions import redefine
from thinktwice.testtime.reliability import Reliability, quantise


def counts(big: wide.Wide, values: np.ndarray, kappa: float = wide.KAPPA) -> Reliability:
    return Reliability(quantise(values), np.full(13, kappa), wide.SIZES, big.reliability.protected)


def redefined_rows(big: wide.Wide, config: TestTimeConfig, reliability: Reliability, rows: int) -> torch.Tensor:
    """Field vectors [rows, N, D] that the last pass scores."""
    seen: list[torch.Tensor] = []
    score = big.model.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(big.model, "score", lambda x, *rest: (seen.append(x.clone()), score(x, *rest))[1])
        raw = Engine(big.model, reliability, config, CALIBRATION, big.extras).raw(big.batch(slice(0, rows)))
    assert len(seen) == 2  # the base pass, and the redefined rows
    order = np.lexsort((np.arange(rows), -wide.entropy_of(raw.z0)))
    back = torch.empty_like(seen[1][:rows])
    back[torch.from_numpy(order)] = seen[1][:rows]
    return back - seen[0][:rows]


def test_with_full_support_nothing_changes(big: wide.Wide) -> None:
    full = counts(big, np.full(sum(wide.SIZES), 1000), kappa=0.0)
    raw = Engine(big.model, full, SGCTR, CALIBRATION, big.extras).raw(big.batch(slice(0, 200)))
    np.testing.assert_allclose(raw.z, raw.z0, atol=1e-6)
    assert (raw.num_paths == 6).all()
    assert float(redefined_rows(big, SGCTR, full, 32).abs().max()) == 0.0


def unsupported(big: wide.Wide) -> Reliability:
    """Column 0 has no support at all and column 3 half of it; all others have everything."""
    values = np.full(sum(wide.SIZES), 10**6)
    start = sum(wide.SIZES[:3])
    values[: wide.SIZES[0]] = 0
    values[start : start + wide.SIZES[3]] = 15
    kappa = np.zeros(13)
    kappa[[0, 3]] = 15.0
    return replace(counts(big, values), kappa=kappa)


def test_one_round_moves_the_least_plausible_and_supported_fields_by_what_they_lack(big: wide.Wide) -> None:
    """Three of ten fields are hidden. That of no support is always one, and becomes what the others predict."""
    heads, n = big.extras.heads, wide.OPEN
    assert heads is not None
    found = redefined_rows(big, but(SGCTR, rounds=1), unsupported(big), 32)
    support = torch.ones(n)
    support[0], support[3] = 0.0, 0.5
    with torch.inference_mode():
        x = big.model.embed(big.batch(slice(0, 32)))

        def likely(hidden: torch.Tensor) -> torch.Tensor:
            shown = x.clone()
            shown[:, :n] = torch.where(hidden[..., None], big.model.fill()[:n], x[:, :n])
            return heads.predict(big.model.trunk(shown))

        even = (torch.arange(n) % 2 == 0).expand(32, n)
        guess = torch.where(even[..., None], likely(even), likely(~even))
        by_plausibility = support * (1 + torch.nn.functional.cosine_similarity(x[:, :n], guess, dim=2))
        hidden = by_plausibility <= by_plausibility.sort(dim=1).values[:, 2:3]
        assert hidden[:, 0].all() and (hidden.sum(dim=1) == 3).all() and 5 < int(hidden[:, 3].sum()) < 32
        moved = torch.where(hidden[..., None], (1 - support)[:, None] * (likely(hidden) - x[:, :n]), 0.0)
    torch.testing.assert_close(found[:, :n], moved, atol=1e-5, rtol=1e-4)
    assert not found[:, n:].any()


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_every_pass_is_counted(rounds: int, big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    trunk = big.model.trunk
    monkeypatch.setattr(big.model, "trunk", lambda x: (passes.append(len(x)), trunk(x))[1])
    scored = big.engine(but(SGCTR, rounds=rounds)).score(big.batch(slice(0, 32)))
    assert redefine.num_passes(rounds) == 3 + rounds
    assert passes == [128] + [32] * (3 + rounds)
    assert (scored.num_paths == 1 + 3 + rounds).all()


def test_each_round_redefines_fewer_fields(big: wide.Wide) -> None:
    """With no support anywhere every hidden field moves: 3, then at most 1 more of ten in the second of two rounds."""
    nothing = counts(big, np.zeros(sum(wide.SIZES)))
    for rounds, most in ((1, 3), (2, 4), (4, 7)):
        moved = redefined_rows(big, but(SGCTR, rounds=rounds), nothing, 32).abs().amax(dim=2) > 0
        number = moved.sum(dim=1)
        assert int(number.min()) >= 3 and int(number.max()) <= most
        assert not moved[:, wide.OPEN :].any()


def test_supported_rows_hardly_move(big: wide.Wide) -> None:
    raw = big.engine(SGCTR).raw(big.batch(slice(0, 500)))
    moved = np.abs(raw.z - raw.z0)
    fifth = np.argsort(raw.missing)
    assert moved[fifth[:100]].mean() < 0.8 * moved[fifth[-100:]].mean()
    assert moved[fifth[-100:]].mean() > 0.1
