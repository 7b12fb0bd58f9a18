"""The engine: exact when off, the gate folded into its table, calibrated by group, and only with parts that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.testtime import wide
from tests.testtime.wide import CALIBRATION, MODES, but
from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.errors import BundleError
from thinktwice.models import Backbone, build_backbone
from thinktwice.models.blocks import BASE_ROWS
from thinktwice.testtime import TestTimeConfig, base_pass
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.engine import CHUNK, Engine, raw_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import TestTime, load_test_time, save_test_time

EVERY = MODES | wide.OF_A_REQUEST


def test_off_is_the_plain_model_bit_for_bit(big: wide.Wide) -> None:
    batch = big.batch(slice(0, BASE_ROWS))
    with torch.inference_mode():
        plain = big.model(batch).double().numpy()
    scored = big.engine(TestTimeConfig()).score(batch)
    assert np.array_equal(scored.logit, CALIBRATION.a * plain + CALIBRATION.b)
    assert np.array_equal(scored.probability, sigmoid(CALIBRATION.a * plain + CALIBRATION.b))
    assert scored.path_rows == 0
    assert (scored.num_paths == 1).all()


@pytest.mark.parametrize("name", ["gate", "filter", "calibrated"])
def test_modes_without_their_parameter_change_nothing(name: str, big: wide.Wide) -> None:
    batch = big.batch(slice(0, 200))
    found = big.engine(TestTimeConfig(mode=name)).score(batch)  # type: ignore[arg-type]
    assert np.array_equal(found.logit, big.engine(TestTimeConfig()).score(batch).logit)


@pytest.mark.parametrize("strength", [0.3, 2.0])
@pytest.mark.parametrize("name", ["deepfm", "dcnv2", "autoint"])
def test_the_gate_is_a_mask_of_reliabilities_and_leaves_sequences_alone(
    name: str, strength: float, big: wide.Wide
) -> None:
    """Column f1 is gated, and the sequence of its values, which shares its rows of the table, is not."""
    model = build_backbone(wide.sizes(name), wide.FIELDS, seed=3).eval()
    batch = big.batch(slice(0, BASE_ROWS))
    mask = big.reliability.of(batch.ids.numpy(), strength)
    assert (mask[:, wide.OPEN :] == 1).all() and (mask[:, 1] < 0.9).any()
    with torch.inference_mode():
        masked = model.score(model.embed(batch), torch.from_numpy(mask.astype(np.float32))[:, None])[:, 0]
        plain = model(batch)
    gate = Engine(model, big.reliability, TestTimeConfig(mode="gate", base=Gate(strength=strength)))
    np.testing.assert_allclose(gate.raw(batch).z, masked.double().numpy(), atol=2e-6)
    assert float((masked - plain).abs().max()) > 0.05


def test_a_gate_may_differ_by_field_and_may_know_no_counts(big: wide.Wide) -> None:
    """c / (c + strength * factor * kappa), times the share of the field; what is protected stays whole."""
    batch = big.batch(slice(0, BASE_ROWS))
    count = big.reliability.counts_of(batch.ids.numpy())
    factors, shares = np.asarray(wide.FACTORS)[:11], np.asarray(wide.SHARES)[:11]
    pulled = count / np.maximum(count + 0.5 * factors * wide.KAPPA, 1e-300)
    for change, keep in (
        ({"strength": 0.5, "field_strengths": wide.FACTORS}, pulled),
        ({"field_shares": wide.SHARES}, np.broadcast_to(shares, count.shape)),
        ({"strength": 0.5, "field_strengths": wide.FACTORS, "field_shares": wide.SHARES}, pulled * shares),
    ):
        mask = np.ones((BASE_ROWS, 1, 13), np.float32)
        mask[:, 0, : wide.OPEN] = keep[:, : wide.OPEN]
        with torch.inference_mode():
            expected = big.model.score(big.model.embed(batch), torch.from_numpy(mask))[:, 0].double().numpy()
        found = big.engine(TestTimeConfig(mode="gate", base=Gate(**change))).raw(batch).z
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.abs(found - big.engine(TestTimeConfig()).raw(batch).z).max() > 0.1


def test_the_filter_is_a_mask_of_counts(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_pass, "MIN_KEPT", 0.0)
    batch = big.batch(slice(0, BASE_ROWS))
    mask = np.ones((BASE_ROWS, 13), np.float32)
    mask[:, : wide.OPEN] = big.reliability.counts_of(batch.ids.numpy())[:, : wide.OPEN] >= 5
    with torch.inference_mode():
        masked = big.model.score(big.model.embed(batch), torch.from_numpy(mask)[:, None])[:, 0].double().numpy()
    found = big.engine(TestTimeConfig(mode="filter", base=Filter(min_count=5))).raw(batch)
    np.testing.assert_allclose(found.z, masked, atol=1e-6)
    assert (mask == 0).any(axis=1).mean() > 0.2


def test_another_salt_draws_other_paths(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    first, other = (big.engine(but(wide.UTTSI, salt=salt)).score(batch) for salt in (0, 1))
    assert not np.array_equal(first.logit, other.logit)
    bypassed = (first.num_paths == 1) & (other.num_paths == 1)
    assert bypassed.any()
    assert np.array_equal(first.logit[bypassed], other.logit[bypassed])


@pytest.mark.parametrize("config", [wide.UTTSI, wide.MEMBERS])
def test_rows_with_a_second_opinion_have_a_calibration_of_their_own(config: TestTimeConfig, big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    alone = config.model_copy(update={"calibration": Calibration(a=1.1, b=0.3)})
    both = alone.looking(calibration=Calibration(a=0.5, b=1.0))
    engine = big.engine(both.model_copy(update={"temperature": 1.7}))
    raw, scored = engine.raw(batch), engine.score(batch)
    assert 0 < raw.escalated.sum() < 300
    np.testing.assert_array_equal(scored.logit[raw.escalated], (0.5 * raw.z[raw.escalated] + 1.0) / 1.7)
    np.testing.assert_array_equal(scored.logit[~raw.escalated], (1.1 * raw.z[~raw.escalated] + 0.3) / 1.7)
    found, raw = big.engine(alone).score(batch), big.engine(alone).raw(batch)
    np.testing.assert_array_equal(found.logit, 1.1 * raw.z + 0.3)  # without one, both groups have the same


def test_calibration_by_support_reads_the_missing_support_of_the_row(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    by_support = SupportCalibration(a=1.2, b=0.1, c=-0.7, d=-0.4)
    engine = big.engine(TestTimeConfig(mode="calibrated", support_calibration=by_support))
    raw = engine.raw(batch)
    missing = 1.0 - big.reliability.of(batch.ids.numpy())[:, : wide.OPEN].mean(axis=1)
    np.testing.assert_allclose(raw.missing, missing, atol=1e-12)
    expected = (1.2 - 0.4 * missing) * raw.z + 0.1 - 0.7 * missing
    np.testing.assert_allclose(engine.score(batch).logit, expected, atol=1e-12)


def test_uncertainty_is_the_mean_of_what_the_model_and_the_counts_leave_open(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    for config in (TestTimeConfig(), wide.UTTSI, wide.MEMBERS):
        scored, raw = big.engine(config).score(batch), big.engine(config).raw(batch)
        p = scored.probability
        bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        np.testing.assert_allclose(scored.uncertainty, (bits + raw.missing) / 2, atol=1e-12)


def test_an_empty_request(big: wide.Wide) -> None:
    for config in EVERY.values():
        scored = big.engine(config).score(big.batch(slice(0, 0)))
        assert len(scored.logit) == 0
        assert scored.path_rows == 0 and not scored.capped


def test_whole_parts_are_scored_in_chunks_without_a_cap(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(big.later) < CHUNK
    engine = big.engine(but(wide.UTTSI, max_path_rows=3))
    whole = raw_rows(engine, big.later)
    monkeypatch.setattr("thinktwice.testtime.engine.CHUNK", 97)
    parts = raw_rows(engine, big.later)
    assert np.array_equal(whole.z, parts.z) and np.array_equal(whole.num_paths, parts.num_paths)
    assert len(whole.z) == len(big.later)
    assert whole.num_paths.sum() > len(big.later) + 3
    assert not whole.capped_rows.any()


@pytest.mark.parametrize("name", ["uttsi, pair support", "sgctr", "members, two", "gate"])
def test_a_loaded_engine_gives_the_same_bits(name: str, big: wide.Wide, tmp_path: Path) -> None:
    config, batch = MODES[name], big.batch(slice(0, 200))
    save_test_time(tmp_path, TestTime(config, big.reliability, None, big.extras), big.model)
    loaded = load_test_time(tmp_path, big.model)
    engine = Engine(big.model, loaded.reliability, loaded.config, CALIBRATION, loaded.extras)
    assert np.array_equal(engine.score(batch).probability, big.engine(config).score(batch).probability)


def test_one_lookup_for_all_paths_and_forward_passes_of_one_shape(
    big: wide.Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups, bases, paths = [], [], []
    embed, score, score_paths = big.model.embed, big.model.score, big.model.score_paths
    monkeypatch.setattr(big.model, "embed", lambda batch, *rest: (lookups.append(len(batch)), embed(batch, *rest))[1])
    monkeypatch.setattr(big.model, "score", lambda x, *rest: (bases.append(len(x)), score(x, *rest))[1])
    monkeypatch.setattr(
        big.model,
        "score_paths",
        lambda x, mask, *rest: (paths.append(tuple(mask.shape)), score_paths(x, mask, *rest))[1],
    )
    scored = big.engine(wide.UTTSI).score(big.batch(slice(0, 200)))
    escalated = int((scored.num_paths > 1).sum())
    assert lookups == bases == [BASE_ROWS] * 2
    assert paths == [(32, 8, wide.OPEN)] * -(-escalated // 32)
    assert escalated > 32


def other_counts(reliability: Reliability) -> Reliability:
    sizes = (*reliability.num_values[:-1], 1)
    return replace(reliability, counts=reliability.counts[: sum(sizes)], num_values=sizes)


def test_parts_of_another_model_are_refused(big: wide.Wide) -> None:
    model, reliability, extras = big.model, big.reliability, big.extras
    with pytest.raises(BundleError, match="must come from the same bundle"):
        Engine(model, other_counts(reliability), TestTimeConfig())
    with pytest.raises(BundleError, match="importance names 2 fields and the model has 13"):
        Engine(model, reliability, TestTimeConfig(importance=(0.5, 0.5)))
    for name in ("field_strengths", "field_shares"):
        with pytest.raises(BundleError, match=f"{name} names 3 fields and the model has 13"):
            Engine(model, reliability, but(MODES["gate"], **{name: (1.0, 1.0, 1.0)}))
    assert extras.heads is not None and extras.combinations is not None
    for heads in (
        replace(extras.heads, fields=extras.heads.fields + 1),
        replace(extras.heads, weight=extras.heads.weight[:, 1:]),
    ):
        with pytest.raises(BundleError, match="prediction heads are of another model"):
            Engine(model, reliability, wide.SGCTR, extras=replace(extras, heads=heads))
    counts = replace(extras.combinations, num_values=(*wide.SIZES[:-1], 99))
    with pytest.raises(
        BundleError, match=f"describe {sum(wide.SIZES) + 95} values and the model has {sum(wide.SIZES)}"
    ):
        Engine(model, reliability, wide.MATT, extras=replace(extras, combinations=counts))


def small_model(**change: object) -> Backbone:
    return build_backbone(wide.SIZE, wide.FIELDS.model_copy(update=change)).eval()


def test_members_of_other_vocabularies_or_fields_are_refused(big: wide.Wide) -> None:
    for other in (
        small_model(num_values=(*wide.SIZES[:-1], 5)),
        small_model(names=("user", *wide.FIELDS.names[1:])),
    ):
        with pytest.raises(
            BundleError, match=r"member 1 has other fields or vocabularies .* train it on the same data"
        ):
            Engine(big.model, big.reliability, wide.MEMBERS, extras=Extras(members=(big.sharer, other)))


def test_what_a_mode_needs_and_lacks_is_named_with_the_fix(big: wide.Wide) -> None:
    lacks = {
        "members, two": "needs 2 further trunks but 0 are available: package the members with the model",
        "sgctr": "mode 'sgctr' needs prediction heads, which are missing: fit",
        "matt": "mode 'matt' needs combination counts, which are missing: fit",
        "uttsi, pair support": "mode 'uttsi' needs combination counts",
    }
    for name, words in lacks.items():
        with pytest.raises(BundleError, match=words):
            Engine(big.model, big.reliability, MODES[name])
    Engine(big.model, big.reliability, wide.UTTSI)  # what it does not need may be absent
