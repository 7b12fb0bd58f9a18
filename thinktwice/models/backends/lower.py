"""The trunk in bfloat16: weights cast once, sums in float32, only linear layers are changed.

Not int8: it usually takes the scale of the activations from the whole batch, so a row's score would depend on the other rows.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.lookup import Prepared
from thinktwice.models.embedding import FieldEmbedding


class BFloat16(Prepared):
    """Eager torch with linear layers in bfloat16."""

    name = "bfloat16"

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor) -> None:
        super().__init__(model, table, fill)
        memo = {id(model.embedding): model.embedding}  # shared, not copied
        self._trunk = copy.deepcopy(model, memo)
        _lower(self._trunk)

    def dense(self, x: Tensor) -> Tensor:
        return self._trunk.score(x)[:, 0]


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.linear(x.bfloat16(), self.weight).float()
        return out if self.bias is None else out + self.bias


def _lower(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _Linear(child))
        elif not isinstance(child, FieldEmbedding):
            _lower(child)
