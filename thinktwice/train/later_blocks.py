"""Out-of-sample logits of train rows, on which the networks that change logits are trained.

The train rows are cut into :data:`BLOCKS` blocks of about equal size by time, and the last :data:`SCORED` blocks are scored by a
trunk trained on all earlier ones. After a random split, or by a column that is not in the order of time, the blocks are drawn at random and the trunk of a block is trained on
all others. Values that do not occur in those rows are unknown, as a new value is to the shipped model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from thinktwice.choices import SplitKind
from thinktwice.data.encoded import EncodedRows, count_values, num_bytes, table_offsets
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.train.augment import Augmenter
from thinktwice.train.beside import Training, beside, here
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar
from thinktwice.train.measure import logits_of
from thinktwice.train.run import train as run_training
from thinktwice.train.tune import TuningCandidate

BLOCKS, SCORED = 4, 2

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """Positions of the scored ``rows`` of train, ascending, and of the rows their trunk was trained on. ``logits`` [len(rows)]
    float64."""

    rows: Positions
    trained_on: Positions
    logits: npt.NDArray[np.float64]


def block_rows(
    time: npt.NDArray[np.int64], split: Literal["time", "random"], seed: int
) -> list[tuple[Positions, Positions]]:
    """Rows of each scored block, and the rows that its trunk may be trained on, both ascending.

    By time, all rows of an instant are in the later block. A block without rows, or without earlier rows, is skipped.
    """
    size = len(time)
    if split == "time":
        borders = (
            np.sort(time)[[size * number // BLOCKS for number in range(BLOCKS)]] if size else np.zeros(0, np.int64)
        )
        code = np.searchsorted(borders[1:], time, side="right")
    else:
        code = np.random.default_rng(seed).permutation(size) % BLOCKS
    blocks = range(BLOCKS - SCORED, BLOCKS)
    masks = [(code == b, code < b if split == "time" else code != b) for b in blocks]
    return [(np.flatnonzero(of), np.flatnonzero(before)) for of, before in masks if of.any() and before.any()]


def later_blocks(
    rows: EncodedRows,
    valid: EncodedRows,
    fields: FieldSpace,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    chosen: TuningCandidate,
    *,
    split: SplitKind,
    seed: int,
    stage: str,
) -> list[ScoredBlock]:
    """Train the trunk of every scored block like the shipped model, with the L2 and augmentation ``chosen`` for it, and score
    the block. A block whose earlier rows are of one class is skipped."""
    found = block_rows(rows.time, "time" if _is_by_time(rows, valid, split) else "random", seed)
    blocks = [(of, before) for of, before in found if rows.label[before].min() != rows.label[before].max()]

    def trained(number: int, before: Positions) -> AbstractContextManager[Training[Backbone]]:
        earlier = rows.take(before)
        known = count_values(earlier.ids, fields.num_values) > 0

        def train(model: Backbone) -> None:
            run_training(
                model,
                Augmenter(chosen.augmentation, earlier, fields, config),
                BlockLoader(earlier),
                BlockLoader(as_known(valid, known, fields)),
                config,
                table_l2=chosen.table_l2,
                epochs=config.epochs,
                seed=seed,
                bar=Bar(stage, f"later block {number + 1}/{len(blocks)}"),
            )

        def build() -> Backbone:
            return build_backbone(backbone, fields, seed=seed)

        return here(build, train) if number == len(blocks) - 1 else beside(build, train, num_bytes(earlier))

    out = []
    with ExitStack() as stack:
        trainings = [stack.enter_context(trained(number, before)) for number, (_, before) in enumerate(blocks)]
        models = [
            training.model() for training in reversed(trainings)
        ]  # the last one, which takes longest, is trained here
        for (of, before), model in zip(blocks, reversed(models), strict=True):
            known = count_values(rows.ids[before], fields.num_values) > 0
            logits = logits_of(model, BlockLoader(as_known(rows.take(of), known, fields))).astype(np.float64)
            out.append(ScoredBlock(of, before, logits))
    return out


def _is_by_time(rows: EncodedRows, valid: EncodedRows, split: SplitKind) -> bool:
    """Whether the split separates earlier rows from later ones. That of a given column does if validation is later than train."""
    if split == "column":
        return bool(len(rows) and len(valid) and rows.time.max() < valid.time.min())
    return split != "random"


def as_known(rows: EncodedRows, known: npt.NDArray[np.bool_], fields: FieldSpace) -> EncodedRows:
    """``rows`` with 0 for every value that ``known`` [rows of the joint table] does not mark."""
    offsets = table_offsets(fields.num_values)
    ids = np.where(known[rows.ids + offsets], rows.ids, np.int32(0))
    sequences = {}
    for name, of in zip(fields.sequences, fields.sequence_of, strict=True):
        values = rows.sequences[name]
        # A list has values of its own, which no counts of columns describe.
        seen = None if of == name else known[values + offsets[fields.columns.index(of)]]
        sequences[name] = values if seen is None else np.where(seen, values, np.int32(0))
    return EncodedRows(ids, sequences, rows.vectors, rows.label, rows.user, rows.time, weights=rows.weights)
