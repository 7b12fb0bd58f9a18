"""World of a simulated log: its users and items, and the effect of each of their values on clicks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from thinktwice.data.simulator.config import SimConfig

TOPICS = [
    "autos",
    "books",
    "cooking",
    "crafts",
    "fashion",
    "finance",
    "fitness",
    "gaming",
    "garden",
    "health",
    "home",
    "music",
    "pets",
    "sports",
    "tech",
    "travel",
]
AGES = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
DEVICES = ("phone", "tablet", "desktop", "tv")
SCENARIOS = ("feed", "search", "story", "video", "shop")
SLOTS = 3
CITIES = 200
SITES = 500
COOKIES = 40_000  # an id without any effect: a model that uses it has learnt noise
RANK = 4  # of the user x item taste
PAIRS = 1 << 16  # different effects of site x author
LAST_CLICKS = 3
DEVICE_SHARES = np.array([0.62, 0.08, 0.25, 0.05])
SCENARIO_SHARES = np.array([0.45, 0.2, 0.12, 0.15, 0.08])
AGE_SHARES = np.array([0.06, 0.2, 0.28, 0.2, 0.14, 0.12])
NO_INCOME = 0.05  # share of users whose income is unknown
NO_VECTOR = 0.03  # share of items without a vector
LIFE = 0.25  # mean life of an item's fame, as a share of the simulated time
MATURE = 0.6  # share of users and items that exist before the first row


@dataclass(frozen=True)
class World:
    """Drawn once per seed. U users, I items, A authors; births are shares of the simulated time, below 0 before it."""

    user_fame: np.ndarray  # [U] Zipf
    user_birth: np.ndarray  # [U]
    user_age: np.ndarray  # [U] index into AGES
    user_city: np.ndarray  # [U]
    user_income: np.ndarray  # [U] standardised
    user_income_known: np.ndarray  # [U] bool
    user_main: np.ndarray  # [U] effect
    user_taste: np.ndarray  # [U, RANK]
    user_topics: np.ndarray  # [U, LAST_CLICKS] topics clicked before the log begins
    item_fame: np.ndarray  # [I] Zipf
    item_birth: np.ndarray  # [I]
    item_author: np.ndarray  # [I]
    item_topic: np.ndarray  # [I]
    item_price: np.ndarray  # [I] in money
    item_price_z: np.ndarray  # [I] standardised logarithm
    item_main: np.ndarray  # [I] effect
    item_taste: np.ndarray  # [I, RANK]
    item_vector: np.ndarray  # [I, vector_dim] noisy image of item_taste and topic
    item_vector_known: np.ndarray  # [I] bool
    site_cdf: np.ndarray  # [SITES]
    cookie_cdf: np.ndarray  # [COOKIES]
    pair_effect: np.ndarray  # [PAIRS]
    device_effect: np.ndarray  # [4]
    slot_effect: np.ndarray  # [SLOTS]
    hour_scenario_effect: np.ndarray  # [24, 5]
    age_topic_effect: np.ndarray  # [6, 16]
    city_effect: np.ndarray  # [CITIES]
    change: Change | None  # None: effects of ids are constant


@dataclass(frozen=True)
class Change:
    """How the effects of ids change: by ``drift`` towards the effects ``*_later``, and at the id's own moment
    ``*_handover`` (a share of the simulated time; beyond 1: never) to those of its next owner, which start at ``*_next``
    and drift towards ``*_next_later``. The former owner has no effect then."""

    drift: float
    user_later: np.ndarray  # [U, 1 + RANK], the id's own effect and its taste
    item_later: np.ndarray  # [I, 1 + RANK]
    user_next: np.ndarray  # [U, 1 + RANK]
    item_next: np.ndarray  # [I, 1 + RANK]
    user_next_later: np.ndarray  # [U, 1 + RANK]
    item_next_later: np.ndarray  # [I, 1 + RANK]
    user_handover: np.ndarray  # [U]
    item_handover: np.ndarray  # [I]


def effects_at(world: World, now: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Effects and tastes at a share ``now`` of the simulated time: user [U], user [U, RANK], item [I], item [I, RANK]."""
    change = world.change
    if change is None:
        return world.user_main, world.user_taste, world.item_main, world.item_taste
    user_first = np.concatenate([world.user_main[:, None], world.user_taste], axis=1)
    item_first = np.concatenate([world.item_main[:, None], world.item_taste], axis=1)
    angle = change.drift * now
    out = []
    for handover, former, owner in (
        (change.user_handover, (user_first, change.user_later), (change.user_next, change.user_next_later)),
        (change.item_handover, (item_first, change.item_later), (change.item_next, change.item_next_later)),
    ):
        passed = (handover <= now)[:, None]
        start, end = (np.where(passed, new, old) for old, new in zip(former, owner, strict=True))
        effect = (np.cos(angle) * start + np.sin(angle) * end).astype(np.float32)
        out += [effect[:, 0], effect[:, 1:]]
    return out[0], out[1], out[2], out[3]


def _change(config: SimConfig, world: World) -> Change | None:
    """The changes of ``config``, from their own random stream, so that the rest of the world does not depend on them."""
    if config.drift == 0 and config.reuse == 0:
        return None
    rng = np.random.default_rng([config.seed, 4])

    def effect(size: int) -> np.ndarray:
        return rng.standard_normal((size, 1 + RANK), dtype=np.float32)

    def handover(birth: np.ndarray) -> np.ndarray:
        first = np.maximum(birth, 0.0)  # an id passes on only after its birth
        passes = rng.random(len(birth)) < config.reuse
        return np.where(passes, first + (1.0 - first) * rng.random(len(birth)), 2.0)

    users, items = config.users, config.items
    return Change(
        drift=config.drift,
        user_later=effect(users),
        item_later=effect(items),
        user_next=effect(users),
        item_next=effect(items),
        user_next_later=effect(users),
        item_next_later=effect(items),
        user_handover=handover(world.user_birth),
        item_handover=handover(world.item_birth),
    )


def zipf(size: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Zipf weights that sum to 1, in random order."""
    weights = np.arange(1, size + 1) ** -exponent
    return rng.permutation(weights / weights.sum())


def _births(size: int, rng: np.random.Generator) -> np.ndarray:
    births = rng.random(size)
    mature = rng.random(size) < MATURE
    births[mature] -= 1.0
    births[int(np.argmin(births))] = -1.0  # at least one exists from the start
    return births


def make_world(config: SimConfig) -> World:
    """Draw the world of ``config`` (from its seed and sizes, and its changes from drift and reuse)."""
    rng = np.random.default_rng([config.seed, 0])
    users, items = config.users, config.items
    authors = max(10, items // 10)

    def effect(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    item_topic = rng.choice(len(TOPICS), items, p=zipf(len(TOPICS), 0.6, rng)).astype(np.int8)
    item_taste = effect(items, RANK)
    price_z = effect(items)
    image = effect(RANK + len(TOPICS), config.vector_dim)
    known = np.concatenate([item_taste, np.eye(len(TOPICS), dtype=np.float32)[item_topic]], axis=1)
    vector = known @ image / np.float32(np.sqrt(RANK + 1)) + np.float32(0.3) * effect(items, config.vector_dim)
    favourite = rng.integers(0, len(TOPICS), users)
    faithful = rng.random((users, LAST_CLICKS)) < 0.7
    world = World(
        user_fame=zipf(users, 0.7, rng),
        user_birth=_births(users, rng),
        user_age=rng.choice(len(AGES), users, p=AGE_SHARES).astype(np.int8),
        user_city=rng.choice(CITIES, users, p=zipf(CITIES, 1.0, rng)).astype(np.int16),
        user_income=effect(users),
        user_income_known=rng.random(users) >= NO_INCOME,
        user_main=effect(users),
        user_taste=effect(users, RANK),
        user_topics=np.where(faithful, favourite[:, None], rng.integers(0, len(TOPICS), (users, LAST_CLICKS))).astype(
            np.int8
        ),
        item_fame=zipf(items, 0.9, rng),
        item_birth=_births(items, rng),
        item_author=rng.choice(authors, items, p=zipf(authors, 0.8, rng)).astype(np.int32),
        item_topic=item_topic,
        item_price=np.round(np.exp(2.5 + 0.8 * price_z.astype(np.float64)), 2),
        item_price_z=price_z,
        item_main=effect(items),
        item_taste=item_taste,
        item_vector=vector,
        item_vector_known=rng.random(items) >= NO_VECTOR,
        site_cdf=np.cumsum(zipf(SITES, 1.1, rng)),
        cookie_cdf=np.cumsum(zipf(COOKIES, 0.8, rng)),
        pair_effect=effect(PAIRS),
        device_effect=effect(len(DEVICES)),
        slot_effect=np.sort(effect(SLOTS))[::-1].copy(),  # the first slot is the best
        hour_scenario_effect=effect(24, len(SCENARIOS)),
        age_topic_effect=effect(len(AGES), len(TOPICS)),
        city_effect=effect(CITIES),
        change=None,
    )
    return replace(world, change=_change(config, world))
