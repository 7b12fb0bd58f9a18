"""How much of the machine's speed at matrix products a training step reaches.

The reference model is a DeepFM of 26 fields of equal size, embeddings of 16 and an MLP of 400, 400 and 400, in batches of 4,096 on one
thread; ids follow Zipf's law. The roof is the speed of a square float32 product on the same thread, taken between the steps: the share is
the time that the multiplications of the MLP, three times those of a forward pass, would take at that speed, over the CPU time of a step
of the training loop, which reads the batch, looks vectors up and updates all weights as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training.units import Arrays, Unit, code_of
from thinktwice.data.encoded import EncodedRows
from thinktwice.models import DeepFMConfig, FieldSpace, build_backbone
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import LoopPlan, Steps, run_loop

FIELDS, DIM, HIDDEN, BATCH, EXPONENT = 26, 16, (400, 400, 400), 4096, 1.1
STEPS, ROUNDS = 12, 7
SQUARE, PRODUCTS = 2048, 3
CODE = code_of(
    "benchmarks/training/roof.py",
    *(f"thinktwice/models/{name}.py" for name in ("backbone", "deepfm", "embedding", "fm", "lookup")),
    *(f"thinktwice/train/{name}.py" for name in ("loader", "loop", "optimizer")),
)


@dataclass(frozen=True)
class Roof:
    """Training steps over tables of ``values`` rows together, in ``rounds`` pairs with products."""

    values: int
    rounds: int = ROUNDS

    @property
    def words(self) -> str:
        """The number of values, as a reader says it."""
        return f"{self.values // 1_000_000} M" if self.values >= 1_000_000 else f"{self.values:,}"

    def unit(self) -> Unit:
        """Its unit of work."""
        return Unit(f"roof {self.values} {self.rounds}", CODE, self.compute)

    def compute(self) -> Arrays:
        """By round: ``step_s`` CPU seconds of a step, ``flops`` multiplications and additions per second of a product; ``share``."""
        torch.set_num_threads(1)
        size = self.values // FIELDS
        rows = BlockLoader(zipf_rows(size, BATCH * STEPS))
        model = build_backbone(DeepFMConfig(dim=DIM, hidden=HIDDEN), equal_fields(size), seed=0)
        total = Steps(BATCH, STEPS, STEPS * (self.rounds + 1))
        plan = LoopPlan(total, total.total, rate=1e-3, table_l2=1e-6, sparse_rows=FinetuneConfig().sparse_rows)
        step_s, flops, start = [], [], time.process_time()

        def loss(index: torch.Tensor, _: torch.Generator) -> torch.Tensor:
            return F.binary_cross_entropy_with_logits(model(rows.batch(index)), rows.label[index])

        def on_step(step: int) -> None:
            nonlocal start
            if step % STEPS:
                return
            middle = time.process_time()
            step_s.append((middle - start) / STEPS)
            flops.append(product_speed())
            start = time.process_time()

        run_loop(model, model.embedding, rows, loss, plan, seed=0, on_eval=lambda *_: None, on_step=on_step)
        step, speed = np.array(step_s[1:]), np.array(flops[1:])  # the first round makes the optimizer's state
        return {"step_s": step, "flops": speed, "share": step_flops() / speed / step}


def product_speed() -> float:
    """Multiplications and additions per CPU second of square float32 products on one thread."""
    square, start = torch.rand(SQUARE, SQUARE), time.process_time()
    with torch.inference_mode():
        for _ in range(PRODUCTS):
            square @ square
    return PRODUCTS * 2.0 * SQUARE**3 / (time.process_time() - start)


def step_flops() -> float:
    """Multiplications and additions of the MLP in a step: forward, gradient of inputs, gradient of weights."""
    widths = (FIELDS * DIM, *HIDDEN, 1)
    return 3 * 2.0 * BATCH * sum(a * b for a, b in pairwise(widths))


def equal_fields(size: int) -> FieldSpace:
    """26 categorical fields of ``size`` values each."""
    each = range(FIELDS)
    return FieldSpace(
        names=tuple(f"f{n}" for n in each),
        kinds=tuple("categorical" for _ in each),
        entities=tuple("context" for _ in each),
        protected=tuple(False for _ in each),
        num_values=tuple(size for _ in each),
    )


def zipf_rows(size: int, rows: int) -> EncodedRows:
    """Rows whose values follow Zipf's law in every field, at random places of its table."""
    rng = np.random.default_rng(0)
    share = np.arange(1, size + 1, dtype=np.float64) ** -EXPONENT
    cumulated = np.cumsum(share / share.sum())
    places = rng.permutation(size)
    rank = np.searchsorted(cumulated, rng.random((rows, FIELDS))).clip(max=size - 1)
    label = (rng.random(rows) < 0.2).astype(np.float32)
    whole = np.arange(rows, dtype=np.int64)
    return EncodedRows(places[rank].astype(np.int32), {}, {}, label, whole, whole)
