"""Your own log: describe it, validate it, train a model on it, read the report.

    python examples/own_log.py OUT

The example generates the log of a shop. Replace ``write_log`` and ``SCHEMA`` with your own.
"""

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

import thinktwice

SCHEMA = """\
name: shop
time: {column: shown_at, format: datetime}
label: {column: bought}
entities:
  user: {key: user, column: customer}
  item: {key: item, column: sku}
fields:
  - {name: color, entity: item, allowed: [red, blue, green]}
  - {name: device, nullable: false}
  - {name: price, kind: numeric, entity: item, minimum: 0}
sequences:
  - {name: bought_before, of: item, length: 5}
statistics: {windows_days: [7], entities: [item]}
"""


def write_log(path: Path, rows: int = 1500) -> None:
    """Red items are bought often, others rarely. Three rows have no device, which the schema does not allow."""
    draw = np.random.default_rng(7)
    items = draw.integers(0, 24, rows)
    start = datetime(2024, 3, 1, tzinfo=timezone.utc)
    device = draw.choice(["phone", "desktop"], rows).tolist()
    device[3] = device[11] = device[14] = None
    pl.DataFrame(
        {
            "shown_at": [start + timedelta(minutes=3 * i) for i in range(rows)],
            "bought": (draw.random(rows) < np.where(items % 3 == 0, 0.8, 0.15)).astype(int),
            "customer": [f"c{u}" for u in draw.integers(0, 60, rows)],
            "sku": [f"s{i}" for i in items],
            "color": [("red", "blue", "green")[i % 3] for i in items],
            "device": device,
            "price": 10.0 + items,
        }
    ).write_parquet(path)


def main(out: Path) -> thinktwice.Training:
    out.mkdir(parents=True, exist_ok=True)
    write_log(out / "impressions.parquet")
    (out / "shop.yaml").write_text(SCHEMA)

    schema = thinktwice.load_schema(out / "shop.yaml")
    thinktwice.ingest_log(out / "impressions.parquet", out / "raw", schema=schema)
    checked = thinktwice.validate_log(out / "raw", out / "checked")
    print(f"{checked.rows_clean:,} of {checked.rows_in:,} rows are clean")
    for rule in checked.broken:
        print(f"  {rule.severity} {rule.rule}: {rule.sentence}")

    trained = thinktwice.train_model(checked.clean_dir, out / "model", recipe="tiny")
    print(*trained.report.verdict, sep="\n")
    print(f"AUC {trained.report.metrics['plain']['auc']:.3f}, report: {trained.report.html}")
    return trained


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".thinktwice/examples/own-log"))
