"""The device of training, and a GPU that was promised and is not there."""

from __future__ import annotations

import pytest
import torch

from pipelines.nodes import ACCELERATORS as SET_BY_THE_PIPELINE
from thinktwice.errors import ResourceError
from thinktwice.train.device import ACCELERATORS, training_device


def test_the_pipeline_and_the_library_mean_the_same_variable() -> None:
    assert SET_BY_THE_PIPELINE == ACCELERATORS


@pytest.mark.parametrize("promised", [None, "", "0"])
def test_nothing_is_promised(promised: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ACCELERATORS, raising=False)
    if promised is not None:
        monkeypatch.setenv(ACCELERATORS, promised)
    assert training_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("usable", "cuda", "said"),
    [
        (0, None, "built without CUDA: use an image"),
        (0, "13.0", "limit nvidia.com/gpu"),
        (1, "13.0", "2 GPU.* 1 are usable"),
    ],
)
def test_a_promised_gpu_that_is_missing(
    usable: int, cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ACCELERATORS, "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: usable)
    monkeypatch.setattr("torch.version.cuda", cuda)
    with pytest.raises(ResourceError, match=said):
        training_device()


@pytest.mark.parametrize("value", ["all", "-1", "1.5", "\u0661"])
def test_a_promise_that_is_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCELERATORS, value)
    with pytest.raises(ResourceError, match="number of GPUs"):
        training_device()
