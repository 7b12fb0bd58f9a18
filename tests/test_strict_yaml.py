"""YAML that people write is read whole or refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import load_config
from thinktwice.errors import DataError, SchemaError, ServerError
from thinktwice.schema import load_schema, parse_schema
from thinktwice.strict_yaml import mapping, read_mapping

ROOT = Path(__file__).parents[1]
SCHEMA = "name: shop\ntime: {column: t, format: datetime}\nfields:\n  - {name: dev}\n"

keys = st.text(st.characters(codec="ascii", categories=("Ll",)), min_size=1, max_size=4)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def read(text: str) -> dict[str, Any]:
    return mapping(text, "file x", DataError)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.dictionaries(keys, values), st.booleans())
def test_what_was_written_is_read(value: dict[str, Any], flow: bool) -> None:
    assert read(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value


def lines_of(value: Any, indent: int, twice: list[int], at: list[int], key_lines: dict[int, list[int]]) -> list[str]:
    """Block YAML of nested mappings; the mapping number ``twice`` gets its first key again at its end."""
    out: list[str] = []
    mine = at[0]
    at[0] += 1
    places: list[int] = []
    for key, inner in value.items():
        places.append(len(out))
        if isinstance(inner, dict) and inner:
            out.append(" " * indent + f"{key}:")
            out += lines_of(inner, indent + 2, twice, at, key_lines)
        else:
            out.append(" " * indent + f"{key}: 1")
    if mine == twice[0]:
        out.append(" " * indent + f"{next(iter(value))}: 2")
    return out


nested = st.recursive(
    st.just({}), lambda inner: st.dictionaries(keys.map(lambda k: f"k{k}"), inner, min_size=1, max_size=3), max_leaves=8
).filter(bool)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(nested, st.data())
def test_a_key_that_is_there_twice_is_refused_at_any_depth(value: dict[str, Any], data: st.DataObject) -> None:
    at = [0]
    lines_of(value, 0, [-1], at, {})
    text = "\n".join(lines_of(value, 0, [data.draw(st.integers(0, at[0] - 1))], [0], {}))
    with pytest.raises(
        DataError, match=r"file x has the key 'k\w*' twice, at lines \d+ and \d+: one would replace"
    ) as caught:
        read(text)
    name, first, second = re.findall(r"key '(\w+)' twice, at lines (\d+) and (\d+)", str(caught.value))[0]
    lines = text.splitlines()
    assert lines[int(first) - 1].strip().startswith(f"{name}:") and lines[int(second) - 1].strip() == f"{name}: 2"


@pytest.mark.parametrize(
    "text",
    [
        "True: 1\ntrue: 2",
        "a: 1\n'a': 2",
        "{a: 1, a: 1}",
        "x: [{b: 1, c: 2, b: 3}]",
        "<<: {a: 1}\n<<: {b: 2}",
        "1: a\n0x1: b",
    ],
)
def test_keys_are_equal_by_what_they_mean(text: str) -> None:
    with pytest.raises(DataError, match="twice, at lines"):
        read(text)


def test_anchors_and_merge_keys_behave() -> None:
    text = "base: &b {kind: numeric, buckets: 4}\none: {<<: *b, buckets: 8}\ntwo: {<<: [*b, {x: 1}]}\nlist: [*b, *b]\n"
    assert read(text) == {
        "base": {"kind": "numeric", "buckets": 4},
        "one": {"kind": "numeric", "buckets": 8},
        "two": {"kind": "numeric", "buckets": 4, "x": 1},
        "list": [{"kind": "numeric", "buckets": 4}] * 2,
    }
    chained = "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}"
    assert read(chained)["c"] == {"x": 3, "y": 2}
    assert read("") == read("# nothing\n") == {}


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "contains more than 200,000 values once its aliases are expanded"),
        (MERGED_LAUGHS, "contains more than 200,000 values"),
        ("a: &a [1, *a]", "has an alias at line 1 that refers to itself"),
        ("a: &a\n  b: *a", "refers to itself"),
        ("[" * 5000, "is nested too deeply"),
        ("a: " + "{b: " * 3000 + "}" * 3000, "is nested too deeply"),
        ("a:\n\tb: 1", "is not valid YAML at line 2 (tabs are not allowed for indentation)"),
        ("a: [1, 2", "is not valid YAML at line 1"),
        ("a: 1\n b: 2", "is not valid YAML at line 2"),
        ("a: *nobody", "found undefined alias 'nobody'"),
        ("a: 1\n---\nb: 2", "a second document begins after '---'"),
        (
            "a: !!python/object/apply:os.system [x]",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not supported",
        ),
        ("? [a]\n: 1", "has a key at line 1 that is a list or a mapping"),
        ("a: " + "1" * 5000, "contains a value that cannot be read"),
        ("a: \x07", "is not valid YAML"),
        ("- a", "contains a list instead of a mapping"),
        ("just words", "contains a text instead of a mapping"),
        ("7", "contains a number instead of a mapping"),
        ("1: a", "has the key 1, which is not text"),
        ("true: a", "has the key True, which is not text"),
        ("a: " + "x" * (1 << 20), "at most 1,048,576 are read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith("file x ") and words in message and "\n" not in message and len(message) < 300


def test_the_schema_and_the_settings_are_read_by_it(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(SCHEMA + "fields:\n  - {name: price, kind: numeric}\n")
    with pytest.raises(SchemaError, match=r"schema file .*x\.yaml has the key 'fields' twice, at lines 3 and 5"):
        load_schema(file)
    with pytest.raises(SchemaError, match=r"schema my\.yaml has the key 'name' twice, at lines 4 and 4"):
        parse_schema(SCHEMA.replace("{name: dev}", "{name: dev, name: day}"), where="my.yaml")
    file.write_text("arm: a\nfeatures: {reader: feast, reader: redis}\n")
    with pytest.raises(ServerError, match=r"serving settings file .* has the key 'reader' twice, at lines 2 and 2"):
        load_config(file)
    file.write_text("# all defaults\n")
    assert load_config(file) == load_config(None)
    file.write_text("")
    with pytest.raises(SchemaError, match=r"schema .*x\.yaml is empty: start with 'name:'"):
        load_schema(file)


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for encoding in ("utf-16", "latin-1"):
        file.write_bytes("name: Größe\n".encode(encoding))
        with pytest.raises(DataError, match=r"recipe .*x\.yaml is not UTF-8 text \(byte \d+\): save it as UTF-8"):
            read_mapping(file, "recipe", DataError)
    file.write_bytes("name: Größe\n".encode("utf-8-sig"))
    assert read_mapping(file, "recipe", DataError) == {"name": "Größe"}
    for place, reason in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(DataError, match=f"recipe .* cannot be read \\({reason}"):
            read_mapping(place, "recipe", DataError)


@pytest.mark.parametrize("value", ["NO", "on", "y", "010", "2024-01-01", "12:30", "1_000", "1e5", "0o7", "=", "."])
def test_what_is_neither_true_nor_false_nor_a_plain_number_is_text(value: str) -> None:
    assert read(f"a: {value}\n{value}: b") == {"a": value, value: "b"}
    schema = parse_schema(SCHEMA.replace("name: dev", f"name: dev, allowed: [{value}]"), where="my.yaml")
    assert schema.fields[0].allowed == (value,)
    assert parse_schema(schema.to_yaml(), where="written") == schema


def test_a_text_that_yaml_takes_for_something_else_is_said() -> None:
    with pytest.raises(SchemaError, match=r"fields\.0\.column: .* \(YAML has read it as 7: put it in quotes\)"):
        parse_schema(SCHEMA.replace("name: dev", "name: dev, column: 7"), where="my.yaml")


def test_nothing_else_loads_yaml() -> None:
    found = []
    for room in (
        "thinktwice",
        "feature_repo",
        "components",
        "pipelines",
        "serving",
        "demo",
        "benchmarks",
        "examples",
        "images",
    ):
        for path in sorted((ROOT / room).rglob("*.py")):
            if re.search(
                r"yaml\.(safe_|full_|unsafe_)?load|SafeLoader|CLoader|ruamel", path.read_text(encoding="utf-8")
            ):
                found.append(path.relative_to(ROOT).as_posix())
    assert found == ["thinktwice/strict_yaml.py"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            "fields:\n  - {name: dev, allowd: [a]}",
            r"fields\.0\.allowd: there is no such key; did you mean 'allowed'\? Known are name, kind",
        ),
        ("entities: {user: {key: u, colum: x}}", r"entities\.user\.colum: .* did you mean 'column'\?"),
        (
            "vectors: [{name: v, dims: 2}]",
            r"vectors\.0\.dims: .* did you mean 'dim'\?",
        ),  # the required key is missing, too
        ("vectors: [{name: v, entty: item}]", r"vectors\.0\.dim: Field required"),
        ("entities: {usr: {key: u}}", r"entities\.usr: .* did you mean 'user'\? Known are user, item"),
        ("statistic: {windows_days: [1]}", r"statistic: .* did you mean 'statistics'\? Known are name, time, label"),
        (
            "sequences: [{name: s, of: i, zzz: 1}]",
            r"sequences\.0\.zzz: there is no such key; known are name, of, length",
        ),
    ],
)
def test_a_key_that_does_not_exist_is_named_with_the_nearest_one(wrong: str, words: str) -> None:
    text = "name: shop\ntime: {column: t, format: datetime}\n" + wrong
    with pytest.raises(SchemaError, match=words):
        parse_schema(text, where="my.yaml")


def test_a_setting_that_does_not_exist_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("features: {reader: feast, timeout: 3}\n")
    with pytest.raises(
        ServerError, match=r"wrong at features\.timeout \(there is no such key; did you mean 'timeout_ms'\?"
    ):
        load_config(tmp_path / "x.yaml")
