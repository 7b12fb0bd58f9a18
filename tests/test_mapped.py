"""Memory maps of safetensors files agree with the reference reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.memory_maps import is_mapped
from thinktwice.errors import BundleError
from thinktwice.mapped import map_tensors

TENSORS = {
    "bytes": np.arange(7, dtype=np.uint8),
    "longs": np.arange(12, dtype=np.int64).reshape(3, 4),
    "reals": np.linspace(0, 1, 5),
    "keys": np.array([2**63, 1], np.uint64),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 2), np.float32),
}
TYPES = {name: value.dtype.type for name, value in TENSORS.items()}


def test_every_tensor_is_mapped_as_the_reference_reads_it(tmp_path: Path) -> None:
    save_file(TENSORS, str(tmp_path / "a.safetensors"), metadata={"for": "test"})
    found, expected = map_tensors(tmp_path / "a.safetensors", TYPES), load_file(str(tmp_path / "a.safetensors"))
    assert found.keys() == expected.keys()
    assert not any(is_mapped(value, tmp_path / "a.safetensors") for value in expected.values()), "the check can fail"
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value), name
        if value.size:
            assert is_mapped(found[name], tmp_path / "a.safetensors")
            with pytest.raises(ValueError, match="read-only"):
                found[name][...] = 0


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\x00" * 64, (20).to_bytes(8, "little") + b'{"a": {"dtype": 1}}x', b"\xff" * 32],
)
def test_what_is_no_such_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"bad\.safetensors cannot be read"):
        map_tensors(path, TYPES)


def test_a_shape_whose_size_overflows_is_refused(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "U64", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleError, match="truncated"):
        map_tensors(path, {"a": np.uint64})


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated"):
        map_tensors(path, TYPES)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ({**TYPES, "more": np.uint8}, "it lacks 'more'"),
        ({k: v for k, v in TYPES.items() if k != "keys"}, "it contains the unknown tensor 'keys'"),
        ({**TYPES, "reals": np.float32}, "it contains 'reals' as float64 instead of float32"),
    ],
)
def test_other_tensors_than_expected_are_refused(types: dict[str, type], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, str(path))
    with pytest.raises(BundleError, match=words):
        map_tensors(path, types)
