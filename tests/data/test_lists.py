"""Fields of several categories, precomputed sequences, limited vocabularies and given bins: the same in a log and in a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.protocol import json_text
from serving.protocol.codec_v1 import V1
from serving.protocol.codec_v2 import V2, is_v2
from serving.protocol.requests import Request, RequestParser
from serving.protocol.v2_tensors import HEADER, pack, split
from tests.data.lists_log import as_text, cleaned
from thinktwice.cli import main
from thinktwice.data.encoder import Encoder
from thinktwice.data.feature_tables import build_feature_tables
from thinktwice.data.ingest import ingest
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.scoring_rows import as_table, read_fields
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import RequestError, SchemaError
from thinktwice.models.backends.backend import Eager, largest_rows, random_rows
from thinktwice.models.backends.folded import Folded, can_fold
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.models.store import load_model
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import Kind, pretrain
from thinktwice.schema import LogSchema, load_schema, parse_schema
from thinktwice.validate.judge import broken_rules
from thinktwice.validate.profile import profile_log
from thinktwice.validate.split import split_log

SCHEMA = """\
name: lists
time: {format: order}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
quarantine_budget: 1
fields:
- {name: tags, entity: item, kind: list, length: 4}
- {name: moods, kind: list, separator: ";", allowed: [a, b, c]}
sequences:
- {name: history, of: item, column: past, separator: ",", order: newest_last, length: 3}
"""


def log(rows: int = 40) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "y": [n % 2 for n in range(rows)],
            "user": [f"u{n % 5}" for n in range(rows)],
            "item": [f"i{n % 7}" for n in range(rows)],
            "tags": [[f"t{k}" for k in range(n % 7 % 4)] for n in range(rows)],
            "moods": [list("abc"[: n % 4]) for n in range(rows)],
            "past": [[f"i{k}" for k in range(n % 6)] for n in range(rows)],
        }
    )


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_lists_are_read_alike_from_every_format(ending: str, tmp_path: Path) -> None:
    result = cleaned(log(), tmp_path, SCHEMA, ending)
    assert result.rows_quarantined == 0
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet")
    expected = log()

    def lists(name: str) -> list[list[str]]:
        return [values or [] for values in clean[name].to_list()]

    assert lists("tags") == expected["tags"].to_list() and lists("moods") == expected["moods"].to_list()
    assert lists("history") == [past[::-1][:3] for past in expected["past"].to_list()]
    rows = training_rows(tmp_path / "clean", load_schema(tmp_path / "clean" / "schema.yaml"))
    # Attributes are those of the latest impression, so the row's own.
    assert [v or [] for v in rows["tags"].to_pylist()] == lists("tags")
    assert [v or [] for v in rows["history"].to_pylist()] == lists("history")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("tags", "a|b|c|d|e", "tags:length"),
        ("tags", "x" * 513 + "|b", "tags:text"),
        ("tags", '"a|b"|c', "tags:separator"),
        ("moods", "a;z", "moods:allowed"),
        ("past", ",".join(f"i{n}" for n in range(1001)), "history:length"),
    ],
)
def test_lists_that_break_a_rule_are_quarantined(column: str, value: str, rule: str, tmp_path: Path) -> None:
    frame = as_text(log())
    frame = frame.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(value)).otherwise(column).alias(column))
    frame.write_csv(tmp_path / "log.csv", quote_style="always")
    (tmp_path / "s.yaml").write_text(SCHEMA)
    ingest("log", tmp_path / "log.csv", tmp_path / "s.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert result.reasons == {rule: 1} and result.rows_quarantined == 1 and rule in result.examples


def test_a_list_that_must_not_be_missing(tmp_path: Path) -> None:
    schema = SCHEMA.replace("length: 4}", "length: 4, nullable: false}")
    assert cleaned(log(), tmp_path, schema).reasons == {"tags:missing": sum(not t for t in log()["tags"].to_list())}


def test_drift_of_lists_says_what_of_them_drifts(tmp_path: Path) -> None:
    rows = 4000
    frame = log(rows).with_columns(
        past=pl.Series([[f"i{k}" for k in range(1 + 2 * (n >= rows // 2))] for n in range(rows)])
    )
    result = cleaned(frame, tmp_path, SCHEMA)
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    profile = profile_log(tmp_path / "clean")
    (ks,) = [b.sentence for b in broken_rules(result, profile, schema) if b.rule == "drift:ks"]
    assert ks.startswith("expected that the numbers are distributed as in the first half of the log")
    assert ks.endswith("(at most 0.2), found 1 for the number of values of history")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{name: x, kind: lists}", "did you mean 'list'"),
        ("{name: x, separator: a}", "kind list"),
        ("{name: x, kind: list, length: 201}", "200"),
        ("{name: x, kind: list, buckets: 4, boundaries: [1]}", "numeric"),
        ("{name: x, kind: numeric, boundaries: [2, 1]}", "ascending"),
        ("{name: x, kind: numeric, boundaries: [1], scale: log}", "not both"),
        ("{name: x, kind: numeric, min_count: 2}", "buckets"),
        ("{name: x, kind: list, separator: ''}", "empty"),
    ],
)
def test_wrong_descriptions_are_named(line: str, word: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(f"name: a\ntime: {{format: order}}\nfields: [{line}]", where="t")
    assert word in str(caught.value)


ELEMENTS = st.lists(st.sampled_from(["t0", "t1", "42", "é", "neu", 42, 1.5, True]), max_size=4)


def tensors(name: str, values: list[Any], *, binary: bool, rows: bool) -> tuple[Any, dict[str, str]]:
    """One row, or the context of one request, with the list in a tensor of its own."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values] + ["", ""]
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [1, len(texts)]}
    others: list[dict[str, Any]] = []
    if not rows:
        others = [
            {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["u1"]},
            {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": ["i1"]},
        ]
    if not binary:
        return json.dumps({"inputs": [*others, {**tensor, "data": texts}]}).encode(), {}
    tail = pack("BYTES", texts)
    text = json.dumps({"inputs": [*others, {**tensor, "parameters": {"binary_data_size": len(tail)}}]}).encode()
    return text + tail, {HEADER: str(len(text))}


def forms(name: str, values: list[Any]) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Requests for a raw row with this list, in every form."""
    row = {"rows": [{name: values}]}
    yield "python", {"instances": [row]}, {}
    yield "v1", json.dumps({"instances": [row]}).encode(), {}
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(row)]}
    yield "v2 text", json.dumps({"inputs": [text]}).encode(), {}
    for binary in (False, True):
        yield f"v2 fields {binary}", *tensors(name, values, binary=binary, rows=True)


def context_forms(name: str, values: list[Any]) -> Iterator[tuple[str, Any, dict[str, str]]]:
    one = {"user_id": "u1", "candidates": ["i1"], "context": {name: values}}
    yield "v1", json.dumps({"instances": [one]}).encode(), {}
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps(one)]}
    yield "v2 text", json.dumps({"inputs": [text]}).encode(), {}
    for binary in (False, True):
        yield f"v2 fields {binary}", *tensors(name, values, binary=binary, rows=False)


def parsed(body: Any, headers: dict[str, str], schema: LogSchema) -> Request:
    parser = RequestParser(schema, online=True)
    if isinstance(body, dict):
        return V1(parser).read(body).requests[0]
    text, tail = split(body, headers.get(HEADER))
    found = json_text.loads(text)
    return (V2(parser, "ctr", "v") if is_v2(found) else V1(parser)).read(found, tail).requests[0]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=ELEMENTS, name=st.sampled_from(["tags", "moods", "history"]))
def test_a_list_has_one_encoding_in_training_and_in_every_form_of_a_request(values: list[Any], name: str) -> None:
    schema = parse_schema(SCHEMA.replace(", allowed: [a, b, c]", ""), where="test")
    spelled = ["true" if v is True else str(v) for v in values]
    words = ["t0", "t1", "42", "é", "1.5", "true"]
    table = pa.table(
        {
            "user": ["u1"] * 6,
            "item": words,
            "tags": [[w] for w in words],
            "moods": [[w] for w in words],
            "history": [[]] * 6,
        },
        schema=pa.schema(
            [
                ("user", pa.string()),
                ("item", pa.string()),
                *((n, pa.list_(pa.string())) for n in ("tags", "moods", "history")),
            ]
        ),
    )
    encoder = Encoder.fit(table, schema)
    row = {"user": ["u1"], "item": ["42"], "tags": [[]], "moods": [[]], "history": [[]]} | {name: [spelled]}
    expected = encoder.encode_table(pa.table(row, schema=table.schema)).sequences[name][0].tolist()
    for form, body, headers in forms(name, values):
        request = parsed(body, headers, schema)
        assert request.rows is not None
        assert encoder.encode_rows(request.rows).sequences[name][0].tolist() == expected, form
    for form, body, headers in context_forms("moods", values) if name == "moods" else ():
        request = parsed(body, headers, schema)
        assert encoder.encode_rows([request.context]).sequences[name][0].tolist() == expected, form


def test_a_request_takes_no_longer_list_than_a_log() -> None:
    schema = parse_schema(SCHEMA, where="test")
    for name, body, headers in forms("tags", ["a"] * 5):
        if "fields" in name:
            continue
        with pytest.raises(RequestError, match="at most 4"):
            parsed(body, headers, schema)
    with pytest.raises(RequestError, match="list"):
        parsed({"instances": [{"rows": [{"tags": "a|b"}]}]}, {}, schema)


def trained(folder: Path, frame: pl.DataFrame, schema: str = SCHEMA) -> Path:
    cleaned(frame, folder, schema)
    described = load_schema(folder / "clean" / "schema.yaml")
    build_training_set(training_rows(folder / "clean", described), described, folder / "set", SplitSpec(kind="time"))
    return folder / "set"


def test_lists_have_vectors_of_their_own_in_every_backend(tmp_path: Path) -> None:
    data = load_training_set(trained(tmp_path, log(400)))
    fields = FieldSpace.of(data.schema, data.encoder)
    assert fields.own_lists == ("tags", "moods") and fields.sequence_of == ("tags", "moods", "item")
    assert fields.list_values == (4, 4)
    assert FieldSpace.model_validate_json(fields.model_dump_json()) == fields
    torch.manual_seed(0)
    model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), fields).eval()
    batch = data.part("train").batch(slice(0, 50))
    x = model.embed(batch)
    pooled = model.embedding.sequences[0]
    place = fields.names.index("tags")
    for row in range(50):
        ids = batch.sequences["tags"][row]
        known = ids[ids > 0]
        expected = pooled.values[known].mean(0) if len(known) else model.embedding.extra_fill[0]
        assert torch.allclose(x[row, place], expected, atol=1e-6)
    assert can_fold(model)
    with torch.inference_mode():
        eager, folded = (kind(model, None, model.fill()) for kind in (Eager, Folded))
        for rows in (batch, random_rows(model, 64), largest_rows(model)):
            assert torch.allclose(eager.logits(eager.read(rows)), folded.logits(folded.read(rows)), atol=1e-5)


def test_rows_to_score_may_have_lists_as_the_log_has_them(tmp_path: Path) -> None:
    frame = log(400).with_columns(past=pl.col("past").list.slice(0, 5))
    data = load_training_set(trained(tmp_path, frame))
    expected = data.encoder.encode_table(training_rows(tmp_path / "clean", data.schema))
    text = as_text(frame).with_columns(pl.when(pl.col("tags") != "").then("tags"))
    for form in (frame, text, text.rename({"past": "history"})):
        rows = read_fields(as_table(form, data.schema, data.encoder), data.schema, data.encoder)
        found = data.encoder.encode_table(rows)
        assert all((found.sequences[name] == expected.sequences[name]).all() for name in expected.sequences)
    assert expected.sequences["history"].max() > 0


def test_a_sequence_to_score_that_is_no_list_is_named(tmp_path: Path) -> None:
    data = load_training_set(trained(tmp_path, log(40)))
    with pytest.raises(SchemaError, match=r"column 'past' has type .*sequence 'history' is read from lists of ids"):
        as_table(log(40).with_columns(past=pl.lit(3)), data.schema, data.encoder)


OF_IMPRESSIONS = """\
name: seen
time: {format: order}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
tables: {users: {path: users.csv}}
fields: [{name: city, entity: user}]
sequences:
- {name: history, of: item, entity: context, column: past, order: newest_last, length: 3}
- {name: liked, of: item, column: likes, separator: ",", length: 2}
"""


def test_a_sequence_of_each_impression_stands_beside_a_table_of_users(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(
        "user,city,likes\n" + "".join(f'u{n},c{n % 2},"i{n},i6,i5"\n' for n in range(5))
    )
    frame = log(400).drop("tags", "moods")
    assert cleaned(frame, tmp_path, OF_IMPRESSIONS).rows_quarantined == 0
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    build_feature_tables(tmp_path / "clean", tmp_path / "tables", schema)
    assert pl.read_parquet(tmp_path / "tables" / "user_attributes.parquet").columns[3:] == ["city", "liked"]
    rows = training_rows(tmp_path / "clean", schema)
    seen = [past[::-1][:3] for past in frame["past"].to_list()]
    assert [v or [] for v in rows["history"].to_pylist()] == seen
    assert rows["liked"].to_pylist()[:2] == [["i0", "i6"], ["i1", "i6"]]
    build_training_set(rows, schema, tmp_path / "set", SplitSpec(kind="time"))
    data = load_training_set(tmp_path / "set")
    expected = data.encoder.encode_table(rows).sequences["history"]
    assert (np.count_nonzero(expected, axis=1) == [len(values) for values in seen]).all()
    for number in (3, 4, 5, 6):
        for form, body, headers in context_forms("history", seen[number]):
            request = parsed(body, headers, schema)
            assert request.context is not None
            encoded = data.encoder.encode_rows([request.context]).sequences["history"][0]
            assert encoded.tolist() == expected[number].tolist(), form
    # A longer list is cut as the log is, before unknown values are left out.
    longer = ["new", None, "i1", "i2", "i3"]
    cut = [data.encoder.index_of("item", "i1"), data.encoder.index_of("item", "i2"), 0]
    assert data.encoder.encode_rows([{"history": longer}]).sequences["history"][0].tolist() == cut
    given_rows = rows.slice(0, 1).drop("history").append_column("history", pa.array([longer], pa.list_(pa.string())))
    assert data.encoder.encode_table(given_rows).sequences["history"][0].tolist() == cut
    table = as_table(frame, schema, data.encoder)
    assert [v or [] for v in table["history"].to_pylist()] == seen


def test_a_sequence_that_the_table_of_users_lacks_may_be_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user,city,likes\nu0,c,i1\n")
    wrong = OF_IMPRESSIONS.replace("entity: context, column: past", "column: past")
    with pytest.raises(
        SchemaError, match=r"'history' wants column 'past' of .*users.csv.* add 'entity: context' to the sequence"
    ):
        cleaned(log(40), tmp_path, wrong)
    with pytest.raises(SchemaError, match="entity: context is for a sequence with a column"):
        parse_schema(OF_IMPRESSIONS.replace("column: past, order: newest_last, ", ""), where="t")


def test_the_encoder_of_lists_survives_its_file(tmp_path: Path) -> None:
    data = load_training_set(trained(tmp_path, log(400)))
    table = data.rows("test").to_arrow()
    again = Encoder.load(data.folder)
    first, second = data.encoder.encode_table(table), again.encode_table(table)
    assert all((first.sequences[name] == second.sequences[name]).all() for name in first.sequences)
    assert again.list_values == data.encoder.list_values


def test_limited_vocabularies_report_what_they_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = SCHEMA.replace("length: 4}", "length: 4, min_count: 60}").replace(
        "fields:\n", "fields:\n- {name: color, max_values: 2}\n"
    )
    colors = ["red"] * 200 + ["blue"] * 120 + [f"c{n}" for n in range(80)]
    frame = log(400).with_columns(color=pl.Series([colors[(n * 7) % 400] for n in range(400)]))
    folder = trained(tmp_path, frame, schema)
    data = load_training_set(folder)
    train = data.rows("train")
    assert data.encoder.values_of("color") == ("red", "blue")
    rare = train.filter(~pl.col("color").is_in(["red", "blue"])).height / train.height
    assert data.info.cut["color"].share == pytest.approx(rare) and data.info.cut["color"].kept == 2
    counts = train["tags"].explode().drop_nulls().value_counts()
    kept = counts.filter(pl.col("count") >= 60)
    assert set(data.encoder.values_of("tags")) == set(kept["tags"].to_list())
    assert (data.part("train").ids[:, data.encoder.column_of("color")] == 0).mean() == pytest.approx(rare)


@pytest.mark.parametrize(
    ("option", "bounds"),
    [("boundaries: [1, 10, 100]", [1.0, 10.0, 100.0]), ("scale: log, buckets: 4", None)],
)
def test_bins_of_numbers_may_be_given_or_logarithmic(option: str, bounds: list[float] | None) -> None:
    schema = parse_schema(
        f"name: a\ntime: {{format: order}}\nfields: [{{name: x, kind: numeric, {option}}}]", where="t"
    )
    values = np.expm1(np.linspace(0, 8, 1000))
    encoder = Encoder.fit(pa.table({"x": values}), schema)
    expected = np.expm1([2, 4, 6]) if bounds is None else bounds
    assert encoder.bounds["x"] == pytest.approx(expected)
    sizes = np.bincount(encoder.encode_table(pa.table({"x": values})).ids[:, 0])
    assert len(sizes) == len(expected) + 2 and (bounds is not None or sizes[1:].max() - sizes[1:].min() <= 2)


def test_log_bins_of_negative_numbers_ascend() -> None:
    schema = parse_schema("name: a\ntime: {format: order}\nfields: [{name: x, kind: numeric, scale: log}]", where="t")
    for values in ([-1e9, 0.0, 1e9], [5.0], [0.0, 0.0], []):
        bounds = Encoder.fit(pa.table({"x": pa.array(values, pa.float64())}), schema).bounds["x"]
        assert (np.diff(bounds) > 0).all()


def test_the_reference_shows_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "schema-reference"]) == 0
    assert "newest_last" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dgenctr", "hetegenctr"])
def test_lists_are_trained_and_pretrained(kind: Kind, tmp_path: Path) -> None:
    folder = trained(tmp_path, log(400))
    config = PretrainConfig(epochs=1, batch_size=128)
    pretrain(folder, tmp_path / "pretrained", DeepFMConfig(dim=4, hidden=(8,)), config, kind=kind)
    model, _ = load_model(tmp_path / "pretrained")
    data = load_training_set(folder)
    first = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FieldSpace.of(data.schema, data.encoder), seed=0)
    # The label trains the vectors of lists, though no head restores them.
    assert not torch.equal(model.embedding.sequences[0].values, first.embedding.sequences[0].values)
