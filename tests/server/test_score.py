"""``thinktwice score`` gives a row the bits that a server gives it for the same values, whatever the values came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from feature_repo import retrieve, score
from feature_repo.score import FeaturesFrom, score_file
from serving.features.open_reader import FeatureConfig
from serving.local.torchserve_process import TorchServe
from serving.scorer import Scorer, open_scorer
from tests.server.conftest import post
from tests.serving.small import SCHEMA, clean_log
from thinktwice.cli import main
from thinktwice.parquet import read_frame, write_frame
from thinktwice.release.bundle import load_bundle
from thinktwice.release.champion import Champion
from thinktwice.testtime.triggers import Budget

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Feast keeps its connection open as long as it lives
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CONTEXT = ("slot", "bid")
COLUMNS = ["probability", "uncertainty", "num_paths"]


@pytest.fixture(scope="module", params=["snapshot", "feast"])
def scorer(request: pytest.FixtureRequest, champion: Champion) -> Iterator[Scorer]:
    config = FeatureConfig(reader=request.param, timeout_ms=60_000)
    found = open_scorer(champion.bundle_dir, champion.feature_store_dir, features=config)
    assert found.reader is not None
    with closing(found.reader):
        yield found


@pytest.fixture
def asked() -> pl.DataFrame:
    """Rows as a client asks for them, unknown users and items among them; no features."""
    rows = clean_log(300).sample(120, seed=1, shuffle=True).select("user_id", "item_id", *CONTEXT, "event_time")
    strange = rows.head(6).with_columns(
        user_id=pl.Series(["nobody", "u1", "nobody", "u2", "u3", "u4"]),
        item_id=pl.Series(["i1", "nothing", "nothing", "i2", "i3", "i4"]),
        slot=pl.Series([None, "s1", "", "never", "s2", "s0"]),
        bid=pl.Series([None, 0.5, float("nan"), 1e9, -1.0, 0.0]),
    )
    return pl.concat([rows, strange])


def scored(
    tmp_path: Path, champion: Champion, rows: pl.DataFrame, features: FeaturesFrom, **options: Any
) -> pl.DataFrame:
    write_frame(rows, tmp_path / "in.parquet")
    done = score_file(
        tmp_path / "in.parquet", tmp_path / "out.parquet", champion.bundle_dir,
        features=features, store_dir=champion.feature_store_dir, **options,
    )  # fmt: skip
    out = read_frame(tmp_path / "out.parquet")
    assert done.rows == rows.height and done.escalated == (out["num_paths"] > 1).sum()
    assert out.drop(COLUMNS).equals(rows, null_equal=True) and out.columns == [*rows.columns, *COLUMNS]
    return out.select(COLUMNS)


def request_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one user, context and time as one request, with JSON values."""
    first = rows[0]
    context = {name: None if first[name] != first[name] else first[name] for name in CONTEXT}
    return {
        "user_id": first["user_id"],
        "candidates": [row["item_id"] for row in rows],
        "context": {**context, "timestamp": first["event_time"].timestamp()},
    }


def answers(scorer: Scorer, requests: list[dict[str, Any]]) -> pl.DataFrame:
    parts = []
    for start in range(0, len(requests), 50):
        for answer in scorer.score(scorer.parser.parse_all(requests[start : start + 50], "instances")):
            assert not answer.paths_capped
            parts += list(zip(answer.probability, answer.uncertainty, answer.num_paths, strict=True))
    return pl.DataFrame(parts, schema=COLUMNS, orient="row")


def raw_answers(scorer: Scorer, rows: pl.DataFrame) -> pl.DataFrame:
    values = rows.select(f.name for f in scorer.bundle.encoder.fields).to_dicts()
    plain = [{name: v for name, v in row.items() if v == v} for row in values]
    return answers(scorer, [{"rows": plain[start : start + 20]} for start in range(0, len(plain), 20)])


def test_online_features_give_the_bits_of_a_server(
    scorer: Scorer, champion: Champion, asked: pl.DataFrame, tmp_path: Path
):
    out = scored(tmp_path, champion, asked, "online")
    assert out.equals(answers(scorer, [request_of([row]) for row in asked.to_dicts()]))
    assert (out["num_paths"] > 1).any()


def test_point_in_time_features_give_the_bits_of_a_server_that_reads_those_values(
    scorer: Scorer, champion: Champion, state: Path, tmp_path: Path
):
    clean = clean_log()
    values = cast(
        pl.DataFrame, pl.from_arrow(retrieve.training_set(state.parent / "clean", champion.feature_store_dir))
    )
    assert values["row_id"].to_list() == clean["row_id"].to_list()
    rows = clean.select("event_time", "item_id", "user_id", *CONTEXT, "label")
    out = scored(tmp_path, champion, rows, "point-in-time")
    assert out.equals(raw_answers(scorer, values))
    assert not out.equals(scored(tmp_path, champion, rows, "online"))  # what is known today differs from what was known


def test_given_features_give_the_bits_of_a_server(
    scorer: Scorer, champion: Champion, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = cast(
        pl.DataFrame, pl.from_arrow(retrieve.training_set(state.parent / "clean", champion.feature_store_dir))
    )
    whole = scored(tmp_path, champion, values, "given")
    assert whole.equals(raw_answers(scorer, values))
    monkeypatch.setattr(score, "_batch_rows", lambda bundle: 37)
    assert scored(tmp_path, champion, values, "given").equals(whole)
    assert scored(tmp_path, champion, values.drop("hour", "weekday"), "given").equals(whole)


@pytest.mark.parametrize("form", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_rows_of_text_give_the_scores_of_parquet(form: str, champion: Champion, state: Path, tmp_path: Path):
    values = cast(
        pl.DataFrame, pl.from_arrow(retrieve.training_set(state.parent / "clean", champion.feature_store_dir))
    )
    expected = scored(tmp_path, champion, values, "given")
    path = tmp_path / "[1] *" / form
    path.parent.mkdir()
    text = values.drop("row_id").with_columns(
        pl.col("event_time").dt.to_string("iso:strict"),
        history=pl.col("history").list.join("|"),
        cover=pl.col("cover").cast(pl.List(pl.String)).list.join(","),
    )
    if form == "rows.jsonl":
        text.write_ndjson(path)
    else:
        text.write_csv(path, separator="\t" if form == "rows.tsv" else ",")
    score_file(path, tmp_path / "out", champion.bundle_dir)
    assert read_frame(tmp_path / "out").select(COLUMNS).equals(expected)


@pytest.mark.parametrize("batch", [3, 7, 1000])
def test_a_request_column_gives_the_bits_of_the_whole_request(
    scorer: Scorer, champion: Champion, asked: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
):
    """The trigger ``budget`` chooses within a request, so the grouping decides who is escalated."""
    monkeypatch.setattr(score, "_batch_rows", lambda bundle: batch)
    bundle = load_bundle(champion.bundle_dir)
    config = bundle.engine.config.looking(trigger=Budget(share=0.3))
    engine = type(bundle.engine)(bundle.model, bundle.engine.reliability, config, bundle.engine.calibration)
    monkeypatch.setattr(score, "load_bundle", lambda folder: dataclasses.replace(bundle, engine=engine))
    sizes = [1, 2, 5, 1, 10, 9, 3, 20, 4]
    number = np.repeat(np.arange(len(sizes)), sizes)
    rows = asked.head(len(number)).with_columns(request=pl.Series(number.astype(str)))
    for name in ("user_id", *CONTEXT, "event_time"):
        rows = rows.with_columns(pl.col(name).first().over("request"))
    requests = [request_of(part.to_dicts()) for part in rows.partition_by("request", maintain_order=True)]
    here = Scorer(dataclasses.replace(bundle, engine=engine), scorer.reader)
    out = scored(tmp_path, champion, rows, "online", request="request")
    assert out.equals(answers(here, requests))
    assert (out["num_paths"] > 1).any()


@pytest.mark.server
def test_a_real_server_answers_the_same_bits(
    server: TorchServe, champion: Champion, asked: pl.DataFrame, tmp_path: Path
):
    rows = asked.head(60)
    out = scored(tmp_path, champion, rows, "online")
    instances = [request_of([row]) for row in rows.to_dicts()]
    status, _, body = post(f"{server.url}/v1/models/ctr:predict", {"instances": instances})
    assert status == 200
    items = [prediction["items"][0] for prediction in json.loads(body)["predictions"]]
    assert [item["probability"] for item in items] == out["probability"].to_list()
    assert [item["uncertainty"] for item in items] == out["uncertainty"].to_list()


def test_an_id_is_one_value_however_the_file_holds_it(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    rows = asked.with_columns(pl.col("bid").fill_nan(None))
    expected = scored(tmp_path, champion, rows, "online")
    other = rows.with_columns(pl.col("user_id", "item_id", "slot").cast(pl.Categorical), pl.col("bid").cast(pl.String))
    other.write_parquet(tmp_path / "other.parquet")
    score_file(
        tmp_path / "other.parquet", tmp_path / "o.parquet", champion.bundle_dir,
        features="online", store_dir=champion.feature_store_dir,
    )  # fmt: skip
    assert pl.read_parquet(tmp_path / "o.parquet").select(COLUMNS).equals(expected)


def test_the_command_scores_with_the_champion(
    champion: Champion, state: Path, asked: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked.write_parquet(tmp_path / "in.parquet")
    command = ["score", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--state", str(state)]
    assert main([*command, "--features", "online"]) == 0
    assert f"126 rows scored by {champion.info.model_version}" in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / "out.parquet").select(COLUMNS).null_count().sum_horizontal().item() == 0


def test_a_path_is_only_characters(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    expected = scored(tmp_path, champion, asked, "point-in-time")
    odd = tmp_path / "slot=s9" / "[1] *?~"
    odd.mkdir(parents=True)
    assert scored(odd, champion, asked, "point-in-time").equals(expected)


def test_an_empty_file_gives_an_empty_file(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    for features in ("online", "point-in-time"):
        assert scored(tmp_path, champion, asked.head(0), cast(FeaturesFrom, features)).height == 0


WRONG = {
    "no file": (None, [], "cannot be read as parquet"),
    "no table": (b"no table", [], "its first line 'no table' is one cell"),
    "no file of rows": (b"\x00no table", [], "cannot be read as parquet"),
    "an Arrow file": (b"ARROW1" + bytes(99), [], "an Arrow (Feather) file, and rows to score are read from parquet, CSV and JSON lines: convert it"),
    "a broken line": (b"user_id,slot\n" + b"u1,a\n" * 30 + b"u2,b,c\n", [], "in.parquet, line 32: 3 cells instead of 2; mend"),
    "a text of several users": (b"user_id,slot\nu1,a\nu2,b\n", ["--features", "online"], "no column 'item_id'"),
    "no user": (lambda rows: rows.drop("user_id"), ["--features", "online"], "no column 'user_id'"),
    "no context": (lambda rows: rows.drop("slot"), ["--features", "online"], "no column 'slot'"),
    "no time": (lambda rows: rows.drop("event_time"), ["--features", "point-in-time"], "no time"),
    "a null time": (lambda rows: rows.with_columns(event_time=None), ["--features", "point-in-time"], "row 0 has no time"),
    "a time that is none": (lambda rows: rows.with_columns(event_time=pl.lit("noon")), ["--features", "point-in-time"], "'noon' is not a time"),
    "no features": (lambda rows: rows, [], "--features point-in-time"),
    "a word for a number": (lambda rows: rows.with_columns(bid=pl.lit("much")), ["--features", "online"], "column 'bid', row 0: 'much' is not a number"),
    "a list for a word": (lambda rows: rows.with_columns(slot=pl.lit(["a"])), ["--features", "online"], "column 'slot' has type"),
    "a float for an id": (lambda rows: rows.with_columns(user_id=pl.lit(2.0**60)), ["--features", "online"], "too large to represent integers exactly"),
    "no request column": (lambda rows: rows, ["--features", "online", "--request", "page"], "no column 'page'"),
    "a column of that name": (lambda rows: rows.with_columns(probability=0.5), ["--features", "online"], "a column 'probability'"),
    "no store": (lambda rows: rows, ["--features", "online", "--store", "nowhere"], "nowhere is not a feature store"),
    "no bundle": (lambda rows: rows, ["--bundle", "nowhere"], "nowhere is not a bundle"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_sentence_and_loses_nothing(
    name: str, champion: Champion, state: Path, asked: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(score, "_batch_rows", lambda bundle: 50)
    made, options, words = WRONG[name]
    (tmp_path / "out.parquet").write_bytes(b"the scores of yesterday")
    if callable(made):
        made(asked).write_parquet(tmp_path / "in.parquet")
    elif made is not None:
        (tmp_path / "in.parquet").write_bytes(made)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert main(["score", "in.parquet", "out.parquet", "--state", str(state), *options]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "Traceback" not in said
    assert (tmp_path / "out.parquet").read_bytes() == b"the scores of yesterday"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_file_that_breaks_off_leaves_the_old_scores(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    good, bad = asked.with_columns(bid=pl.lit("0.5")), asked.with_columns(bid=pl.lit("much"))
    pl.concat([good, bad]).write_parquet(tmp_path / "in.parquet")
    (tmp_path / "out.parquet").write_bytes(b"old")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(score, "_batch_rows", lambda bundle: asked.height)
    with monkey.context(), pytest.raises(Exception, match=r"rows from 126 on\): column 'bid', row 0: 'much'"):
        score_file(
            tmp_path / "in.parquet", tmp_path / "out.parquet", champion.bundle_dir,
            features="online", store_dir=champion.feature_store_dir,
        )  # fmt: skip
    monkey.undo()
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_the_input_is_never_overwritten(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    asked.write_parquet(tmp_path / "in.parquet")
    before = (tmp_path / "in.parquet").read_bytes()
    with pytest.raises(Exception, match="is the input itself"):
        score_file(tmp_path / "in.parquet", tmp_path / "in.parquet", champion.bundle_dir)
    assert (tmp_path / "in.parquet").read_bytes() == before


def test_the_store_of_another_model_is_refused(champion: Champion, asked: pl.DataFrame, tmp_path: Path):
    import shutil

    other = tmp_path / "store"
    shutil.copytree(champion.feature_store_dir, other)
    described = json.loads((other / "feature_store.json").read_text())
    (other / "feature_store.json").write_text(json.dumps({**described, "feature_service": "ctr_other"}))
    asked.write_parquet(tmp_path / "in.parquet")
    with pytest.raises(Exception, match="'ctr_other', model small-20260101-abc was trained on"):
        score_file(
            tmp_path / "in.parquet", tmp_path / "out.parquet", champion.bundle_dir, features="online", store_dir=other
        )
    assert SCHEMA.name == described["schema_name"]
