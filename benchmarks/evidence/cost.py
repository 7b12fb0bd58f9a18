"""CPU time of a request of 100 rows: encode and engine, in one process on one thread, relative to the trunk scored once.

Reading features, states and histories from a store, and turning states into counters, is the lookup and not in it; ``make
bench-counters`` measures the latter. The values of the user are encoded once and those of the items row by row, as in a server
without a catalogue in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.evidence.networks import WINDOWS, Networks
from benchmarks.evidence.trunks import counter_groups
from thinktwice.calibration import Calibration
from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.evidence import Evidence, History
from thinktwice.data.training_set import TrainingSet
from thinktwice.models import Backbone, load_model
from thinktwice.models.backends.folded import Folded
from thinktwice.models.blocks import one_thread
from thinktwice.models.logit_network import Network
from thinktwice.testtime.config import Correction, SecondLook, TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Members, Retrieve
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Always, Entropy

ROWS, REQUESTS = 100, 20
SHARES = (0.1, 0.2, 0.4, 1.0)  # of rows with a second look
PLAIN = "trunk"
Call = Callable[[int], object]  # scores the request of this number


class Requests:
    """Requests of one user each: raw values, and the evidence of their rows."""

    def __init__(self, networks: Networks, delay: str) -> None:
        self.data = networks.trunks.data(delay)
        rows = self.data.part_with_evidence("test")
        self.encoder = self.data.encoder
        names = [f.name for f in self.encoder.fields]
        items = {f.name for f in self.encoder.fields if f.entity == "item"}
        self.item_fields, self.shared_fields = frozenset(items), frozenset(set(names) - items)
        self.spread = np.linspace(0, len(rows) - 1, ROWS * REQUESTS).astype(np.int64).reshape(REQUESTS, ROWS)
        frame = self.data.rows("test").select(names)
        self.raw = [frame[chosen].to_dicts() for chosen in self.spread]
        self.evidence = [_evidence(rows, chosen) for chosen in self.spread]

    def encode(self, number: int) -> Batch:
        raw = self.raw[number]
        shared = self.encoder.encode_side(raw[:1], self.shared_fields)
        return self.encoder.join(shared, self.encoder.encode_side(raw, self.item_fields))


def measure(networks: Networks, delay: str, rounds: int) -> dict[str, Any]:
    """Time of every method that is fitted with seed 0 at ``delay``: microseconds per request, and the ratio to the trunk."""
    requests = Requests(networks, delay)
    calls = _calls(networks, delay, requests)
    gc.collect()
    gc.disable()
    try:
        with one_thread():
            taken = _alternately(calls, rounds)
    finally:
        gc.enable()
    least = {name: us.min(axis=0) for name, us in taken.items()}  # other processes only add
    base = least[PLAIN].mean()
    return {
        "rows": ROWS,
        "delay": delay,
        "methods": {name: {"us": us.mean(), "ratio": us.mean() / base} for name, us in least.items()},
    }


def _alternately(calls: dict[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """Microseconds [rounds, REQUESTS] of every call; in a round each method scores all requests, one method after the other."""
    names = list(calls)
    taken = {name: np.zeros((rounds, REQUESTS)) for name in names}
    for turn in range(-1, rounds):
        for step in range(len(names)):
            name = names[(step + turn) % len(names)]
            for number in range(REQUESTS):
                start = time.thread_time_ns()
                calls[name](number)
                if turn >= 0:
                    taken[name][turn, number] = (time.thread_time_ns() - start) / 1000
    return taken


def _calls(networks: Networks, delay: str, requests: Requests) -> dict[str, Call]:
    trunks = networks.trunks
    model = trunks.trunk(0).model
    train = trunks.data(delay).part("train")
    reliability = Reliability.fit(train.ids, train.label, model.fields)
    item = trunks.data().schema.key_of("item")
    assert item is not None

    def engine(config: TestTimeConfig, extras: Extras | None = None, of: Backbone = model) -> Engine:
        return Engine(of, reliability, config, Calibration(), extras, Folded)

    def scoring(made: Engine, *, reads: bool = False) -> Call:
        return lambda n: made.score(requests.encode(n), evidence=requests.evidence[n] if reads else None)

    calls: dict[str, Call] = {PLAIN: scoring(engine(TestTimeConfig()))}
    always = SecondLook(trigger=Always(), opinion=Members(count=1), max_path_rows=ROWS)
    if trunks.kept.found("trunk-scores-1") is not None:
        two = Extras(members=(trunks.trunk(1).model,))
        calls["two trunks"] = scoring(engine(TestTimeConfig(mode="members", second_look=always), two))
    if networks.found("correction", 0, delay) is not None:
        correction = networks.correction(0, delay)
        corrected = TestTimeConfig(mode="corrected", correction=Correction())
        calls["first look"] = scoring(engine(corrected, Extras(correction=correction)), reads=True)
        calls["first look without windows"] = _without_windows(engine, correction, trunks.data(delay), requests)
        if networks.found("retrieval", 0, delay) is not None:
            extras = Extras(correction=correction, retrieval=networks.second(0, delay))
            first = engine(corrected, Extras(correction=correction))
            scored = [first.score(requests.encode(n), evidence=requests.evidence[n]) for n in range(REQUESTS)]
            signal = np.concatenate([entropy(s.probability) for s in scored])
            for share in SHARES:
                trigger = Always() if share == 1 else Entropy(threshold=float(np.quantile(signal, 1 - share)))
                look = SecondLook(trigger=trigger, opinion=Retrieve(item_field=item), max_path_rows=ROWS)
                config = TestTimeConfig(mode="retrieve", correction=Correction(), second_look=look)
                calls[f"second look for {share:.0%} of rows"] = scoring(engine(config, extras), reads=True)
    if networks.found("in trunk", 0, delay) is not None:
        inside, _ = load_model(trunks.kept.path(f"in-trunk-{delay}-0"))
        calls["counters in the trunk"] = _with_vectors(engine(TestTimeConfig(), of=inside), requests)
    return calls


def _without_windows(
    engine: Callable[..., Engine],
    correction: CorrectionNetwork,
    data: TrainingSet,
    requests: Requests,
) -> Call:
    """A first look of the same layers without the inputs of windows; the time does not depend on the weights."""
    assert data.counter_scale is not None
    names = data.counter_scale.names
    kept = np.array([n for n, name in enumerate(names) if not name.endswith(WINDOWS)])
    first, *others = correction.network.arrays
    inputs = np.r_[0, 1 + kept, 1 + len(names) + kept]
    standard = Standard(correction.standard.means[kept], correction.standard.sds[kept])
    smaller = CorrectionNetwork(standard, Network((np.ascontiguousarray(first[inputs]), *others)))
    made = engine(TestTimeConfig(mode="corrected", correction=Correction()), Extras(correction=smaller))
    evidence = [Evidence(np.ascontiguousarray(e.counters[:, kept])) for e in requests.evidence]
    return lambda n: made.score(requests.encode(n), evidence=evidence[n])


def _with_vectors(engine: Engine, requests: Requests) -> Call:
    groups, scale = counter_groups(requests.data), requests.data.counter_scale
    assert scale is not None
    standard = Standard(np.asarray(scale.means, np.float32), np.asarray(scale.sds, np.float32))

    def call(number: int) -> object:
        import torch

        batch, counters = requests.encode(number), requests.evidence[number].counters
        values, unknown = standard(counters), np.isnan(counters)
        vectors = {
            name: torch.from_numpy(np.concatenate([values[:, c], unknown[:, c]], axis=1, dtype=np.float32))
            for name, c in groups.items()
        }
        return engine.score(replace(batch, vectors={**batch.vectors, **vectors}))

    return call


def _evidence(rows: EncodedRows, chosen: np.ndarray) -> Evidence:
    """The evidence of the chosen rows; the user has the history of the last one."""
    assert rows.evidence is not None and rows.evidence.history is not None
    found = rows.evidence.history()
    assert found is not None
    outcomes = slice(int(found.start[chosen[-1]]), int(found.end[chosen[-1]]))
    history = History.of_user(found.items[outcomes], found.clicked[outcomes], len(chosen))
    return Evidence(np.array(rows.evidence.counters[chosen]), lambda: history)
