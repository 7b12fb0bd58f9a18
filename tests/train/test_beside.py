"""A model that is trained in a process beside this one has the bits of one that is trained here, whatever becomes of the process."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.logs import build_small
from thinktwice import threads
from thinktwice.data.encoded import num_bytes
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import TrainingError
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.threads import usable_cores
from thinktwice.train import beside as module
from thinktwice.train.beside import MOST_BYTES, beside, here
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.later_blocks import later_blocks
from thinktwice.train.tune import TuningCandidate

Train = Callable[[nn.Linear], None]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.delenv(threads.VARIABLE, raising=False)


def build() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def steps(calls: list[int]) -> Train:
    """A training of a few steps that notes in which process it runs."""

    def train(model: nn.Linear) -> None:
        calls.append(os.getpid())
        for _ in range(5):
            model.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * parameter.grad

    return train


def weights(model: nn.Module) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in model.state_dict().values()]


def test_it_is_trained_beside_with_the_same_bits() -> None:
    calls: list[int] = []
    with beside(build, steps(calls), 1) as training:
        found = training.model()
    assert calls == []  # this process trained nothing
    with here(build, steps(calls)) as training:
        expected = training.model()
    assert calls == [os.getpid()] and weights(found) == weights(expected) != weights(build())


@pytest.mark.parametrize("why", ["one core", "two threads", "many rows", "a GPU"])
def test_without_an_idle_core_it_is_trained_here(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "one core":
        monkeypatch.setattr(module, "usable_cores", lambda: 1)
    if why == "two threads":
        monkeypatch.setenv(threads.VARIABLE, "2")
    if why == "a GPU":
        monkeypatch.setattr(module, "training_device", lambda: torch.device("cuda"))
    calls: list[int] = []
    with beside(build, steps(calls), MOST_BYTES + 1 if why == "many rows" else 1) as training:
        training.model()
    assert calls == [os.getpid()]


@pytest.mark.parametrize("ends", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0), lambda: 1 / 0])
def test_a_process_that_ends_without_weights_costs_nothing_but_time(ends: Callable[[], object]) -> None:
    calls: list[int] = []
    own = os.getpid()

    def train(model: nn.Linear) -> None:
        if os.getpid() != own:
            ends()
        steps(calls)(model)

    with beside(build, train, 1) as training:
        found = training.model()
    with here(build, steps([])) as training:
        assert weights(found) == weights(training.model())
    assert calls == [own]


def test_the_error_of_a_training_is_raised_here() -> None:
    def train(model: nn.Linear) -> None:
        raise TrainingError("the training loss is nan")

    with pytest.raises(TrainingError, match="loss is nan"), beside(build, train, 1) as training:
        training.model()


def test_nothing_is_left_of_a_training_that_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = tmp_path / "started"

    def train(model: nn.Linear) -> None:
        started.write_text(str(os.getpid()))
        time.sleep(600)

    with pytest.raises(KeyError), beside(build, train, 1):
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        raise KeyError("something else fails")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_blocks_have_the_same_scores_on_one_core_and_on_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_training_set(build_small(tmp_path / "set", rows=2000))
    rows, fields = data.part("train"), FieldSpace.of(data.schema, data.encoder)
    config = FinetuneConfig(batch_size=256, table_l2=(1e-3,), augmentations=("none",), epochs=0.5)
    begun = []
    begin = module.beside
    monkeypatch.setattr("thinktwice.train.later_blocks.beside", lambda *args: begun.append(args[2]) or begin(*args))
    scores = []
    for cores in (1, 2):
        monkeypatch.setattr(module, "usable_cores", lambda number=cores: number)
        found = later_blocks(
            rows,
            data.part("valid"),
            fields,
            DeepFMConfig(dim=4, hidden=(8,)),
            config,
            TuningCandidate(1e-3, "mask_block"),
            split="time",
            seed=0,
            stage="finetune",
        )
        scores.append([(b.rows.tobytes(), b.trained_on.tobytes(), b.logits.tobytes()) for b in found])
    assert scores[0] == scores[1] and len(scores[0]) == 2
    assert begun == [num_bytes(rows.take(np.arange(len(rows) // 2)))] * 2


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", 64), ("150000 100000", 1), ("50000 100000", 1), ("400000 100000", 4), ("", 64), ("1 0", 64)],
)
def test_the_cpu_limit_of_a_container_counts(
    text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "missing") == 64
