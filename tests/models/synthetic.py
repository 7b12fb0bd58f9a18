"""A small field space with every kind of field, and random batches for it."""

from __future__ import annotations

import numpy as np

from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.models import FieldSpace

FIELDS = FieldSpace(
    names=("user", "item", "genre", "price", "history", "image"),
    kinds=("categorical", "categorical", "categorical", "numeric", "sequence", "vector"),
    entities=("user", "item", "item", "item", "user", "item"),
    protected=(False, False, False, True, True, True),
    num_values=(40, 30, 6, 9),
    sequence_of=("item",),
    sequence_lengths=(5,),
    vector_dims=(3,),
)
#: The same with a list with vectors of its own, whose elements have weights.
WITH_WEIGHTS = FieldSpace(
    names=(*FIELDS.names[:5], "tags", "image"),
    kinds=(*FIELDS.kinds[:5], "sequence", "vector"),
    entities=(*FIELDS.entities[:5], "item", "item"),
    protected=(*FIELDS.protected[:5], True, True),
    num_values=FIELDS.num_values,
    sequence_of=("item", "tags"),
    sequence_lengths=(5, 4),
    vector_dims=(3,),
    list_values=(12,),
    weighted=("tags",),
)


def random_rows(rows: int, seed: int = 0) -> EncodedRows:
    """Rows whose click depends on user, genre and price; genre follows from the item. Some histories and images are missing."""
    rng = np.random.default_rng(seed)
    user = rng.zipf(1.3, rows) % 39 + 1
    item = rng.integers(1, 30, rows)
    genre = item % 5 + 1
    price = np.clip(genre + rng.integers(0, 3, rows), 1, 8)
    history = np.where(rng.random((rows, 5)) < 0.6, rng.integers(1, 30, (rows, 5)), 0)
    order = np.argsort(history == 0, axis=1, kind="stable")  # padding last
    history = np.take_along_axis(history, order, axis=1)
    image = rng.normal(size=(rows, 3)).astype(np.float32)
    image[rng.random(rows) < 0.2] = np.nan
    logit = 0.8 * ((user % 3) - 1) + 0.9 * (genre - 3) - 0.3 * (price - 4)
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    ids = np.stack([user, item, genre, price], axis=1).astype(np.int32)
    return EncodedRows(
        ids,
        {"history": history.astype(np.int32)},
        {"image": image},
        label,
        user.astype(np.int64),
        np.arange(rows, dtype=np.int64) * 1_000_000,
    )


def random_batch(rows: int, seed: int = 0) -> Batch:
    """:func:`random_rows` as a batch."""
    return random_rows(rows, seed).batch(slice(None))
