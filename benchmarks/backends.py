"""Every backend that packaging can choose, for the three models in two sizes, against eager torch.

make bench-backends              # under a minute on two cores that do nothing else
QUICK=1 make bench-backends      # the small size alone

Weights and rows are random: they cost what others cost, but their values are spread over whole tables, which is the worst case
for a folded one. ``make bench-serving`` has the figures for the rows of real requests. Times are those of packaging itself.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from thinktwice.files import write_json
from thinktwice.models import BackboneConfig, FieldSpace, build_backbone
from thinktwice.models.backends import Eager, save_choice
from thinktwice.models.backends.backend import random_rows
from thinktwice.models.backends.choose import ROWS

RESULT = Path(__file__).parent / "results" / "backends.json"
QUICK_RESULT = Path(".thinktwice/bench/backends-quick.json")
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {  # fields, values of each, sizes of the trunk
    "small": (12, 3_000, {"dim": 16, "hidden": (128, 64)}),
    "reference": (26, 40_000, {"dim": 16, "hidden": (400, 400, 400)}),
}
REQUESTS = 8


def space(fields: int, values: int) -> FieldSpace:
    """So many columns, and a sequence over the first."""
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
    """The choice of packaging for one model, its seconds and parities."""
    fields, values, trunk = SIZES[size]
    model = build_backbone(BackboneConfig(name=name, **trunk), space(fields, values)).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        eager = Eager(model, None, model.fill())
    requests = [random_rows(model, max(ROWS), seed) for seed in range(REQUESTS)]
    with tempfile.TemporaryDirectory() as folder:
        choice = save_choice(folder, eager, requests)
    return {
        "chosen": choice.name,
        "microseconds": {b: [1e6 * s for s in seconds] for b, seconds in choice.seconds.items()},
        "largest_difference_of_a_probability": {b: parity.difference for b, parity in choice.parity.items()},
    }


def main() -> None:
    """Measure, print and write the result, and fail when a bar does not hold."""
    quick = bool(os.environ.get("QUICK"))
    result: dict[str, Any] = {
        "quick": quick,
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "onnxruntime")},
        "models": {},
        "bars": [],
    }
    for size in ("small",) if quick else SIZES:
        for name in ("deepfm", "dcnv2", "autoint"):
            found = result["models"][f"{name}, {size}"] = measure(name, size)
            for place, rows in enumerate(ROWS):
                spent = {backend: times[place] for backend, times in found["microseconds"].items()}
                ratio = spent["eager"] / spent[found["chosen"]]
                bar = {"name": f"{name}, {size}, {rows} rows: {found['chosen']} over eager", "value": round(ratio, 3)}
                result["bars"].append(bar | {"bound": ">= 2", "holds": ratio >= 2})
                others = ", ".join(f"{b} {t:.0f} us" for b, t in spent.items())
                print(f"{'holds' if ratio >= 2 else 'FAILS'}  {bar['name']}: {ratio:.2f} (>= 2); {others}", flush=True)
    target = QUICK_RESULT if quick else RESULT
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    print(f"written: {target}")
    if not quick and not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
