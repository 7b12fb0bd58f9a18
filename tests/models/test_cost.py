from __future__ import annotations

import pytest
import torch

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.models import backbone_config, build_backbone
from thinktwice.models.cost import flops


@pytest.mark.parametrize("inference", [False, True])
def test_a_linear_layer_costs_two_operations_per_weight_and_row(
    inference: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = torch.nn.Linear(30, 7)
    with torch.inference_mode(inference):
        assert flops(lambda: layer(torch.ones(11, 30))) == 2 * 11 * 30 * 7
        assert flops(lambda: torch.ones(11, 30) + 1) == 0
    assert capsys.readouterr() == ("", "")


def test_attention_is_counted_too() -> None:
    config = backbone_config("autoint", dim=4, hidden=(8,), attention_layers=2, attention_heads=3, attention_width=5)
    model, rows, n = build_backbone(config, FIELDS).eval(), 10, FIELDS.num_fields
    x = model.embed(random_batch(rows))
    projections = 4 * n * 15 * (4 + 15)
    products = 2 * (2 * n * n * 15)
    dense = n * 4 * 8 + n * 15 + 8
    assert flops(lambda: model.score(x)) == 2 * rows * (projections + products + dense)
