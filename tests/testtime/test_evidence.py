"""Corrected and retrieved scores: bits, what is read, what is skipped, and evidence that does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.models.test_logit_network import network
from tests.testtime import evidence as given_evidence
from tests.testtime import wide
from tests.testtime.evidence import COUNTERS, Counted, corrected, counters, evidence, extras, history, retrieving
from thinktwice.calibration import Calibration
from thinktwice.data.evidence import Evidence, History
from thinktwice.errors import BundleError, DataError
from thinktwice.models.logit_network import Network
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.config import Correction, SecondLook
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.evidence import retrieval
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard, counter_inputs
from thinktwice.testtime.evidence.retrieval import MAX_OUTCOMES, Neighbours, Retrieval
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Members, Retrieve
from thinktwice.testtime.scores import Scored
from thinktwice.testtime.triggers import Entropy, Moved

ROWS = 300
VALUES = ("logit", "probability", "uncertainty", "num_paths", "capped_rows", "corrected")


def engine(big: wide.Wide, config: TestTimeConfig, extra: Extras | None = None) -> Engine:
    made = big.engine(TestTimeConfig())
    return Engine(made.model, made.reliability, config, made.calibration, extra or extras(made.model))


def same(found: Scored, expected: Scored, rows: np.ndarray | slice = slice(None)) -> bool:
    return all(np.array_equal(getattr(found, name), getattr(expected, name)[rows]) for name in VALUES)


@pytest.fixture(scope="module")
def known(big: wide.Wide) -> Evidence:
    found = history(big.engine(TestTimeConfig()).model, ROWS)
    return Evidence(counters(ROWS), lambda: found)


def test_counters_change_the_scores_of_the_rows_that_have_them(big: wide.Wide, known: Evidence) -> None:
    batch, found = big.batch(slice(0, ROWS)), engine(big, corrected())
    off, scored = big.engine(TestTimeConfig()).score(batch), found.score(batch, evidence=known)
    unknown = np.isnan(known.counters).all(axis=1)
    assert unknown.any() and np.array_equal(scored.corrected, ~unknown)
    assert np.array_equal(scored.logit[unknown], off.logit[unknown])
    assert (scored.logit[~unknown] != off.logit[~unknown]).all()
    assert scored.path_rows == 0 and not off.corrected.any()
    calibration = found.calibration
    expected = calibration.a * found.raw(batch, evidence=known).first + calibration.b
    assert np.array_equal(scored.logit, expected)


@pytest.mark.parametrize("config", [corrected(), retrieving(), retrieving(Entropy(threshold=0.5))])
def test_without_evidence_scores_are_those_of_the_base_pass(big: wide.Wide, config: TestTimeConfig) -> None:
    """Also when corrected rows have a calibration of their own."""
    assert config.correction is not None
    config = config.model_copy(update={"correction": Correction(calibration=Calibration(a=2.0, b=1.0))})
    batch = big.batch(slice(0, ROWS))
    off = big.engine(TestTimeConfig()).score(batch)
    for found in (None, evidence(np.full((ROWS, COUNTERS), np.nan, np.float32), Counted(None))):
        scored = engine(big, config).score(batch, evidence=found)
        assert same(scored, off)
        assert not scored.corrected.any() and not scored.capped


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, ROWS), seed=st.integers(0, 2**31), by_request=st.booleans())
def test_the_same_bits_in_any_company(big: wide.Wide, known: Evidence, rows: int, seed: int, by_request: bool) -> None:
    config = corrected() if by_request else retrieving(Entropy(threshold=0.7))
    found = engine(big, config)
    expected = found.score(big.batch(slice(0, ROWS)), evidence=known)
    assert expected.corrected.any() and (by_request or expected.path_rows)
    chosen = np.random.default_rng(seed).permutation(ROWS)[:rows]
    assert same(found.score(big.batch(chosen), evidence=known.take(chosen)), expected, chosen)
    one = chosen[:1]
    assert same(engine(big, config).score(big.batch(one), evidence=known.take(one)), expected, one)


@pytest.mark.parametrize("config", [corrected(), retrieving()])
def test_a_request_without_rows(big: wide.Wide, config: TestTimeConfig) -> None:
    scored = engine(big, config).score(big.batch(slice(0, 0)), evidence=evidence(counters(5)[:0], Counted(None)))
    assert len(scored.logit) == len(scored.corrected) == 0


def test_a_history_is_read_once_and_only_for_escalated_rows(big: wide.Wide) -> None:
    made = engine(big, retrieving(Entropy(threshold=0.9)))
    batch, values = big.batch(slice(0, ROWS)), counters(ROWS)
    read = Counted(history(made.model, ROWS))
    scored = made.score(batch, evidence=evidence(values, read))
    assert read.calls == 1 and 0 < scored.path_rows < ROWS
    first = engine(big, corrected()).score(batch, evidence=evidence(values))
    again = scored.num_paths > 1
    assert np.array_equal(scored.logit[~again], first.logit[~again])
    assert (scored.logit[again] != first.logit[again]).mean() > 0.99
    for config, cap in ((retrieving(Entropy(threshold=1.0)), None), (retrieving(), 0), (corrected(), None)):
        read = Counted(history(made.model, ROWS))
        none = engine(big, config).score(batch, cap, evidence=evidence(values, read))
        assert read.calls == 0
        assert np.array_equal(none.logit, first.logit)
    assert engine(big, retrieving()).score(batch, 0, evidence=evidence(values, read)).capped_rows.sum() == 240


@pytest.mark.parametrize("why", ["no reader", "not in time", "no outcomes", "unknown items"])
def test_a_row_without_a_history_keeps_its_first_score(big: wide.Wide, why: str) -> None:
    made, batch, values = engine(big, retrieving()), big.batch(slice(0, ROWS)), counters(ROWS)
    nothing = History.of_user(np.zeros(0, np.int32), np.zeros(0, bool), ROWS)
    unknown = History.of_user(np.zeros(9, np.int32), np.ones(9, bool), ROWS)
    read = {"no reader": None, "not in time": Counted(None), "no outcomes": Counted(nothing)}.get(why, Counted(unknown))
    scored = made.score(batch, evidence=evidence(values, read))
    assert same(scored, engine(big, corrected()).score(batch, evidence=evidence(values)))


def test_the_cap_binds_by_uncertainty(big: wide.Wide, known: Evidence) -> None:
    made, batch = engine(big, retrieving()), big.batch(slice(0, ROWS))
    scored, first = made.score(batch, 20, evidence=known), engine(big, corrected()).raw(batch, evidence=known)
    again = scored.num_paths > 1
    assert again.sum() == scored.path_rows == 20
    assert scored.capped_rows.sum() == first.corrected.sum() - 20
    distance = np.abs(made.calibration.a * first.first + made.calibration.b)
    assert distance[again].max() <= distance[scored.capped_rows].min()


def test_rows_that_were_moved_most(big: wide.Wide, known: Evidence) -> None:
    batch = big.batch(slice(0, ROWS))
    raw = engine(big, corrected()).raw(batch, evidence=known)
    moved = np.abs(raw.first - raw.z0)
    threshold = float(np.quantile(moved, 0.8))
    scored = engine(big, retrieving(Moved(threshold=threshold))).score(batch, evidence=known)
    assert np.array_equal(scored.num_paths > 1, moved > threshold)


def test_rows_of_several_users_see_their_own_history(big: wide.Wide) -> None:
    made = engine(big, retrieving())
    rng, values = np.random.default_rng(3), counters(60)
    items = rng.integers(0, 40, 900).astype(np.int32)
    start = rng.integers(0, 600, 60).astype(np.int32)
    end = start + rng.integers(0, 300, 60).astype(np.int32)
    together = History(items, rng.random(900) < 0.5, start, end)
    scored = made.score(big.batch(slice(0, 60)), evidence=evidence(values, lambda: together))
    for row in range(60):
        latest = slice(max(int(start[row]), int(end[row]) - MAX_OUTCOMES), int(end[row]))
        alone = History.of_user(items[latest], together.clicked[latest], 1)
        found = made.score(big.batch(slice(row, row + 1)), evidence=evidence(values[row : row + 1], Counted(alone)))
        assert same(found, scored, slice(row, row + 1))


def test_retrieved_features_against_a_loop(big: wide.Wide) -> None:
    model = big.engine(TestTimeConfig()).model
    retrieval = extras(model).retrieval
    assert retrieval is not None
    near = retrieval.neighbours
    seen = history(model, 50, outcomes=90, seed=2)
    candidates = np.random.default_rng(1).integers(0, len(near.rates), 50)
    found, has = near.features(candidates, seen)
    assert has.all()
    known = [(int(i), float(c) - float(near.rates[i])) for i, c in zip(seen.items, seen.clicked, strict=True) if i > 0]
    for row, item in enumerate(candidates):
        pairs = [(float(w), int(j)) for w, j in zip(near.weights[item], near.ids[item], strict=True) if j > 0]
        agreement = sum(w * r for w, j in pairs for i, r in known if i == j)
        support = sum(abs(w) for w, j in pairs for i, _ in known if i == j)
        latest = sum(w * r for w, j in pairs for i, r in known[-20:] if i == j)
        own = [r for i, r in known if i == item]
        distinct = sum(1 for _, j in pairs if any(i == j for i, _ in known))
        expected = [
            agreement,
            agreement / (support + 0.5),
            support,
            latest,
            np.log1p(distinct),
            sum(own),
            np.log1p(len(own)),
            np.log1p(len(known)),
        ]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(outcomes=st.integers(0, 300), rows=st.integers(1, 9), shared=st.booleans(), seed=st.integers(0, 2**31))
def test_retrieved_features_of_any_history_against_a_loop(outcomes: int, rows: int, shared: bool, seed: int) -> None:
    """Items seen repeatedly, unknown items, more outcomes than are read, negative weights, padding, and rows of several users."""
    rng, number = np.random.default_rng(seed), 14
    ids = np.stack([rng.permutation(number)[:6] for _ in range(number)]).astype(np.int32)
    weights = np.where(ids > 0, rng.normal(size=ids.shape), 0).astype(np.float16)
    near = Neighbours(ids, weights, rng.random(number).astype(np.float32))
    items, clicked = rng.integers(0, number, outcomes).astype(np.int32), rng.random(outcomes) < 0.5
    start = np.sort(rng.integers(0, outcomes + 1, (2, rows)), axis=0).astype(np.int32)
    seen = History.of_user(items, clicked, rows) if shared else History(items, clicked, *start)
    candidates = rng.integers(0, number, rows)
    found, has = near.features(candidates, seen)
    for row, item in enumerate(candidates.tolist()):
        latest = range(max(int(seen.start[row]), int(seen.end[row]) - MAX_OUTCOMES), int(seen.end[row]))
        known = [(int(items[k]), float(clicked[k]) - float(near.rates[items[k]])) for k in latest if items[k] > 0]
        assert has[row] == bool(known)
        sums = [0.0] * 4  # residuals, outcomes, residuals of the latest outcomes, distinct items
        for weight, neighbour in zip(weights[item].astype(float), ids[item].tolist(), strict=True):
            matched = [(place, residual) for place, (i, residual) in enumerate(known) if i == neighbour]
            sums[0] += weight * sum(r for _, r in matched)
            sums[1] += abs(weight) * len(matched)
            sums[2] += weight * sum(r for place, r in matched if place >= len(known) - 20)
            sums[3] += bool(matched)
        own = [residual for i, residual in known if i == item]
        expected = [sums[0], sums[0] / (sums[1] + 0.5), sums[1], sums[2], np.log1p(sums[3]), sum(own)]
        expected += [np.log1p(len(own)), np.log1p(len(known))]
        np.testing.assert_allclose(found[row], expected if known else np.zeros(8), rtol=1e-4, atol=1e-4)
    order = rng.permutation(rows)
    again, _ = near.features(candidates[order], seen.take(order))
    assert np.array_equal(again, found[order])
    assert not near._slots.any()


HOSTILE = {
    "more rows": np.zeros((ROWS + 1, COUNTERS), np.float32),
    "fewer rows": np.zeros((0, COUNTERS), np.float32),
    "another number": np.zeros((ROWS, COUNTERS + 1), np.float32),
    "another type": np.zeros((ROWS, COUNTERS)),
    "infinite": np.full((ROWS, COUNTERS), -np.inf, np.float32),
}


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rows=st.integers(0, 40), outcomes=st.integers(0, 500), seed=st.integers(0, 2**31))
def test_rows_with_outcomes_of_their_own_have_the_bits_of_rows_of_a_user(
    data: st.DataObject, rows: int, outcomes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    number, width = data.draw(st.sampled_from((1, 2, 30))), data.draw(st.integers(1, 9))
    weights = rng.standard_normal((number, width)).astype(np.float16)
    near = Neighbours(
        rng.integers(0, number, (number, width)).astype(np.int32), weights, rng.random(number).astype(np.float32)
    )
    ends = np.sort(rng.integers(0, outcomes + 1, (2, rows)), axis=0).astype(np.int32)
    if data.draw(st.booleans()):
        ends[:, : rows // 2] = ends[:, :1]  # of one user
    seen = History(rng.integers(0, number, outcomes).astype(np.int32), rng.random(outcomes) < 0.5, *ends)
    items, found = rng.integers(0, number, rows), []
    for few, at_once in ((0, 1), (2, 2), (2, 7), (2, 256)):  # user by user, then together
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "FEW", few)
            patch.setattr(retrieval, "SLOTS_AT_ONCE", max(at_once, few) * number)
            patch.setattr(retrieval, "ROWS_AT_ONCE", max(at_once, few))
            found.append([part.tobytes() for part in near.features(items, seen)])
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("what", HOSTILE)
def test_counters_that_do_not_fit_are_an_error(big: wide.Wide, what: str) -> None:
    with pytest.raises(DataError, match=r"counter|evidence has"):
        engine(big, corrected()).score(big.batch(slice(0, ROWS)), evidence=evidence(HOSTILE[what]))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-5, 10**6), max_size=4),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6)), min_size=1, max_size=3),
)
def test_a_history_fits_or_is_an_error(
    big: wide.Wide, items: list[int], labels: int, ranges: list[tuple[int, int]]
) -> None:
    made = engine(big, retrieving())
    size = made.model.fields.num_values[made.model.fields.columns.index(given_evidence.ITEM)]
    start, end = (np.array(part, np.int32) for part in zip(*ranges, strict=True))
    found = History(np.array(items, np.int32), np.zeros(labels, bool), start, end)
    values = np.ones((2, COUNTERS), np.float32)
    fits = (
        len(ranges) == 2
        and labels == len(items)
        and all(0 <= a <= b <= len(items) for a, b in ranges)
        and all(0 <= i < size for i in items)
    )
    if fits:
        scored = made.score(big.batch(slice(0, 2)), evidence=evidence(values, lambda: found))
        assert np.isfinite(scored.logit).all()
    else:
        with pytest.raises(DataError):
            made.score(big.batch(slice(0, 2)), evidence=evidence(values, lambda: found))


def test_largest_and_smallest_counters_give_finite_scores(big: wide.Wide) -> None:
    largest = np.finfo(np.float32).max
    for value in (largest, -largest, np.float32(1e-45)):
        values = np.full((3, COUNTERS), value, np.float32)
        assert np.isfinite(
            engine(big, corrected()).score(big.batch(slice(0, 3)), evidence=evidence(values)).logit
        ).all()


def test_a_correction_of_zero_leaves_the_base_score(big: wide.Wide, known: Evidence) -> None:
    model = big.engine(TestTimeConfig()).model
    batch = big.batch(slice(0, ROWS))
    scored = engine(big, corrected(), extras(model, last=0.0)).score(batch, evidence=known)
    assert np.array_equal(scored.logit, big.engine(TestTimeConfig()).score(batch).logit)


def test_rows_of_a_training_set_bring_their_evidence(big: wide.Wide, known: Evidence) -> None:
    made = engine(big, retrieving(Entropy(threshold=0.7)))
    rows = big.later.take(np.arange(ROWS))
    raw = raw_rows(made, replace(rows, evidence=known))
    expected = made.raw(big.batch(slice(0, ROWS)), evidence=known)
    assert np.array_equal(raw.z, expected.z) and np.array_equal(raw.corrected, expected.corrected)
    assert not raw_rows(made, rows).corrected.any()


@pytest.mark.parametrize(
    "settings",
    [
        {"second_look": SecondLook(trigger=Entropy(), opinion=Retrieve())},
        {"correction": Correction(), "second_look": SecondLook(trigger=Entropy(), opinion=Members())},
        {"second_look": SecondLook(trigger=Moved(), opinion=Members())},
    ],
)
def test_parts_that_do_not_go_together_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"correction|corrected"):
        TestTimeConfig.model_validate(settings)


def test_a_configuration_without_its_networks_is_refused(big: wide.Wide) -> None:
    model = big.engine(TestTimeConfig()).model
    whole = extras(model)
    assert whole.retrieval is not None and whole.correction is not None
    with pytest.raises(BundleError, match="needs a correction network"):
        engine(big, corrected(), Extras())
    with pytest.raises(BundleError, match="needs neighbours of items"):
        engine(big, retrieving(), Extras(correction=whole.correction))
    fewer = Neighbours(*(part[:-1] for part in vars(whole.retrieval.neighbours).values()))
    with pytest.raises(BundleError, match="neighbours describe"):
        engine(big, retrieving(), replace(whole, retrieval=replace(whole.retrieval, neighbours=fewer)))
    with pytest.raises(BundleError, match="inputs instead of"):
        engine(big, retrieving(), replace(whole, retrieval=replace(whole.retrieval, network=whole.correction.network)))
    config = retrieving().looking(opinion=Retrieve(item_field="sku"))
    with pytest.raises(BundleError, match="'sku'"):
        engine(big, config)


def test_networks_come_back_from_disk(big: wide.Wide, tmp_path: Path, known: Evidence) -> None:
    model = big.engine(TestTimeConfig()).model
    whole = extras(model)
    assert whole.correction is not None and whole.retrieval is not None
    whole.correction.save(tmp_path)
    whole.retrieval.save(tmp_path)
    loaded = Extras(correction=CorrectionNetwork.load(tmp_path), retrieval=Retrieval.load(tmp_path))
    assert loaded.retrieval is not None and not loaded.retrieval.neighbours.ids.flags.writeable
    assert not loaded.retrieval.neighbours.ids.flags.owndata  # mapped, not read
    batch = big.batch(slice(0, ROWS))
    expected = engine(big, retrieving()).score(batch, evidence=known)
    assert same(engine(big, retrieving(), loaded).score(batch, evidence=known), expected)


@pytest.mark.parametrize("damage", ["nan", "huge", "sds", "width", "items", "rates", "cut"])
def test_damaged_files_are_named(big: wide.Wide, tmp_path: Path, damage: str) -> None:
    whole = extras(big.engine(TestTimeConfig()).model)
    correction, retrieval = whole.correction, whole.retrieval
    assert correction is not None and retrieval is not None
    arrays = [np.array(a) for a in correction.network.arrays]
    if damage in ("nan", "huge"):
        arrays[2][0, 0] = np.nan if damage == "nan" else 1e7
        correction = replace(correction, network=Network(tuple(arrays)))
    if damage == "sds":
        correction = replace(correction, standard=replace(correction.standard, sds=np.zeros(COUNTERS, np.float32)))
    if damage == "width":
        correction = replace(correction, network=retrieval.network)
    near = retrieval.neighbours
    if damage == "items":
        near = replace(near, ids=near.ids + 10_000)
    if damage == "rates":
        near = replace(near, rates=near.rates + 1)
    correction.save(tmp_path)
    replace(retrieval, neighbours=near).save(tmp_path)
    if damage == "cut":
        path = tmp_path / "correction.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    name = "neighbours" if damage in ("items", "rates") else "correction"
    with pytest.raises(BundleError, match=f"{name}.safetensors .*fit the test-time parameters again"):
        CorrectionNetwork.load(tmp_path)
        Retrieval.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6, 1e37]),
    unknown=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
def test_a_correction_is_that_of_the_standardised_counters(rows: int, seed: int, scale: float, unknown: float) -> None:
    rng = np.random.default_rng(seed)
    means, sds = (scale * rng.normal(size=COUNTERS)).astype(np.float32), rng.uniform(0.1, 2, COUNTERS)
    standard = Standard(means, (scale * sds).astype(np.float32))
    found = CorrectionNetwork(standard, network(1, 1 + 2 * COUNTERS, last=0.02))
    values = (scale * rng.normal(size=(rows, COUNTERS)) * rng.choice([1.0, 9.0])).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.float32(3.4e38)
    values[rng.random(values.shape) < unknown] = np.nan
    logit = rng.normal(0, 5, rows)
    with np.errstate(all="raise", under="ignore"):
        scored = found(logit, values)
        inputs = counter_inputs(standard, logit, values)
    with np.errstate(all="ignore"):
        plain = np.nan_to_num(np.clip((values - means) / standard.sds, -4, 4))
    np.testing.assert_allclose(inputs[:, 1 : 1 + COUNTERS], plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(inputs[:, 1 + COUNTERS :], np.isnan(values))
    np.testing.assert_allclose(scored, logit + found.network(inputs), rtol=1e-4, atol=2e-3)
    order = rng.permutation(rows)
    assert np.array_equal(found(logit[order], values[order]), scored[order])
    assert np.array_equal(found(logit[:1], values[:1]), scored[:1])
