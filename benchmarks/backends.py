"""Every backend that packaging can choose, for all models in two sizes, against eager torch.

make bench-backends              # three minutes on two idle cores
QUICK=1 make bench-backends      # only the small size

Packaging chooses by architecture and size, never by timing; this benchmark checks by timing that the choice is still the
fastest. Weights and rows are random: their cost is the usual one, but their values are spread over whole tables, which is the
worst case for a folded table. ``make bench-serving`` has the figures for the rows of real requests.

A backend that is not twice as fast as eager torch needs a reason: the matrix products of the request alone (:mod:`benchmarks.products`)
take more than half of eager torch's time, so that no float32 backend could be.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.products import floor_seconds, products_of
from thinktwice.data.encoded import Batch
from thinktwice.files import write_json
from thinktwice.models import FieldSpace, backbone_config, build_backbone
from thinktwice.models.backends import Backend, Eager, parity_of, save_choice, verify_sizes
from thinktwice.models.backends.backend import random_rows
from thinktwice.models.backends.choose import has_bfloat16
from thinktwice.models.backends.folded import can_fold
from thinktwice.models.backends.store import candidates
from thinktwice.models.blocks import one_thread

RESULT = Path(__file__).parent / "results" / "backends.json"
QUICK_RESULT = Path(".thinktwice/bench/backends-quick.json")
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {  # fields, values of each, sizes of the trunk
    "small": (12, 3_000, {"dim": 16, "hidden": (128, 64)}),
    "reference": (26, 40_000, {"dim": 16, "hidden": (400, 400, 400)}),
}
MODELS = ("lr", "fm", "deepfm", "dcnv2", "autoint", "masknet", "finalmlp", "din", "hstu")
ROWS = (1, 100, 1000)  # of a request
REQUESTS = 8
TURNS = 3
SLOWER = 1.1  # tolerance over the fastest backend: the difference between two measurements of one backend


def space(fields: int, values: int) -> FieldSpace:
    """This number of columns, and a sequence over the first."""
    return FieldSpace(
        names=(*(f"column_{i}" for i in range(fields)), "sequence"),
        kinds=("categorical",) * fields + ("sequence",),
        entities=("context",) * (fields + 1),
        protected=(False,) * fields + (True,),
        num_values=(values,) * fields,
        sequence_of=("column_0",),
        sequence_lengths=(10,),
    )


def measure(name: str, size: str) -> dict[str, Any]:
    """The choice of packaging for one model, the times of all backends that reproduce its scores, and their parities."""
    fields, values, trunk = SIZES[size]
    own = trunk | {"dim": 1} if name == "lr" else trunk
    model = build_backbone(backbone_config(name=name, **own), space(fields, values)).eval()
    with torch.inference_mode():
        eager = Eager(model, None, model.fill())
    requests = [random_rows(model, max(ROWS), seed) for seed in range(REQUESTS)]
    # Without instructions for it, bfloat16 takes several times as long as float32 and is never chosen.
    names = [*(["folded"] if can_fold(model) else []), "onnx", *(["bfloat16"] if has_bfloat16() else [])]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), one_thread():
        choice = save_choice(folder, eager)
        made = {b: make(model, None, model.fill()) for b, make in candidates(Path(folder), model, names).items()}
        parity = {b: parity_of(backend) for b, backend in made.items()}
        running = {"eager": eager, **{b: backend for b, backend in made.items() if parity[b].holds}}
        spent = timed({b: backend for b, backend in running.items() if verify_sizes(backend) or b == "eager"}, requests)
    with one_thread():
        floor = [floor_seconds(products_of(model, requests[0].select(torch.arange(rows)))) for rows in ROWS]
    return {
        "chosen": choice.name,
        "microseconds": {b: [1e6 * s for s in seconds] for b, seconds in spent.items()},
        "floor_microseconds": [1e6 * seconds for seconds in floor],
        "largest_difference_of_a_probability": {b: p.difference for b, p in parity.items()},
    }


def timed(backends: Mapping[str, Backend], rows: Sequence[Batch]) -> dict[str, list[float]]:
    """Median CPU seconds of a request by size, on one thread. Every turn of a backend runs several requests, so that its tables are in the caches,
    as when it serves alone."""
    seconds_by_size: dict[str, list[float]] = {name: [] for name in backends}
    for size in ROWS:
        requests = [batch.select(torch.arange(size) % len(batch)) for batch in rows]
        spent: dict[str, list[float]] = {name: [] for name in backends}
        for _ in range(TURNS):
            for name, backend in backends.items():
                for request in requests:
                    start = time.process_time()
                    backend.logits(backend.read(request))
                    spent[name].append(time.process_time() - start)
        for name, seconds in spent.items():
            seconds_by_size[name].append(statistics.median(seconds))
    return seconds_by_size


def bars_of(title: str, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chosen backend against the fastest, and by number of rows against eager torch."""
    chosen, spent = model["chosen"], model["microseconds"]
    means = {b: math.exp(statistics.fmean(map(math.log, times))) for b, times in spent.items()}
    slower = means[chosen] / min(means.values())
    bars: list[dict[str, Any]] = [
        {
            "name": f"{title}: {chosen} over the fastest",
            "value": round(slower, 3),
            "bound": f"<= {SLOWER}",
            "holds": slower <= SLOWER,
        }
    ]
    for index, rows in enumerate(ROWS):
        ratio = spent["eager"][index] / spent[chosen][index]
        largest = (
            spent["eager"][index] / model["floor_microseconds"][index]
            if model["floor_microseconds"][index]
            else math.inf
        )
        bars.append(
            {
                "name": f"{title}, {rows} rows: {chosen} over eager",
                "value": round(ratio, 3),
                "bound": ">= 2" if largest >= 2 else f">= 2, impossible: the products alone allow {largest:.2f}",
                "floor": round(model["floor_microseconds"][index], 1),
                "holds": ratio >= 2 or largest < 2,
            }
        )
    return bars


def main() -> None:
    """Measure, print and write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    result: dict[str, Any] = {
        "quick": quick,
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "onnxruntime")},
        "models": {},
        "bars": [],
    }
    for size in ("small",) if quick else SIZES:
        for name in MODELS:
            title = f"{name}, {size}"
            model = result["models"][title] = measure(name, size)
            for bar in bars_of(title, model):
                result["bars"].append(bar)
                print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']:.2f} ({bar['bound']})")
            for index, rows in enumerate(ROWS):
                times = ", ".join(f"{b} {spent[index]:.0f} us" for b, spent in model["microseconds"].items())
                print(
                    f"       {title}, {rows} rows: {times}, floor {model['floor_microseconds'][index]:.0f} us",
                    flush=True,
                )
    target = QUICK_RESULT if quick else RESULT
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    print(f"written: {target}")
    if not quick and not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
