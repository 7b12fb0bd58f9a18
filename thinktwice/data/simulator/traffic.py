"""Live traffic from the world of a simulated log: visits with candidates, and their true click probabilities.

A visit is one user who may be shown any of several candidates. The world stands still at one share of the simulated time.
Visits and clicks depend only on the config and the number of the visit, not on what was served before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.draw import Scale, at_time, fit_scale, id_part, pick, shared_part
from thinktwice.data.simulator.world import (
    AGES,
    DEVICE_SHARES,
    DEVICES,
    LIFE,
    SCENARIO_SHARES,
    SCENARIOS,
    SLOTS,
    TOPICS,
    make_world,
)

BLOCK = 512  # visits drawn at once


@dataclass(frozen=True)
class Visit:
    """One user at one moment.

    Attributes:
        context: fields of the request that are not looked up, by the names of the schema.
        candidates: items that may be shown, without repetitions.
        values: fields of the user and of each candidate, by the names of the schema.
        truth: true click probability of each candidate.
        draw: a uniform number for each candidate: it is clicked, if shown, where the number is below its probability.
    """

    number: int
    user: str
    context: dict[str, str | float]
    candidates: tuple[str, ...]
    values: tuple[dict[str, str], ...]
    truth: tuple[float, ...]
    draw: tuple[float, ...]


@dataclass(frozen=True)
class _Drawn:
    """A block of visits, as indices into the world's tables."""

    user: np.ndarray  # [BLOCK]
    item: np.ndarray  # [BLOCK, K]
    site: np.ndarray
    cookie: np.ndarray
    device: np.ndarray
    scenario: np.ndarray
    slot: np.ndarray
    load_z: np.ndarray
    draw: np.ndarray  # [BLOCK, K]
    truth: np.ndarray  # [BLOCK, K]


class Traffic:
    """Visits to the world of a log.

    Args:
        config: that of the log.
        now: moment in the world, as a share of the log's time.
        hour: hour of the day, UTC.
        candidates: number of items in each visit.
        seed: of the visits.
        fame: power of the users' fame: 1 as in the log, 0 for users who all come alike.
    """

    def __init__(
        self, config: SimConfig, *, now: float, hour: int, candidates: int, seed: int, fame: float = 1.0
    ) -> None:
        world = make_world(config)
        self._scale: Scale = fit_scale(config, world)
        self._world = at_time(world, now)
        self._config, self._hour, self._candidates, self._seed = config, hour, candidates, seed
        age = now - world.item_birth
        item_fame = np.where(age >= 0, world.item_fame * np.exp(-np.maximum(age, 0) / LIFE), 0.0)
        self._items = np.flatnonzero(item_fame > 0)
        self._log_fame = np.log(item_fame[self._items])
        self._users = np.cumsum(np.where(world.user_birth <= now, world.user_fame**fame, 0.0))
        if len(self._items) < candidates:
            raise ValueError(f"the world has {len(self._items)} items, fewer than {candidates} candidates")

    def visits(self, first: int = 0) -> Iterator[Visit]:
        """Visits from number ``first`` on, without end."""
        number = first
        while True:
            yield from self._block(number // BLOCK, number % BLOCK)
            number = (number // BLOCK + 1) * BLOCK

    def truths(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first ``number`` visits without their values: users [number], ``truth`` and ``draw`` [number, candidates]."""
        blocks = [self._drawn(block) for block in range(-(-number // BLOCK))]
        user, truth, draw = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("user", "truth", "draw"))
        return user[:number].astype(np.int64).astype(str), truth[:number], draw[:number]

    def _drawn(self, block: int) -> _Drawn:
        rng = np.random.default_rng([self._config.seed, 5, self._seed, block])
        world, k = self._world, self._candidates
        user = pick(self._users, (BLOCK,), rng)
        # The k largest of log fame + Gumbel noise: a draw by fame without repetitions.
        noisy = self._log_fame + rng.gumbel(size=(BLOCK, len(self._items)))
        item = self._items[np.argpartition(-noisy, k - 1, axis=1)[:, :k]]
        site = pick(world.site_cdf, (BLOCK,), rng)
        cookie = pick(world.cookie_cdf, (BLOCK,), rng)
        device = pick(np.cumsum(DEVICE_SHARES), (BLOCK,), rng).astype(np.int8)
        scenario = pick(np.cumsum(SCENARIO_SHARES), (BLOCK,), rng).astype(np.int8)
        slot = rng.integers(0, SLOTS, BLOCK, dtype=np.int8)
        load_z = rng.standard_normal(BLOCK, dtype=np.float32)
        draw = rng.random((BLOCK, k))
        users, *others = (np.repeat(a, k) for a in (user, site, device, slot, scenario, load_z))
        truth = self._truth(users, item.reshape(-1), *others).reshape(BLOCK, k)
        return _Drawn(user, item, site, cookie, device, scenario, slot, load_z, draw, truth)

    def _block(self, block: int, skip: int) -> Iterator[Visit]:
        drawn = self._drawn(block)
        for i in range(skip, BLOCK):
            yield Visit(
                number=block * BLOCK + i,
                user=str(drawn.user[i]),
                context={
                    "site_id": str(drawn.site[i]),
                    "cookie": str(drawn.cookie[i]),
                    "device": DEVICES[drawn.device[i]],
                    "slot": str(drawn.slot[i]),
                    "scenario": SCENARIOS[drawn.scenario[i]],
                    "load_ms": float(np.round(np.exp(6.0 + 0.5 * float(drawn.load_z[i])))),
                },
                candidates=tuple(map(str, drawn.item[i])),
                values=tuple({**self._user_values(drawn.user[i]), **self._item_values(j)} for j in drawn.item[i]),
                truth=tuple(drawn.truth[i].tolist()),
                draw=tuple(drawn.draw[i].tolist()),
            )

    def _user_values(self, user: int) -> dict[str, str]:
        return {"age_band": AGES[self._world.user_age[user]], "city": str(self._world.user_city[user])}

    def _item_values(self, item: int) -> dict[str, str]:
        return {"author_id": str(self._world.item_author[item]), "topic": TOPICS[self._world.item_topic[item]]}

    def _truth(
        self,
        user: np.ndarray,
        item: np.ndarray,
        site: np.ndarray,
        device: np.ndarray,
        slot: np.ndarray,
        scenario: np.ndarray,
        load_z: np.ndarray,
    ) -> np.ndarray:
        """True click probabilities [R]."""
        config, world, scale = self._config, self._world, self._scale
        hour = np.full(len(user), self._hour, np.int8)
        match = (world.user_topics[user] == world.item_topic[item][:, None]).mean(axis=1)
        ids = id_part(world, user, item, site).astype(np.float64)
        shared = shared_part(world, user, item, device, slot, scenario, hour, load_z).astype(np.float64)
        logit = (
            scale.bias
            + scale.id_sd * (ids - scale.id_mean)
            + scale.shared_sd * (shared - scale.shared_mean)
            + config.behaviour * match
        )
        return np.asarray(config.noise * config.click_rate + (1 - config.noise) / (1 + np.exp(-logit)))
