"""Bundles and models that an older version wrote, in ``tests/frozen``: they load, and score to the same bits.

``golden.json`` holds encoded requests and what that version answered: probabilities of bundles by configuration and backend, and
logits of bare models. The bits of a sum depend on the kernels of the machine, so they are compared where the kernels are those
that made the file; elsewhere the answers agree to rounding.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thinktwice.data.encoded import Batch
from thinktwice.models import load_model, write_model
from thinktwice.models.backends.backend import Eager
from thinktwice.models.backends.folded import Folded
from thinktwice.models.blocks import one_thread
from thinktwice.models.store import WEIGHTS_FILE
from thinktwice.release.bundle import load_bundle
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.samplers.bernoulli import Bernoulli

FROZEN = Path(__file__).resolve().parents[1] / "frozen"
GOLDEN: dict[str, Any] = json.loads((FROZEN / "golden.json").read_text(encoding="utf-8"))
BACKENDS = {"eager": Eager, "folded": Folded}
UTTSI = preset("uttsi").looking(opinion=UTTSI_PATHS.model_copy(update={"sampler": Bernoulli(), "max_paths": 4}))


def kernels() -> str:
    """What decides the order of the sums in a matrix product."""
    version = torch.__version__.split("+")[0]
    return f"torch {version}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def batch_of(request: dict[str, Any]) -> Batch:
    vectors = {
        name: torch.tensor([[np.nan if x is None else x for x in row] for row in rows], dtype=torch.float32)
        for name, rows in request["vectors"].items()
    }
    sequences = {name: torch.tensor(rows) for name, rows in request["sequences"].items()}
    return Batch(torch.tensor(request["ids"]), sequences, vectors)


def check(found: np.ndarray, golden: Sequence[str]) -> None:
    expected = np.array([float.fromhex(value) for value in golden])
    if kernels() == GOLDEN["kernels"]:
        assert [float(value).hex() for value in found] == list(golden)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["shipped", "gate", "uttsi"])
@pytest.mark.parametrize("name", ["paths", "members"])
def test_an_older_bundle_scores_to_the_same_bits(name: str, mode: str, backend: str) -> None:
    bundle = load_bundle(FROZEN / name)
    shipped = bundle.engine
    uttsi = shipped.config if name == "paths" else UTTSI
    config = {"shipped": shipped.config, "gate": preset("gate"), "uttsi": uttsi}[mode]
    engine = Engine(
        bundle.model, shipped.reliability, config, shipped.calibration, shipped.extras, make_backend=BACKENDS[backend]
    )
    for request, golden in zip(GOLDEN["bundle_requests"], GOLDEN["bundles"][name][f"{mode} {backend}"], strict=True):
        check(engine.score(batch_of(request)).probability, golden)


@pytest.mark.parametrize("name", ["paths", "members"])
def test_an_older_bundle_as_it_is_served_answers_the_same(name: str) -> None:
    engine = load_bundle(FROZEN / name).engine
    assert engine.backend.name == "folded"
    for request, golden in zip(GOLDEN["bundle_requests"], GOLDEN["bundles"][name]["shipped folded"], strict=True):
        check(engine.score(batch_of(request)).probability, golden)


@pytest.mark.parametrize("name", sorted(GOLDEN["models"]))
def test_an_older_model_scores_to_the_same_bits_and_is_written_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    model, info = load_model(FROZEN / "models" / name)
    with torch.inference_mode(), one_thread():
        for request, golden in zip(GOLDEN["model_requests"], GOLDEN["models"][name], strict=True):
            check(model(batch_of(request)).numpy(), golden)
    write_model(tmp_path, model, info)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (FROZEN / "models" / name / WEIGHTS_FILE).read_bytes()


def test_a_member_written_without_its_table_shares_that_of_the_model(tmp_path: Path) -> None:
    folder = FROZEN / "members"
    model, _ = load_model(folder)
    member, info = load_model(folder / "members" / "0", table=model.embedding.table)
    write_model(tmp_path, member, info, with_table=False)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (folder / "members" / "0" / WEIGHTS_FILE).read_bytes()
