"""The item snapshot when the store fails, is emptied, or is emptied in part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.features.lookup import Entity, FeatureRow, Lookup
from serving.features.snapshot_reader import LOST_FEW, LOST_SHARE, SnapshotReader
from tests.serving.conftest import Lines
from thinktwice.data.encoder import Encoder
from thinktwice.errors import FeatureStoreError
from thinktwice.release.bundle import load_bundle

ITEMS = [f"i{n}" for n in range(60)]


class Store:
    """A store in a dictionary: the genre of items."""

    def __init__(self, genres: dict[str, str]) -> None:
        self.genres, self.down = genres, False

    def names(self, entity: Entity) -> tuple[str, ...]:
        return ("genre",) if entity == "item" else ("gender",)

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        if self.down:
            raise FeatureStoreError("the online store does not answer")
        return [FeatureRow({self.names(entity)[0]: self.genres.get(i) if entity == "item" else "f"}) for i in ids]

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> None:
        return None

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def encoder(small: Path) -> Encoder:
    return load_bundle(small / "bundle").encoder


def opened(store: Store, encoder: Encoder, items: Sequence[str] = ITEMS) -> SnapshotReader:
    return SnapshotReader(Lookup(store), Lookup(store), lambda: items, encoder, "item_id", refresh=1e6)


@pytest.fixture
def full(encoder: Encoder) -> Iterator[tuple[Store, SnapshotReader]]:
    store = Store(dict.fromkeys(ITEMS, "g1"))
    reader = opened(store, encoder)
    yield store, reader
    reader.close()


def genres(reader: SnapshotReader) -> list[str | None]:
    return [row["genre"] for row in reader.read("u", ITEMS).items]


def told(lines: Lines) -> list[str]:
    return [line["message"] for line in lines if line["logger"] == "serving.features.snapshot_reader"]


def test_an_emptied_store_does_not_replace_what_is_good(full: tuple[Store, SnapshotReader], lines: Lines) -> None:
    store, reader = full
    store.genres = {}
    for _ in range(5):
        assert not reader.refill()
        assert genres(reader) == ["g1"] * 60
        assert not any(reader.read("u", ITEMS).cold_items)
    assert reader.lost == 60
    store.genres = dict.fromkeys(ITEMS, "g2")
    assert reader.refill()
    assert genres(reader) == ["g2"] * 60
    assert reader.lost == 0
    first, second = told(lines)
    assert first.startswith("60 of 60 items have lost their features in the store: was it emptied?")
    assert second.startswith("the store has the features of the items again, after ")


@given(st.sets(st.sampled_from(ITEMS)), st.sets(st.sampled_from(ITEMS)))
def test_few_items_may_lose_their_features_and_many_may_not(had: set[str], has: set[str]) -> None:
    """Whatever items had features and have them now: all is taken over, or nothing."""
    encoder = ENCODERS[0]
    store = Store(dict.fromkeys(had, "g1"))
    reader = opened(store, encoder)
    try:
        store.genres = dict.fromkeys(has, "g2")
        lost = len(had - has)
        kept = lost > max(LOST_SHARE * len(had), LOST_FEW) or lost == len(had) > 0
        assert reader.refill() == (not kept)
        assert genres(reader) == [("g1" if i in had else None) if kept else ("g2" if i in has else None) for i in ITEMS]
        assert reader.lost == (lost if kept else 0)
    finally:
        reader.close()


ENCODERS: list[Encoder] = []


@pytest.fixture(autouse=True, scope="module")
def known_encoder(encoder: Encoder) -> None:
    ENCODERS[:] = [encoder]


def test_items_that_leave_the_catalogue_are_not_lost(encoder: Encoder) -> None:
    store, items = Store(dict.fromkeys(ITEMS, "g1")), list(ITEMS)
    reader = opened(store, encoder, items)
    del items[5:]
    store.genres = dict.fromkeys(items, "g2")
    assert reader.refill() and len(reader) == 5
    reader.close()


def test_a_store_that_fails_is_told_once_and_once_more_when_it_answers(
    full: tuple[Store, SnapshotReader], lines: Lines
) -> None:
    store, reader = full
    for _ in range(3):
        store.down = True
        for _ in range(4):
            assert not reader.refill()
        store.down = False
        for _ in range(4):
            assert reader.refill()
    messages = told(lines)
    assert len(messages) == 6
    assert messages[0].startswith(
        "the item snapshot was not refilled, the one of 0 s ago stays: the online store does not"
    )
    assert messages[1].startswith("the item snapshot is filled again, after ") and "and 4 refills" in messages[1]
    assert reader.failures == 12


def test_a_store_that_is_empty_at_the_start_is_told_and_recovers(encoder: Encoder, lines: Lines) -> None:
    store = Store({})
    reader = opened(store, encoder)
    assert all(reader.read("u", ITEMS).cold_items)
    assert reader.refill(), "nothing is lost that was never there"
    assert len(told(lines)) == 1
    store.genres = {"i1": "g1"}
    assert reader.refill()
    assert reader.read("u", ["i1"]).items[0]["genre"] == "g1"
    first, second = told(lines)
    assert first.startswith("none of 60 items has features in the store")
    assert second.startswith("the store has the features of the items again")
    reader.close()
