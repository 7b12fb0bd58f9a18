"""Logistic regression: the sum of first-order weights."""

from __future__ import annotations

from torch import Tensor

from thinktwice.models.backbone import Backbone
from thinktwice.models.config import LRConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.views import Views


class LR(Backbone):
    """Hidden state: [sum of first-order weights], so H is 1.

    One weight per value and a bias: Richardson, Dominowska & Ragno, "Predicting Clicks", WWW 2007. We differ in one thing:
    the weight of a sequence is the mean of the weights of its values, and those of vectors and counters are linear in them.
    The embedding dimensions of the table are unused, which is why ``dim`` is 1 by default.
    """

    config_class = LRConfig

    def __init__(self, config: LRConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        self.hidden_width = 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        return x_masked[..., -1].sum(dim=1, keepdim=True)

    def trunk_paths(self, views: Views) -> Tensor:
        return views.first_order()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0] + self.bias
