"""The contract of a backbone as a check that any class can be held to, one of your own included.

from thinktwice.models.conformance import broken_rules
assert not broken_rules(MyConfig(dim=4, hidden=(8,), init_sd=0.5), fields)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import random_rows
from thinktwice.models.config import BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone

ROWS, PATHS = 24, 3
TOLERANCE = 1e-5  # of a logit, relative and absolute


def broken_rules(config: BackboneConfig, fields: FieldSpace, *, seed: int = 0) -> list[str]:
    """The rules that a newly initialised model breaks, each as a sentence; empty for a valid backbone.

    Give ``config`` an ``init_sd`` of about 0.5, so that every part of the score counts.
    """
    model = build_backbone(config, fields, seed=seed).eval()
    rules: dict[str, Callable[[Backbone], bool]] = {
        "hidden states are [B, hidden_width], and logits [B]": _shapes,
        "the last number of a hidden state is the sum of first-order weights": _ends_with_first_order,
        "a full mask gives the score of the plain model": _full_mask,
        "an empty mask forgets the row": _empty_mask,
        "a mask forgets its field and nothing else": _forgets_its_field,
        "a fraction mixes the row with the fill": _fraction,
        "score_paths gives the scores of full masks": _paths,
        "rows do not see each other": _independent,
        "the same seed gives the same weights": lambda m: _same_weights(m, build_backbone(config, fields, seed=seed)),
        "every parameter of the trunk has a gradient": _trained,
    }
    with torch.no_grad():
        broken = [rule for rule, holds in list(rules.items())[:-1] if not holds(model)]
    last, holds = list(rules.items())[-1]
    return broken if holds(model) else [*broken, last]


def _shapes(model: Backbone) -> bool:
    hidden = model.trunk(model.embed(random_rows(model, ROWS)))
    return hidden.shape == (ROWS, model.hidden_width) and model.head(hidden).shape == (ROWS,)


def _ends_with_first_order(model: Backbone) -> bool:
    x = model.embed(random_rows(model, ROWS))
    return _close(model.trunk(x)[:, -1], x[..., -1].sum(dim=1))


def _full_mask(model: Backbone) -> bool:
    batch = random_rows(model, ROWS)
    masked = model.score(model.embed(batch), torch.ones(ROWS, PATHS, model.num_fields))
    return _close(masked, model(batch)[:, None].expand(ROWS, PATHS))


def _empty_mask(model: Backbone) -> bool:
    masked = model.score(model.embed(random_rows(model, ROWS)), torch.zeros(ROWS, 1, model.num_fields))
    return _close(masked[:, 0], model.score(model.fill()[None])[0].expand(ROWS))


def _forgets_its_field(model: Backbone) -> bool:
    """For every column that may be masked: the score does not depend on its value, and is that of the unknown value."""
    columns = len(model.fields.num_values)
    for position in (p for p in range(columns) if not model.protected[p]):
        batch, other, unknown = (random_rows(model, ROWS) for _ in range(3))
        other.ids[:, position] = batch.ids.flip(0)[:, position]
        unknown.ids[:, position] = 0
        mask = torch.ones(ROWS, 1, model.num_fields)
        mask[:, :, position] = 0
        scores = model.score(model.embed(batch), mask)[:, 0]
        if not (_close(scores, model.score(model.embed(other), mask)[:, 0]) and _close(scores, model(unknown))):
            return False
    return True


def _fraction(model: Backbone) -> bool:
    x, generator = model.embed(random_rows(model, ROWS)), torch.Generator().manual_seed(1)
    share = torch.rand(ROWS, 1, model.num_fields, generator=generator)
    fill = torch.randn(x.shape, generator=generator)
    return _close(model.score(x, share, fill), model.score(torch.lerp(fill, x, share[:, 0, :, None])))


def _paths(model: Backbone) -> bool:
    x, generator = model.embed(random_rows(model, ROWS)), torch.Generator().manual_seed(2)
    fields = torch.randperm(model.num_fields, generator=generator)[: max(1, model.num_fields // 2)]
    mask = torch.rand(ROWS, PATHS, len(fields), generator=generator)
    whole = torch.ones(ROWS, PATHS, model.num_fields)
    whole[:, :, fields] = mask
    return _close(model.score_paths(x, mask, model.fill(), fields), model.score(x, whole))


def _independent(model: Backbone) -> bool:
    batch, some = (
        random_rows(model, ROWS),
        torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))[: ROWS // 3],
    )
    return _close(model(batch.select(some)), model(batch)[some])


def _same_weights(model: Backbone, again: Backbone) -> bool:
    return all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def _trained(model: Backbone) -> bool:
    with torch.enable_grad():
        model(random_rows(model, ROWS)).square().sum().backward()
    trained = [value.grad is not None for _, value in model.trunk_parameters() if value.numel()]
    model.zero_grad(set_to_none=True)
    return all(trained)


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
