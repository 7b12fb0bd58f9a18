"""An inferred schema says what the hand-written one says, runs unedited, and asks what it cannot know."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol.requests import RequestParser
from tests.data.layouts import START_S, differences, generated, write
from tests.data.own_logs import as_csv, small_log
from thinktwice.cli import main
from thinktwice.data.encoder import Encoder
from thinktwice.data.infer import measure as measuring
from thinktwice.data.infer.depend import dependence
from thinktwice.data.infer.infer import Inferred, infer_schema
from thinktwice.data.ingest import ingest
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.errors import DataError
from thinktwice.parquet import read_frame
from thinktwice.schema import LogSchema, load_schema, parse_schema
from thinktwice.validate.split import split_log


def infer(log: pl.DataFrame, folder: Path, ending: str = "csv", **options: str) -> Inferred:
    return infer_schema(str(write(log, folder, ending)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("name", ["criteo", "kuairand", "sim"])
def test_generated_logs_in_known_layouts_lead_to_their_schemas(name: str, ending: str, tmp_path: Path) -> None:
    schema = builtin_schema(name)
    assert differences(schema, infer(generated(schema, 6000), tmp_path, ending).schema) == []


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["criteo", "kuairand", "sim"]), st.integers(3000, 9000))
def test_the_draw_of_the_log_does_not_matter(seed: int, name: str, rows: int) -> None:
    schema = builtin_schema(name)
    with tempfile.TemporaryDirectory() as folder:
        assert differences(schema, infer(generated(schema, rows, seed), Path(folder), "parquet").schema) == []


def test_a_published_sample_of_criteo_leads_to_its_schema(shared: Path) -> None:
    found = infer_schema(str(shared / "data/criteo-8k/ctr.parquet"))
    assert differences(builtin_schema("criteo"), found.schema) == []
    assert "# left out: split: it names parts of the log: give --split column:split to split by it" in found.text


@pytest.mark.parametrize("name", ["avazu-9k", "frappe", "obd-60k"])
def test_published_samples_lead_to_schemas_that_keep_almost_all_rows(name: str, shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / name / "ctr.parquet"
    (tmp_path / "s.yaml").write_text(infer_schema(str(path)).text)
    ingest("log", path, tmp_path / "s.yaml", tmp_path / "raw", 20_000)
    split = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    without = split.rows_quarantined - split.reasons.get("row:duplicate", 0)
    assert without <= 0.01 * split.rows_in


def hostile(rows: int, seed: int) -> pl.DataFrame:
    """Names and values that no schema can take as they are, missing values everywhere, and leaks."""
    draw = np.random.default_rng(seed)
    user, item = draw.integers(0, 50, rows), draw.integers(0, 30, rows)
    label = draw.integers(0, 2, rows)
    some = draw.random(rows) < 0.003

    def holes(values: list[object]) -> list[object]:
        return [None if hole else value for hole, value in zip(some, values, strict=True)]

    return pl.DataFrame(
        {
            "User ID": holes([f"u{u}" for u in user]),
            "item_id": item,
            "event_time": [f"2024-03-{1 + n % 28:02d} {n % 24:02d}:00:00" for n in range(rows)],
            "clicked": label,
            "title": [f"The no. {i} film" for i in item],
            "label": holes([["x", "y", "z: [1]", "null", "#1"][i % 5] for i in item]),
            "Label": holes([["no", "yes"][u % 2] for u in user]),
            "9 lives": holes((draw.random(rows) * 10 - 5).tolist()),
            "a__b": draw.choice(["true", "~", "1e3", "0x1f", "12:30"], rows),
            "dwell_ms": label * 1000 + draw.integers(0, 100, rows),
            "shared": draw.integers(0, 2, rows),
            "impression_id": [f"imp-{n}" for n in range(rows)],
            "constant": ["same"] * rows,
            "empty": pl.Series([None] * rows, dtype=pl.String),
            "zip": [f"0{1000 + u}" for u in user],
        }
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["csv", "parquet", "jsonl"]))
def test_an_inferred_schema_runs_unedited_on_a_hostile_log(seed: int, ending: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = hostile(3000, seed)
        found = infer(log, folder, ending)
        (folder / "s.yaml").write_text(found.text, encoding="utf-8")
        assert load_schema(folder / "s.yaml") == found.schema
        ingest("log", folder / f"log.{ending}", folder / "s.yaml", folder / "raw")
        split = split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
    assert split.rows_in == 3000 and split.rows_quarantined == log["User ID"].null_count()
    roles = found.roles
    assert (roles.user, roles.item, roles.time.column, roles.label.column, roles.title) == (
        *("User ID", "item_id", "event_time", "clicked", "title"),
    )
    assert {f.column: bool(f.leak) for f in roles.fields if f.leak} == {"dwell_ms": True, "shared": True}
    assert {"impression_id", "constant", "empty", "zip"} <= set(roles.left_out)
    entities = {f.column: (f.kind, f.entity) for f in roles.fields}
    assert entities["label"] == ("categorical", "item") and entities["Label"] == ("boolean", "user")
    assert entities["9 lives"] == ("numeric", "context") and entities["a__b"] == ("categorical", "context")


def test_every_line_has_a_reason_and_questions_are_marked(tmp_path: Path) -> None:
    lines = infer(hostile(2000, 0), tmp_path).text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith(("time:", "label:", "statistics:")) or line.lstrip().startswith(("- {", "user:", "item:")):
            assert before.lstrip().startswith("#"), line
    asked = [line for line in lines if line.lstrip().startswith("# ?")]
    assert any("The times have no offset and are read as UTC" in line for line in asked)
    assert any("suspected leak: alone it predicts the label with an AUC of" in line for line in asked)
    assert any("suspected leak: its name says that it happens after the impression" in line for line in asked)


@pytest.mark.parametrize("separator", [" ", ",", "|", "-", None])
def test_a_column_of_item_ids_asks_whether_it_is_a_history(separator: str | None, tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    items = draw.integers(100, 160, 800)
    seen = [items[max(0, n - n % 5) : n].tolist() for n in range(800)]
    past = seen if separator is None else [separator.join(map(str, ids)) or None for ids in seen]
    others = [" ".join(f"w{w}" for w in draw.integers(0, 50, 4)) for _ in items]
    log = pl.DataFrame({"time": START_S + np.arange(800), "click": draw.integers(0, 2, 800), "user": draw.integers(0, 40, 800), "item": items, "past": past, "words": others, "slot": draw.choice(["top", "side"], 800)})  # fmt: skip
    found = infer(log, tmp_path, "csv" if separator else "parquet")
    (question,) = [line for line in found.text.splitlines() if "ids of items" in line]
    assert question.startswith("# ? Column 'past' has up to 4 ids of items in a row")
    own = "" if separator in (None, "|") else f", separator: {separator!r}"
    assert f"add a sequence with column: past{own}, order: newest_first or newest_last." in question
    added = f"sequences:\n  - {{name: history, of: item, column: past{own}, order: newest_last}}"
    schema = parse_schema(
        found.text.replace("sequences:", added).replace("- {name: past", "# - {name: past"), where="t"
    )
    assert schema.logged_sequences[0].separated_by == (separator or "|")


def test_numbers_in_lists_of_different_lengths_may_be_weights(tmp_path: Path) -> None:
    lists = [[f"t{k}" for k in range(n % 4)] for n in range(400)]
    weights = [[0.5] * len(one) for one in lists]
    frame = pl.DataFrame(
        {
            "user": [f"u{n % 20}" for n in range(400)],
            "click": [n % 3 % 2 for n in range(400)],
            "tags": lists,
            "scores": weights,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    found = infer_schema(str(tmp_path / "log.parquet"))
    assert "# left out: scores: it is a list of different lengths" in found.text and "'weights: scores'" in found.text
    (tmp_path / "s.yaml").write_text(found.text.replace("kind: list", "kind: list, weights: scores", 1))
    assert [f.weights for f in load_schema(tmp_path / "s.yaml").model_fields_in_order() if f.kind == "sequence"] == [
        "scores"
    ]


@pytest.mark.parametrize(
    ("numbers", "asked"), [(("0.5", "0.25", "1"), True), (("1", "2", "3"), False), (("-0.5", "1", "2"), False)]
)
def test_text_of_fractions_may_be_the_weights_of_a_list(numbers: tuple[str, ...], asked: bool, tmp_path: Path) -> None:
    lists = [[k for k in range(3) if n >> k & 1] for n in range(400)]
    frame = pl.DataFrame(
        {
            "user": [f"u{n % 20}" for n in range(400)],
            "click": [n % 3 % 2 for n in range(400)],
            "tags": ["|".join(f"t{k}" for k in one) for one in lists],
            "scores": ["|".join(numbers[k] for k in one) for one in lists],
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    found = infer_schema(str(tmp_path / "log.csv"))
    assert {("tags", "list"), ("scores", "list")} <= {(f.column, f.kind) for f in found.roles.fields}
    assert ("# ? Are its numbers the weights of the elements of a list?" in found.text) == asked
    assert ("add 'weights: scores'" in found.text) == asked


def test_vectors_of_every_format_belong_to_their_entity(tmp_path: Path) -> None:
    from tests.data.own_logs import as_json_lines

    log = small_log(600)
    log.write_parquet(tmp_path / "log.parquet")
    as_csv(log, tmp_path / "log.csv")
    as_json_lines(log, tmp_path / "log.jsonl")
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        schema = infer_schema(str(tmp_path / name)).schema
        assert [(v.name, v.entity, v.dim) for v in schema.vectors] == [("look", "item", 2)]
        assert schema.time.format == "datetime" and schema.label.column == "bought"


TIMES = {
    "s": lambda n: START_S + 60 * n,
    "ms": lambda n: (START_S + 60 * n) * 1000 + 7,
    "us": lambda n: (START_S + 60 * n) * 10**6 + 7,
    "datetime": lambda n: f"2024-03-{1 + n % 28:02d}T{n % 24:02d}:00:00Z",
    "yymmddhh": lambda n: f"2403{1 + n % 28:02d}{n % 24:02d}",
}


@pytest.mark.parametrize("form", TIMES)
def test_the_format_of_the_time_follows_from_its_values(form: str, tmp_path: Path) -> None:
    log = (
        small_log(300)
        .drop("at", "look")
        .with_columns(pl.Series("hour" if form == "yymmddhh" else "ts", [TIMES[form](n) for n in range(300)]))
    )
    assert infer(log, tmp_path).schema.time.format == form


def test_a_rating_gets_a_threshold_and_a_question(tmp_path: Path) -> None:
    log = small_log(500).drop("look", "bought").with_columns(pl.Series("rating", [1 + n % 5 for n in range(500)]))
    found = infer(log, tmp_path)
    assert (found.schema.label.column, found.schema.label.threshold) == ("rating", 4.0)
    assert "# ? From which value on is it a click? 4 is a guess." in found.text


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"bought": pl.lit(1)}, {}, r"looks like the label, but its only value is '1'"),
        ({"bought": pl.lit("maybe")}, {"label": "bought"}, "has one value, 'maybe'"),
        ({"bought": pl.col("device")}, {}, "no column looks like the label"),
        ({}, {"label": "buoght"}, "there is no such column; did you mean 'bought'"),
        ({}, {"label": "device"}, "is not a number"),
    ],
)
def test_a_log_without_a_usable_label_is_one_sentence(
    change: dict[str, pl.Expr], options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        infer(small_log(300).drop("look").with_columns(**change), tmp_path, **options)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2**31))
def test_an_attribute_depends_on_its_key_and_noise_does_not(keys: int, values: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    key = draw.integers(0, keys, 3000)
    attribute = draw.permutation(max(keys, values))[:keys] % values
    noise = draw.integers(0, values, 3000)
    of_key = dependence(pl.Series(key).cast(pl.String), pl.Series(attribute[key]).cast(pl.String))
    of_noise = dependence(pl.Series(key).cast(pl.String), pl.Series(noise).cast(pl.String))
    assert of_key is not None and of_noise is not None
    assert of_key.strength == 1.0 or len(set(attribute)) == 1
    assert of_noise.strength < 0.5


def test_keys_that_occur_once_say_nothing() -> None:
    once = pl.Series([str(n) for n in range(5000)])
    assert dependence(once, once) is None


def test_the_sample_of_a_long_log_is_bounded_and_its_bounds_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SAMPLE_ROWS", 500)
    log = generated(builtin_schema("kuairand"), 7000)
    log = log.with_columns(
        pl.when(pl.int_range(pl.len()) == 6543).then(-3).otherwise("register_days").alias("register_days")
    )
    found = infer(log, tmp_path, "parquet")
    assert "; -3 to " in found.text  # a single value that the sample need not contain
    (days,) = (f for f in found.schema.fields if f.name == "register_days")
    assert days.minimum is None


def test_the_command_writes_a_file_and_keeps_an_edited_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(generated(builtin_schema("kuairand"), 3000), tmp_path, "csv")
    command = ["data", "infer-schema", str(path), "--out", str(tmp_path / "s.yaml")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "time: time_ms; label: is_click" in shown and "user: user_id; item: video_id" in shown
    assert f"thinktwice pipeline run --source log --path {path} --schema {tmp_path / 's.yaml'}" in shown
    (tmp_path / "s.yaml").write_text("mine")
    assert main(command) == 1 and "may contain your changes" in capsys.readouterr().err
    assert (tmp_path / "s.yaml").read_text() == "mine"
    assert main([*command, "--force"]) == 0 and load_schema(tmp_path / "s.yaml").label.column == "is_click"


@pytest.mark.parametrize("name", ["2024", "null", "true", "off", "1e5", "0x1f", "1_000", "2024-03-01", "~", "y"])
def test_a_file_of_any_name_gives_a_schema_with_a_name(name: str, tmp_path: Path) -> None:
    as_csv(small_log(100), tmp_path / f"{name}.csv")
    assert infer_schema(str(tmp_path / f"{name}.csv"), label="bought").schema.name in (
        name,
        name.replace("_", "-"),
        "log",
    )


def test_many_rows_without_a_user_raise_the_budget_with_a_question(tmp_path: Path) -> None:
    log = generated(builtin_schema("kuairand"), 3000)
    log = log.with_columns(pl.when(pl.int_range(pl.len()) % 10 == 0).then(None).otherwise("user_id").alias("user_id"))
    found = infer(log, tmp_path)
    assert found.schema.quarantine_budget >= 0.1
    assert "# ? Up to 10.0% of the rows will be quarantined (300 without user_id)" in found.text
    assert "# ? Are these the rows of anonymous visitors? Then add 'anonymous: true'" in found.text
    text = found.text.replace("user: {key: user_id", "user: {key: user_id, anonymous: true", 1)
    (tmp_path / "anonymous.yaml").write_text(text, encoding="utf-8")
    assert load_schema(tmp_path / "anonymous.yaml").entities.user.anonymous  # type: ignore[union-attr]


def two_valued(values: tuple[object, object], rows: int = 3000) -> pl.DataFrame:
    """A small log with a column ``flag`` of two values."""
    draw = np.random.default_rng(4)
    return pl.DataFrame(
        {
            "shown_at": [START_S + 60 * n for n in range(rows)],
            "clicked": draw.integers(0, 2, rows),
            "user_id": [f"u{n % 41}" for n in range(rows)],
            "item_id": [f"i{n % 17}" for n in range(rows)],
            "flag": [values[int(n)] for n in draw.integers(0, 2, rows)],
        }
    )


TRUTHS = [
    (True, False),
    ("true", "false"),
    ("True", "False"),
    ("TRUE", "FALSE"),
    ("t", "f"),
    ("Yes", "No"),
    ("y", "n"),
    ("on", "off"),
    (1, 0),
]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("values", TRUTHS, ids=str)
def test_spelled_truth_values_are_boolean_and_digits_are_not(
    values: tuple[object, object], ending: str, tmp_path: Path
) -> None:
    found = infer(two_valued(values), tmp_path, ending)
    lines = found.text.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.lstrip(" #").startswith("- {name: flag")]
    spelled = type(values[0]) is not int
    assert ("kind: boolean" in lines[place]) == spelled
    assert ("truth values" if spelled else "with kind: boolean a request may send true and false") in lines[place - 1]
    (tmp_path / "s.yaml").write_text(found.text)
    ingest("log", found.log_paths[0], tmp_path / "s.yaml", tmp_path / "raw")
    assert split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r").rows_quarantined == 0
    schema = load_schema(tmp_path / "clean" / "schema.yaml")
    table = read_frame(tmp_path / "clean" / "clean.parquet").with_columns(recent_items=pl.lit(None, pl.List(pl.String)))
    encoder = Encoder.fit(
        table.select(f.name for f in schema.model_fields_in_order() if f.name in table.columns).to_arrow(), bare(schema)
    )
    assert set(encoder.values_of("flag")) == ({"true", "false"} if spelled else {"0", "1"})
    parser = RequestParser(bare(schema), online=False)
    # What the comment promises is so: in a boolean field JSON's true is the log's yes; among the codes 0 and 1 it is unknown.
    for value, known in ((True, spelled), (False, spelled), *((each, True) for each in values)):
        (row,) = parser.parse({"rows": [{"flag": value}]}, "r").rows or ()
        column = encoder.column_of("flag")
        assert (encoder.encode_rows([row]).ids[0, column] > 0) == known, value


def bare(schema: LogSchema) -> LogSchema:
    """Without statistics and sequences, which the feature store computes."""
    return schema.model_copy(update={"statistics": None, "sequences": ()})
