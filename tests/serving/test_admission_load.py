"""The admission under load, in simulation: whom it answers on an idle server, when it tells the others, and how much gets done."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.adapters.java_queue import LONGEST_IDLE
from serving.admission import RESPONSE_LATENCY_S
from serving.cost import AGAIN, WITNESSES
from tests.serving.load_simulation import READ, Arrival, Course, World, ideal, settled, simulate

NOISE = 0.2  # requests of one size cost so much more or less than the usual one
LEARNED = 4  # requests of a size class after which a change of cost is known
SHARE, TIGHT = 0.9, 0.7  # of what the ideal answers in time
TIMELY = 0.1  # of its deadline, beyond which nobody is told late

Draw = Callable[[random.Random], float]

SIZES: dict[str, Draw] = {
    "one row": lambda rng: 1,
    "a hundred": lambda rng: 100,
    "a thousand": lambda rng: 1000,
    "any": lambda rng: rng.randint(1, 1000),
    "natural": lambda rng: min(1000, max(1, int(rng.lognormvariate(4.2, 0.9)))),
    "few large ones": lambda rng: 1 if rng.random() < 0.95 else 1000,
}
DEADLINES: dict[str, Draw] = {
    "tight": lambda rng: rng.uniform(0.005, 0.05),
    "usual": lambda rng: 0.2,
    "a second": lambda rng: 1.0,
    "any": lambda rng: 0.005 * 400 ** rng.random(),
}


@dataclass(frozen=True)
class Piece:
    """A stretch of traffic: ``load`` in multiples of what the server can do; ``bursts`` come twenty at a time."""

    sizes: str
    deadlines: str
    load: float
    bursts: bool = False
    pause: float = 0.0  # seconds of silence behind it
    then: float = 1.0  # factor on all costs from then on
    count: int = 300


def arrivals_of(pieces: Sequence[Piece], world: World, seed: int) -> tuple[World, list[Arrival]]:
    """The traffic, and the world with its changes of cost."""
    rng = random.Random(seed)
    at, found, scales = 0.0, [], []
    for piece in pieces:
        size, deadline = SIZES[piece.sizes], DEADLINES[piece.deadlines]
        usual = sum(world.fixed + world.per_row * size(rng) for _ in range(200)) / 200
        rate = piece.load * world.workers / usual
        for number in range(piece.count):
            if not piece.bursts:
                at += rng.expovariate(rate)
            elif number % 20 == 0:
                at += rng.expovariate(rate / 20)
            found.append(Arrival(at, int(size(rng)), deadline(rng), rng.uniform(1 - NOISE, 1 + NOISE)))
        if piece.then != 1.0:
            scales.append((at, piece.then))
        at += piece.pause
    world = World(world.fixed, world.per_row, tuple(scales), world.stalls, world.workers, world.places, world.prompt)
    return world, found


def check(world: World, arrivals: Sequence[Arrival], curve: Sequence[tuple[int, float]] | None = None) -> float:
    """All that must hold of any traffic; the share of the ideal that was answered in time: at least nine tenths, or seven
    where a fifth of the requests have no time for three of their kind."""
    courses = simulate(world, arrivals, curve)
    assert all(course.told > 0 for course in courses), "somebody was never told"
    _nobody_who_fits_is_refused_by_an_idle_server(world, courses)
    _everybody_is_told_in_time(world, courses)
    good, best = sum(course.good for course in courses), ideal(world, arrivals)
    # Who has hardly more time than it takes is lost to the reserve that is kept for what costs more than usual.
    easy = sum(a.deadline > 3 * world.cost(a.at, a.rows) + RESPONSE_LATENCY_S for a in arrivals) > 0.8 * len(arrivals)
    share = SHARE if easy else TIGHT
    allowance = _nobody_could_know(world, courses) + _in_vain(world, courses)
    assert good >= share * best - 3 - allowance, (good, best, allowance)
    return good / best if best else 1.0


def _in_vain(world: World, courses: Sequence[Course]) -> float:
    """Requests that could have been answered in the time of those that an idle server tried although they had no chance."""
    tried = [course for course in courses if course.idle and course.started is not None and not course.good]
    least = min((c.arrival.rows for c in courses), default=1)
    return sum((c.told - _started(c)) / ((1 - NOISE) * world.cost(_started(c), least)) for c in tried)


def _nobody_could_know(world: World, courses: Sequence[Course]) -> float:
    """Requests that could have been answered while the first of every size class, after costs have risen, are at work, by which
    that is learned; and while one is at work that meets a stall, which nobody can foresee."""
    cheapest = (1 - NOISE) * min(world.cost(c.told, c.arrival.rows) for c in courses)
    hit = [course for course in courses if course.stalled and course.started is not None]
    seconds, before = 0.0, 1.0
    for begin, _ in world.stalls:
        seconds += sum(begin - _started(course) for course in hit if _started(course) <= begin <= course.told)
    for when, factor in world.scales:
        if factor > before:
            first: dict[int, int] = defaultdict(int)
            for course in sorted((c for c in courses if c.started is not None and c.told >= when), key=_started):
                size = course.arrival.rows.bit_length()
                first[size] += 1
                if first[size] <= (LEARNED + 1) * world.workers:
                    seconds += course.told - _started(course)
        before = factor
    return seconds / cheapest


def _started(course: Course) -> float:
    assert course.started is not None
    return course.started


def _nobody_who_fits_is_refused_by_an_idle_server(world: World, courses: Sequence[Course]) -> None:
    """Who fits: whose time suffices for a request of that size at its dearest. Whatever came before, but for two things that
    nobody could know: costs have just fallen, or the last requests of its size or smaller all met a stall."""
    stalled: dict[int, deque[bool]] = defaultdict(lambda: deque(maxlen=WITNESSES))
    ended = deque(sorted((c for c in courses if c.started is not None), key=lambda course: course.told))
    for course in courses:
        arrival = course.arrival
        while ended and ended[0].told <= arrival.at:
            done = ended.popleft()
            stalled[done.arrival.rows.bit_length()].append(done.stalled)
        fits = world.cost(arrival.at, arrival.rows) * (1 + NOISE) + RESPONSE_LATENCY_S <= arrival.deadline
        if not (course.idle and fits and settled(world, arrival.at)):
            continue
        if any(all(last) for size, last in stalled.items() if last and size <= arrival.rows.bit_length()):
            continue
        assert course.end == "answered", course


def _everybody_is_told_in_time(world: World, courses: Sequence[Course]) -> None:
    """Within the deadline and a tenth. Later only: who met a stall; at TorchServe, who stood in Java's queue behind others that
    had more time, and is told by the end of theirs; requests with which an idle server, or a change of cost, was tried."""
    dearest = (1 + NOISE) * max(world.cost(c.arrival.at, c.arrival.rows) for c in courses)
    tried, last = 0, 0.0
    since: dict[tuple[float, int], int] = defaultdict(int)
    for course in courses:
        arrival = course.arrival
        change = world.scale(course.told)
        last = max(last, arrival.ends)
        if course.started is not None:
            since[change, arrival.rows.bit_length()] += 1
        if course.late <= TIMELY or any(a < course.told and arrival.at <= a + s + dearest for a, s in world.stalls):
            continue
        if course.end == "refused":
            # Its turn came in time, and then it had to be read; or those before it had more time.
            one_by_one = 0.0 if world.prompt else dearest * (1 + READ * world.places)
            assert course.told - (arrival.ends if world.prompt else last) <= READ * dearest + one_by_one, course
        elif since[change, arrival.rows.bit_length()] > LEARNED:
            tried += 1
    classes = len({course.arrival.rows.bit_length() for course in courses})
    moments = courses[-1].arrival.at - courses[0].arrival.at
    # One of each size class in a while, and those from which a change is learned; several of these may be at work at once.
    assert tried <= classes * (moments / AGAIN + LEARNED * world.workers * (1 + len(world.scales))), tried


pieces = st.lists(
    st.builds(
        Piece,
        sizes=st.sampled_from(sorted(SIZES)),
        deadlines=st.sampled_from(sorted(DEADLINES)),
        load=st.sampled_from([0.05, 0.5, 0.8, 1.0, 3.0]),
        bursts=st.booleans(),
        pause=st.sampled_from([0.0, 0.3, 5.0, 3600.0]),
        then=st.sampled_from([1.0, 1.0, 3.0, 1 / 3]),
    ),
    min_size=1,
    max_size=4,
)
stalls = st.lists(st.tuples(st.floats(0.1, 3.0), st.sampled_from([0.02, 0.1, 0.6])), max_size=6)
worlds = st.builds(
    World,
    fixed=st.floats(0.0003, 0.003),
    per_row=st.floats(1e-6, 2e-5),
    workers=st.sampled_from([1, 1, 2, 4]),
    places=st.sampled_from([8, 32, 100]),
    prompt=st.booleans(),
)


def with_stalls(world: World, gaps: Sequence[tuple[float, float]]) -> World:
    at, found = 0.0, []
    for gap, seconds in gaps:
        at += gap
        found.append((at, seconds))
        at += seconds
    return World(world.fixed, world.per_row, world.scales, tuple(found), world.workers, world.places, world.prompt)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(worlds, stalls, pieces, st.integers(0, 2**32))
def test_any_traffic(world: World, gaps: list[tuple[float, float]], traffic: list[Piece], seed: int) -> None:
    check(*arrivals_of(traffic, with_stalls(world, gaps), seed))


def traffic_of(seed: int, count: int) -> tuple[World, list[Arrival]]:
    """A world and its traffic, drawn at random."""
    rng = random.Random(seed)
    world = World(
        fixed=rng.uniform(0.0003, 0.003),
        per_row=10 ** rng.uniform(-6, -4.7),
        workers=rng.choice([1, 1, 2, 4]),
        places=rng.choice([8, 32, 100]),
        prompt=rng.random() < 0.5,
    )
    gaps = [(rng.uniform(0.5, 5.0), rng.choice([0.02, 0.1, 0.6])) for _ in range(rng.randint(0, 5))]
    number = rng.randint(1, 4)
    traffic = [
        Piece(
            rng.choice(sorted(SIZES)),
            rng.choice(sorted(DEADLINES)),
            rng.choice([0.1, 0.5, 0.8, 1.0, 3.0, 3.0]),
            bursts=rng.random() < 0.2,
            pause=rng.choice([0.0, 0.0, rng.uniform(1, 3600)]),
            then=rng.choice([1.0, 1.0, 3.0, 1 / 3]),
            count=count // number,
        )
        for _ in range(number)
    ]
    return arrivals_of(traffic, with_stalls(world, gaps), seed)


@pytest.mark.parametrize("seed", range(40))
def test_longer_traffic(seed: int) -> None:
    check(*traffic_of(seed, 2500))


@pytest.mark.parametrize("seed", range(20))
def test_traffic_behind_torchserve_without_start_headers(seed: int) -> None:
    """The wait in Java's queue is estimated from that of the request before: nearly as much gets done, hardly anybody is late. An
    idle server refuses only who comes just behind the last of a queue."""
    world, arrivals = traffic_of(seed, 2500)
    world = replace(world, workers=1, prompt=False, says=False)
    courses = simulate(world, arrivals)
    best = ideal(world, arrivals)
    assert sum(course.good for course in courses) >= 0.85 * best - 3
    assert sum(course.end == "answered" and course.late > TIMELY and not course.stalled for course in courses) <= 25
    last = 0.0
    for course in courses:
        arrival = course.arrival
        fits = world.cost(arrival.at, arrival.rows) * (1 + NOISE) + RESPONSE_LATENCY_S <= arrival.deadline
        if (
            course.idle
            and fits
            and settled(world, arrival.at)
            and arrival.at - last > LONGEST_IDLE
            and not world.stalls
        ):
            assert course.end == "answered", course
        last = max(last, course.told)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_a_night_of_one_row_probes_and_then_other_sizes(workers: int, rows: int) -> None:
    """The first reproduction of the lock-in: on the idle server, everybody whose time suffices is answered."""
    world = World(workers=workers, fixed=0.002, per_row=1e-5)
    probes = [Arrival(10.0 * i, 1, 1.0) for i in range(3000)]
    then = [Arrival(30_000 + 0.2 * i, rows, 2 * world.cost(0, rows) + RESPONSE_LATENCY_S) for i in range(60)]
    courses = simulate(world, [*probes, *then])
    assert all(course.good for course in courses)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("stalled", [1, 2])
def test_stalls_in_the_first_requests_of_a_fresh_server(prompt: bool, stalled: int) -> None:
    """The second reproduction."""
    world = World(stalls=tuple((0.001 + i, 0.6) for i in range(stalled)), prompt=prompt)
    courses = simulate(world, [Arrival(float(i), 500, 0.2) for i in range(60)])
    assert [course.good for course in courses] == [False] * stalled + [True] * (60 - stalled)


def test_a_warm_up_that_was_slow_keeps_nobody_out_for_long() -> None:
    """The node was ten times as slow while the server started; then all callers send what seems not to fit."""
    world = World()
    slow = [(rows, 10 * seconds) for rows, seconds in world.curve()]
    for load in (0.1, 0.9, 3.0):
        world_, arrivals = arrivals_of([Piece("a hundred", "tight", load, count=3000)], world, 3)
        assert check(world_, arrivals, slow) > 0.9


@pytest.mark.parametrize("deadlines", ["tight", "usual", "any"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sizes", ["a hundred", "natural", "any"])
def test_three_times_what_the_server_can_do(deadlines: str, workers: int, sizes: str) -> None:
    """Most of what is possible gets done, and nobody is told late at all: no request was tried."""
    world, arrivals = arrivals_of([Piece(sizes, deadlines, 3.0, count=2000)], World(workers=workers), 7)
    assert check(world, arrivals) > 0.9
    courses = simulate(world, arrivals)
    assert sum(course.late > TIMELY for course in courses) <= 2
    assert sum(course.end == "refused" for course in courses) > 0.5 * len(courses)
