"""Made-up contexts have the values of training, as often as training had them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.load.context import typical_contexts
from serving.load.plan import requests_of
from serving.protocol.requests import RequestParser
from tests.serving.small import SCHEMA, clean_log, make_bundle, small, training_rows
from thinktwice.data.encoder import Encoder
from thinktwice.errors import BundleError
from thinktwice.release.bundle import load_bundle
from thinktwice.release.profile import PROFILE_FILE, read_profile
from thinktwice.release.profile_bins import row_bins
from thinktwice.schema import LogSchema

__all__ = ["small"]
CONTEXT = ("slot", "bid")


def shares(bundle: Path, contexts: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Shares of the bins of every context field: in the requests as a server encodes them, and in training."""
    encoder = Encoder.load(bundle)
    parser = RequestParser(SCHEMA, online=True)
    requests = parser.parse_all([{"user_id": "u1", "candidates": ["i1"], "context": c} for c in contexts[:100]], "all")
    frame = pl.DataFrame(
        {name: [r.context[name] for r in requests] for name in CONTEXT}, schema={"slot": pl.String, "bid": pl.Float64}
    )
    rows = encoder.encode_rows([dict(r.context) for r in requests])
    encoded = encoder.encode_table(training_rows(1).to_arrow()).take(np.zeros(len(requests), np.int64))
    missing = {f.name: np.zeros(len(requests), bool) for f in encoder.columns if f.kind == "categorical"}
    missing["slot"] = frame["slot"].is_null().to_numpy()
    found = row_bins(
        encoder, type(encoded)(**{**vars(encoded), "ids": rows.ids.numpy()}), missing, {"cover": np.zeros(0)}
    )
    profile = {f.name: np.array(f.train.counts) for f in read_profile(bundle).fields}
    return {
        name: (
            np.bincount(found[name], minlength=len(profile[name])) / len(requests),
            profile[name] / profile[name].sum(),
        )
        for name in CONTEXT
    }


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 100))
def test_every_value_comes_as_often_as_in_training(small: Path, seed: int, count: int) -> None:
    contexts = typical_contexts(small / "bundle", count=count, seed=seed)
    assert len(contexts) == count
    for name, (now, before) in shares(small / "bundle", contexts).items():
        assert np.abs(now - before).max() <= 1 / count + 1e-9, name
    assert contexts == typical_contexts(small / "bundle", count=count, seed=seed)


def test_rare_and_missing_values_and_numbers_at_the_edges(tmp_path: Path) -> None:
    """More values than the profile names one by one, a quarter of them missing, and numbers that are mostly one number."""
    frame = training_rows(4000)
    rng = np.random.default_rng(0)
    slot = [None if n % 4 == 0 else f"s{n % 37}" for n in range(4000)]
    frame = frame.with_columns(
        pl.Series("slot", slot, dtype=pl.String),
        pl.Series("bid", np.where(rng.random(4000) < 0.7, 0.0, rng.normal(size=4000) * 1e6)),
    )
    make_bundle(tmp_path, frame=frame)
    contexts = typical_contexts(tmp_path / "bundle", count=100, seed=5)
    for name, (now, before) in shares(tmp_path / "bundle", contexts).items():
        assert np.abs(now - before).max() <= 0.0101, name
    assert sum("slot" not in c for c in contexts) == pytest.approx(25, abs=1)
    assert {c["slot"] for c in contexts if "slot" in c} <= {f"s{n}" for n in range(37)}


def test_lists_of_a_context_are_as_long_as_in_training(tmp_path: Path) -> None:
    """Contexts of a model with such a field could not be drawn."""
    described = SCHEMA.model_dump(mode="json")
    moods = {"name": "moods", "kind": "list", "length": 50, "weights": "mood_weights"}
    schema = LogSchema.model_validate({**described, "fields": [*described["fields"], moods]})
    lengths = [n % 2 * (n % 50) for n in range(1000)]  # half are empty
    frame = training_rows(1000).with_columns(
        pl.Series("moods", [[f"m{k}" for k in range(n)] for n in lengths], dtype=pl.List(pl.String)),
        pl.lit(None, dtype=pl.List(pl.Float64)).alias("mood_weights"),
    )
    make_bundle(tmp_path, schema, frame=frame)
    contexts = typical_contexts(tmp_path / "bundle", count=200, seed=5)
    drawn = [len(context.get("moods", [])) for context in contexts]
    assert drawn.count(0) == pytest.approx(100, abs=8)
    assert np.mean(drawn) == pytest.approx(np.mean(lengths), abs=1.5) and max(drawn) <= 50
    requests = [{"user_id": "u1", "candidates": ["i1"], "context": context} for context in contexts[:100]]
    parsed = RequestParser(schema, online=True).parse_all(requests, "all")
    rows = Encoder.load(tmp_path / "bundle").encode_rows([dict(r.context) for r in parsed])
    assert ((rows.sequences["moods"] != 0).sum(1).tolist()) == drawn[:100]


def test_requests_carry_their_contexts_and_one_moment(small: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for entity in ("user", "item"):
        clean_log().select(f"{entity}_id").unique().write_parquet(tmp_path / "data" / f"{entity}_attributes.parquet")
    contexts = typical_contexts(small / "bundle", count=7, seed=1)
    found = requests_of(tmp_path, SCHEMA, count=7, candidates=3, seed=1, contexts=contexts)
    moments = {request["context"].pop("timestamp") for request in found}
    assert [request["context"] for request in found] == contexts
    assert moments == {datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()}
    parsed = RequestParser(SCHEMA, online=True).parse_all(found, "all")
    assert all(request.missing == () for request in parsed)


def test_a_bundle_without_a_profile_is_named(small: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path)
    assert load_bundle(tmp_path / "bundle").schema.name == "small"
    (tmp_path / "bundle" / PROFILE_FILE).unlink()
    with pytest.raises(BundleError, match="has no profile"):
        typical_contexts(tmp_path / "bundle", count=1, seed=0)
