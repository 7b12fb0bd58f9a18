"""The findings on planted answers: a field that matters, a slice that is weak, baselines against another library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from tests.evaluate import samples
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.evidence import Evidence, History
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.evaluate.evaluation import TrainingEvaluation, read_evaluation
from thinktwice.evaluate.findings import importance as importances
from thinktwice.evaluate.findings import logistic, sentences
from thinktwice.evaluate.findings.baselines import popularity
from thinktwice.evaluate.findings.importance import Part, importance, parts_of, with_exchanged
from thinktwice.evaluate.findings.weakness import Slice, auc_gap, weakness
from thinktwice.models import FieldSpace
from thinktwice.stats import metrics
from thinktwice.stats.significance import clusters_of
from thinktwice.train.record import EvalRecord

CONTROL = np.arange(2000) % 40  # 40 users


@pytest.fixture(scope="module")
def data(finished: Path) -> TrainingSet:
    return load_training_set(finished / "set")


@pytest.fixture(scope="module")
def content(finished: Path) -> TrainingEvaluation:
    return read_evaluation(finished / "evaluation-good" / "evaluation.json")


def rows_of(ids: np.ndarray, label: np.ndarray, user: np.ndarray, **more: object) -> EncodedRows:
    empty = EncodedRows(ids.astype(np.int32), {}, {}, label.astype(np.float32), user, np.arange(len(ids)))
    return replace(empty, **more)  # type: ignore[arg-type]


# ---- baselines


def test_logistic_regression_is_that_of_scikit_learn(data: TrainingSet) -> None:
    train, valid = data.part("train"), data.part("valid")
    fields = FieldSpace.of(data.schema, data.encoder)
    fitted = logistic.fit(train, valid, fields)
    peer = LogisticRegression(C=fitted.prior, tol=1e-6, max_iter=1000).fit(logistic.design(train, fields), train.label)
    theirs = peer.decision_function(logistic.design(valid, fields))
    ours = fitted.logits(valid)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999
    assert metrics.logloss(valid.label, ours) == pytest.approx(metrics.logloss(valid.label, theirs), abs=2e-4)
    losses = {
        prior: metrics.logloss(
            valid.label,
            LogisticRegression(C=prior, tol=1e-6, max_iter=1000)
            .fit(logistic.design(train, fields), train.label)
            .decision_function(logistic.design(valid, fields)),
        )
        for prior in logistic.PRIORS[:5]
    }
    assert metrics.logloss(valid.label, ours) <= min(losses.values()) + 2e-4


@pytest.mark.parametrize("beside", [True, False])
def test_a_fit_beside_this_process_has_the_same_bits(
    data: TrainingSet, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    train, valid = data.part("train"), data.part("valid")
    fields = FieldSpace.of(data.schema, data.encoder)
    expected = logistic.fit(train, valid, fields)
    monkeypatch.setattr("thinktwice.train.beside.may_train_beside", lambda num_bytes: beside)
    fits: list[int] = []
    monkeypatch.setattr(logistic, "fit", lambda *rows: fits.append(1) or expected)
    with logistic.fitting(train, valid, fields) as training:
        found = logistic.fitted(training, fields)
    assert np.array_equal(found.weights, expected.weights) and found.prior == expected.prior
    assert fits == ([] if beside else [1]), "the other process has fitted"


def test_the_matrix_has_one_entry_per_value(data: TrainingSet) -> None:
    rows = data.part("test").take(slice(0, 50))
    fields = FieldSpace.of(data.schema, data.encoder)
    matrix = logistic.design(rows, fields).toarray()
    columns = len(fields.columns)
    start = sum(fields.num_values)
    assert (matrix[:, :start].sum(axis=1) == columns).all()
    for row in range(50):
        at = 0
        for column, size in enumerate(fields.num_values):
            assert matrix[row, at + rows.ids[row, column]] == 1.0
            at += size
        known = rows.sequences["recent"][row]
        share = matrix[row, start : start + fields.values_of_sequences[0]]
        assert share.sum() == pytest.approx(1.0 if (known > 0).any() else 0.0)
        assert set(np.flatnonzero(share)) == set(known[known > 0])
        look = np.nan_to_num(rows.vectors["look"][row])
        assert np.linalg.norm(matrix[row, -3:]) == pytest.approx(1.0 if look.any() else 0.0)


def test_popularity_is_the_smoothed_rate_of_the_item() -> None:
    train = pl.DataFrame({"item": ["a"] * 8 + ["b"] * 8 + [None] * 4, "label": [1] * 6 + [0] * 10 + [1] * 4})
    valid = pl.DataFrame({"item": ["a", "b", "a", "b", "c"] * 20, "label": [1, 0, 1, 0, 1] * 20})
    test = pl.DataFrame({"item": ["b", "c", "a", None, "a"], "label": [0, 1, 1, 0, 1]})
    found = popularity(train, valid, test)
    assert found.strength == 1.0 and found.rows == 20  # validation agrees with the counts: the least smoothing is best
    b, c, a, missing, again = found.logit
    assert b < c == missing < a == again
    noise = pl.DataFrame({"item": ["a", "b"] * 50, "label": [0, 1, 1, 0] * 25})
    assert popularity(train, noise, test).strength == 300.0


# ---- importance


def test_only_what_the_scores_read_matters_and_a_copy_shares_it() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (2000, 4))
    ids[:, 2] = ids[:, 1]  # two fields say the same
    label = (rng.random(2000) < np.where(ids[:, 0] > 2, 0.8, 0.2)).astype(float)
    rows = rows_of(ids, label, CONTROL)
    parts = (Part("a", "user", 0), Part("b", "item", 1), Part("c", "item", 2), Part("d", "context", 3))

    def score(rows: EncodedRows) -> np.ndarray:
        agree = rows.ids[:, 1] == rows.ids[:, 2]
        return 1.5 * (rows.ids[:, 0] > 2) - 0.7 + 0.0 * agree

    found = importance(rows, clusters_of(rows.user), parts, score)
    by_name = {one.name: one for one in found.fields}
    assert found.fields[0].name == "a" and by_name["a"].auc.value == pytest.approx(0.3, abs=0.03)
    assert by_name["a"].auc.low > 0 and by_name["a"].logloss.low > 0
    for name in "bcd":
        assert by_name[name].auc.value == 0.0 == by_name[name].logloss.value
        assert not by_name[name].logloss.significant
    assert found.sentence.startswith("The model relies most on a;") and "For 3 of 4 fields" in found.sentence

    def joint(rows: EncodedRows) -> np.ndarray:
        return np.where(rows.ids[:, 1] == rows.ids[:, 2], score(rows), 0.0)

    shared = importance(rows, clusters_of(rows.user), parts, joint)
    item = next(one for one in shared.groups if one.name == "item")
    singles = [one.logloss.value for one in shared.fields if one.group == "item"]
    assert min(singles) > 0.01 and item.logloss.value == pytest.approx(0.0, abs=1e-9)  # together they still agree


@given(
    st.integers(1, 300),
    st.integers(1, 60),
    st.sampled_from([1.0, 1.5, 4.0, 40.0]),
    st.sampled_from([1000, 5000]),
)
@settings(max_examples=25, deadline=None)
def test_its_cost_is_bounded(rows: int, fields: int, passes: float, limit: int) -> None:
    """Forward passes of all exchanges, apart from the least number of rows that says anything."""
    scored = 0

    def score(one: EncodedRows) -> np.ndarray:
        nonlocal scored
        scored += len(one)
        return np.zeros(len(one))

    parts = tuple(Part(f"f{i}", "user", i) for i in range(fields))
    many = rows_of(np.zeros((rows * 10, fields)), np.arange(rows * 10) % 2, np.arange(rows * 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importances, "MAX_SCORED", limit)
        found = importance(many, clusters_of(many.user), parts, score, passes=passes)
    exchanges = fields + (fields > 1)
    least = min(len(many), importances.LEAST_ROWS)
    assert scored - found.rows == found.rows * found.repeats * exchanges
    assert (scored - found.rows) * passes <= max(limit, least * exchanges * passes)


def test_an_exchange_moves_a_part_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    ids, counters = rng.integers(0, 9, (20, 3)), rng.normal(0, 1, (20, 4)).astype(np.float32)
    items = np.arange(40, dtype=np.int32)
    history = History(items, items > 5, np.arange(20, dtype=np.int32), np.arange(1, 21, dtype=np.int32))
    rows = rows_of(
        ids, ids[:, 0] > 4, ids[:, 1],
        sequences={"seen": rng.integers(0, 5, (20, 3)).astype(np.int32)},
        vectors={"look": rng.normal(0, 1, (20, 2)).astype(np.float32)},
        evidence=Evidence(counters, lambda: history),
    )  # fmt: skip
    order = rng.permutation(20)

    def moved(part: Part) -> set[str]:
        out = with_exchanged(rows, (part,), order)
        assert out.evidence is not None and rows.evidence is not None
        before, after = rows.evidence.history_of(slice(None)), out.evidence.history_of(slice(None))
        assert before is not None and after is not None
        assert (out.label == rows.label).all() and (out.user == rows.user).all()
        pairs = {f"ids {c}": (rows.ids[:, c], out.ids[:, c]) for c in range(3)}
        pairs |= {f"counter {c}": (counters[:, c], out.evidence.counters[:, c]) for c in range(4)}
        pairs |= {
            "seen": (rows.sequences["seen"], out.sequences["seen"]),
            "look": (rows.vectors["look"], out.vectors["look"]),
        }
        pairs["history"] = (before.start, after.start)
        changed = {name for name, (old, new) in pairs.items() if not np.array_equal(old, new)}
        for name in changed:
            assert np.array_equal(pairs[name][1], pairs[name][0][order])
        return changed

    assert moved(Part("b", "user", 1)) == {"ids 1"}
    assert moved(Part("seen", "sequences")) == {"seen"}
    assert moved(Part("look", "item")) == {"look"}
    assert moved(Part("item counters", "counters", counters=(1, 3))) == {"counter 1", "counter 3"}
    assert moved(Part(importances.HISTORY, "sequences")) == {"history"}


def test_every_input_of_the_model_has_its_group(data: TrainingSet, content: TrainingEvaluation) -> None:
    groups = {part.name: part.group for part in parts_of(data, counters=False, history=False)}
    expected = {"user_id": "user", "item_id": "item", "site": "context", "device": "context", "price": "item"}
    assert groups == expected | {"recent": "sequences", "look": "item"}
    assert content.findings is not None
    found = content.findings.importance
    assert {one.name for one in found.fields} == set(groups)
    assert found.fields[0].name in ("user_id", "item_id") and found.fields[0].logloss.significant


# ---- weak slices


def test_a_planted_weak_slice_comes_first_and_chance_is_not_called_weak() -> None:
    rng = np.random.default_rng(3)
    rows, user = 6000, rng.integers(0, 300, 6000)
    truth = rng.normal(0, 1.5, rows)
    weak = rng.random(rows) < 0.15
    label = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(float)
    logit = np.where(weak, rng.normal(0, 1.5, rows), truth)
    slices = [Slice(f"chance {i}", "category", rng.random(rows) < 0.2) for i in range(40)]
    found = weakness(label, logit, clusters_of(user), [*slices, Slice("weak", "category", weak)])
    assert found.slices[0].name == "weak" and found.slices[0].auc_gap.p_holm < 1e-6
    flagged = {one.name for one in found.slices if one.auc_gap.p_holm < 0.05 and one.auc_gap.value < 0}
    assert flagged == {"weak"}
    assert found.sentence.startswith("1 of 41 slices order clicks worse than the other rows: weak")
    ends = [one.auc_gap.high for one in found.slices]
    assert ends == sorted(ends)


def test_chance_alone_is_called_weak_in_at_most_one_of_twenty_logs() -> None:
    """15 slices of a model without a weakness, 40 times, rows of a user alike."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(40):
        user = rng.integers(0, 60, 600)
        truth = rng.normal(0, 1, 60)[user] + rng.normal(0, 1, 600)
        label = (rng.random(600) < 1 / (1 + np.exp(-truth))).astype(float)
        slices = [Slice(str(i), "category", rng.random(600) < 0.25) for i in range(15)]
        found = weakness(label, truth, clusters_of(user), slices)
        wrong += any(min(one.auc_gap.p_holm, one.bias.p_holm) < 0.05 for one in found.slices)
    assert wrong <= 5  # 2 expected


def test_a_slice_of_few_users_needs_more_evidence() -> None:
    rng = np.random.default_rng(5)
    label, logit = (rng.random(400) < 0.5).astype(float), rng.normal(0, 1, 400)
    mask = np.arange(400) < 100
    user = np.where(mask, np.arange(400) % 3, 10 + np.arange(400) % 150)
    few = auc_gap(label, logit, clusters_of(user), mask)
    many = auc_gap(label, logit, clusters_of(np.arange(400)), mask)
    inside, outside = metrics.auc(label[mask], logit[mask]), metrics.auc(label[~mask], logit[~mask])
    assert few is not None and many is not None
    assert few.value == many.value == pytest.approx(inside - outside)
    one_user = auc_gap(label, logit, clusters_of(np.where(mask, 0, 1 + np.arange(400))), mask)
    assert one_user is not None and not one_user.bounded
    assert auc_gap(np.where(mask, 1.0, label), logit, clusters_of(user), mask) is None


def test_slices_of_the_log(content: TrainingEvaluation) -> None:
    assert content.findings is not None
    found = content.findings.weakness
    names = [one.name for one in found.slices]
    assert {"new user", "seen user and item", "device = d0", "device = d1", "device = d2"} <= set(names)
    assert any(name.startswith("rarest value seen ") for name in names)
    assert {"00:00 to 04:00", "20:00 to 24:00"} <= set(names)
    assert not any(name.startswith(("user_id", "item_id", "site")) for name in names)  # ids, and 40 sites
    assert all(one.rows >= 50 for one in found.slices)


# ---- did it overfit

CURVES = {
    "grew worse": ([0.70, 0.60, 0.65], [0.6, 0.5, 0.4], 2.0, "After epoch 2 validation logloss rose by 0.0500 while training logloss fell"),
    "ended best": ([0.70, 0.65, 0.60], [0.6, 0.5, 0.4], 3.0, "The weights of the end (epoch 3) were kept: validation logloss did not rise."),
    "annealed": ([0.70, 0.58, 0.60], [0.6, 0.5, 0.4], 3.0, "validation logloss was 0.0200 lower at epoch 2."),
    "flat": ([0.70, 0.60, 0.6005], [0.6, 0.5, 0.4], 2.0, "Validation logloss hardly changed after epoch 2"),
    "one look": ([0.70], [0.6], 1.0, "Training was evaluated only once, so there is no curve."),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_the_curve_in_words(name: str) -> None:
    valid, train, kept, expected = CURVES[name]
    curve = [
        EvalRecord(epoch=i + 1.0, train_logloss=t, valid_logloss=v, valid_auc=0.6)
        for i, (v, t) in enumerate(zip(valid, train, strict=True))
    ]
    found = sentences.learning(curve, kept, samples.PART, samples.PART)
    assert expected in found and "AUC 0.700 on training rows" in found
    none = samples.PART.model_copy(update={"auc": None})
    assert "AUC" not in sentences.learning(curve, kept, none, samples.PART)
