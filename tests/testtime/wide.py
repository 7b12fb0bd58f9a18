"""Rows of many fields, supported from not at all to fully, models with random weights, and one configuration of every kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.data.encoded import Batch, EncodedRows, count_values
from thinktwice.models import Backbone, BackboneConfig, FieldSpace, build_backbone
from thinktwice.models.backends import Eager, MakeBackend
from thinktwice.models.store import Calibration
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.calibrate import SupportCalibration, apply, sigmoid
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import fit_heads
from thinktwice.testtime.reliability import Reliability, quantise
from thinktwice.testtime.support import entropy

SIZES = (300, 200, 120, 30, 8, 8, 6, 6, 5, 6, 4)  # values per column, the last of them protected
OPEN = 10
TRIPLES = ((0, 1, 2), (1, 2, 4), (3, 4, 5))
KAPPA = 15.0
CALIBRATION = Calibration(a=1.3, b=-0.2)
SIZE = BackboneConfig(dim=6, hidden=(24, 16), init_sd=0.4)
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


def build(*, triples: bool = True, name: str = "deepfm") -> Wide:
    train = rows(3000, 1)
    size = SIZE.model_copy(update={"name": name})
    model, *members = (build_backbone(size, FIELDS, seed=seed).eval() for seed in range(3))
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
    trigger="dual",
    threshold=0.12,
    signal_max=0.35,
    min_count=2,
    sampler="bernoulli",
    aggregator="consistency",
    shrink=True,
    max_path_rows=10**6,
)
EXACT = UTTSI.model_copy(update={"sampler": "enumerate", "aggregator": "mean"})
MATT = TestTimeConfig(
    mode="matt",
    trigger="always",
    sampler="matt",
    aggregator="confidence",
    typical_pair=0.5,
    max_path_rows=10**6,
)
MEMBERS = TestTimeConfig(mode="members", trigger="entropy", threshold=0.8, members=1, max_path_rows=10**6)
SGCTR = TestTimeConfig(mode="sgctr", trigger="always", redefine_rounds=2, max_path_rows=10**6)


def but(config: TestTimeConfig, **change: object) -> TestTimeConfig:
    return TestTimeConfig.model_validate(config.model_dump() | change)


#: Every mode, trigger, sampler, filler and aggregator comes at least once. None of the triggers looks at other rows.
MODES: dict[str, TestTimeConfig] = {
    "off": TestTimeConfig(),
    "calibrated": TestTimeConfig(mode="calibrated", support_calibration=SupportCalibration(a=1.1, c=-0.4, d=0.3)),
    "gate": TestTimeConfig(mode="gate", strength=0.5),
    "gate by field": TestTimeConfig(mode="gate", strength=0.5, field_strengths=FACTORS),
    "gate without counts": TestTimeConfig(mode="gate", field_shares=SHARES),
    "filter": TestTimeConfig(mode="filter", min_count=5),
    "filter, mean filler": TestTimeConfig(mode="filter", min_count=5, filler="mean"),
    "uttsi": UTTSI,
    "uttsi, pair support": but(UTTSI, pair_share=0.3),
    "uttsi, median": but(UTTSI, aggregator="median", shrink=False),
    "uttsi, exact": EXACT,
    "uttsi, exact, pair support": but(EXACT, trigger="always", pair_share=0.05),
    "uttsi, exact, stops": but(EXACT, stop_at=0.3, max_paths=4),
    "uttsi, stops": but(UTTSI, stop_at=0.3, trigger="always"),
    "uttsi, mean filler": but(UTTSI, filler="mean"),
    "uttsi, denoiser": but(UTTSI, filler="denoiser"),
    "uttsi, denoiser, stops": but(UTTSI, filler="denoiser", stop_at=0.3),
    "uttsi, gated": but(UTTSI, min_count=0, strength=1.0),
    "uttsi, every row": but(UTTSI, trigger="always"),
    "uttsi, random rows": but(UTTSI, trigger="random", threshold=0.7, signal_max=1.0),
    "uttsi, entropy": but(UTTSI, trigger="entropy", threshold=0.8, signal_max=1.0),
    "uniform": but(UTTSI, sampler="uniform", keep_rate=0.7),
    "matt": MATT,
    "sgctr": SGCTR,
    "members": MEMBERS,
    "members, two": but(MEMBERS, members=2),
    "members, gated": but(MEMBERS, members=2, strength=0.5),
}
#: The same with a member that reads the model's table.
SHARED: dict[str, TestTimeConfig] = {
    "members, one table": MEMBERS,
    "members, one table, gated": but(MEMBERS, strength=0.5),
}
#: Whom they ask depends on the other rows of the request.
OF_A_REQUEST: dict[str, TestTimeConfig] = {
    "members, budget": but(MEMBERS, trigger="budget", share=0.3),
    "uttsi, budget": but(UTTSI, trigger="budget", share=0.3),
    "members, decision": but(MEMBERS, trigger="decision", top_k=20, spread=(0.1, 1.0, 0.2)),
    "sgctr, decision": but(SGCTR, trigger="decision", top_k=20, spread=(0.1, 1.0, 0.2)),
}


def entropy_of(z0: np.ndarray) -> np.ndarray:
    """How open base scores are: what the engine admits rows by."""
    return entropy(sigmoid(apply(CALIBRATION, z0)))
