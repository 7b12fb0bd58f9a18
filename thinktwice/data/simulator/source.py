"""Source of simulated logs: raw columns in chunks, and the raw log folder of a config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from thinktwice.data.reading import Chunk, Reading
from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.draw import Block, block_rows, draw_blocks
from thinktwice.data.simulator.world import AGES, DEVICES, SCENARIOS, TOPICS, World, make_world
from thinktwice.files import sha256_text
from thinktwice.schema import LogSchema

CHUNK_ROWS = 1 << 17

COLUMNS = pa.schema(
    [
        ("time_us", pa.int64()),
        ("click", pa.int8()),
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("age_band", pa.string()),
        ("city", pa.int16()),
        ("income", pa.float32()),
        ("author_id", pa.int32()),
        ("topic", pa.string()),
        ("price", pa.float64()),
        ("site_id", pa.int32()),
        ("cookie_id", pa.int32()),
        ("device", pa.string()),
        ("slot", pa.int8()),
        ("scenario", pa.string()),
        ("load_ms", pa.float64()),
        ("item_vector", pa.list_(pa.float32())),
        ("candidates", pa.list_(pa.int64())),
        ("propensity", pa.float64()),
        ("true_probability", pa.float64()),
    ]
)


def open_sim(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """Source ``sim``: the default config with ``limit`` rows (0: its default) and ``seed``."""
    config = SimConfig(seed=seed, rows=limit) if limit else SimConfig(seed=seed)
    return reading_of(config)


def reading_of(config: SimConfig, chunk_rows: int = CHUNK_ROWS) -> Reading:
    """A simulated log, drawn when read; a chunk has about ``chunk_rows`` rows."""

    blocks_per_chunk = max(1, chunk_rows // block_rows(config))

    def chunks() -> Iterator[Chunk]:
        world = make_world(config)
        start = 0
        waiting: list[pa.Table] = []
        for block in draw_blocks(config, world):
            waiting.append(_table(block, world))
            if len(waiting) == blocks_per_chunk:
                yield _chunk(waiting, start)
                start += sum(t.num_rows for t in waiting)
                waiting = []
        if waiting:
            yield _chunk(waiting, start)

    num_chunks = -(-config.rows // (block_rows(config) * blocks_per_chunk))
    return Reading("the simulator", COLUMNS, {"config": sha256_text(config.model_dump_json())}, chunks, num_chunks)


def _chunk(tables: list[pa.Table], start: int) -> Chunk:
    table = pa.concat_tables(tables).combine_chunks()
    return Chunk(table, np.arange(start, start + table.num_rows, dtype=np.int64))


def _names(names: tuple[str, ...] | list[str], codes: np.ndarray) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(codes, pa.int8()))


def _table(block: Block, world: World) -> pa.Table:
    user, item = block.user, block.shown
    income = pa.array(world.user_income[user], mask=~world.user_income_known[user])
    columns = {
        "time_us": block.time_us,
        "click": block.click,
        "user_id": user.astype(np.int64),
        "item_id": item.astype(np.int64),
        "age_band": _names(AGES, world.user_age[user]),
        "city": world.user_city[user],
        "income": income,
        "author_id": world.item_author[item],
        "topic": _names(TOPICS, world.item_topic[item]),
        "price": world.item_price[item],
        "site_id": block.site,
        "cookie_id": block.cookie,
        "device": _names(DEVICES, block.device),
        "slot": block.slot,
        "scenario": _names(SCENARIOS, block.scenario),
        "load_ms": block.load_ms,
        "item_vector": _vectors(world, item),
        "candidates": _lists(block.candidates.astype(np.int64)),
        "propensity": block.propensity,
        "true_probability": block.truth,
    }
    return pa.table(
        [columns[f.name] if isinstance(columns[f.name], pa.Array) else pa.array(columns[f.name]) for f in COLUMNS],
        schema=COLUMNS,
    )


def _lists(values: np.ndarray) -> pa.ListArray:
    """[R, K] as a list column."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


def _vectors(world: World, item: np.ndarray) -> pa.ListArray:
    """Each row's item vector; null if it has none."""
    known = world.item_vector_known[item]
    dim = world.item_vector.shape[1]
    offsets = np.concatenate([[0], np.cumsum(known * dim)]).astype(np.int32)
    values = pa.array(world.item_vector[item[known]].reshape(-1))
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~known))
