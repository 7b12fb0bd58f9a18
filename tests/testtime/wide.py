"""Rows of many fields, supported from not at all to fully, models with random weights, and one configuration of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.data.encoded import Batch, EncodedRows, count_values
from thinktwice.models import Backbone, BackboneConfig, DeepFMConfig, FieldSpace, backbone_config, build_backbone
from thinktwice.models.backends import Eager, MakeBackend
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.aggregators import Consistency, Mean
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.calibrate import apply, sigmoid
from thinktwice.testtime.config import SecondLook
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import fit_heads
from thinktwice.testtime.opinions.config import FeaturePaths, GrownPaths, Members, Redefine
from thinktwice.testtime.options import Options
from thinktwice.testtime.reliability import Reliability, quantise
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Always, Budget, Decision, Dual, Entropy, Random

SIZES = (300, 200, 120, 30, 8, 8, 6, 6, 5, 6, 4)  # values per column, the last of them protected
OPEN = 10
TRIPLES = ((0, 1, 2), (1, 2, 4), (3, 4, 5))
KAPPA = 15.0
CALIBRATION = Calibration(a=1.3, b=-0.2)
SIZE = DeepFMConfig(dim=6, hidden=(24, 16), init_sd=0.4)
FIELDS = FieldSpace(
    names=(*(f"f{i}" for i in range(OPEN)), "device", "recent", "look"),
    kinds=("categorical",) * 11 + ("sequence", "vector"),
    entities=("user", "item") + ("context",) * 9 + ("user", "item"),
    protected=(False,) * OPEN + (True,) * 3,
    num_values=SIZES,
    sequence_of=("f1",),
    sequence_lengths=(4,),
    vector_dims=(3,),
)


def rows(number: int, seed: int) -> EncodedRows:
    """Skewed values, a few of them unknown; column 9 follows from column 4."""
    rng = np.random.default_rng(seed)
    skew = np.asarray([2.5, 2.0, 1.5] + [1.0] * 8)
    ids = 1 + (rng.random((number, 11)) ** skew * (np.asarray(SIZES) - 1)).astype(np.int32)
    ids[:, 9] = 1 + ids[:, 4] % 5
    ids[:, :3][rng.random((number, 3)) < 0.05] = 0
    recent = np.sort(rng.integers(0, SIZES[1], (number, 4)), axis=1)[:, ::-1] * (rng.random((number, 1)) > 0.2)
    look = rng.normal(0, 1, (number, 3)).astype(np.float32)
    look[rng.random(number) < 0.2] = np.nan
    label = (rng.random(number) < 0.3).astype(np.float32)
    return EncodedRows(
        ids, {"recent": recent.astype(np.int32)}, {"look": look}, label, ids[:, 0].astype(np.int64), np.arange(number)
    )


@dataclass(frozen=True)
class Wide:
    """A model, its counts and extras (two members of their own tables), a member of the model's table, and later rows."""

    model: Backbone
    reliability: Reliability
    extras: Extras
    sharer: Backbone
    later: EncodedRows

    def engine(self, config: TestTimeConfig, *, shared: bool = False, make_backend: MakeBackend = Eager) -> Engine:
        extras = Extras(self.extras.combinations, self.extras.heads, (self.sharer,)) if shared else self.extras
        return Engine(self.model, self.reliability, config, CALIBRATION, extras, make_backend)

    def batch(self, chosen: slice | np.ndarray) -> Batch:
        return self.later.batch(chosen)

    def score(self, row: int, mask: np.ndarray) -> float:
        """Logit of one later row under a mask [1, 1, N], by the model alone."""
        with torch.inference_mode():
            return float(self.model.score(self.model.embed(self.batch(slice(row, row + 1))), torch.from_numpy(mask)))


def sizes(name: str) -> BackboneConfig:
    """The sizes of all models here, for another backbone."""
    return backbone_config(name, **SIZE.model_dump(exclude={"name"}))


def build(*, triples: bool = True, name: str = "deepfm") -> Wide:
    train = rows(3000, 1)
    model, *members = (build_backbone(sizes(name), FIELDS, seed=seed).eval() for seed in range(3))
    fields = np.arange(OPEN)
    counts = CombinationCounts.fit(
        [train.ids], maskable_pairs(fields), TRIPLES if triples else (), SIZES, capacity=1 << 12, width=1 << 13
    )
    reliability = Reliability(
        quantise(count_values(train.ids, SIZES)), np.full(13, KAPPA), SIZES, np.asarray(FIELDS.protected)
    )
    extras = Extras(counts, fit_heads(model, train, fields), tuple(members))
    return Wide(model, reliability, extras, sharing(model, seed=7), rows(600, 2))


def sharing(model: Backbone, seed: int) -> Backbone:
    """A trunk of its own over the model's embedding."""
    member = build_backbone(model.config, model.fields, seed=seed)
    member.embedding = model.embedding
    return member.eval()


FACTORS = (4.0, 0.0, 0.5, 1.0, 2.0, 0.25, 16.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
SHARES = (0.4, 1.0, 0.0, 0.8, 1.0, 1.0, 0.2, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0)
UTTSI = TestTimeConfig(
    mode="uttsi",
    base=Filter(min_count=2),
    second_look=SecondLook(
        trigger=Dual(threshold=0.12, signal_max=0.35),
        opinion=FeaturePaths(aggregator=Consistency(), shrink=True),
        max_path_rows=10**6,
    ),
)
MATT = TestTimeConfig(
    mode="matt",
    second_look=SecondLook(trigger=Always(), opinion=GrownPaths(sampler=Matt(typical_pair=0.5)), max_path_rows=10**6),
)
MEMBERS = TestTimeConfig(
    mode="members",
    second_look=SecondLook(trigger=Entropy(threshold=0.8), opinion=Members(count=1), max_path_rows=10**6),
)
SGCTR = TestTimeConfig(
    mode="sgctr", second_look=SecondLook(trigger=Always(), opinion=Redefine(rounds=2), max_path_rows=10**6)
)
P = TypeVar("P", bound=Options)
PARTS = ("second_look", "base", "trigger", "opinion", "sampler")


def but(config: TestTimeConfig, **options: object) -> TestTimeConfig:
    """The configuration with other options, each where the part declares it that has it; checked as a whole at the end."""
    for name, value in options.items():
        config = _replaced(config, name, value)
    return TestTimeConfig.model_validate(config.model_dump())


def _replaced(part: P, name: str, value: object) -> P:
    if name in type(part).model_fields:
        return part.model_copy(update={name: value})
    for child in PARTS:
        inner = getattr(part, child, None)
        if isinstance(inner, Options) and _has(inner, name):
            return part.model_copy(update={child: _replaced(inner, name, value)})
    raise AssertionError(f"no part of {part!r} has the option {name!r}")


def _has(part: Options, name: str) -> bool:
    children = (getattr(part, child, None) for child in PARTS)
    return name in type(part).model_fields or any(isinstance(c, Options) and _has(c, name) for c in children)


EXACT = but(UTTSI, sampler=Exact(), aggregator=Mean())
DECISION = Decision(top_k=20, spread=(0.1, 1.0, 0.2))

#: Every mode, trigger, sampler and aggregator comes at least once. None of the triggers looks at other rows.
MODES: dict[str, TestTimeConfig] = {
    "off": TestTimeConfig(),
    "calibrated": TestTimeConfig(mode="calibrated", support_calibration=SupportCalibration(a=1.1, c=-0.4, d=0.3)),
    "gate": TestTimeConfig(mode="gate", base=Gate(strength=0.5)),
    "gate by field": TestTimeConfig(mode="gate", base=Gate(strength=0.5, field_strengths=FACTORS)),
    "gate without counts": TestTimeConfig(mode="gate", base=Gate(field_shares=SHARES)),
    "filter": TestTimeConfig(mode="filter", base=Filter(min_count=5)),
    "uttsi": UTTSI,
    "uttsi, pair support": but(UTTSI, pair_share=0.3),
    "uttsi, mean": but(UTTSI, aggregator=Mean(), shrink=False),
    "uttsi, exact": EXACT,
    "uttsi, exact, pair support": but(EXACT, trigger=Always(), pair_share=0.05),
    "uttsi, exact, stops": but(EXACT, stop_at=0.3, max_paths=4),
    "uttsi, stops": but(UTTSI, stop_at=0.3, trigger=Always()),
    "uttsi, gated": but(UTTSI, base=Gate(strength=1.0)),
    "uttsi, every row": but(UTTSI, trigger=Always()),
    "uttsi, random rows": but(UTTSI, trigger=Random(threshold=0.7)),
    "uttsi, entropy": but(UTTSI, trigger=Entropy(threshold=0.8)),
    "matt": MATT,
    "matt, mean": but(MATT, aggregator=Mean()),
    "matt, consistency": but(MATT, aggregator=Consistency()),
    "sgctr": SGCTR,
    "members": MEMBERS,
    "members, two": but(MEMBERS, count=2),
    "members, gated": but(MEMBERS, count=2, base=Gate(strength=0.5)),
}
#: The same with a member that reads the model's table.
SHARED: dict[str, TestTimeConfig] = {
    "members, one table": MEMBERS,
    "members, one table, gated": but(MEMBERS, base=Gate(strength=0.5)),
}
#: Whom they ask depends on the other rows of the request.
OF_A_REQUEST: dict[str, TestTimeConfig] = {
    "members, budget": but(MEMBERS, trigger=Budget(share=0.3)),
    "uttsi, budget": but(UTTSI, trigger=Budget(share=0.3)),
    "members, decision": but(MEMBERS, trigger=DECISION),
    "sgctr, decision": but(SGCTR, trigger=DECISION),
}


def entropy_of(z0: np.ndarray) -> np.ndarray:
    """How open base scores are: what the engine admits rows by."""
    return entropy(sigmoid(apply(CALIBRATION, z0)))
