"""Weights of the elements of lists: the same in a log, in a table and in a request, and pooled as numpy says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.data.validate.suite import check_rows
from serving.protocol import json_text
from serving.protocol.codec_v1 import V1
from serving.protocol.codec_v2 import V2, is_v2
from serving.protocol.requests import RequestParser
from serving.protocol.v2_tensors import HEADER, pack, split
from tests.models.synthetic import WITH_WEIGHTS
from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.encoder import Encoder
from thinktwice.data.feature_tables import build_feature_tables
from thinktwice.data.ingest import ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.scoring_rows import as_table, read_fields
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import BundleError, DataError, RequestError, SchemaError
from thinktwice.evaluate.findings.importance import Part, with_exchanged
from thinktwice.evaluate.findings.logistic import design
from thinktwice.models import BACKBONES, DeepFMConfig, backbone_config, build_backbone
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Eager
from thinktwice.models.backends.backend import random_rows as backend_rows
from thinktwice.models.backends.folded import Folded
from thinktwice.models.fields import FieldSpace
from thinktwice.models.store import load_model
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import Kind, pretrain
from thinktwice.schema import LogSchema, load_schema, parse_schema
from thinktwice.schema.weights import SMALLEST
from thinktwice.stats.metrics import auc
from thinktwice.train.checks import check_rows as check_encoded
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune
from thinktwice.validate.column_rules import NEGATIVE, NO_NUMBER, UNEVEN
from thinktwice.validate.lists import WEIGHTS, read_element_weights
from thinktwice.validate.rules import row_rules, table_rules
from thinktwice.validate.split import SplitResult, split_log

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]

SCHEMA = """\
name: weighed
time: {format: order}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
quarantine_budget: 1
fields:
- {name: tags, entity: item, kind: list, length: 4, weights: {name: tag_weights, column: "tag scores"}}
- {name: moods, kind: list, separator: ";", weights: mood_weights}
"""
DESCRIBED = parse_schema(SCHEMA, where="test")
CATEGORIES = ["t0", "t1", "42", "é"]


def log(rows: int = 40) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "y": [n % 2 for n in range(rows)],
            "user": [f"u{n % 5}" for n in range(rows)],
            "item": [f"i{n % 7}" for n in range(rows)],
            "tags": [[f"t{k}" for k in range(n % 7 % 4)] for n in range(rows)],
            "tag scores": [[0.5 + k for k in range(n % 7 % 4)] if n % 7 != 2 else None for n in range(rows)],
            "moods": [list("abc"[: n % 4]) for n in range(rows)],
            "mood_weights": [[(n + k) % 3 for k in range(n % 4)] for n in range(rows)],
        },
        schema_overrides={"tag scores": pl.List(pl.Float64), "mood_weights": pl.List(pl.Int64)},
    )


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    separators = {"tags": "|", "tag scores": "|", "moods": ";", "mood_weights": ";"}
    return frame.with_columns(
        pl.col(name).cast(pl.List(pl.String)).list.join(separator) for name, separator in separators.items()
    )


def written(frame: pl.DataFrame, folder: Path, ending: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"log.{ending}"
    if ending == "csv":
        as_text(frame).write_csv(path)
    elif ending == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    return path


def cleaned(frame: pl.DataFrame, folder: Path, ending: str = "parquet", schema: str = SCHEMA) -> SplitResult:
    path = written(frame, folder, ending)
    (folder / "s.yaml").write_text(schema)
    ingest("log", path, folder / "s.yaml", folder / "raw")
    return split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_weights_are_read_alike_from_every_format(ending: str, tmp_path: Path) -> None:
    assert cleaned(log(), tmp_path, ending).rows_quarantined == 0
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    expected = log()
    assert clean["tag_weights"].dtype == clean["mood_weights"].dtype == pl.List(pl.Float64)
    for name, column in (("tag_weights", "tag scores"), ("mood_weights", "mood_weights")):
        assert [w or [] for w in clean[name].to_list()] == [w or [] for w in expected[column].to_list()]
    rows = training_rows(tmp_path / "clean", load_schema(tmp_path / "clean" / "schema.yaml"))
    assert [v or [] for v in rows["tag_weights"].to_pylist()] == [w or [] for w in expected["tag scores"].to_list()]


def test_weights_of_a_side_table(tmp_path: Path) -> None:
    schema = SCHEMA + "tables: {items: {path: items.csv}}\n"
    (tmp_path / "items.csv").write_text(
        'item,tags,tag scores\ni0,a|b,0.25|1\ni1,a,\ni2,a|b,1\ni3,"a||c",1|2|3\ni4,,\ni5,a|b,1|-1\ni6,a,nan\n'
    )
    result = cleaned(log().drop("tags", "tag scores"), tmp_path, schema=schema)
    assert result.tables["item"].reasons == {
        "items.tag_weights:length": 1,
        "items.tag_weights:minimum": 1,
        "items.tag_weights:number": 1,
    }
    described = load_schema(tmp_path / "clean" / "schema.yaml")
    rows = pl.from_arrow(training_rows(tmp_path / "clean", described))
    assert isinstance(rows, pl.DataFrame)
    known = dict(rows.select("item", "tag_weights").unique("item").iter_rows())
    lists = dict(rows.select("item", "tags").unique("item").iter_rows())
    assert known["i0"] == [0.25, 1.0] and known["i1"] is None and known["i2"] is None
    assert lists["i3"] == ["a", "c"] and known["i3"] == [1.0, 3.0]  # the missing element takes its weight along
    build_feature_tables(tmp_path / "clean", tmp_path / "tables", described)
    table = pl.read_parquet(tmp_path / "tables" / "item_attributes.parquet")
    assert table["tag_weights"].dtype == pl.List(pl.Float64)
    assert {rule.id for rule in table_rules(described, "item")} >= set(result.tables["item"].reasons)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("1|2|3", "length"),
        ("1", "length"),
        ("1|-0.5", "minimum"),
        ("1|nan", "number"),
        ("1|inf", "number"),
        ("1|1e300", "number"),
        ("1|", "number"),
        ("1|x", "number"),
        ("1,2", "length"),
    ],
)
def test_weights_that_break_a_rule_are_quarantined_with_its_name(value: str, rule: str, tmp_path: Path) -> None:
    at = pl.int_range(pl.len()) == 9  # two tags
    frame = as_text(log()).with_columns(pl.when(at).then(pl.lit(value)).otherwise("tag scores").alias("tag scores"))
    frame.write_csv(tmp_path / "log.csv")
    (tmp_path / "s.yaml").write_text(SCHEMA)
    ingest("log", tmp_path / "log.csv", tmp_path / "s.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    reason = f"tag_weights:{rule}"
    assert reason in result.reasons and result.rows_quarantined == 1
    assert set(result.reasons) <= {reason, "tag_weights:number"} and repr(value) in result.examples[reason]
    described = {rule.id: rule for rule in row_rules(load_schema(tmp_path / "s.yaml"))}
    assert described[reason].source == "tag scores" and "replay" in described[reason].fix


def test_gx_sees_wrong_weights_in_a_clean_file(tmp_path: Path) -> None:
    assert cleaned(log(), tmp_path).rows_quarantined == 0
    path = tmp_path / "clean" / "clean.parquet"
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    assert all(f.passed for f in check_rows(tmp_path / "clean", schema))
    clean = pl.read_parquet(path)
    ids = clean["row_id"].to_list()
    wrong = {
        3: [1.0, 1.0, -1.0],
        10: [1.0, 2.0],
        17: [1.0, math.inf, 1.0],
        24: [1.0, math.nan, 1.0],
        38: [1.0, None, 0.0],
    }
    values = [wrong.get(n, w) for n, w in enumerate(clean["tag_weights"].to_list())]
    clean.with_columns(tag_weights=pl.Series(values, dtype=pl.List(pl.Float64))).write_parquet(path)
    broken = {f.rule: set(f.samples) for f in check_rows(tmp_path / "clean", schema) if not f.passed}
    assert broken == {
        "tag_weights:minimum": {ids[3]},
        "tag_weights:length": {ids[10]},
        "tag_weights:number": {ids[17], ids[24], ids[38]},
    }


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{name: x, weights: w}", "kind list"),
        ("{name: x, kind: list, weight: w}", "did you mean 'weights'"),
        ("{name: x, kind: list, weights: {nam: w}}", "did you mean 'name'"),
        ("{name: x, kind: list, weights: x}", "repeated: x"),
        ("{name: x, kind: list, weights: a__b}", "__"),
        ("{name: x, kind: list, weights: w, separator: '.'}", "another separator"),
        ("{name: x, kind: list, weights: w, separator: 'e+'}", "another separator"),
        ("{name: x, kind: list, weights: 3}", "weights"),
    ],
)
def test_wrong_descriptions_are_named(line: str, word: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(f"name: a\ntime: {{format: order}}\nfields: [{line}]", where="t")
    assert word in str(caught.value)


def test_a_column_of_weights_that_a_log_lacks_or_has_in_another_type(tmp_path: Path) -> None:
    frame = log().rename({"tag scores": "tag score"})
    with pytest.raises(
        SchemaError, match=r"weights of field 'tags' wants column 'tag scores'.*did you mean 'tag score'"
    ):
        cleaned(frame, tmp_path / "a")
    numbers = log().with_columns(pl.lit(1.5).alias("tag scores"))
    with pytest.raises(SchemaError, match=r"'tag scores' .*lists of numbers, and text with the separator"):
        cleaned(numbers, tmp_path / "b")


# Reading against an oracle ---------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["a", "b", "", None]), max_size=4)
NUMBERS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, None, 1e300, 5e-324]), st.floats(0, 10)), max_size=4
)


def judged(words: list[str | None] | None, weights: list[float | None] | None) -> tuple[bool, bool, bool, Any]:
    """Whether the numbers differ, one is no number, one is negative; and the clean weights."""
    words, weights = words or [], weights or []
    readable = [w is not None and math.isfinite(w) and abs(w) < 1e300 for w in weights]
    differ = bool(weights) and len(weights) != len(words)
    kept = None if differ else [w for w, word in zip(weights, words, strict=False) if word]
    return differ, not all(readable), any(w < 0 for w, ok in zip(weights, readable, strict=True) if ok and w is not None), kept or None  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | WORDS, st.none() | NUMBERS), min_size=1, max_size=6), narrow=st.booleans())
def test_weights_are_read_as_python_reads_them(rows: list[tuple[Any, Any]], narrow: bool) -> None:
    numbers = pa.list_(pa.float32() if narrow else pa.float64())
    lists = pa.array([words for words, _ in rows], pa.list_(pa.string()))
    weights = pa.array([w for _, w in rows], numbers)
    found = dict(read_element_weights(lists, weights, "|"))
    for row, (words, _) in enumerate(rows):
        given_weights = weights[row].as_py()
        if narrow and given_weights is not None:  # the number of its fewest digits
            given_weights = [None if w is None else float(str(np.float32(w))) for w in given_weights]
        differ, no_number, negative, kept = judged(words, given_weights)
        assert (found[UNEVEN][row], found[NO_NUMBER][row], found[NEGATIVE][row]) == (differ, no_number, negative)
        if not (differ or no_number or negative):
            assert found[WEIGHTS][row] is None if kept is None else found[WEIGHTS][row].to_list() == kept


# Encoding: one in training, in tables and in requests ---------------------------------------------------------------------

ELEMENTS = st.lists(
    st.tuples(
        st.sampled_from([*CATEGORIES, "neu", 42]),
        st.one_of(st.sampled_from([0, 0.0, 1, 0.1, 1e299, 5e-324, 3.5e38, 1e-30, True]), st.floats(0, 1e6)),
    ),
    max_size=4,
)


@cache
def fitted(schema: LogSchema) -> tuple[Encoder, pa.Schema]:
    columns = pa.schema(
        [
            ("user", pa.string()),
            ("item", pa.string()),
            *((n, pa.list_(pa.string())) for n in ("tags", "moods")),
            *((n, pa.list_(pa.float64())) for n in ("tag_weights", "mood_weights")),
        ]
    )
    size = len(CATEGORIES)
    lists = [[word] for word in CATEGORIES]
    values = {"user": ["u"] * size, "item": ["i"] * size, "tags": lists, "moods": lists}
    values |= {"tag_weights": [None] * size, "mood_weights": [None] * size}
    return Encoder.fit(pa.table(values, schema=columns), schema), columns


def tensors(name: str, values: list[Any], weights: list[float] | None, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """One raw row with a list and its weights as tensors; both rows end with missing values."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values] + ["", ""]
    parts: list[tuple[str, str, list[Any]]] = [(name, "BYTES", texts)]
    if weights is not None:
        parts.append((f"{name[:-1]}_weights", "FP64", [*(float(w) for w in weights), math.nan, math.nan]))
    inputs, tail = [], b""
    for of, kind, data in parts:
        described: dict[str, Any] = {"name": of, "datatype": kind, "shape": [1, len(data)]}
        if binary:
            raw = pack(kind, data)
            described["parameters"], tail = {"binary_data_size": len(raw)}, tail + raw
        else:
            described["data"] = [None if v != v else v for v in data]
        inputs.append(described)
    text = json.dumps({"inputs": inputs}).encode()
    return text + tail, ({HEADER: str(len(text))} if binary else {})


def forms(row: dict[str, Any], name: str) -> Iterator[tuple[str, Any, dict[str, str]]]:
    yield "python", {"instances": [{"rows": [row]}]}, {}
    yield "v1", json.dumps({"instances": [{"rows": [row]}]}).encode(), {}
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps({"rows": [row]})]}
    yield "v2 text", json.dumps({"inputs": [text]}).encode(), {}
    for binary in (False, True):
        yield f"v2 fields {binary}", *tensors(name, row[name], row.get(f"{name[:-1]}_weights"), binary=binary)


@cache
def parser_of(schema: LogSchema) -> RequestParser:
    return RequestParser(schema, online=True)


def parsed(body: Any, headers: dict[str, str], schema: LogSchema) -> Any:
    parser = parser_of(schema)
    if isinstance(body, dict):
        return V1(parser).read(body).requests[0]
    text, tail = split(body, headers.get(HEADER))
    found = json_text.loads(text)
    return (V2(parser, "ctr", "v") if is_v2(found) else V1(parser)).read(found, tail).requests[0]


def oracle(encoder: Encoder, elements: list[tuple[Any, Any]], length: int) -> tuple[list[int], np.ndarray]:
    """Known elements with positive weights, and the weights over the largest."""
    kept = [(encoder.index_of("tags", word), float(w)) for word, w in elements]
    kept = [(i, w) for i, w in kept if i and w > 0]
    largest = max((w for _, w in kept), default=1.0)
    scaled = [(i, w / largest) if w / largest >= SMALLEST else (0, 0.0) for i, w in kept]
    scaled += [(0, 0.0)] * (length - len(scaled))
    return [i for i, _ in scaled], np.array([w for _, w in scaled], np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(elements=ELEMENTS, absent=st.sampled_from([False, False, False, None, "empty"]))
def test_weights_have_one_encoding_in_training_and_in_every_form_of_a_request(
    elements: list[tuple[Any, Any]], absent: Any
) -> None:
    schema, encoder, columns = DESCRIBED, *fitted(DESCRIBED)
    words = [word for word, _ in elements]
    weights = [float(w) for _, w in elements] if absent is False else None if absent is None else []
    table = {"user": ["u"], "item": ["i"], "moods": [[]], "mood_weights": [None]}
    table |= {"tags": [[str(word) for word in words]], "tag_weights": [weights]}
    expected = encoder.encode_table(pa.table(table, schema=columns))
    index, shares = oracle(encoder, [(w, 1) for w in words] if not weights else elements, 4)
    assert expected.sequences["tags"][0].tolist() == index
    assert expected.weights["tags"][0].tolist() == shares.tolist()
    row = {"tags": words} | ({} if weights is None else {"tag_weights": weights})
    for form, body, headers in forms(row, "tags"):
        request = parsed(body, headers, schema)
        found = encoder.encode_rows(request.rows)
        assert found.sequences["tags"][0].tolist() == index, form
        assert found.weights["tags"][0].tolist() == shares.tolist(), form
    rows = [{"user": "u", "item": "i", "moods": None, "mood_weights": None, "tag_weights": None} | row]
    scored = encoder.encode_table(read_fields(as_table(rows, schema, encoder), schema, encoder))
    assert scored.weights["tags"].tolist() == [shares.tolist()] and scored.sequences["tags"].tolist() == [index]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "INT64", "BYTES"])
def test_weights_of_any_datatype_are_the_numbers_of_their_fewest_digits(datatype: str) -> None:
    schema = DESCRIBED
    values = ["2", "1"] if datatype == "BYTES" else [2, 1] if datatype == "INT64" else [0.2, 0.1]
    raw = pack(datatype, values)
    inputs = [
        {"name": "moods", "datatype": "BYTES", "shape": [1, 2], "data": ["t0", "t1"]},
        {"name": "mood_weights", "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}},
        {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": ["i"]},
        {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["u"]},
    ]
    text = json.dumps({"inputs": inputs}).encode()
    context = parsed(text + raw, {HEADER: str(len(text))}, schema).context
    assert context["mood_weights"] == [float(v) for v in values]
    assert fitted(schema)[0].encode_rows([context]).weights["moods"][0, :2].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("row", "path", "word"),
    [
        ({"tags": ["t0"], "tag_weights": [1, 2]}, "rows[0].tag_weights", "2 weights for 1 elements of 'tags'"),
        ({"tag_weights": [1]}, "rows[0].tag_weights", "1 weights for 0 elements"),
        ({"tags": ["t0"], "tag_weights": [-1]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": ["-0.5"]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": [None]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": ["x"]}, "rows[0].tag_weights[0]", "a number"),
        ({"tags": ["t0"], "tag_weights": [1e300]}, "rows[0].tag_weights[0]", "between"),
        ({"tags": ["t0"], "tag_weights": [math.nan]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": 1}, "rows[0].tag_weights", "list"),
        ({"tags": ["t0"] * 4, "tag_weights": [1] * 5}, "rows[0].tag_weights", "at most 4"),
    ],
)
def test_wrong_weights_of_a_request_are_refused(row: dict[str, Any], path: str, word: str) -> None:
    schema = DESCRIBED
    with pytest.raises(RequestError) as caught:
        parsed({"instances": [{"rows": [row]}]}, {}, schema)
    assert str(caught.value).startswith(f"instances[0].{path} ") and word in str(caught.value)
    if row.get("tag_weights") == [1, 2]:
        body, headers = tensors("tags", ["t0"], [1, 2], binary=True)
        with pytest.raises(RequestError, match=r"inputs\[1\].*2 weights for 1"):
            parsed(body, headers, schema)
        one = {"user_id": "u", "candidates": ["i"], "context": {"moods": ["a"], "mood_weights": [1, 2]}}
        with pytest.raises(RequestError, match=r"instances\[0\].context.mood_weights has 2 weights for 1"):
            parsed({"instances": [one]}, {}, schema)


def test_absent_weights_are_no_missing_context() -> None:
    schema = DESCRIBED
    one = {"user_id": "u", "candidates": ["i"], "context": {"moods": ["a"]}}
    assert parsed({"instances": [one]}, {}, schema).missing == ()
    assert parsed({"instances": [one | {"context": {}}]}, {}, schema).missing == ("moods",)


def test_wrong_weights_of_a_table_are_refused() -> None:
    schema = DESCRIBED
    encoder, columns = fitted(schema)
    row = {"user": ["u"], "item": ["i"], "tags": [["t0"]], "moods": [[]], "mood_weights": [None]}
    for weights, word in (
        ([1.0, 2.0], "another number of weights"),
        ([-1.0], "at least 0"),
        ([math.inf], "at least 0"),
    ):
        with pytest.raises(DataError, match=word):
            read_fields(pa.table(row | {"tag_weights": [weights]}, schema=columns), schema, encoder)
        with pytest.raises(DataError, match="of 'tags': give one number of at least 0 for each element"):
            encoder.encode_table(pa.table(row | {"tag_weights": [weights]}, schema=columns))
    with pytest.raises(DataError, match="is negative"):
        as_table([{"tags": ["t0"], "tag_weights": [-1]}], schema, encoder)
    sources = as_table([{"tags": ["t0"], "tag scores": [2]}], schema, encoder)
    assert sources["tag_weights"].to_pylist() == [[2.0]]


# Pooling -------------------------------------------------------------------------------------------------------------------

POOLED = st.lists(
    st.tuples(st.integers(0, 11), st.one_of(st.sampled_from([1.0, 1e-30, 1e-20, 0.5]), st.floats(1e-6, 1))),
    min_size=4,
    max_size=4,
)


@cache
def deepfm() -> Backbone:
    return build_backbone(DeepFMConfig(dim=4, hidden=(8,)), WITH_WEIGHTS, seed=3).eval()


@cache
def backends() -> tuple[Backend, Backend]:
    return Eager(deepfm(), None, deepfm().fill()), Folded(deepfm(), None, deepfm().fill())


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(POOLED, min_size=1, max_size=5), hidden=st.integers(0, 15))
@torch.inference_mode()
def test_the_vector_of_a_list_is_the_weighted_mean(rows: list[Any], hidden: int) -> None:
    model = deepfm()
    batch = backend_rows(model, len(rows))
    index = torch.tensor([[i for i, _ in row] for row in rows])
    index[:, [bool(hidden >> k & 1) for k in range(4)]] = 0  # as pre-training masks elements: their weights stay behind
    weights = torch.tensor([[w for _, w in row] for row in rows])
    batch = Batch(batch.ids, batch.sequences | {"tags": index}, batch.vectors, None, {"tags": weights})
    place = WITH_WEIGHTS.names.index("tags")
    found = model.embed(batch)[:, place].numpy()
    values, fill = model.embedding.sequences[1].values.numpy().astype(np.float64), model.embedding.extra_fill[1].numpy()
    for row in range(len(rows)):
        known = index[row].numpy() > 0
        w = weights[row].numpy().astype(np.float64)[known]
        mean = (w[:, None] * values[index[row].numpy()[known]]).sum(0) / w.sum() if known.any() else fill
        assert np.allclose(found[row], mean, rtol=2e-5, atol=1e-7)
    eager, folded = backends()
    assert torch.allclose(eager.logits(eager.read(batch)), folded.logits(folded.read(batch)), atol=1e-5)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@torch.inference_mode()
def test_only_ratios_of_weights_count_in_every_backbone(name: str) -> None:
    model = build_backbone(backbone_config(name=name, dim=4, hidden=(8,), init_sd=0.5), WITH_WEIGHTS, seed=1).eval()  # type: ignore[arg-type]
    batch = backend_rows(model, 60)

    def scores(weights: torch.Tensor) -> torch.Tensor:
        other = Batch(batch.ids, batch.sequences, batch.vectors, None, {"tags": weights})
        return model.score(model.embed(other))[:, 0]

    weights = batch.weights["tags"]
    several = ((batch.sequences["tags"] != 0).sum(1) > 1) & (batch.sequences["tags"].max(1).values > 0)
    assert torch.allclose(scores(weights), scores(weights * 0.25), atol=1e-5)
    assert ((scores(weights) - scores(torch.ones_like(weights))).abs()[several] > 1e-6).float().mean() > 0.7


# Training --------------------------------------------------------------------------------------------------------------------


def trained_set(folder: Path, rows: int = 2000) -> Path:
    """The click follows from which of the same two tags has the larger weight."""
    rng = np.random.default_rng(0)
    share = rng.random(rows)
    frame = log(rows).with_columns(
        y=pl.Series((share > 0.5).astype(np.int64)),
        item=pl.Series([f"i{n}" for n in rng.integers(0, 7, rows)]),
        moods=pl.Series([["a", "b"]] * rows),
        mood_weights=pl.Series([[s, 1 - s] for s in share]),
    )
    cleaned(frame, folder)
    described = load_schema(folder / "clean" / "schema.yaml")
    build_training_set(training_rows(folder / "clean", described), described, folder / "set", SplitSpec(kind="time"))
    return folder / "set"


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_set(tmp_path_factory.mktemp("weighed"))


def test_a_model_learns_from_weights(weighed: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(
        batch_size=128,
        rate=0.02,
        table_l2=(1e-4,),
        augmentations=("none",),
        trial_epochs=1,
        epochs=6,
        checks_per_epoch=1,
    )
    finetune(weighed, tmp_path / "model", DeepFMConfig(dim=4, hidden=(8,)), config)
    model, _ = load_model(tmp_path / "model")
    assert model.fields.weighted == ("tags", "moods")
    test = load_training_set(weighed).part("test")
    with torch.inference_mode():
        batch = test.batch(slice(None))
        assert auc(test.label, model.score(model.embed(batch))[:, 0].numpy()) > 0.97
        bare = Batch(
            batch.ids, batch.sequences, batch.vectors, None, {k: torch.ones_like(v) for k, v in batch.weights.items()}
        )
        assert auc(test.label, model.score(model.embed(bare))[:, 0].numpy()) < 0.6


@pytest.mark.parametrize("kind", ["dgenctr", "hetegenctr"])
def test_lists_with_weights_are_pretrained(kind: Kind, weighed: Path, tmp_path: Path) -> None:
    pretrain(
        weighed, tmp_path / "p", DeepFMConfig(dim=4, hidden=(8,)), PretrainConfig(epochs=1, batch_size=512), kind=kind
    )
    model, _ = load_model(tmp_path / "p")
    assert model.fields.weighted == ("tags", "moods")
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_encoder_and_rows_survive_their_files(weighed: Path, tmp_path: Path) -> None:
    data = load_training_set(weighed)
    again = Encoder.load(weighed)
    table = data.rows("test").to_arrow()
    one, other = data.encoder.encode_table(table), again.encode_table(table)
    stored = data.part("test")
    assert sorted(stored.weights) == ["moods", "tags"]
    for name in stored.weights:
        assert (one.weights[name] == other.weights[name]).all() and (one.weights[name] == stored.weights[name]).all()
    stored.save(tmp_path / "rows")
    loaded = EncodedRows.load(tmp_path / "rows").take(slice(3, 9))
    assert (loaded.weights["moods"] == stored.weights["moods"][3:9]).all()
    fields = FieldSpace.of(data.schema, data.encoder)
    assert FieldSpace.model_validate_json(fields.model_dump_json()) == fields
    text = (weighed / "encoder.json").read_text()
    broken = json.loads(text)
    next(f for f in broken["fields"] if f["name"] == "item")["weights"] = "w"
    (tmp_path / "encoder.json").write_text(json.dumps(broken))
    (tmp_path / "vocabularies.arrow").write_bytes((weighed / "vocabularies.arrow").read_bytes())
    with pytest.raises(BundleError, match="'item' is not a list that may have weights"):
        Encoder.load(tmp_path)


def test_rows_without_positive_weights_are_not_trained_on(weighed: Path) -> None:
    data = load_training_set(weighed)
    fields, rows = FieldSpace.of(data.schema, data.encoder), data.part("train")
    check_encoded(rows, fields, "train")
    rows.weights["moods"][5, 0] = 0.0
    with pytest.raises(DataError, match="elements of 'moods' without a positive weight"):
        check_encoded(rows, fields, "train")


def test_findings_read_weights(weighed: Path) -> None:
    data = load_training_set(weighed)
    fields, rows = FieldSpace.of(data.schema, data.encoder), data.part("test")
    matrix = design(rows, fields)
    blocks = np.cumsum([sum(fields.num_values), *fields.list_values])
    moods = matrix[:, blocks[1] : blocks[2]].toarray()
    shares = rows.weights["moods"] / rows.weights["moods"].sum(axis=1, keepdims=True)
    expected = np.zeros_like(moods)
    np.put_along_axis(expected, rows.sequences["moods"][:, :2].astype(np.int64), shares[:, :2], axis=1)
    assert np.allclose(moods, expected) and moods.std(axis=0).max() > 0.1
    order = np.arange(len(rows))[::-1]
    turned = with_exchanged(rows, (Part("moods", "context"),), order)
    assert (turned.weights["moods"] == rows.weights["moods"][order]).all()
    assert (turned.weights["tags"] == rows.weights["tags"]).all()
