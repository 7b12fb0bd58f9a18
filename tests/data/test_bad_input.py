"""Bad input of a user's own log, case by case: one sentence that names the file, the line or key and what to do, or quarantined rows."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from thinktwice.cli import main
from thinktwice.validate.split import split_log

SCHEMA = """\
name: shop
time: {column: at, format: s}
label: {column: bought}
entities: {user: {key: user}, item: {key: item}}
tables: {items: {path: items.csv}}
fields:
- {name: color, entity: item}
- {name: price, kind: numeric}
- {name: tags, kind: list, length: 3}
- {name: premium, kind: boolean}
"""
HEADER = "at,bought,user,item,price,tags,premium"
ITEMS = ["item,color", *(f"{n},{'red' if n % 2 else 'blue'}" for n in range(7))]


def lines(rows: int = 200) -> list[str]:
    """A clean log: one more line than rows, the header."""
    return [
        HEADER,
        *(
            f"{1_700_000_000 + 60 * n},{n % 2},u{n % 9},{n % 7},{n / 4},a|b{n % 3},{'yes' if n % 2 else 'No'}"
            for n in range(rows)
        ),
    ]


def with_line(number: int, **cells: str) -> bytes:
    """The log with other cells in one line; the header is line 1."""
    log = lines()
    given = dict(zip(HEADER.split(","), log[number - 1].split(","), strict=True)) | cells
    log[number - 1] = ",".join(given.values())
    return "\n".join(log).encode()


def write(folder: Path, log: bytes, items: list[str] = ITEMS, schema: str = SCHEMA) -> list[str]:
    (folder / "log.csv").write_bytes(log)
    (folder / "items.csv").write_text("\n".join(items))
    (folder / "s.yaml").write_text(schema)
    places = {"--path": "log.csv", "--schema": "s.yaml", "--out": "raw"}
    return ["data", "ingest", "--source", "log", *(w for o, name in places.items() for w in (o, str(folder / name)))]


CLEAN = "\n".join(lines()).encode()
SINCE = SCHEMA.replace("path: items.csv", "path: items.csv, valid_from: since")
#: The log, the lines of its table of items, the schema -> the file that is named, and the words of the sentence.
REFUSED: dict[str, tuple[bytes, list[str], str, str, tuple[str, ...]]] = {
    "a header that repeats a name": (
        CLEAN.replace(b"price,tags", b"price,price", 1), ITEMS, SCHEMA, "log.csv", ("line 1", "'price'", "rename one"),
    ),
    "an empty file": (b"", ITEMS, SCHEMA, "log.csv", ("is empty", "give the whole file")),
    "a header and no row": (HEADER.encode() + b"\n", ITEMS, SCHEMA, "log.csv", ("contains no rows", "give the whole file")),
    "carriage returns alone": (
        CLEAN.replace(b"\n", b"\r"), ITEMS, SCHEMA, "log.csv", ("carriage returns alone", "with line feeds"),
    ),
    "an empty table": (CLEAN, [""], SCHEMA, "items.csv", ("is empty", "give the whole file")),
    "a table whose header repeats a name": (
        CLEAN, ["item,color,color", "1,red,red", "2,blue,red"], SCHEMA, "items.csv", ("line 1", "'color'", "rename one"),
    ),
    "a table with a key twice": (
        CLEAN, [*ITEMS, "3,green"], SCHEMA, "items.csv", ("item '3'", "rows 4, 8", "valid_from"),
    ),
    "a table whose validity overlaps": (
        CLEAN, ["item,color,since", "3,red,1700000000", "3,blue,1700000000"], SINCE, "items.csv", ("item '3'", "overlap"),
    ),
    "a table that is not there": (
        CLEAN, ITEMS, SCHEMA.replace("items.csv", "item.csv"), "item.csv", ("table of items", "path"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, items, schema, file, words = REFUSED[name]
    assert main(write(tmp_path, log, items, schema)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    assert file in said and all(word in said for word in words), said
    assert not (tmp_path / "raw").exists()


#: The log -> the line in question, and the rule that its row breaks; "" where it cannot be split into columns.
SET_ASIDE: dict[str, tuple[bytes, int, str]] = {
    "a quote that is not closed": (with_line(50, user='"u1'), 50, ""),
    "bytes of another encoding": (
        with_line(50, user="Zoë").replace("Zoë".encode(), "Zoë".encode("cp1252")) + "\n1700099999,1,Zoë,1,1,a,yes\n".encode(), 50, "",
    ),
    "a missing cell": (with_line(50).replace(with_line(50).split(b"\n")[49], b"1700000000,1,u1"), 50, ""),
    "a text among numbers": (with_line(50, price="cheap"), 50, "price:number"),
    "a word among truth values": (with_line(50, premium="maybe"), 50, "premium:boolean"),
    "a list longer than its bound": (with_line(50, tags="a|b|c|d"), 50, "tags:length"),
    "a separator inside an element": (with_line(50, tags='"""a|b""|c"'), 50, "tags:separator"),
    "a label that is no number": (with_line(50, bought="perhaps"), 50, "label:number"),
    "a time that is none": (with_line(50, at="yesterday"), 50, "time:parsable"),
    "a row without a user": (with_line(50, user=""), 50, "user:missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", SET_ASIDE)
def test_rows_that_cannot_be_used_are_quarantined_and_none_is_lost(name: str, tmp_path: Path) -> None:
    log, line, rule = SET_ASIDE[name]
    assert main(write(tmp_path, log)) == 0
    split = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert split.rows_in == split.rows_clean + split.rows_quarantined == len(log.splitlines()) - 1
    assert split.rows_quarantined == 1
    if rule:
        assert split.reasons == {rule: 1}
        return
    broken = pl.read_parquet(tmp_path / "raw" / "unparsable.parquet")
    assert broken["error"][0].startswith(f"line {line}:") and split.reasons == {"record:unsplittable": 1}


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_constant_label_is_refused_before_a_schema_is_written(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [
        lines()[0],
        *(",".join([c if k != 1 else value for k, c in enumerate(row.split(","))]) for row in lines()[1:]),
    ]
    write(tmp_path, "\n".join(log).encode())
    files = [str(tmp_path / "log.csv"), str(tmp_path / "items.csv")]
    assert main(["data", "infer-schema", *files, "--out", str(tmp_path / "new.yaml")]) == 1
    said = capsys.readouterr().err
    assert (
        "'bought'" in said
        and f"{value!r}" in said
        and "needs clicks and non-clicks" in said
        and "add the other rows" in said
    )
    assert not (tmp_path / "new.yaml").exists()


def test_a_file_that_changes_its_encoding_later_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is Windows-1252 as far as the detection reads; UTF-8 after that would silently be read as other characters."""
    from thinktwice.data.sources import text

    monkeypatch.setattr(text, "BLOCK_BYTES", 2000)
    latin = with_line(10, user="Zoë").replace("Zoë".encode(), "Zoë".encode("cp1252"))
    assert main(write(tmp_path, latin)) == 0
    assert "encoding cp1252" in capsys.readouterr().out
    clean = pl.read_parquet(tmp_path / "raw" / "log.parquet")
    assert clean["user"][8] == "Zoë" and clean.height == 200
    (tmp_path / "raw").rename(tmp_path / "first")
    assert main(write(tmp_path, latin + "\n1700099999,1,Zoë,1,1,a,yes".encode())) == 1
    said = capsys.readouterr().err
    assert (
        "log.csv, line 202 is UTF-8, and the lines before it are Windows-1252: write the file in one encoding" in said
    )
    assert not (tmp_path / "raw").exists()
