"""CSV and TSV logs: every record is a row or is kept as unparsable, whatever its quotes, encoding, line ends and block borders."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.own_logs import SCHEMA
from thinktwice.data.ingest import ingest
from thinktwice.data.sources import text
from thinktwice.data.sources.delimited import DELIMITERS, detect, header, read_delimited
from thinktwice.data.sources.text import file_opener
from thinktwice.errors import DataError

WIDTH = 3
HEADER = ["user", "item", "note"]
DAMAGED = ('1,"abc,2', "too,few", "one,too,many,cells", 'x,"a"b,y', '"open', 'p,"q" ,r')

cells = st.text(st.sampled_from('ab1 ,;"\n\té€|'), max_size=6).map(lambda s: s.replace("\r", ""))
rows = st.lists(st.lists(cells, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=12).filter(
    lambda found: all(any(row) for row in found)
)


def written(table: list[list[str]], delimiter: str, line_end: str, quoting: int) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(HEADER)
    writer.writerows(table)
    return out.getvalue()


def read(path: Path) -> tuple[list[str], list[list[str | None]], list[tuple[int, str, str]]]:
    """Columns, rows, and (ordinal, text, reason) of what is unparsable; the ordinals have no gap."""
    opener = file_opener(path)
    dialect = detect(opener, str(path))
    columns = header(opener, str(path), dialect)
    chunks = list(read_delimited(opener, str(path), dialect, columns))
    found = [list(row.values()) for chunk in chunks for row in chunk.table.to_pylist()]
    broken = [(u.ordinal, u.raw, u.error) for chunk in chunks for u in chunk.unparsable]
    numbers = [int(n) for chunk in chunks for n in chunk.ordinals] + [n for n, _, _ in broken]
    assert sorted(numbers) == list(range(len(numbers)))
    return columns, found, broken


def expected(table: list[list[str]], line_end: str = "\n") -> list[list[str | None]]:
    return [[cell or None for cell in row] for row in table]


@settings(max_examples=150, deadline=None)
@given(
    rows,
    st.sampled_from(sorted(DELIMITERS)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from([7, 64, 1 << 20]),
)
def test_what_a_csv_writer_writes_is_read_back(
    table: list[list[str]], delimiter: str, line_end: str, encoding: str, packed: bool, quoting: int, block: int
) -> None:
    data = written(table, delimiter, line_end, quoting).encode(encoding)
    with pytest.MonkeyPatch.context() as patch, _file(gzip.compress(data) if packed else data) as path:
        patch.setattr(text, "BLOCK_BYTES", max(block, 40))  # the header is in the first block
        columns, found, broken = read(path)
    assert (columns, broken) == (HEADER, [])
    assert found == expected(table)


class _file:
    """A temporary file with these bytes."""

    def __init__(self, data: bytes) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "log.csv"
        self._path.write_bytes(data)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


plain_cells = st.text(st.sampled_from("ab1 .é"), min_size=1, max_size=5)
plain_rows = st.lists(st.lists(plain_cells, min_size=WIDTH, max_size=WIDTH), min_size=3, max_size=20)


@settings(max_examples=150, deadline=None)
@given(plain_rows, st.data(), st.sampled_from([40, 64, 1 << 20]))
def test_damaged_lines_are_kept_and_cost_no_other_line(table: list[list[str]], data: st.DataObject, block: int) -> None:
    lines: list[bytes] = []
    good, bad = [], []
    for row in [
        ["é"] * WIDTH,
        *table,
    ]:  # without the first row, a file whose only other bytes are in a damaged line is Latin 1
        if data.draw(st.booleans()) and len(lines) > 0:
            damage = data.draw(st.sampled_from([*DAMAGED, b"\xff\xfe,1,2", b"a\0b,1,2"]))
            bad.append((len(lines), damage))
            lines.append(damage if isinstance(damage, bytes) else damage.encode())
        good.append(row)
        lines.append(",".join(row).encode())
    content = b"\n".join([",".join(HEADER).encode(), *lines]) + b"\n"
    with pytest.MonkeyPatch.context() as patch, _file(content) as path:
        patch.setattr(text, "BLOCK_BYTES", block)
        _, found, broken = read(path)
    assert found == expected(good)
    assert [(n, f"line {n + 2}") for n, _ in bad] == [(n, why.partition(":")[0]) for n, _, why in broken]


def test_a_latin_1_file_is_read_as_such_and_mixed_lines_are_kept(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("user,item,note\n1,Amélie,5 €\n2,x,y\n".encode("cp1252"))
    assert read(tmp_path / "latin.csv")[1] == [["1", "Amélie", "5 €"], ["2", "x", "y"]]
    mixed = "user,item,note\n1,Amélie,x\n".encode() + "2,Amélie,y\n".encode("cp1252") + b"3,a,b\n"
    (tmp_path / "mixed.csv").write_bytes(mixed)
    _, found, broken = read(tmp_path / "mixed.csv")
    assert [row[0] for row in found] == ["1", "3"]
    assert broken == [(1, "2,Am\\xe9lie,y", "line 3: byte 5 is not UTF-8 text, as the rest of the file is")]


def test_literal_quotes_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    content = 'user,item,note\n1,5" pipe,x\n2,"two\nlines, ""quoted""",y\n\n3,a,b\n'
    (tmp_path / "log.csv").write_text(content)
    assert read(tmp_path / "log.csv")[1:] == (
        [["1", '5" pipe', "x"], ["2", 'two\nlines, "quoted"', "y"], ["3", "a", "b"]],
        [],
    )


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    lines = ["user,item,note", *(f"{n},i{n},x" for n in range(5000))]
    lines[700] = '699,"open,x'
    (tmp_path / "log.csv").write_text("\n".join(lines))
    _, found, broken = read(tmp_path / "log.csv")
    assert len(found) == 4999 and broken == [(699, '699,"open,x', "line 701: a quote is not closed")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item,user\n1,2,3\n1,2,3\n", r"line 1: the name 'user' is repeated, in columns 1 and 3: rename one"),
        (",user,item\n0,1,2\n1,1,2\n", r"line 1: column 1 has no name; give it one \(pandas"),
        ("1,2,3\n4,5,6\n7,8,9\n", r"are values and not names of columns: add a header line"),
        ("user\n1\n2\n", r"is one cell; cells are separated by commas, tabs"),
        ('user,it"em,x\n1,2,3\n', None),
        ('user,"item\n1,2\n', r"line 1: the header cannot be read"),
        ("", "is empty: give the whole file"),
        ("user,item,note\n", "contains no rows: give the whole file"),
    ],
)
def test_a_file_that_is_no_log_is_one_sentence(content: str, message: str | None, tmp_path: Path) -> None:
    log, schema = tmp_path / "log.csv", tmp_path / "schema.yaml"
    log.write_text(content)
    schema.write_text(
        "name: x\ntime: {format: order}\nlabel: {column: note}\nentities: {user: {key: user}, item: {key: item}}\n"
    )
    if message is None:
        assert read(log)[0] == ["user", 'it"em', "x"]
        return
    with pytest.raises(DataError, match=message) as caught:
        ingest("log", log, schema, tmp_path / "raw")
    assert "\n" not in str(caught.value) and str(log) in str(caught.value)


def test_csv_json_lines_and_parquet_give_the_same_clean_rows(tmp_path: Path) -> None:
    from tests.data.own_logs import as_csv, as_json_lines, small_log
    from thinktwice.validate.split import split_log

    log = small_log(300)
    log.write_parquet(tmp_path / "log.parquet")
    as_csv(log, tmp_path / "log.csv")
    as_json_lines(log, tmp_path / "log.jsonl")
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    clean = []
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        ingest("log", tmp_path / name, tmp_path / "schema.yaml", tmp_path / f"raw-{name}")
        split_log(tmp_path / f"raw-{name}", tmp_path / f"clean-{name}", tmp_path / f"bad-{name}", run_id="r")
        clean.append(pl.read_parquet(tmp_path / f"clean-{name}/clean.parquet"))
    assert clean[0].height == 300
    assert clean[1].equals(clean[0]) and clean[2].equals(clean[0])
