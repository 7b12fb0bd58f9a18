from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.models import backbone_config, build_backbone
from thinktwice.models.autoint import Attention


def test_a_layer_is_the_papers_equations() -> None:
    """Head by head and field by field, equations 5 to 8 of arXiv 1810.11921, with products divided by sqrt(width)."""
    torch.manual_seed(0)
    layer, x = Attention(width=6, heads=2, head_width=3), torch.randn(4, 5, 6)
    query, key, value, residual = layer.weight.detach().view(4, 2, 6, 3)
    expected = torch.zeros(4, 5, 6)
    for row in range(4):
        for head in range(2):
            for m in range(5):
                products = torch.stack([(x[row, m] @ query[head]) @ (x[row, k] @ key[head]) for k in range(5)])
                weight = F.softmax(products / 3**0.5, dim=0)
                mixed = sum(weight[k] * (x[row, k] @ value[head]) for k in range(5))
                expected[row, m, head * 3 : head * 3 + 3] = F.relu(mixed + x[row, m] @ residual[head])
    torch.testing.assert_close(layer(x).detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_config_decides_the_attention() -> None:
    sizes = backbone_config(
        name="autoint", dim=4, hidden=(8,), attention_layers=3, attention_heads=5, attention_width=2
    )
    model = build_backbone(sizes, FIELDS)
    assert [tuple(layer.weight.shape) for layer in model.attention] == [(20, 4, 2), (20, 10, 2), (20, 10, 2)]
    assert model.trunk(model.embed(random_batch(3))).shape == (3, model.hidden_width)
    assert model.hidden_width == FIELDS.num_fields * 10 + 8 + 1


def test_every_parameter_learns() -> None:
    model = build_backbone(backbone_config(name="autoint", dim=4, hidden=(8,), init_sd=0.5), FIELDS)
    model(random_batch(64)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
