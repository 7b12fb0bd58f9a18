"""The scorer: features looked up once, the same scores whatever stands beside a row, deadlines, start conditions."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.deadline import Deadline
from serving.scorer import Answer, NoFiniteScoreError, Scorer, open_scorer
from tests.serving.fakes import ITEMS, FakeReader
from tests.serving.small import PLAIN_SCHEMA, make_bundle
from thinktwice.errors import BundleError, FeatureStoreError
from thinktwice.models.registry import build_backbone
from thinktwice.release.bundle import load_bundle
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Members
from thinktwice.testtime.triggers import Always, Decision

CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": 1_767_693_600}


@pytest.fixture(scope="module")
def scorer(small: Path) -> Scorer:
    torch.set_num_threads(1)
    out = Scorer(load_bundle(small / "bundle"), FakeReader())
    out.warm_up()
    return out


def ask(scorer: Scorer, *values: dict[str, Any]) -> list[Answer]:
    return scorer.score(scorer.parser.parse_all(list(values), "instances"))


def candidates(*items: str, **more: Any) -> dict[str, Any]:
    return {"user_id": "u1", "candidates": list(items), "context": CONTEXT, **more}


def test_an_answer(scorer: Scorer) -> None:
    (answer,) = ask(scorer, candidates("i1", "never seen", "i3"))
    assert answer.item_ids == ("i1", "never seen", "i3")
    assert answer.order == (0, 1, 2)
    assert answer.cold_items == (False, True, False)
    assert not answer.cold_user
    assert sorted(answer.rank) == [1, 2, 3]
    assert answer.probability[answer.rank.index(1)] == max(answer.probability)
    assert all(0 < p < 1 for p in answer.probability)
    assert all(0 <= u <= 1 for u in answer.uncertainty)
    assert all(n >= 1 for n in answer.num_paths) and max(answer.num_paths) > 1
    assert answer.model_version == "small-20260101-abc"
    assert answer.defaulted == ()


def test_the_user_is_looked_up_once_and_every_item_as_asked(scorer: Scorer) -> None:
    reader = scorer.reader
    assert isinstance(reader, FakeReader)
    reader.reads.clear()
    ask(scorer, candidates("i1", "i2", "i1"))
    assert reader.reads == [("u1", ["i1", "i2", "i1"])]


def test_k_gives_the_best_in_order(scorer: Scorer) -> None:
    (everything,) = ask(scorer, candidates(*ITEMS))
    (best,) = ask(scorer, candidates(*ITEMS, k=4))
    assert len(best.order) == 4
    assert [best.rank[place] for place in best.order] == [1, 2, 3, 4]
    assert best.probability == everything.probability
    (all_of_them,) = ask(scorer, candidates("i1", "i2", k=10))
    assert len(all_of_them.order) == 2


def test_equal_items_keep_the_order_of_the_request(scorer: Scorer) -> None:
    (answer,) = ask(scorer, candidates("i1", "i1", "i1"))
    assert answer.rank == (1, 2, 3)
    assert len(set(answer.probability)) == 1


def test_a_row_scores_the_same_alone_or_among_500(scorer: Scorer) -> None:
    """To the last bit, with every limit as shipped."""
    items = [ITEMS[i % len(ITEMS)] if i % 10 else f"cold{i}" for i in range(500)]
    (together,) = ask(scorer, candidates(*items))
    assert scorer.bundle.engine.max_path_rows == 1024
    assert not together.paths_capped
    assert 0.1 < np.mean(np.array(together.num_paths) > 1) < 0.6
    for place in (0, 1, 127, 128, 255, 400, 499):
        (alone,) = ask(scorer, candidates(items[place]))
        assert alone.probability == (together.probability[place],)
        assert alone.uncertainty == (together.uncertainty[place],)
        assert alone.num_paths == (together.num_paths[place],)


def test_more_unsure_rows_than_the_cap_allows(scorer: Scorer) -> None:
    """Who is admitted depends on the rows alone; the others have exactly the score of one pass, and the answer says so."""
    config = scorer.bundle.engine.config.looking(trigger=Always())
    engine = Engine(scorer.bundle.model, scorer.bundle.engine.reliability, config, scorer.bundle.engine.calibration)
    eager = Scorer(replace(scorer.bundle, engine=engine), FakeReader())
    eager.warm_up()
    items = [ITEMS[i % len(ITEMS)] if i % 5 else f"cold{i}" for i in range(500)]
    (first,), (again,), (backwards,) = (ask(eager, candidates(*i)) for i in (items, items, items[::-1]))
    assert first == again
    assert first.paths_capped
    assert sum(first.num_paths) - 500 <= engine.max_path_rows
    assert sorted(first.probability) == sorted(backwards.probability)
    (base,) = ask(eager, candidates(*items, deadline_ms=1e-6))
    assert set(base.num_paths) == {1}
    (patient,) = ask(eager, candidates(*items, deadline_ms=9e8))
    assert patient.paths_capped and patient.num_paths == first.num_paths  # a caller cannot lift the operator's cap
    left = [place for place in range(500) if first.num_paths[place] == 1]
    assert 0 < len(left) < 500
    assert [first.probability[p] for p in left] == [base.probability[p] for p in left]
    (alone,) = ask(eager, candidates(items[left[0]]))
    assert not alone.paths_capped


def test_requests_of_one_body_do_not_touch_each_other(scorer: Scorer) -> None:
    first, second = candidates(*ITEMS), candidates("i9", "i2")
    assert ask(scorer, second, first, second) == [*ask(scorer, second), *ask(scorer, first), *ask(scorer, second)]


def test_looked_up_and_raw_rows_agree(scorer: Scorer) -> None:
    assert scorer.reader is not None
    features = scorer.reader.read("u1", ["i7"])
    row = {**features.user, **features.items[0], "user_id": "u1", "item_id": "i7", **CONTEXT}
    (raw,) = ask(scorer, {"rows": [row]})
    (looked_up,) = ask(scorer, candidates("i7"))
    assert raw.item_ids is None
    assert (raw.probability, raw.uncertainty, raw.num_paths) == (
        looked_up.probability,
        looked_up.uncertainty,
        looked_up.num_paths,
    )


HUGE = [3e38, 3e38, -3e38]  # each fits into float32, and the model's sums of them do not


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the overflow in question
def test_a_raw_row_without_a_finite_score_is_named_and_never_null(scorer: Scorer) -> None:
    rows = [{"cover": [0.0, 1.0, 2.0]}, {"cover": HUGE}]
    with pytest.raises(NoFiniteScoreError) as refused:
        ask(scorer, {"rows": rows[:1]}, {"rows": rows})
    assert (refused.value.request, refused.value.row) == (1, 1)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_an_item_whose_stored_features_are_too_large_counts_as_one_without(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others have the scores they always have."""
    good = ask(scorer, candidates("i1", "i2", "i4"))[0]
    without = ask(scorer, candidates("never seen"))[0]
    item = FakeReader._item
    broken = {"genre": "g0", "cover": HUGE}
    monkeypatch.setattr(FakeReader, "_item", staticmethod(lambda i: broken if i in ("i3", "i9") else item(i)))
    mixed = ask(scorer, candidates("i1", "i3", "i2", "i9", "i4"))[0]
    assert [mixed.probability[i] for i in (0, 2, 4)] == list(good.probability)
    assert (mixed.default_features, mixed.unusable) == (("item",), ("item",))
    for alone in (ask(scorer, candidates("i3"))[0], ask(scorer, candidates("i3", "i9"))[0]):
        assert alone.probability[0] == mixed.probability[1]
        assert alone.default_features == ("item",)
    assert mixed.logged[1][1] == {} and mixed.logged[1][0]["genre"] == "g1", "logged as they were scored"
    assert without.unusable == ()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_model_that_gives_no_numbers_is_not_blamed_on_features(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scorer.bundle.engine
    score = engine.score

    def broken(batch: Any, *rest: Any) -> Any:
        scored = score(batch, *rest)
        found = np.array(scored.probability)
        found[-1] = np.nan
        return dataclasses.replace(scored, probability=found)

    monkeypatch.setattr(engine, "score", broken)
    with pytest.raises(NoFiniteScoreError) as refused:
        ask(scorer, candidates("i1", "i2", "i3"))
    assert (refused.value.request, refused.value.row) == (0, 2)


def test_an_unknown_user_is_cold_and_answered(scorer: Scorer) -> None:
    (answer,) = ask(scorer, {"user_id": "nobody", "candidates": ["i1"]})
    assert answer.cold_user
    assert answer.defaulted == ("slot", "bid")


def test_a_deadline_in_the_past_leaves_the_base_pass(scorer: Scorer) -> None:
    two = ("new1", "new2")
    requests = scorer.parser.parse_all([candidates(*two, deadline_ms=0.001), candidates(*two)], "instances")
    hurried, relaxed = scorer.score(requests)
    assert hurried.paths_capped and not relaxed.paths_capped
    assert hurried.num_paths == (1, 1)
    assert min(relaxed.num_paths) > 1
    (generous,) = ask(scorer, candidates(*two, deadline_ms=1e8))
    assert generous.probability == relaxed.probability


@pytest.mark.parametrize(
    ("deadline_ms", "extra_paths", "after", "expected"),
    [
        (None, True, 0, (None, False)),
        (100.5, True, 0, (77, False)),
        (30.5, True, 0, (7, False)),
        (23.4, True, 0, (0, False)),
        (10.0, True, 0, (0, False)),
        (1e6 + 0.5, True, 0, (None, False)),  # the configured cap is lower
        (100.5, True, 10, (65, False)),  # ten rows of the same body come after
        (None, False, 0, (0, True)),
        (100.5, False, 0, (0, True)),
        (10.0, False, 0, (0, False)),  # the deadline allowed none anyway
    ],
)
def test_what_deadline_and_load_leave_for_extra_rows(
    scorer: Scorer,
    monkeypatch: pytest.MonkeyPatch,
    deadline_ms: float | None,
    extra_paths: bool,
    after: int,
    expected: tuple[int | None, bool],
) -> None:
    """5 ms have passed when 15 candidates at a millisecond each are about to be scored; a fifth of that is held back."""
    more = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    (request,) = scorer.parser.parse_all([candidates(*ITEMS[:15], **more)], "instances")
    monkeypatch.setattr(scorer, "_ms_per_path_row", 1.0)
    monkeypatch.setattr("serving.scorer.time.monotonic", lambda: 1000.005)
    body = Deadline(1000.0, 1e9)
    assert scorer._path_budget(request, body, extra_paths, after) == expected


def test_the_places_of_a_request_decide_who_is_asked_again(scorer: Scorer) -> None:
    """Under the trigger ``decision`` only rows near the k-th place are."""
    base = scorer.bundle.engine
    config = base.config.looking(trigger=Decision(spread=(0.02, 0.0, 0.0)), opinion=Members())
    member = build_backbone(base.model.config, base.model.fields, seed=9)
    engine = Engine(base.model, base.reliability, config, base.calibration, Extras(members=(member,)))
    deciding = Scorer(replace(scorer.bundle, engine=engine), FakeReader())
    plain = Scorer(
        replace(scorer.bundle, engine=Engine(base.model, base.reliability, TestTimeConfig(), base.calibration)),
        FakeReader(),
    )
    (before,) = ask(plain, candidates(*ITEMS))
    logit = np.log(before.probability) - np.log1p(-np.asarray(before.probability))
    for k in (5, 30):
        (answer,) = ask(deciding, candidates(*ITEMS, k=k))
        near = np.abs(logit - np.sort(logit)[::-1][k - 1]) <= 0.04
        assert np.array_equal(np.asarray(answer.num_paths) == 2, near)
    (everyone,) = ask(deciding, candidates(*ITEMS, k=len(ITEMS)))
    assert set(everyone.num_paths) == {1}


def test_a_dead_store_is_an_error_of_its_own(scorer: Scorer) -> None:
    reader = scorer.reader
    assert isinstance(reader, FakeReader)
    reader.broken = True
    try:
        with pytest.raises(FeatureStoreError, match="does not answer"):
            ask(scorer, candidates("i1"))
    finally:
        reader.broken = False


def test_a_model_with_features_does_not_start_without_a_store(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="no feature store is given"):
        open_scorer(small / "bundle", None)
    with pytest.raises(FeatureStoreError, match=r"is not a feature store \(no feature_store\.yaml\)"):
        open_scorer(small / "bundle", tmp_path)


def test_a_model_without_entities_needs_no_store(tmp_path: Path) -> None:
    make_bundle(tmp_path, PLAIN_SCHEMA)
    scorer = open_scorer(tmp_path / "bundle", None)
    (answer,) = ask(scorer, {"rows": [{"site": "s1", "bid": 0.5}, {}]})
    assert len(answer.probability) == 2


def test_a_damaged_bundle_does_not_start(tmp_path: Path) -> None:
    make_bundle(tmp_path, PLAIN_SCHEMA)
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="weights"):
        open_scorer(tmp_path / "bundle", None)
