"""Admission under mixes of traffic by the hundred, more than a million requests in all."""

from __future__ import annotations

import pytest

from tests.serving.test_admission_load import SHARE, check, traffic_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_every_mix_keeps_the_promises_of_admission() -> None:
    shares = [check(*traffic_of(seed, 3000)) for seed in range(1000, 1400)]
    assert sum(shares) / len(shares) > 0.97
    assert sum(share < SHARE for share in shares) <= 0.01 * len(shares)
