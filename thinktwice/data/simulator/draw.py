"""Impressions and clicks, drawn in blocks whose size follows from the number of rows alone.

Every block has its own random stream. Within a block no user or item is born, fame is constant, and clicks count from the
next block on. So the log depends only on the config, however the blocks are grouped into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.world import (
    DEVICE_SHARES,
    LAST_CLICKS,
    LIFE,
    PAIRS,
    SCENARIO_SHARES,
    SLOTS,
    World,
    effects_at,
)

PILOT = 1 << 15  # rows on which the scale is fitted
START_US = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z, a Monday
HOUR_US = 3_600_000_000
EXPLORE = 0.1  # share of impressions with a random candidate, so that no propensity is near 0
# Traffic by hour of the day, and the weights of each part of the logit.
BUSY = np.array([3, 2, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 6, 6, 7, 8, 9, 10, 10, 9, 7, 5], np.float64)
ID_WEIGHTS = {"user": 0.15, "item": 0.25, "taste": 0.35, "pair": 0.25}


@dataclass(frozen=True)
class Scale:
    """Scale from raw parts to the logit: ``bias + id_sd * (id - id_mean) + shared_sd * (shared - shared_mean) + ...``."""

    bias: float
    id_sd: float
    id_mean: float
    shared_sd: float
    shared_mean: float


@dataclass(frozen=True)
class Block:
    """Columns of R drawn rows, as indices into the world's tables. ``candidates`` is [R, slate], ``shown`` one of them."""

    time_us: np.ndarray
    user: np.ndarray
    shown: np.ndarray
    candidates: np.ndarray
    site: np.ndarray
    cookie: np.ndarray
    device: np.ndarray
    slot: np.ndarray
    scenario: np.ndarray
    load_ms: np.ndarray
    propensity: np.ndarray
    truth: np.ndarray
    click: np.ndarray


def draw_blocks(config: SimConfig, world: World) -> Iterator[Block]:
    """All blocks of a log, in time order; ``world`` is ``make_world(config)``."""
    scale = fit_scale(config, world)
    topics = world.user_topics.copy()
    rows = block_rows(config)
    for number in range(-(-config.rows // rows)):
        first = number * rows
        size = min(rows, config.rows - first)
        rng = np.random.default_rng([config.seed, 1, number])
        block = _draw(config, at_time(world, first / config.rows), scale, topics, first, size, rng)
        _remember_clicks(topics, block, world)
        yield block


def at_time(world: World, now: float) -> World:
    """The world with the effects of ids at the share ``now`` of the simulated time."""
    if world.change is None:
        return world
    user_main, user_taste, item_main, item_taste = effects_at(world, now)
    return replace(world, user_main=user_main, user_taste=user_taste, item_main=item_main, item_taste=item_taste)


def block_rows(config: SimConfig) -> int:
    """Rows of a block: a 256th of the log, unless such blocks are too small or too large to be drawn fast."""
    return min(max(config.rows // 256, 1 << 10), 1 << 15)


def _times(config: SimConfig, first: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending times of the rows from ``first`` on; rows are denser in busy hours."""
    busy = np.concatenate([[0.0], np.cumsum(np.tile(BUSY, config.days))])
    share = (np.arange(first, first + size) + rng.random(size)) / config.rows
    hours = np.interp(share * busy[-1], busy, np.arange(len(busy), dtype=np.float64))
    return START_US + (hours * HOUR_US).astype(np.int64)


def pick(cdf: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Indices drawn with the weights whose cumulative sum is ``cdf``."""
    target = np.minimum(rng.random(shape) * cdf[-1], np.nextafter(cdf[-1], 0))
    if target.size < len(cdf):
        return np.searchsorted(cdf, target, side="right").astype(np.int32)
    # For many draws a table of starting points and a few steps from there are five times as fast as a binary search.
    cells = len(cdf)
    table = np.searchsorted(cdf, np.arange(cells) * (cdf[-1] / cells), side="right").astype(np.int32)
    target = target.reshape(-1)
    index = table[np.minimum((target * (cells / cdf[-1])).astype(np.int32), cells - 1)]
    short = np.flatnonzero(cdf[index] <= target)
    while len(short):
        index[short] += 1
        short = short[cdf[index[short]] <= target[short]]
    return index.reshape(shape)


def _draw(
    config: SimConfig, world: World, scale: Scale, topics: np.ndarray, first: int, size: int, rng: np.random.Generator
) -> Block:
    time_us = _times(config, first, size, rng)
    now = first / config.rows  # fame at the start of the block
    user = pick(np.cumsum(np.where(world.user_birth <= now, world.user_fame, 0.0)), (size,), rng)
    age = now - world.item_birth
    fame = np.where(age >= 0, world.item_fame * np.exp(-np.maximum(age, 0) / LIFE), 0.0)
    candidates = pick(np.cumsum(fame), (size, config.slate), rng)
    site = pick(world.site_cdf, (size,), rng)
    cookie = pick(world.cookie_cdf, (size,), rng)
    device = pick(np.cumsum(DEVICE_SHARES), (size,), rng).astype(np.int8)
    scenario = pick(np.cumsum(SCENARIO_SHARES), (size,), rng).astype(np.int8)
    slot = rng.integers(0, SLOTS, size, dtype=np.int8)
    load_z = rng.standard_normal(size, dtype=np.float32)

    chosen, propensity = _show(config, world, scale, user, candidates, rng)
    shown = candidates[np.arange(size), chosen]
    hour = (time_us // HOUR_US % 24).astype(np.int8)
    ids = id_part(world, user, shown, site)
    shared = shared_part(world, user, shown, device, slot, scenario, hour, load_z)
    match = (topics[user] == world.item_topic[shown][:, None]).mean(axis=1)
    logit = (
        scale.bias
        + scale.id_sd * (ids.astype(np.float64) - scale.id_mean)
        + scale.shared_sd * (shared.astype(np.float64) - scale.shared_mean)
        + config.behaviour * match
    )
    truth = config.noise * config.click_rate + (1 - config.noise) / (1 + np.exp(-logit))
    return Block(
        time_us=time_us,
        user=user,
        shown=shown,
        candidates=candidates,
        site=site,
        cookie=cookie,
        device=device,
        slot=slot,
        scenario=scenario,
        load_ms=np.round(np.exp(6.0 + 0.5 * load_z.astype(np.float64))),
        propensity=propensity,
        truth=truth,
        click=(rng.random(size) < truth).astype(np.int8),
    )


def id_part(world: World, user: np.ndarray, item: np.ndarray, site: np.ndarray) -> np.ndarray:
    """Raw effect of ids and their pairs, float32 [R]."""
    taste = np.einsum("rk,rk->r", world.user_taste[user], world.item_taste[item]) / np.float32(2.0)  # sd 1 for RANK 4
    pair = (site.astype(np.int64) * 2_654_435_761 + world.item_author[item].astype(np.int64) * 40_503) >> 4
    return (
        np.float32(np.sqrt(ID_WEIGHTS["user"])) * world.user_main[user]
        + np.float32(np.sqrt(ID_WEIGHTS["item"])) * world.item_main[item]
        + np.float32(np.sqrt(ID_WEIGHTS["taste"])) * taste
        + np.float32(np.sqrt(ID_WEIGHTS["pair"])) * world.pair_effect[pair % PAIRS]
    )


def shared_part(
    world: World,
    user: np.ndarray,
    item: np.ndarray,
    device: np.ndarray,
    slot: np.ndarray,
    scenario: np.ndarray,
    hour: np.ndarray,
    load_z: np.ndarray,
) -> np.ndarray:
    """Raw effect of values that many rows share, float32 [R]."""
    price = world.item_price_z[item]
    return (
        np.float32(0.4) * world.device_effect[device]
        + np.float32(0.4) * world.slot_effect[slot]
        + np.float32(0.4) * world.hour_scenario_effect[hour, scenario]
        + np.float32(0.6) * world.age_topic_effect[world.user_age[user], world.item_topic[item]]
        + np.float32(0.2) * world.city_effect[world.user_city[user]]
        - np.float32(0.3) * price
        + np.float32(0.3) * price * world.user_income[user]
        - np.float32(0.3) * load_z
    )


def _show(
    config: SimConfig, world: World, scale: Scale, user: np.ndarray, candidates: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The logging policy: position [R] of the shown candidate, and the probability [R] of showing *that item* from the slate.

    It uses the item's own effect and the preferences by age, but not taste, pairs or behaviour.
    """
    rows = np.arange(len(user))
    known = scale.id_sd * np.sqrt(ID_WEIGHTS["item"]) * world.item_main[candidates]
    known = (
        known
        + scale.shared_sd * 0.6 * world.age_topic_effect[world.user_age[user][:, None], world.item_topic[candidates]]
    )
    weight = np.exp(config.sharpness * (known - known.max(axis=1, keepdims=True)))
    policy = (1 - EXPLORE) * weight / weight.sum(axis=1, keepdims=True) + EXPLORE / config.slate  # [R, slate]
    reached = np.cumsum(policy, axis=1)
    draw = rng.random(len(user)) * reached[:, -1]
    chosen = np.minimum((reached <= draw[:, None]).sum(axis=1), config.slate - 1)
    same = candidates == candidates[rows, chosen][:, None]  # an item may occur twice in a slate
    return chosen, np.minimum((policy * same).sum(axis=1), 1.0)


def _remember_clicks(topics: np.ndarray, block: Block, world: World) -> None:
    """Shift each user's clicks of this block into ``topics`` [U, LAST_CLICKS], newest first."""
    clicked = np.flatnonzero(block.click)
    by_user = clicked[np.argsort(block.user[clicked], kind="stable")]  # within a user in time order
    users = block.user[by_user]
    if not len(users):
        return
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(users)]]))
    from_end = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(users))
    for age in range(LAST_CLICKS - 1, -1, -1):
        at = from_end == age
        topics[users[at], 1:] = topics[users[at], :-1]
        topics[users[at], 0] = world.item_topic[block.shown[by_user[at]]]


def fit_scale(config: SimConfig, world: World) -> Scale:
    """Find the scale that gives the variances and the click rate of ``config``, on a pilot block from the middle of the log."""
    rng = np.random.default_rng([config.seed, 2])
    pilot = config.model_copy(update={"slate": 1, "rows": 2 * PILOT})
    plain = Scale(0.0, 1.0, 0.0, 1.0, 0.0)
    block = _draw(pilot, world, plain, world.user_topics, PILOT, PILOT, rng)
    load_z = ((np.log(block.load_ms) - 6.0) / 0.5).astype(np.float32)
    hour = (block.time_us // HOUR_US % 24).astype(np.int8)
    ids = id_part(world, block.user, block.shown, block.site)
    shared = shared_part(world, block.user, block.shown, block.device, block.slot, block.scenario, hour, load_z)
    scale = Scale(
        bias=0.0,
        id_sd=float(np.sqrt(config.id_variance) / ids.std()),
        id_mean=float(ids.mean()),
        shared_sd=float(np.sqrt(config.shared_variance) / shared.std()),
        shared_mean=float(shared.mean()),
    )
    # The policy raises the click rate, so the bias is fitted on shown items and not on all candidates.
    noiseless = config.model_copy(update={"rows": 2 * PILOT, "noise": 0.0})
    block = _draw(noiseless, world, scale, world.user_topics, PILOT, PILOT, np.random.default_rng([config.seed, 3]))
    logit = np.log(block.truth) - np.log1p(-block.truth)
    low, high = -20.0, 20.0
    for _ in range(40):
        bias = (low + high) / 2
        if (1 / (1 + np.exp(-(logit + bias)))).mean() < config.click_rate:
            low = bias
        else:
            high = bias
    return Scale(low, scale.id_sd, scale.id_mean, scale.shared_sd, scale.shared_mean)
