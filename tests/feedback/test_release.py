"""A release whose SQLite store is kept up to date: its values may change after it was signed, and nothing else may."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.feedback.online import OnlineStore
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import SECOND, book_for, in_order, run, tick
from thinktwice.errors import BundleError
from thinktwice.release.release import _check_store, _store_files
from thinktwice.schema import parse_schema

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LOG, SCHEMA = random_log(40), full_schema()


def accepted(store: Path) -> Any:
    return SimpleNamespace(what="release r", release=SimpleNamespace(feature_store=_store_files(store)))


def test_pushed_values_are_not_part_of_a_release(tmp_path: Path) -> None:
    folder = make_store(tmp_path, LOG, SCHEMA)
    release = accepted(folder)
    before = (folder / "online.db").read_bytes()
    book = book_for(SCHEMA)
    run(book, SCHEMA, [*in_order(LOG), tick(LOG[-1].time + 700 * SECOND)])
    store = OnlineStore(folder)
    store.write(row for row in book.rows() if row.kind != "log")
    assert (folder / "online.db-wal").stat().st_size
    assert "online.db" in _check_store(release, folder)  # while it is written
    store.close()
    assert (folder / "online.db").read_bytes() != before
    assert "online.db" in _check_store(release, folder)
    assert "online.db-wal" not in accepted(folder).release.feature_store
    for name in ("registry.db", "schema.yaml", "data/log_instant.parquet"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept + b" ")
        with pytest.raises(BundleError, match=name):
            _check_store(release, folder)
        (folder / name).write_bytes(kept)
    (folder / "more").write_bytes(b"x")
    with pytest.raises(BundleError, match="more is not in the manifest"):
        _check_store(release, folder)


def test_values_of_a_store_without_feedback_are_part_of_it(tmp_path: Path) -> None:
    text = SCHEMA.to_yaml()
    schema = parse_schema(text[: text.index("statistics:")] + "statistics: {}\n", where="test")
    folder = make_store(tmp_path, LOG, schema)
    release = accepted(folder)
    _check_store(release, folder)
    with (folder / "online.db").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"online\.db"):
        _check_store(release, folder)
