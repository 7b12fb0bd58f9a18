"""A predictor whose model reads counters: what requests get before, during and after trouble with the store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from feature_repo import score
from feature_repo.score import score_file
from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.open_service import open_service
from serving.scorer import Answer, Scorer, open_scorer
from serving.service import Service
from tests.data.instant.oracle import Row
from tests.data.instant.oracle import counters as oracle
from tests.feedback.stores import clean_table
from tests.feedback.streams import SECOND
from tests.serving.counted import LOG, NOW, SCHEMA, Counted, feed, make_counted, push
from tests.test_docs import SCORE_COUNTED
from thinktwice.data.evidence import Evidence
from thinktwice.data.instant.as_of import evidence_as_of
from thinktwice.data.instant.definition import definition_of
from thinktwice.errors import DataError, FeatureStoreError, SchemaError
from thinktwice.schema import SCHEMA_FILE
from thinktwice.scoring import score_table

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
REQUEST: dict[str, Any] = {
    "user_id": "u",
    "candidates": ["i", "j", "never seen", "k", "i"],
    "context": {"timestamp": NOW / 1e6},
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    folder = tmp_path_factory.mktemp("counted")
    made = make_counted(folder)
    shutil.copytree(made.store, folder / "empty")
    feed(made.store)
    return made


@pytest.fixture
def opened() -> Iterator[list[Scorer]]:
    scorers: list[Scorer] = []
    yield scorers
    for scorer in scorers:
        if scorer.reader is not None:
            scorer.reader.close()


def ask(scorer: Scorer, **changes: Any) -> Any:
    return scorer.score([scorer.parser.parse({**REQUEST, **changes}, "request")])[0]


def test_counters_and_histories_change_scores_and_the_answer_tells(counted: Counted, opened: list[Scorer]) -> None:
    by_mode = {}
    for mode in counted.bundles:
        scorer = counted.scorer(mode)
        opened.append(scorer)
        by_mode[mode] = ask(scorer)
    off, corrected, retrieved = by_mode.values()
    assert type(off) is Answer and off.counter_values is None
    assert corrected.base_probability == retrieved.base_probability == off.probability
    assert corrected.counters == "used" and all(corrected.corrected)
    assert all(np.not_equal(corrected.probability, off.probability))
    assert set(corrected.reason) == {""} and set(retrieved.num_paths) == {2}
    assert set(retrieved.reason) <= {"thin_support", "uncertain_score"} and retrieved.history == "read"
    assert all(np.not_equal(retrieved.probability, corrected.probability))


@pytest.mark.parametrize("mode", ["corrected", "retrieve"])
def test_all_readers_give_the_scores_of_the_engine(counted: Counted, opened: list[Scorer], mode: str) -> None:
    answers = []
    for reader in ("snapshot", "feast"):
        scorer = counted.scorer(mode, reader=reader)
        opened.append(scorer)
        answers.append(ask(scorer))
    assert answers[0].probability == answers[1].probability
    np.testing.assert_array_equal(answers[0].counter_values, answers[1].counter_values)
    scorer = opened[0]
    request = scorer.parser.parse(REQUEST, "request")
    assert scorer.reader is not None
    batch, _ = scorer.encode(request, scorer.reader.read(request.user_id, request.candidates))
    history = None
    if mode == "retrieve":
        assert scorer._history is not None
        outcomes = scorer._history.read("u", NOW, len(batch))
        history = lambda: outcomes  # noqa: E731
    expected = scorer.bundle.engine.score(batch, evidence=Evidence(answers[0].counter_values, history))
    assert answers[0].probability == tuple(expected.probability.tolist())


def test_a_model_without_a_correction_reads_no_counters(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer("off")
    opened.append(scorer)
    assert scorer.reader is not None
    source = scorer.reader.source
    source.fetch_request = source.fetch_fields = None  # type: ignore[assignment, method-assign]
    assert len(ask(scorer).probability) == 5


def test_stale_counters_and_a_jump_of_the_clock(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer(max_counter_age_seconds=60)
    opened.append(scorer)
    watermark = _watermark(scorer)

    def at(instant: int) -> Any:
        return ask(scorer, context={"timestamp": instant / 1e6})

    fresh, stale = at(watermark + 60 * SECOND), at(watermark + 60 * SECOND + SECOND)
    assert fresh.counters == "used" and all(fresh.corrected)
    assert stale.counters == "stale" and not any(stale.corrected)
    assert stale.probability == stale.base_probability
    back = at(watermark - 3600 * SECOND)  # the clock jumped back: what is known stays known
    assert back.counters == "used" and np.isfinite(back.probability).all()


def test_a_request_without_a_timestamp_has_the_instant_of_its_arrival(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer()
    opened.append(scorer)
    scorer.parser._clock = lambda: NOW / 1e6
    without = ask(scorer, context={})
    assert without.instant == NOW and without.probability == ask(scorer).probability
    scorer.parser._clock = lambda: NOW / 1e6 + 3600
    assert ask(scorer, context={}).counters == "stale"


def test_unknown_users_and_items_have_the_scores_of_unknown_counters(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer("retrieve")
    opened.append(scorer)
    answer = ask(scorer, user_id="nobody", candidates=["never seen", "i"])
    assert answer.corrected == (False, True)
    assert answer.probability[0] == answer.base_probability[0]
    assert np.isnan(answer.counter_values[0]).all() and not np.isnan(answer.counter_values[1]).all()
    assert answer.reason[0] == "" and answer.history == "read"


def test_no_time_for_counters_is_the_base_score(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer("retrieve")
    opened.append(scorer)
    scorer._ms_per_path_row = 1e6
    late = ask(scorer, deadline_ms=5000)
    assert late.counters == "late" and late.probability == late.base_probability and not any(late.corrected)


def test_a_history_that_comes_too_late_keeps_the_corrected_score(counted: Counted, opened: list[Scorer]) -> None:
    scorer, corrected = counted.scorer("retrieve"), counted.scorer("corrected")
    opened += [scorer, corrected]
    assert scorer._history is not None

    def slow(*_: Any) -> Any:
        from serving.features.guarded_source import LookupFailedError

        raise LookupFailedError("no time is left", "timeout")

    scorer._history._source.fetch_fields = slow  # type: ignore[method-assign]
    answer = ask(scorer)
    assert answer.history == "late" and all(answer.corrected)
    assert answer.probability == ask(corrected).probability


def test_a_store_that_is_down_gives_base_scores_until_it_is_back(counted: Counted) -> None:
    registry, service = _service(counted)
    try:
        source = service.scorer.reader.source  # type: ignore[union-attr]
        inner, real = source._source, source._source.fetch_request  # type: ignore[attr-defined]
        before = _post(service)

        def down(*_: Any) -> Any:
            raise FeatureStoreError("the online store does not answer")

        inner.fetch_request = down
        during = _post(service)
        inner.fetch_request = real
        after = _post(service)
    finally:
        service.close()
    assert before["counters"] == after["counters"] == "used" and after["items"] == before["items"]
    assert during["counters"] == "failed" and during["default_features"] == ["user", "item"]
    for item in during["items"]:
        assert item["probability"] == item["base_probability"] and not item["corrected"]

    def count(name: str, **labels: str) -> float | None:
        model = {"arm": "", "model_version": "counted-1"}
        return registry.get_sample_value(f"thinktwice_{name}_total", {**model, **labels})

    assert count("counter_reads", outcome="used") == 2 and count("counter_reads", outcome="failed") == 1
    assert count("corrected_rows") == 10 and count("uncorrected_rows") == 5
    mode = {"arm": "", "model_version": "counted-1", "mode": "corrected"}
    assert registry.get_sample_value("thinktwice_model_mode", mode) == 1


def test_a_store_that_was_emptied_knows_nothing(counted: Counted, opened: list[Scorer]) -> None:
    made = replace(counted, store=counted.store.parent / "empty")
    scorer = made.scorer()
    opened.append(scorer)
    answer = ask(scorer)
    assert answer.counters == "without_watermark" and answer.probability == answer.base_probability
    push(made.store, feed(made.store))
    source = scorer.reader.source  # type: ignore[union-attr]
    source._source._watermark_read = -1e9  # type: ignore[attr-defined]  # half a second later
    assert ask(scorer).counters == "used"


def test_a_store_of_another_definition_is_refused_at_the_start(counted: Counted, tmp_path: Path) -> None:
    other = SCHEMA.to_yaml().replace("click: 5\n", "click: 6\n")
    from feature_repo.store import build

    shutil.copytree(counted.store.parent / "clean", tmp_path / "clean")
    (tmp_path / "clean" / SCHEMA_FILE).write_text(other, encoding="utf-8")
    build(tmp_path / "clean", tmp_path / "other", feature_version="counted-1", online="sqlite")
    with pytest.raises(FeatureStoreError, match=r"view user_instant .* was made for the definition [0-9a-f]{64}, and"):
        open_scorer(counted.bundles["corrected"], tmp_path / "other")
    open_scorer(counted.bundles["off"], tmp_path / "other").reader.close()  # type: ignore[union-attr]


def test_a_table_with_the_counters_of_an_answer_has_its_scores(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer()
    opened.append(scorer)
    answer = ask(scorer)
    shared, items = answer.logged
    rows = [
        {**shared, **item, "item_id": item_id, **dict(zip(scorer.counter_names, counters.tolist(), strict=True))}
        for item_id, item, counters in zip(answer.item_ids, items, answer.counter_values, strict=True)
    ]
    assert tuple(score_table(scorer.bundle, rows).probability.tolist()) == answer.probability
    unknown = [{**row, **dict.fromkeys(scorer.counter_names)} for row in rows]
    assert tuple(score_table(scorer.bundle, unknown).probability.tolist()) == answer.base_probability
    with pytest.raises(SchemaError, match=r"no column 'user_views', one of .* counters that the model reads"):
        score_table(scorer.bundle, [{k: v for k, v in row.items() if k not in scorer.counter_names} for row in rows])
    with pytest.raises(DataError, match="'user_views', row 0: 'inf' is not a finite number"):
        score_table(scorer.bundle, pl.DataFrame(rows).with_columns(user_views=pl.lit(float("inf"))))


@pytest.mark.parametrize("mode", [pytest.param("corrected", marks=pytest.mark.long), "retrieve"])
def test_a_file_is_scored_with_the_counters_of_its_instants(
    counted: Counted, opened: list[Scorer], tmp_path: Path, mode: str
) -> None:
    """The states of the store are complete at NOW, so a row of that instant has the same evidence in both ways."""
    scorer = counted.scorer(mode)
    opened.append(scorer)
    answer = ask(scorer, candidates=["i", "j", "k"])
    shared, items = answer.logged
    rows = [{**shared, **item, "item_id": i, "event_time": NOW} for i, item in zip(answer.item_ids, items, strict=True)]
    given = pl.DataFrame(rows).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    given.select("user_id", "item_id", "event_time", "site").write_parquet(tmp_path / "rows.parquet")
    clean = counted.store.parent / "clean"
    arguments = {"features": "point-in-time", "store_dir": counted.store}
    with pytest.raises(DataError, match="reads counters as of each row's time"):
        score_file(tmp_path / "rows.parquet", tmp_path / "out.parquet", counted.bundles[mode], **arguments)
    score_file(tmp_path / "rows.parquet", tmp_path / "out.parquet", counted.bundles[mode], clean_dir=clean, **arguments)
    assert tuple(pl.read_parquet(tmp_path / "out.parquet")["probability"].to_list()) == answer.probability
    shutil.copytree(clean, tmp_path / "clean")
    options = ["--bundle", str(counted.bundles[mode]), "--store", str(counted.store)]
    command = [sys.executable, "-m", "thinktwice", *SCORE_COUNTED.split()[1:], *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tuple(pl.read_parquet(tmp_path / "scored.parquet")["probability"].to_list()) == answer.probability
    with pytest.raises(FeatureStoreError, match="which --features online does not fetch"):
        score_file(
            tmp_path / "rows.parquet",
            tmp_path / "out.parquet",
            counted.bundles[mode],
            features="online",
            store_dir=counted.store,
        )


def test_a_clean_log_is_counted_once_for_all_batches(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of any order and instant have the same scores, to the bit, in batches of any size."""
    passes = []
    monkeypatch.setattr(score, "evidence_as_of", lambda *rest: passes.append(1) or evidence_as_of(*rest))
    asked = [row for row in LOG if row.user is not None]
    np.random.default_rng(0).shuffle(asked)  # type: ignore[arg-type]
    rows = clean_table(asked).select("user_id", "item_id", "event_time", "site")
    rows.write_parquet(tmp_path / "rows.parquet")
    scored, store = [], counted.store
    for batch in (100_000, 50):
        monkeypatch.setattr(score, "_batch_rows", lambda bundle, size=batch: size)
        arguments = {"features": "point-in-time", "store_dir": store, "clean_dir": store.parent / "clean"}
        score_file(tmp_path / "rows.parquet", tmp_path / "out.parquet", counted.bundles["retrieve"], **arguments)
        scored.append(pl.read_parquet(tmp_path / "out.parquet"))
    assert len(passes) == 2
    assert scored[0].equals(scored[1])
    assert scored[0].n_unique("probability") > 20 and (scored[0]["num_paths"] > 1).any()


def test_a_batch_that_cannot_be_counted_is_named(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_batch_rows", lambda bundle: 20)
    rows = clean_table(LOG[:30]).select("user_id", "item_id", "event_time", "site")
    at = pl.Series([None if n == 24 else t for n, t in enumerate(rows["event_time"])], dtype=rows["event_time"].dtype)
    rows.with_columns(at.alias("event_time")).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"\(rows from 20 on\): row 4 has no time"):
        score_file(
            tmp_path / "rows.parquet",
            tmp_path / "out.parquet",
            counted.bundles["corrected"],
            features="point-in-time",
            store_dir=counted.store,
            clean_dir=counted.store.parent / "clean",
        )
    assert not (tmp_path / "out.parquet").exists()


def test_raw_rows_have_no_counters(counted: Counted, opened: list[Scorer]) -> None:
    scorer = counted.scorer()
    opened.append(scorer)
    answer: Any = scorer.score([scorer.parser.parse({"rows": [{"site": "s"}]}, "request")])[0]
    assert answer.counters == "" and answer.corrected == (False,) and answer.probability == answer.base_probability


def _watermark(scorer: Scorer) -> int:
    assert scorer.reader is not None
    states = scorer.reader.read("u", ["i"]).states
    assert states is not None and states.watermark is not None
    return states.watermark


def _service(counted: Counted) -> tuple[CollectorRegistry, Service]:
    registry = CollectorRegistry()
    config = ServingConfig(shed=False, access_log=False, features=FeatureConfig(timeout_ms=10_000))
    service = open_service(
        counted.bundles["corrected"], config, model_name="ctr", feature_store=counted.store, registry=registry
    )
    return registry, service


def _post(service: Service) -> Any:
    reply = service.answer(orjson.dumps({"instances": [REQUEST]}), {})
    assert reply.status == 200, reply.body
    return orjson.loads(reply.body)["predictions"][0]


def test_an_anonymous_request_has_the_counters_of_its_items(tmp_path: Path, opened: list[Scorer]) -> None:
    user = SCHEMA.entities.user
    assert user is not None
    entities = SCHEMA.entities.model_copy(update={"user": user.model_copy(update={"anonymous": True})})
    schema = SCHEMA.model_copy(update={"entities": entities})
    made = make_counted(tmp_path, schema=schema, version="anonymous-1")
    feed(made.store, schema=schema)
    items = ["i", "j", "k"]
    rows = [Row(NOW, False, None, item, (None, None), (None, None)) for item in items]
    definition = definition_of(schema)
    assert definition is not None
    expected = oracle([*LOG, *rows], definition)[-len(rows) :]
    for mode in ("corrected", "retrieve"):
        scorer = made.scorer(mode)
        opened.append(scorer)
        request = {"candidates": items, "context": {"timestamp": NOW / 1e6}}
        (answer,) = scorer.score([scorer.parser.parse(request, "request")])
        assert answer.counters == "used" and answer.counter_values is not None
        side = np.array([name.startswith("user_") for name in definition.names])
        crossed = np.array(["_x_" in name for name in definition.names])
        assert np.isnan(answer.counter_values[:, side]).all()
        found, wanted = (values[:, ~side & ~crossed] for values in (answer.counter_values, expected))
        assert not np.isnan(found).any() and np.allclose(found, wanted, rtol=1e-5)
