from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from tests.validate.raw import START, shop_columns, write_raw
from thinktwice.errors import DataError
from thinktwice.files import write_json
from thinktwice.validate.drift import PRIOR_WEIGHT, ValueBins, bin_counts, ks, psi, single_field_auc
from thinktwice.validate.profile import WHOLE, LogProfile, profile_log, read_reference
from thinktwice.validate.split import split_log

SCHEMA = """
name: drifting
time: {column: ts, format: s}
label: {column: y}
entities: {user: {key: user_id}}
fields:
- {name: color, entity: context}
- {name: price, entity: context, kind: numeric}
- {name: constant, entity: context}
- {name: hour, derived: hour}
"""


def profile(tmp_path: Path, frame: pl.DataFrame, **options: object) -> LogProfile:
    raw = write_raw(tmp_path / "raw", frame, SCHEMA)
    split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r")
    return profile_log(tmp_path / "clean", **options)  # type: ignore[arg-type]


def log(num_rows: int = 6_000, *, drift: float = 0.0, seed: int = 0) -> pl.DataFrame:
    """Ten days; in the second half the color 'red' and the price gain ``drift``."""
    rng = np.random.default_rng(seed)
    late = np.arange(num_rows) >= num_rows // 2
    colors = np.where(rng.random(num_rows) < 0.2 + drift * late, "red", rng.choice(["blue", "green"], num_rows))
    price = rng.normal(size=num_rows) + 3 * drift * late
    return pl.DataFrame(
        {
            "ts": np.sort(rng.integers(START, START + 10 * 86_400, num_rows)),
            "user_id": rng.integers(0, 300, num_rows).astype(str),
            "color": pl.Series(colors).set(pl.Series(rng.random(num_rows) < 0.1), None),
            "price": price,
            "constant": ["same"] * num_rows,
            "y": (rng.random(num_rows) < 0.1 + 0.3 * (colors == "red")).astype(int),
        }
    )


def whole(found: LogProfile, feature: str) -> dict[str, object]:
    return found.table.filter(partition=WHOLE, feature=feature).row(0, named=True)


def test_table_equals_a_plain_count(tmp_path: Path) -> None:
    found = profile(tmp_path, log())
    clean = pl.read_parquet(tmp_path / "clean/clean.parquet")
    days = clean.select(pl.col("event_time").dt.date().cast(pl.String))["event_time"]
    for day in [None, *days.unique().sort().to_list()]:
        part = clean if day is None else clean.filter(days == day)
        row = found.table.filter(partition=day or WHOLE, feature="color").row(0, named=True)
        assert (row["rows"], row["clicks"]) == (part.height, part["label"].cast(pl.Int64).sum())
        assert row["nulls"] == part["color"].null_count()
        assert row["distinct"] == part["color"].drop_nulls().n_unique()
        assert row["top_share"] == part["color"].drop_nulls().value_counts()["count"].max() / part.height  # type: ignore[operator]
        price = found.table.filter(partition=day or WHOLE, feature="price").row(0, named=True)
        assert price["minimum"] == part["price"].min() and price["maximum"] == part["price"].max()
        assert price["median"] == part["price"].quantile(0.5)
    assert whole(found, "constant")["judged_distinct"] == 1.0


def test_quiet_and_drifting_logs(tmp_path: Path) -> None:
    quiet, loud = profile(tmp_path / "a", log()), profile(tmp_path / "b", log(drift=0.5))
    for feature in ("color", "price"):
        assert whole(quiet, feature)["judged_psi"] < 0.05  # type: ignore[operator]
        assert whole(loud, feature)["judged_psi"] > 0.25  # type: ignore[operator]
    assert whole(loud, "price")["judged_ks"] > 0.3 > whole(quiet, "price")["judged_ks"]  # type: ignore[operator]
    assert whole(loud, "user_id")["judged_psi"] is None and whole(loud, "hour")["judged_psi"] is None
    small = profile(tmp_path / "c", log(400, drift=0.5))
    assert whole(small, "color")["judged_psi"] is None, "too few rows to judge"


def test_against_an_earlier_log(tmp_path: Path) -> None:
    earlier = profile(tmp_path / "a", log()).reference
    write_json(tmp_path / "reference.json", earlier)
    reference = read_reference(tmp_path / "reference.json")
    same = profile(tmp_path / "b", log(seed=1), reference=reference)
    other = profile(tmp_path / "c", log(20_000, drift=2.0, seed=2).tail(10_000), reference=reference)
    for feature in ("color", "price"):
        assert whole(same, feature)["psi_from_reference"] < 0.05  # type: ignore[operator]
        assert whole(other, feature)["psi_from_reference"] > 0.25  # type: ignore[operator]
    assert whole(same, "user_id")["volume_ratio"] == 1.0
    with pytest.raises(DataError, match="is not a reference profile of format 1"):
        write_json(tmp_path / "no.json", {"format": 2})
        read_reference(tmp_path / "no.json")


def test_a_copy_of_the_label_is_seen(tmp_path: Path) -> None:
    frame = log()
    frame = frame.with_columns(
        color=pl.when(pl.col("y") == 1).then(pl.lit("bought")).otherwise(None), price=pl.col("y") * 1.0
    )
    found = profile(tmp_path, frame)
    assert whole(found, "color")["judged_auc"] == 1.0
    assert whole(found, "price")["judged_auc"] == 1.0
    assert abs(whole(found, "user_id")["judged_auc"] - 0.5) < 0.06  # type: ignore[operator]


def test_user_ids_do_not_leave_the_profile(tmp_path: Path) -> None:
    frame = log().with_columns(user_id=pl.lit("jane.doe@example.org-") + pl.col("user_id"))
    found = profile(tmp_path, frame)
    text = str(found.table.write_csv()) + str(found.reference) + str(found.histograms)
    assert "jane.doe" not in text
    top = (
        pl.read_parquet(tmp_path / "clean/clean.parquet")["user_id"]
        .value_counts()
        .sort(["count", "user_id"], descending=[True, False])
    )
    digest = hashlib.sha256(f"thinktwice:{top['user_id'][0]}".encode()).hexdigest()[:8]
    assert whole(found, "user_id")["top_value"] == f"#{digest}"


def test_vectors_are_profiled_by_their_length(tmp_path: Path) -> None:
    columns = shop_columns(50)
    columns["image"] = [[3.0, 4.0] if i % 2 else None for i in range(50)]
    split_log(write_raw(tmp_path / "raw", columns), tmp_path / "clean", tmp_path / "bad", run_id="r")
    row = whole(profile_log(tmp_path / "clean"), "image")
    assert (row["kind"], row["median"], row["null_share"]) == ("vector", 5.0, 0.5)


def test_an_empty_clean_log_has_an_empty_profile(tmp_path: Path) -> None:
    found = profile(tmp_path, log(20).with_columns(y=9))
    assert found.table.height == 0 and found.reference["rows"] == 0


def test_auc_equals_the_oracle() -> None:
    rng = np.random.default_rng(3)
    rows = pl.DataFrame({"value": rng.integers(0, 40, 4_000), "parity": rng.random(4_000) < 0.5}).with_columns(
        value=pl.when(pl.col("value") > 2).then(pl.col("value"))
    )
    y = (rng.random(4_000) < rows["value"].fill_null(0).to_numpy() / 60).astype(int)
    rows = rows.with_columns(y=pl.Series(y))
    counts = rows.group_by("value", "parity").agg(n=pl.len().cast(pl.Int64), clicks=pl.col("y").sum())
    fitted, held = rows.filter(~pl.col("parity")), rows.filter("parity")
    prior = fitted["y"].mean()
    rates = {
        key: (group["y"].sum() + PRIOR_WEIGHT * prior) / (group.height + PRIOR_WEIGHT)  # type: ignore[operator]
        for (key,), group in fitted.group_by("value")
    }
    scores = [rates.get(v, prior) for v in held["value"]]
    auc, fewest = single_field_auc(counts)
    assert auc == pytest.approx(roc_auc_score(held["y"], scores), abs=1e-12)
    assert fewest == held["y"].sum()


def test_distances() -> None:
    same = np.array([10.0, 20.0, 30.0, 0.0, 0.0])
    assert psi(same, same) == 0.0 and ks(same, same) == 0.0
    assert ks(np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])) == 1.0
    assert psi(same, np.zeros(5)) is None and ks(np.zeros(4), np.ones(4)) is None
    p, q = np.array([0.5, 0.5, 0, 0]) * 1e9, np.array([0.25, 0.75, 0, 0]) * 1e9
    assert psi(p, q) == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5), rel=1e-6)
    bins = ValueBins(("a", "b"), None)
    counts = pl.DataFrame({"value": ["a", "c", None, "a"], "n": [2, 3, 4, 5]})
    assert bin_counts(counts, bins).tolist() == [7, 0, 3, 4]


def test_a_reference_of_widened_float32_numbers_is_the_same_distribution(tmp_path: Path) -> None:
    """Earlier versions wrote float32 0.7 as 0.699999988 and laid edges on it; the log now says 0.7."""
    rng = np.random.default_rng(4)
    narrow = rng.choice(np.array([0.1, 0.2, 0.3, 0.7, 1.1], np.float32), 4_000)
    known = np.quantile(narrow.astype(np.float64), np.linspace(0, 1, 21)[1:-1])
    edges = np.unique(known)
    counts = np.bincount(np.searchsorted(edges, narrow.astype(np.float64), side="left"), minlength=len(edges) + 1)
    feature = {
        "values": list(range(len(edges) + 1)),
        "edges": edges.tolist(),
        "shares": [*(counts / 4_000).tolist(), 0.0, 0.0],
        "rows": 4_000,
    }
    reference = {"format": 1, "rows": 4_000, "click_rate": 0.5, "features": {"price": feature}}
    later = log(4_000).with_columns(price=pl.Series([float(str(v)) for v in rng.permutation(narrow)]))
    found = whole(profile(tmp_path / "a", later, reference=reference), "price")
    assert found["psi_from_reference"] < 1e-6  # type: ignore[operator]
    again = profile(tmp_path / "b", later, reference=profile(tmp_path / "c", later).reference)
    assert whole(again, "price")["psi_from_reference"] < 1e-6  # type: ignore[operator]


def test_a_field_alone_is_judged_by_one_click_but_not_by_none() -> None:
    def counts(clicks: int) -> pl.DataFrame:
        rows = [("a", False, 10, 5), ("b", False, 10, 0), ("a", True, 5, clicks), ("b", True, 5, 0)]
        return pl.DataFrame(rows, ("value", "parity", "n", "clicks"), orient="row")

    assert single_field_auc(counts(0)) == (None, 0)
    auc, fewest = single_field_auc(counts(1))
    assert fewest == 1 and auc == (5 + 4 / 2) / 9, "the click stands above 5 non-clicks and level with 4"


@pytest.mark.parametrize("labels", [[0, 1], [0], [1]])
def test_a_log_of_one_class_is_noted(tmp_path: Path, labels: list[int]) -> None:
    frame = log(200).with_columns(y=pl.Series([labels[i % len(labels)] for i in range(200)]))
    row = profile(tmp_path, frame).table.row(0, named=True)
    assert row["both_labels"] == (1.0 if len(labels) == 2 else 0.0)
