"""Bundles that somebody changed, with hashes that fit: every file is validated when it is loaded, and what is wrong is named.

A bundle either loads and gives finite scores, or is refused with one sentence: never another error, never a hang.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.releases import rehash, with_tensor
from tests.serving.small import identity, with_members
from thinktwice.errors import BundleError, ThinktwiceError
from thinktwice.evaluate.package import write_bundle
from thinktwice.files import read_json, write_json
from thinktwice.models.backends.backend import random_rows
from thinktwice.release.bundle import MANIFEST_FILE, Bundle, load_bundle, read_manifest, verify_bundle

NET = "cannot be loaded ("  # of the last resort, which names no file: what it catches has no check of its own


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all kinds of files but ``backend.onnx``; nobody writes into it."""
    folder = tmp_path_factory.mktemp("whole")
    given = {f"{n}_dir": small / "parts" / n for n in ("training_set", "model", "test_time", "evaluation")}
    parts = with_members(given, folder / "test_time")
    write_bundle(folder / "bundle", **parts, identity=identity())
    manifest = read_json(folder / "bundle" / MANIFEST_FILE)
    for name in ("heads.safetensors", "combinations.safetensors"):
        shutil.copyfile(folder / "test_time" / name, folder / "bundle" / name)
        manifest["files"][name] = {}
    # Pinned weights would refuse every change of them at once.
    test_time = read_json(folder / "bundle" / "test_time.json")
    write_json(folder / "bundle" / "test_time.json", test_time | {"weights": ""})
    write_json(folder / "bundle" / MANIFEST_FILE, manifest)
    rehash(folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "bundle")
    return tmp_path / "bundle"


def scores(bundle: Bundle) -> bytes:
    scored = bundle.engine.score(random_rows(bundle.model, 40, seed=3))
    assert np.isfinite(scored.logit).all() and np.isfinite(scored.uncertainty).all()
    return scored.logit.tobytes() + scored.uncertainty.tobytes() + scored.num_paths.tobytes()


def refused(folder: Path) -> str:
    rehash(folder)
    with pytest.raises(ThinktwiceError) as caught:
        load_bundle(folder)
    text = str(caught.value)
    assert "\n" not in text and "errors.pydantic.dev" not in text
    return text


def tensor(file: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: with_tensor(folder / file, name, change)


def one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(found: np.ndarray) -> np.ndarray:
        found.reshape(-1)[found.size // 2] = value
        return found

    return change


def edit(file: str, *path: str | int, value: Any = None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = read_json(folder / file)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(content) and None


W, M, T, E = "weights.safetensors", "model.json", "test_time.json", "encoder.json"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{file} {name} {value}": (
            tensor(file, name, one(value)),
            rf"{file} contains numbers in '{name}' that are not finite, or above 1,000,000",
        )
        for file, name in ((W, "table"), (W, "mlp.0.weight"), (f"members/0/{W}", "out.weight"))
        for value in (np.nan, np.inf, -np.inf, 1e38)
    },
    "heads": (tensor("heads.safetensors", "weight", one(np.nan)), r"heads\.safetensors are damaged .*not finite"),
    "whole numbers": (
        tensor(W, "table", lambda t: t.astype(np.int32)),
        r"weights\.safetensors contains 'table' as torch.int32",
    ),
    "half": (
        tensor(W, "bias", lambda t: t.astype(np.float16)),
        "contains 'bias' as torch.float16 instead of torch.float32",
    ),
    "shape": (tensor(W, "bias", lambda t: t.reshape(1)), r"contains 'bias' with the shape \(1,\) instead of \(\)"),
    "kappa": (
        tensor("counts.safetensors", "kappa", one(np.nan)),
        r"counts\.safetensors are damaged \('kappa' contains",
    ),
    "kappa 0": (tensor("counts.safetensors", "kappa", one(0)), "'kappa' contains"),
    "counts": (
        tensor("counts.safetensors", "counts", lambda t: t.astype(np.int64)),
        "'counts' as int64 instead of uint8",
    ),
    "counts nan": (
        tensor("counts.safetensors", "counts", lambda t: t * np.nan),
        "'counts' as float64 instead of uint8",
    ),
    "fewer counts": (tensor("counts.safetensors", "counts", lambda t: t[1:]), "describe different numbers of values"),
    "pairs": (tensor("combinations.safetensors", "pairs", one(99)), "'pairs' does not name different columns"),
    "cells": (tensor("combinations.safetensors", "2.cells", lambda t: t[:, 1:]), "'cells' has the shape"),
    "starts": (tensor("combinations.safetensors", "2.starts", lambda t: t * 0), "'starts' is not the index"),
    "calibration nan": (
        text(M, '{"calibration": {"a": NaN}}'),
        r"model\.json cannot be read \(the number NaN is not finite",
    ),
    "calibration large": (edit(M, "calibration", "a", value=1e300), "calibration.a: Input should be less than"),
    "hidden": (edit(M, "backbone", "hidden", value=[65536] * 40), "hidden: Tuple should have at most 32 items"),
    "huge": (edit(M, "backbone", "hidden", value=[65536] * 32), r"weights\.safetensors (holds|lacks)"),
    "temperature": (edit(T, "config", "temperature", value=1e-300), "temperature: Input should be greater"),
    "importance": (edit(T, "config", "importance", value=[-1.0]), "importance.0: Input should be greater"),
    "strengths": (
        edit(T, "config", "base", value={"kind": "gate", "strength": 1.0, "field_strengths": [1.0]}),
        "field_strengths names 1 fields and the model has",
    ),
    "count": (edit(T, "config", "second_look", "max_path_rows", value=10**30), "max_path_rows: Input should be"),
    "version": (edit(T, "format", value=True), "format: Input should be a valid integer"),
    "encoder list": (text(E, "[]"), r"encoder\.json cannot be read \(Input should be a valid dictionary"),
    "bounds": (edit(E, "bounds", "price", value=[3.0, 1.0]), "the bounds of 'price' are not ascending"),
    "entity": (edit(E, "fields", 3, "entity", value="user"), "field 'genre' has another entity"),
    "key": (edit(E, "user_key", value="item_id"), "the users' key is 'user_id' and 'item_id'"),
    "protected": (edit(E, "fields", 2, "protected", value=True), "field 'gender' has another protected"),
    "profile": (
        edit("profile.json", "fields", 0, "name", value="other"),
        r"profile\.json is damaged .it describes other",
    ),
    "profile nan": (text("profile.json", '{"format": 1, "train_rows": Infinity}'), "the number Infinity is not finite"),
    "profile bins": (edit("profile.json", "fields", 0, "train", "counts", value=[1]), "'user_id' has other bins"),
    "report": (text("report/evaluation.json", "[]"), r"report/evaluation\.json is damaged .it is not an object"),
    "backend": (text("backend.json", '{"backend": "pickle"}'), "'bfloat16', not 'pickle'"),
    "backend file": (text("backend.json", '{"backend": "onnx"}'), r"backend\.onnx cannot be read"),
    **{
        f"deep {name}": (text(name, "[" * 20_000), f"{name}.*nested too deeply")
        for name in (M, T, E, "profile.json", "backend.json", "report/evaluation.json", "schema.yaml")
    },
    "number": (text(M, '{"a": ' + "9" * 5000 + "}"), "limit .4300 digits. for integer"),
    "twice": (text(M, '{"stage": "x", "stage": "y"}'), "the key 'stage' appears twice"),
    "surrogate": (text(T, '{"format": 3, "x": "\\ud800"}'), "it is not UTF-8 text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named(bundle: Path, name: str) -> None:
    change, words = WRONG[name]
    change(bundle)
    message = refused(bundle)
    assert re.search(words, message), message
    assert NET not in message


def test_members_that_would_not_be_asked_are_checked_too(bundle: Path) -> None:
    with_tensor(bundle / f"members/0/{W}", "bias", lambda found: found * np.nan)
    assert f"members/0/{W} contains numbers in 'bias' that are not finite" in refused(bundle)


SCHEMAS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "field removed": (lambda s: s["fields"].pop(1), "field 'genre'|field 'price'"),
    "hour and weekday swapped": (
        lambda s: s["fields"].__setitem__(slice(5, 7), s["fields"][6:4:-1]),
        "field 'weekday' has another name",
    ),
    "an item's field given to the user": (lambda s: s["fields"][1].update(entity="user"), "'genre' has another entity"),
    "keys swapped": (
        lambda s: s.update(entities={"user": s["entities"]["item"], "item": s["entities"]["user"]}),
        "field 'item_id' has another name|sequence",
    ),
    "kind": (lambda s: s["fields"][2].update(kind="categorical", buckets=32), "field 'price' has another kind"),
    "length": (lambda s: s["sequences"][0].update(length=4), "field 'history' has another length"),
    "buckets": (lambda s: s["fields"][2].update(buckets=5), "field 'price' has another buckets"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_and_encoder_must_tell_the_same(bundle: Path, name: str) -> None:
    change, words = SCHEMAS[name]
    value = yaml.safe_load((bundle / "schema.yaml").read_text())
    change(value)
    (bundle / "schema.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    message = refused(bundle)
    assert re.search(words, message), message


def test_aliases_that_unfold_without_end_are_refused(bundle: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    (bundle / "schema.yaml").write_text(bomb)
    assert "values once its aliases are expanded" in refused(bundle)
    (bundle / "schema.yaml").write_text("fields: &x [*x]\n")
    assert "has an alias at line 1 that refers to itself" in refused(bundle)


def special(make: Callable[[Path], object], name: str = "report/report.html") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # the system limits the length of the path
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (special(os.mkfifo), r"report\.html is not a plain file"),
    "pipe as manifest": (special(os.mkfifo, MANIFEST_FILE), r"manifest\.json: it is not a plain file"),
    "socket": (special(socket_file), r"report\.html is not a plain file"),
    "device": (special(lambda path: path.symlink_to("/dev/zero")), r"report\.html is a link"),
    "link to itself": (special(lambda path: path.symlink_to(path)), r"report\.html is a link"),
    "folder": (special(Path.mkdir), r"report\.html is not a plain file"),
    "extra pipe": (lambda f: os.mkfifo(f / "x"), "x is not in the manifest"),
    "empty folder": (lambda f: (f / "more").mkdir(), "more is not in the manifest"),
    "deep folders": (lambda f: (f / "a/b/c").mkdir(parents=True), "a is not in the manifest"),
    "other case": (lambda f: (f / "Schema.yaml").write_text(""), r"Schema\.yaml is not in the manifest"),
    "hidden": (lambda f: (f / ".x").write_text(""), r"\.x is not in the manifest"),
    "linked folder": (lambda f: (f / "report").rename(f.parent / "r") and (f / "report").symlink_to(f.parent / "r"), "report is a link"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_only_plain_files_may_be_there(bundle: Path, name: str) -> None:
    change, words = FOLDERS[name]
    change(bundle)
    with pytest.raises(BundleError, match=words) as caught:
        verify_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format": true}',
        b'{"format": 1.0}',
        b'{"format": "1"}',
        b"\xff",
        b"",
        b"null",
        b" " * (2 << 20),
    ],
)
def test_a_manifest_that_is_none_is_named(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json") as caught:
        read_manifest(bundle)
    assert "\n" not in str(caught.value) and "pydantic.dev" not in str(caught.value)


def test_a_manifest_whose_one_is_true_is_refused(bundle: Path) -> None:
    write_json(bundle / MANIFEST_FILE, read_json(bundle / MANIFEST_FILE) | {"format": True})
    with pytest.raises(BundleError, match="format: Input should be a valid integer"):
        load_bundle(bundle)


def test_spelling_alone_changes_no_score(whole: Path, bundle: Path) -> None:
    """JSON with other spaces and another order of keys says the same."""
    expected = scores(load_bundle(whole))
    for path in bundle.rglob("*.json"):
        if path.name != MANIFEST_FILE:
            value = json.loads(path.read_text())
            path.write_text(json.dumps(dict(reversed(list(value.items()))), indent=7))
    rehash(bundle)
    assert scores(load_bundle(bundle)) == expected


@pytest.mark.parametrize("damage", ["flip", "cut", "append"])
def test_without_consistent_hashes_every_change_is_refused(bundle: Path, damage: str) -> None:
    for name in read_manifest(bundle).files:
        data = (bundle / name).read_bytes()
        changed = {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:-1],
            "append": data + b"\n",
        }[damage]
        (bundle / name).write_bytes(changed)
        with pytest.raises(BundleError, match=name):
            load_bundle(bundle)
        (bundle / name).write_bytes(data)


VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2, 0.5, 1e38, 1e308, -1e308, 10**30, 2**31, 2**63, -(2**63)),
    *("", "x", "\0", "x" * 3000, [], {}, [[]], [None], {"a": 1}, [1e308] * 3),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated_json(data: st.DataObject, content: bytes) -> bytes:
    """The same document with a value put, removed, doubled, renamed, moved or scaled."""
    root = {"": json.loads(content)}
    found = [p for p in places(root) if p]
    path = data.draw(st.sampled_from(found))
    parent: Any = root
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    match data.draw(st.sampled_from(["put", "remove", "double", "rename", "move", "scale"])):
        case "remove" if path != ("",):
            del parent[key]
        case "double" if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case "rename" if isinstance(parent, dict) and path != ("",):
            parent[f"{key}x"] = parent.pop(key)
        case "move":
            other: Any = root
            for step in data.draw(st.sampled_from(found)):
                other = other[step]
            parent[key] = copy.deepcopy(other)
        case "scale" if isinstance(parent[key], int | float):
            parent[key] *= data.draw(st.sampled_from([-1, 1000, 1e20]))
        case _:
            parent[key] = data.draw(st.sampled_from(VALUES))
    return json.dumps(root[""]).encode()


def mutated_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Flipped, cut, inserted and dropped bytes, most of them in the part that a parser reads."""
    out = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        last = max(len(out) - 1, 0)
        place = data.draw(st.one_of(st.integers(0, min(last, 400)), st.integers(0, last)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "fill"])):
            case "flip" if out:
                out[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del out[place:]
            case "insert":
                out[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del out[place : place + data.draw(st.integers(1, 8))]
            case _:
                out[place : place + 8] = b"\xff" * 8
    return bytes(out)


def loads_or_says_why(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rehash(folder)
    try:
        loaded = load_bundle(folder)
    except ThinktwiceError as error:
        assert "\n" not in str(error) and "errors.pydantic.dev" not in str(error) and NET not in str(error)
    else:
        scores(loaded)


FUZZ = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_any_change_of_any_file_loads_or_is_named(data: st.DataObject, whole: Path, bundle: Path) -> None:
    name = data.draw(st.sampled_from(sorted(read_manifest(whole).files)))
    before = (whole / name).read_bytes()
    structural = name.endswith(".json") and data.draw(st.booleans())
    try:
        loads_or_says_why(bundle, name, (mutated_json if structural else mutated_bytes)(data, before))
    finally:
        (bundle / name).write_bytes(before)
