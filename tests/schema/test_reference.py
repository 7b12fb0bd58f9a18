"""The reference covers every key of the types, its examples are valid, and editors accept what the loader accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from thinktwice.cli import main
from thinktwice.data.sources.registry import SOURCES, builtin_schema_text
from thinktwice.errors import SchemaError
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.schema.reference import KEYS, json_schema, reference_page
from thinktwice.strict_yaml import _models_in

ROOT = Path(__file__).resolve().parents[2]


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    inner = {found for field in model.model_fields.values() for found in _models_in(field.annotation)}
    return {model}.union(*map(models, inner))


def test_every_key_of_every_type_is_described() -> None:
    assert set(KEYS) == models(LogSchema)
    for model, (_, keys) in KEYS.items():
        assert list(keys) == list(model.model_fields)


@pytest.mark.parametrize("model", KEYS)
def test_the_examples_are_valid(model: type[BaseModel]) -> None:
    for key, (_, example) in KEYS[model][1].items():
        value = yaml.safe_load(example)
        assert list(value) == [key]
        if model.__module__ == "thinktwice.schema.statistics":
            model.model_validate(value)  # each key is valid alone, and durations are read by the model
        elif model is LogSchema:
            continue  # the whole file is checked below
        else:
            of = model.model_fields[key]
            TypeAdapter(Annotated[(of.annotation, None, *of.metadata)]).validate_python(value[key])  # type: ignore[valid-type]


def test_the_examples_of_the_file_are_one_valid_file() -> None:
    lines = [example for key, (_, example) in KEYS[LogSchema][1].items() if key != "truth"]
    assert parse_schema("\n".join(lines), where="examples").statistics is not None


def test_the_page_in_the_repository_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == reference_page()
    assert main(["data", "schema-reference"]) == 0
    assert capsys.readouterr().out == reference_page()


def test_editors_accept_the_built_in_schemas_and_refuse_typos(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "schema-reference", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for name in (source.name for source in SOURCES.values() if source.has_schema):
        assert not list(validator.iter_errors(yaml.safe_load(builtin_schema_text(name)))), name
    broken = yaml.safe_load(builtin_schema_text("ml-100k"))
    broken["fields"][0]["allowd"] = broken["fields"][0].pop("allowed")
    assert list(validator.iter_errors(broken))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fields: [{name: a, kind: numerc}]", "'numerc' is unknown: did you mean 'numeric'"),
        ("fields: [{name: a, entity: itm}]", "did you mean 'item'"),
        ("fields: [{name: a, derived: hours}]", "did you mean 'hour'"),
        ("time: {column: t, format: date_time}\nfields: [{name: a}]", "did you mean 'datetime'"),
        ("fields: [{name: a, allowd: [x]}]", "did you mean 'allowed'"),
    ],
)
def test_typos_of_keys_and_choices_get_a_suggestion(text: str, message: str) -> None:
    full = f"name: x\n{'' if 'time:' in text else 'time: {format: order}'}\n{text}\n"
    with pytest.raises(SchemaError) as caught:
        parse_schema(full, where="x.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)
