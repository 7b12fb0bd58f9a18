"""Our Adam is torch's, to the last bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.optim import Adam, SparseAdam

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.models import Backbone, DeepFMConfig, build_backbone
from thinktwice.train.optimizer import TableAdam

STEPS = 20


def started() -> Backbone:
    return build_backbone(DeepFMConfig(dim=8, hidden=(16,)), FIELDS, seed=3)


def rate(step: int) -> float:
    return 4e-3 * (1 - step / STEPS)


def reference(sparse: bool, l2: float) -> Backbone:
    """A model trained with the optimizers of torch."""
    model = started()
    model.embedding.sparse_gradients = sparse
    table = model.embedding.table
    groups = [{"params": [p for p in model.parameters() if p is not table], "weight_decay": 0.0}]
    if not sparse:
        groups.append({"params": [model.embedding.table], "weight_decay": l2})
    optimizers = [Adam(groups, fused=True), *([SparseAdam([model.embedding.table])] if sparse else [])]
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        model(random_batch(12, step)).square().mean().backward()
        if sparse:
            gradient = model.embedding.table.grad.coalesce()
            rows = gradient.indices()[0]
            values = gradient.values() + l2 * model.embedding.table.detach()[rows]
            model.embedding.table.grad = torch.sparse_coo_tensor(
                gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
            )
        for optimizer in optimizers:
            optimizer.step()
    return model


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_every_weight_is_that_of_torchs_own_optimizers(sparse: bool, l2: float) -> None:
    expected, model = reference(sparse, l2), started()
    optimizer = TableAdam(model, model.embedding, rate=1.0, table_l2=l2, sparse_rows=1 if sparse else 10_000)
    for step in range(STEPS):
        optimizer.set_rate(rate(step))
        optimizer.step(model(random_batch(12, step)).square().mean())
    for (name, found), weight in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, weight), name
    assert not torch.equal(model.embedding.table, started().embedding.table)


def test_other_parameters_are_trained_without_l2_and_only_when_they_have_a_gradient() -> None:
    model = started()
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    whole = torch.nn.ParameterDict({"used": used, "unused": unused})
    optimizer = TableAdam(
        torch.nn.ModuleList([model, whole]), model.embedding, rate=0.1, table_l2=0.5, sparse_rows=10_000
    )
    optimizer.step(model(random_batch(12)).sum() + used.sum())
    torch.testing.assert_close(used.detach(), torch.full((3,), 0.9))
    assert torch.equal(unused, torch.ones(3))


def test_training_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys; from tests.models.synthetic import FIELDS, random_batch\n"
        "from thinktwice.models import DeepFMConfig, build_backbone\n"
        "from thinktwice.train.optimizer import TableAdam\n"
        "from thinktwice.threads import reproducible\n"
        "model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS)\n"
        "with reproducible():\n"
        "    TableAdam(model, model.embedding, rate=1e-3, table_l2=1e-3, sparse_rows=10_000).step(model(random_batch(9)).sum())\n"
        "sys.exit('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
