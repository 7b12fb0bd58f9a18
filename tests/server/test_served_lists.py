"""Fields of several categories, with and without weights, truth values, crosses and a precomputed sequence, from a CSV log through Feast to a real server: every form
of a request gives the same scores, and what was served is what the log and the store say."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from components.deployment.deploy.deployment import deploy_model
from components.deployment.package.archive import write_archive
from feature_repo import retrieve
from feature_repo.skew import measure_skew
from feature_repo.store import build
from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.local.torchserve_process import TorchServe, running
from serving.protocol.v2_tensors import HEADER, pack
from serving.telemetry.prediction_log import PredictionLogConfig
from tests.server.conftest import free_port
from tests.serving.small import FEATURE_SERVICE, MODEL_VERSION, bless, identity, write_parts
from thinktwice.data.ingest import ingest
from thinktwice.evaluate.package import write_bundle
from thinktwice.parquet import read_frame
from thinktwice.release.bundle import bundle_hash, load_bundle
from thinktwice.release.champion import read_champion
from thinktwice.schema import load_schema
from thinktwice.testtime.engine import raw_rows
from thinktwice.validate.split import split_log

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TEXT = """\
name: small
time: {column: ts, format: s}
label: {column: y}
entities: {user: {key: user_id, anonymous: true}, item: {key: item_id}}
fields:
- {name: tags, entity: item, kind: list, length: 4, weights: {name: tag_weights, column: tag scores}}
- {name: marks, entity: item, kind: list}
- {name: likes, entity: user, kind: list, separator: "/", weights: like_weights}
- {name: moods, kind: list, separator: ";", weights: mood_weights}
- {name: premium, kind: boolean}
- {name: city, entity: user}
- {name: color, entity: item}
- {name: boxed, entity: item, kind: boolean}
crosses: [[city, color], [premium, city], [color, boxed], {name: both, of: [user_id, item_id], min_count: 1}]
sequences:
- {name: past, of: item_id, column: seen, separator: ",", order: newest_last, length: 3}
statistics: {windows_days: [0]}
"""
MOODS = [[], ["calm"], ["calm", "glad"], ["glad", "42", "é"], ["never seen", "calm"]]
#: Values per item and per user; some have none.
TAGS = {f"i{i}": [f"t{k}" for k in range(i % 5)] for i in range(20)}
#: Weights of TAGS, MOODS and LIKES; every third item and every fourth user have none, and some elements have the weight 0.
TAG_WEIGHTS = {
    f"i{i}": [0.1 * (i + k) if (i + k) % 4 else 0.0 for k in range(i % 5)] if i % 3 else [] for i in range(20)
}
MOOD_WEIGHTS = [[], [3.0], [0.25, 1e-3], [0.0, 1.5, 0.2], [1.0, 2.0]]
LIKE_WEIGHTS = {f"u{u}": [1.0 / (u + k + 1) for k in range(u % 4)] if u % 5 else [] for u in range(12)}
CITIES = ["Köln", "Bern", ""]
LIKES = {f"u{u}": [f"l{(u + k) % 6}" for k in range(u % 4)] for u in range(12)}


def write_csv(path: Path, rows: int = 600) -> None:
    draw = np.random.default_rng(5)
    users, items = draw.integers(0, 12, rows), draw.integers(0, 20, rows)
    pl.DataFrame(
        {
            "ts": [1_767_225_600 + 900 * n for n in range(rows)],
            "y": [(int(u + i) % 3 == 0) * 1 for u, i in zip(users, items, strict=True)],
            "user_id": ["" if n % 10 == 9 else f"u{u}" for n, u in enumerate(users)],
            "item_id": [f"i{i}" for i in items],
            "tags": ["|".join(TAGS[f"i{i}"]) for i in items],
            "tag scores": ["|".join(map(str, TAG_WEIGHTS[f"i{i}"])) for i in items],
            "marks": ["|".join(sorted(TAGS[f"i{i}"], reverse=True)) for i in items],
            "like_weights": ["/".join(map(str, LIKE_WEIGHTS[f"u{u}"])) for u in users],
            "mood_weights": [";".join(map(str, MOOD_WEIGHTS[n % 4])) for n in range(rows)],
            "likes": ["/".join(LIKES[f"u{u}"]) for u in users],
            "moods": [";".join(MOODS[n % 4]) for n in range(rows)],
            "premium": [("Yes", "no")[u % 2] for u in users],
            "city": [CITIES[u % 3] for u in users],
            "color": [("red", "blue", "green")[i % 3] for i in items],
            "boxed": [("1", "0", "")[i % 3] for i in items],
            "seen": [",".join(f"i{(u + k) % 20}" for k in range(u % 6)) for u in users],
        }
    ).write_csv(path)


@dataclass(frozen=True)
class Served:
    """A running server of a model of such a log, the folder of what it serves, and its training rows."""

    server: TorchServe
    folder: Path
    log: Path
    training: pl.DataFrame


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("lists")
    write_csv(folder / "log.csv")
    (folder / "small.yaml").write_text(TEXT)
    ingest("log", folder / "log.csv", folder / "small.yaml", folder / "raw")
    assert split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r").rows_quarantined == 0
    build(folder / "clean", folder / "store", feature_version=MODEL_VERSION)
    training = pl.DataFrame(retrieve.training_set(folder / "clean", folder / "store"))
    schema = load_schema(folder / "clean" / "schema.yaml")
    parts = write_parts(folder / "parts", schema, frame=training)
    described = identity(schema)
    named = type(described)(**{**vars(described), "feature_service": FEATURE_SERVICE})
    write_bundle(folder / "bundle", **parts, identity=named)
    blessing = bless(folder / "blessing", bundle_hash(folder / "bundle"))
    write_archive(folder / "bundle", blessing, folder / "archive")
    deploy_model(
        folder / "archive", folder / "bundle", folder / "store", blessing,
        target="local", state_dir=folder / "state", out_dir=folder / "deployment",
    )  # fmt: skip
    champion = read_champion(folder / "state")
    assert champion is not None
    config = ServingConfig(
        features=FeatureConfig(timeout_ms=60_000),
        deadline_ms=300_000,  # a busy machine leaves no time for extra paths otherwise, and scores without them differ
        shed=False,
        prediction_log=PredictionLogConfig(folder=str(folder / "served"), sample=1.0, part_seconds=0.5),
    )
    with running(
        champion.archive, feature_store=champion.feature_store_dir, port=free_port(), log=folder / "server.log", config=config
    ) as server:  # fmt: skip
        yield Served(server, folder, folder / "served", training)


def ask(url: str, body: bytes, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def v2_probabilities(answer: Any) -> list[float]:
    return next(output["data"] for output in answer["outputs"] if output["name"] == "probability")


def tensor(name: str, values: list[Any], shape: list[int], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    kind = "BYTES" if isinstance(values[0], str) else "FP64"
    described: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
    if not binary:
        return {**described, "data": [None if v != v else v for v in values]}, b""
    tail = pack(kind, values)
    return {**described, "parameters": {"binary_data_size": len(tail)}}, tail


def as_tensors(tensors: list[tuple[str, list[Any], list[int]]], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    made = [tensor(name, values, shape, binary=binary) for name, values, shape in tensors]
    text = json.dumps({"inputs": [described for described, _ in made]}).encode()
    return text + b"".join(tail for _, tail in made), ({HEADER: str(len(text))} if binary else {})


def in_every_form(
    server: TorchServe, request: dict[str, Any], tensors: list[tuple[str, list[Any], list[int]]]
) -> dict[str, list[float]]:
    """Probabilities of one request as v1, as text in a v2 tensor, and with one v2 tensor per field, JSON and binary."""
    infer = f"{server.url}/v2/models/ctr/infer"
    v1 = ask(server.predict_url, json.dumps({"instances": [request]}).encode(), {})["predictions"][0]
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(request)]}
    found = {
        "v1": [one["probability"] for one in v1.get("items", v1.get("rows"))],
        "v2 text": v2_probabilities(ask(infer, json.dumps({"inputs": [text]}).encode(), {})),
    }
    for binary in (False, True):
        body, headers = as_tensors(tensors, binary=binary)
        found[f"v2 fields, binary {binary}"] = v2_probabilities(ask(infer, body, headers))
    return found


def padded(lists: list[list[Any]], fill: Any = "") -> tuple[list[Any], list[int]]:
    """Lists as one tensor: values and shape; ``fill`` fills up."""
    longest = max(1, *map(len, lists))
    return [value for values in lists for value in [*values, *[fill] * (longest - len(values))]], [len(lists), longest]


def test_candidates_have_one_score_in_every_form_and_no_skew(served: Served) -> None:
    candidates = [*(f"i{i}" for i in range(0, 20, 2)), "never seen"]
    asked = 0
    for user in range(13):  # the last is anonymous
        moods, weights = MOODS[user % len(MOODS)], MOOD_WEIGHTS[user % len(MOODS)]
        who = [] if user == 12 else [("user_id", [f"u{user}"], [1])]
        request = {
            **{name: values[0] for name, values, _ in who}, "candidates": candidates,
            "context": {"moods": moods, "mood_weights": weights, "premium": (True, "YES", 1)[user % 3], "timestamp": 1_767_900_000},
        }  # fmt: skip
        texts, shape = padded([moods])
        found = in_every_form(
            served.server,
            request,
            [
                *who,
                ("candidates", candidates, [len(candidates)]),
                ("moods", texts, shape),
                ("mood_weights", *padded([weights], math.nan)),
                ("premium", [("true", "y", "1")[user % 3]], [1]),
            ],
        )
        assert len(set(map(tuple, found.values()))) == 1 and len(found["v1"]) == len(candidates), found
        asked += len(found) * len(candidates)

    def logged() -> pl.DataFrame | None:
        parts = sorted(served.log.glob("*.parquet"))
        # The row that the server asks itself at the start has no item.
        return pl.concat([read_frame(part) for part in parts]).drop_nulls("log_item_id") if parts else None

    rows = until(lambda: (frame := logged()) is not None and frame.height >= asked, logged)
    assert rows is not None and rows.height == asked
    report = measure_skew(served.log, served.folder / "store")
    assert report.matching == report.rows == asked
    names = {field.name for field in report.fields}
    assert {"tags", "tag_weights", "marks", "likes", "like_weights", "past", "city", "color", "boxed"} <= names
    assert {field.name: field.mismatches for field in report.fields if field.mismatches} == {}
    # The lists are what the log says, so the comparison is not one of nothing with nothing.
    known = rows.filter(pl.col("log_item_id") != "never seen")
    nobody = rows.filter(pl.col("log_user_id").is_null())
    assert nobody.height == 4 * len(candidates) and nobody["city"].null_count() == nobody.height
    known = known.drop_nulls("log_user_id")
    for row in known.sample(50, seed=1).to_dicts():
        assert (row["tags"] or []) == TAGS[row["log_item_id"]] and (row["likes"] or []) == LIKES[row["log_user_id"]]
        user = int(row["log_user_id"][1:])
        assert (row["tag_weights"] or []) == TAG_WEIGHTS[row["log_item_id"]]
        assert (row["like_weights"] or []) == LIKE_WEIGHTS[row["log_user_id"]]
        assert (row["mood_weights"] or []) == MOOD_WEIGHTS[user % len(MOODS)]
        assert (row["past"] or []) == [f"i{(user + k) % 20}" for k in range(user % 6)][::-1][:3]
        assert (row["moods"] or []) == MOODS[user % len(MOODS)]
        assert row["premium"] == "true" and row["city"] == (CITIES[user % 3] or None)
        assert row["boxed"] == ("true", "false", None)[int(row["log_item_id"][1:]) % 3]
    # The crosses of the served values are those of the training rows with the same values.
    bundle = load_bundle(served.folder / "bundle")
    fields = [field.name for field in bundle.encoder.row_fields]
    encoded = bundle.encoder.encode_table(known.select(fields).to_arrow())
    for name in ("city_x_color", "premium_x_city", "color_x_boxed", "both"):
        values = [bundle.encoder.value_of(name, i) for i in encoded.ids[:, bundle.encoder.column_of(name)].tolist()]
        assert len(set(values)) > 2, name
        a, b = next(cross.of for cross in bundle.schema.crosses if cross.name == name)
        pairs = [[row[a], row[b]] for row in known.to_dicts()]
        assert all(value is None or json.loads(value) == pair for value, pair in zip(values, pairs, strict=True))


def test_training_rows_have_their_offline_score_in_every_form(served: Served) -> None:
    bundle = load_bundle(served.folder / "bundle")
    names = [field.name for field in bundle.encoder.row_fields]
    rows = served.training.tail(40)
    encoded = bundle.encoder.encode_table(rows.select(names).to_arrow())
    expected = bundle.engine.finish(raw_rows(bundle.engine, encoded)).probability.tolist()
    plain = [{n: v for n, v in row.items() if v is not None} for row in rows.select(names).to_dicts()]
    lists = {"tags", "marks", "likes", "moods", "past"}
    tensors = []
    for name in names:
        values = rows[name].to_list()
        if name in lists:
            texts, shape = padded([value or [] for value in values])
            tensors.append((name, texts, shape))
        elif name.endswith("_weights"):
            tensors.append((name, *padded([value or [] for value in values], math.nan)))
        else:
            tensors.append((name, ["" if v is None else str(v) for v in values], [len(values)]))
    found = in_every_form(served.server, {"rows": plain}, tensors)
    for form, probabilities in found.items():
        assert probabilities == pytest.approx(expected, abs=1e-6), form
    assert len(set(map(tuple, found.values()))) == 1
    assert len(set(expected)) > 20
    # The weights count: without them most rows have another score.
    nobody = [pl.lit(None, pl.List(pl.Float64)).alias(n) for n in names if n.endswith("_weights")]
    bare = bundle.encoder.encode_table(rows.select(names).with_columns(nobody).to_arrow())
    others = np.abs(bundle.engine.finish(raw_rows(bundle.engine, bare)).probability - np.array(expected))
    assert len(nobody) == 3 and (others > 1e-5).mean() > 0.5


def until(done: Callable[[], bool], value: Callable[[], pl.DataFrame | None]) -> pl.DataFrame | None:
    """``value`` when it is complete; the log is written by a thread."""
    for _ in range(200):
        if done():
            return value()
        time.sleep(0.1)
    return value()
