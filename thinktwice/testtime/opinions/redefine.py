"""Features redefined from the other fields of a row (SGCTR, arXiv 2511.14403; reconstruction from its abstract and a review).

Every unprotected field first gets a plausibility: the cosine of its vector and its predicted vector, rescaled to 0..1, from the
pass that hid it (two passes with complementary halves hidden). Then, in rounds, the least plausible and least supported fields
are hidden, predicted from the others and mixed with the prediction, whose weight is the missing support of the value; each
round redefines fewer fields. Finally the redefined row is scored. Passes: 2 + rounds + 1.
Unlike in SGCTR, the prediction is a conditional mean vector (:mod:`thinktwice.testtime.heads`), never another value's vector,
so that a candidate item does not turn into another item.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from thinktwice.models.blocks import in_blocks
from thinktwice.testtime.heads import FieldHeads
from thinktwice.testtime.opinions.escalated import EscalatedRows, SecondPass

MAX_SHARE = 0.3  # of the unprotected fields hidden in the first round


def num_passes(rounds: int) -> int:
    """Forward passes of a row in addition to its base pass."""
    return 2 + rounds + 1


def answer(escalated: EscalatedRows, heads: FieldHeads, rounds: int) -> SecondPass:
    """Logits of the redefined rows."""
    fill = escalated.fill

    def redefine(x: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return _redefined(escalated, heads, rounds, x, support, fill)

    support = torch.from_numpy(escalated.r[:, escalated.maskable_fields].astype(np.float32))
    z = in_blocks(redefine, escalated.x, support).double().numpy()
    return SecondPass(z, np.full(len(z), num_passes(rounds)))


def _redefined(
    escalated: EscalatedRows, heads: FieldHeads, rounds: int, x: torch.Tensor, support: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """Logits [U] of x [U, N, D] after all rounds; support [U, n] of the values of the heads' fields."""
    model, fields = escalated.model, heads.fields
    n = len(fields)

    def predicted(x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        masked = x.clone()
        masked[:, fields] = torch.where(hidden[..., None], fill[fields], x[:, fields])
        return heads.predict(model.trunk(masked))

    half = (torch.arange(n) % 2 == 0).expand(len(x), -1)
    likely = torch.where(half[..., None], predicted(x, half), predicted(x, ~half))
    plausible = _plausibility(x[:, fields], likely)
    for t in range(rounds, 0, -1):
        count = min(n, max(1, math.floor(MAX_SHARE * t / rounds * n)))
        by_plausibility = torch.argsort(plausible * support, dim=1, stable=True)
        hidden = torch.zeros_like(plausible, dtype=torch.bool).scatter(1, by_plausibility[:, :count], True)
        likely = predicted(x, hidden)
        alpha = (1.0 - support)[..., None]
        mixed = torch.where(hidden[..., None], (1 - alpha) * x[:, fields] + alpha * likely, x[:, fields])
        x = x.clone()
        plausible = torch.where(hidden, _plausibility(x[:, fields], likely), plausible)
        x[:, fields] = mixed
    return model.score(x)[:, 0]


def _plausibility(actual: torch.Tensor, likely: torch.Tensor) -> torch.Tensor:
    """Cosine [U, n] rescaled to 0..1, so that its product with the support grows with both (a negative factor would reverse
    that)."""
    return 0.5 * (1.0 + F.cosine_similarity(actual, likely, dim=-1))
