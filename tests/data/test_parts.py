"""A folder of parts is read as Spark, Hive and Arrow read it, and what is not read is named."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.sources.parts import Parts, is_parquet_name, natural, parts_of, what_was_read
from thinktwice.errors import DataError, SchemaError
from thinktwice.files import read_json

SCHEMA = "name: mine\ntime: {format: order}\nlabel: {column: clicked}\nfields: [{name: colour}]\n"


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(SCHEMA)
    return file


def write(path: Path, number: int = 0, rows: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"clicked": [i % 2 for i in range(rows)], "colour": [f"{number}-{i}" for i in range(rows)]})
    pq.write_table(table, path, compression="snappy")
    return path


def read(path: Path, schema: Path, out: Path) -> tuple[Snapshot, list[str]]:
    snapshot = ingest("parquet", path, schema, out)
    return snapshot, pl.read_parquet(out / "log.parquet")["colour"].to_list()


@pytest.mark.parametrize(
    "name",
    [
        *("a.parquet", "a.pq", "a.parq", "a.par", "A.PARQUET", "a.Parquet", "a.parquet.snappy", "a.snappy.parquet"),
        *("a.gz.parquet", "a.parquet.gz", "a.zstd.parquet", "part-00000-tid-1.c000.snappy.parquet", "part.0.parquet"),
        *("000000_0", "000000_0.snappy", "part-00000", "part-00000.c000", "part.7", "2024.03.01.parquet", "log"),
    ],
)
def test_usual_names_are_read(tmp_path: Path, schema: Path, name: str) -> None:
    write(tmp_path / "logs" / name)
    snapshot, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert snapshot.rows == 3 and rows == ["0-0", "0-1", "0-2"] and list(snapshot.files) == [name]


@pytest.mark.parametrize(
    "name", ["a.parquet.bak", "a.parquet~", "a.parquet.tmp", "a.old", "a.crdownload", "a.parquet.orig", "a.b"]
)
def test_a_parquet_file_that_does_not_end_like_one_is_refused_by_name(tmp_path: Path, schema: Path, name: str) -> None:
    assert not is_parquet_name(name)
    write(tmp_path / "logs" / "a.parquet")
    write(tmp_path / "logs" / name, 1)
    with pytest.raises(
        DataError, match=r"contains 1 file that would not be read: \S+ is a parquet file by its content"
    ) as caught:
        read(tmp_path / "logs", schema, tmp_path / "raw")
    assert name in str(caught.value) and not (tmp_path / "raw").exists()


HIDDEN = (
    *(".ipynb_checkpoints/a-checkpoint.parquet", "_temporary/0/a.parquet", "._a.parquet", ".a.parquet", "_a.parquet"),
    *(
        "_SUCCESS",
        "_metadata",
        "_common_metadata",
        ".a.parquet.crc",
        "x/.b/c/d.parquet",
        "x/_b.parquet",
        "b.parquet._COPYING_",
    ),
)


def test_hidden_files_and_folders_are_left_out_and_named(tmp_path: Path, schema: Path) -> None:
    logs = tmp_path / "logs"
    write(logs / "a.parquet")
    for name in HIDDEN:
        write(logs / name, 7)
    (logs / "._a.parquet").write_bytes(b"\0\x05\x16\x07Mac OS X")  # AppleDouble
    snapshot, rows = read(logs, schema, tmp_path / "raw")
    assert rows == ["0-0", "0-1", "0-2"] and list(snapshot.files) == ["a.parquet"]
    assert snapshot.left_out == dict.fromkeys(
        sorted(
            {
                n
                if n.count("/") == 0 or n.startswith("x/_")
                else n[: n.index("/", n.index(".") if n[0] == "x" else 0) + 1]
                for n in HIDDEN
            }
        ),
        "hidden",
    )
    assert read_json(tmp_path / "raw" / "snapshot.json")["left_out"] == snapshot.left_out


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path, schema: Path) -> None:
    write(tmp_path / ".cache" / "_logs" / "a.parquet")
    assert read(tmp_path / ".cache" / "_logs", schema, tmp_path / "raw")[0].rows == 3
    assert read(write(tmp_path / "_logs" / ".one", 1), schema, tmp_path / "raw")[1] == ["1-0", "1-1", "1-2"]


def told(parts: Parts) -> str:
    (line,) = what_was_read(len(parts.files), parts.left_out, {}, {})
    return line


def test_one_line_says_what_was_read_and_what_was_left_out(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs / "a.parquet")
    write(logs / "b.pq", 1)
    (logs / "README.md").write_text("# Logs\n")
    (logs / "schema.json").write_text('{"fields": []}')
    assert told(parts_of(logs)) == "2 files read, 2 left out: README.md (no data), schema.json (no data)"
    for i in range(9):
        (logs / f"note {i}\n.txt").write_text("words")
    line = told(parts_of(logs))
    assert line.startswith(
        "2 files read, 11 left out: README.md (no data), note 0\\n.txt (no data),"
    ) and line.endswith("and 6 more")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True),
    st.sampled_from(["part.{}.parquet", "{}", "x{}y-0.pq", "p-{:05}.c000"]),
)
def test_numbers_in_names_compare_as_numbers(numbers: list[int], shape: str) -> None:
    names = [shape.format(n) for n in sorted(numbers)]
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural) == names


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(st.sampled_from("a1²٣0.-_é"), min_size=1, max_size=8), min_size=2, max_size=12, unique=True))
def test_the_order_of_any_names_is_total_and_the_same_again(names: list[str]) -> None:
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural)


def test_rows_come_in_the_order_of_numbers_folder_by_folder(tmp_path: Path, schema: Path) -> None:
    names = ["1/part.2.pq", "1/part.10.pq", "2/a.pq", "2/part.0.pq", "10/part.1.pq", "part.3.pq", "part.20.pq"]
    for number, name in random.Random(3).sample(list(enumerate(names)), len(names)):
        write(tmp_path / "logs" / name, number, rows=1)
    snapshot, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert rows == [f"{i}-0" for i in range(7)]
    other, _ = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert other.snapshot_id == snapshot.snapshot_id
    (tmp_path / "logs/part.3.pq").rename(tmp_path / "logs/part.30.pq")
    changed, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert rows[-2:] == ["6-0", "5-0"] and changed.snapshot_id != snapshot.snapshot_id, "another order is another log"


DATA = {
    "a.csv": ("clicked,colour\n1,red\n0,blue\n", "a CSV file"),
    "a.txt": ("clicked;colour\n1;red\n0;blue\n", "a CSV file"),
    "a.tsv": ("clicked\tcolour\n1\tred\n", "a TSV file"),
    "a.jsonl": ('{"clicked": 1}\n{"clicked": 0}\n', "a JSON lines file"),
    "a.json": ('[{"clicked": 1}]', "a JSON file"),
    "a.orc": ("ORC....", "an ORC file"),
    "a.avro": ("Obj\x01....", "an Avro file"),
    "a.feather": ("ARROW1..", "an Arrow (Feather) file"),
    "a.zip": ("PK\x03\x04....", "a damaged zip archive"),
    "a.bin": ("BZh9....", "a bzip2-compressed file"),
    "a.db": ("SQLite format 3\0....", "an SQLite database"),
    "b.parquet": ("PARE....", "an encrypted parquet file"),
    "c.parquet": ("clicked,colour\n1,red\n0,blue\n", "a CSV file"),
}


@pytest.mark.parametrize("name", DATA)
def test_what_looks_like_data_and_is_not_read_is_refused_by_name(tmp_path: Path, schema: Path, name: str) -> None:
    write(tmp_path / "logs" / "part-0.parquet")
    content, words = DATA[name]
    (tmp_path / "logs" / "sub").mkdir()
    (tmp_path / "logs" / "sub" / name).write_text(content)
    with pytest.raises(DataError, match="contains 1 file that would not be read") as caught:
        read(tmp_path / "logs", schema, tmp_path / "raw")
    assert f"sub/{name} is {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty: give the whole file"), (b"PAR0 not", "is not an intact parquet file")]
)
def test_a_part_that_is_empty_or_cut_is_named(tmp_path: Path, schema: Path, content: bytes, words: str) -> None:
    write(tmp_path / "logs" / "part-0.parquet")
    (tmp_path / "logs" / "part-1.parquet").write_bytes(content)
    with pytest.raises(DataError, match=rf"part-1\.parquet {words}"):
        read(tmp_path / "logs", schema, tmp_path / "raw")


NAMING_DAY = SCHEMA.replace("[{name: colour}]", "[{name: colour}, {name: day, nullable: true}]")
FOLDERS = ["day=2024-03-01", "x/day=1/hour=2", "_day=1/day=1", "=1/day=2"]


def days_of(folder: Path) -> list[object]:
    return pl.read_parquet(folder / "log.parquet", hive_partitioning=False)["day"].to_list()


@pytest.mark.parametrize("where", FOLDERS)
def test_hive_partitions_that_the_schema_names_are_columns(tmp_path: Path, schema: Path, where: str) -> None:
    schema.write_text(NAMING_DAY)
    write(tmp_path / "logs" / where / "part-0.parquet")
    snapshot, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    day = where.rpartition("day=")[2].partition("/")[0]
    assert rows == ["0-0", "0-1", "0-2"] and days_of(tmp_path / "raw") == [day] * 3
    assert "day" not in snapshot.columns_left_out


PARTITION_TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.one_of(st.none(), PARTITION_TEXTS), min_size=1, max_size=4, unique=True))
def test_the_values_of_partitions_are_those_that_a_writer_wrote(values: list[str | None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.yaml").write_text(NAMING_DAY)
        for number, value in enumerate(values):
            part = "__HIVE_DEFAULT_PARTITION__" if value is None else quote(value, safe="")
            write(folder / "logs" / f"day={part}" / "part-0.parquet", number)
        read(folder / "logs", folder / "schema.yaml", folder / "raw")
        assert sorted(map(str, days_of(folder / "raw"))) == sorted(str(v) for v in values for _ in range(3))


def test_files_of_the_same_content_in_different_partitions_are_different_rows(tmp_path: Path, schema: Path) -> None:
    for day in (1, 2):
        write(tmp_path / "logs" / f"day={day}" / "part-0.parquet", 0)
    with pytest.raises(DataError, match="have the same content"):
        read(tmp_path / "logs", schema, tmp_path / "raw")
    schema.write_text(NAMING_DAY)
    first, _ = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert days_of(tmp_path / "raw") == ["1"] * 3 + ["2"] * 3
    (tmp_path / "logs" / "day=2").rename(tmp_path / "logs" / "day=3")
    second, _ = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert first.snapshot_id != second.snapshot_id


@pytest.mark.parametrize("where", FOLDERS)
def test_hive_partitions_that_the_schema_does_not_name_are_only_folders(
    tmp_path: Path, schema: Path, where: str
) -> None:
    write(tmp_path / "logs" / where / "part-0.parquet")
    snapshot, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    keys = {part.partition("=")[0] for part in where.split("/") if "=" in part} - {""}
    assert rows == ["0-0", "0-1", "0-2"] and snapshot.columns_left_out.keys() == keys
    assert pl.read_parquet(tmp_path / "raw/log.parquet", hive_partitioning=False).columns == [
        "row_id",
        "source_row",
        "clicked",
        "colour",
    ]
    assert any("day (in folder names)" in line for line in snapshot.what_was_read())


def test_a_column_that_files_hold_themselves_is_read_from_them(tmp_path: Path, schema: Path) -> None:
    schema.write_text(NAMING_DAY)
    for number in (1, 2):
        file = write(tmp_path / "logs" / f"day={number}" / "part-0.parquet", number)
        pq.write_table(pq.ParquetFile(file).read().append_column("day", pa.array([10 * number] * 3)), file)
    snapshot, _ = read(tmp_path / "logs", schema, tmp_path / "raw")
    days = pl.read_parquet(tmp_path / "raw/log.parquet", hive_partitioning=False)["day"].to_list()
    assert days == [10] * 3 + [20] * 3 and snapshot.columns_left_out == {}
    write(tmp_path / "logs" / "day=3" / "part-0.parquet")  # without the column
    with pytest.raises(
        DataError,
        match=r"column 'day', which the schema names, is in the folder names of some files .* has the column itself",
    ):
        read(tmp_path / "logs", schema, tmp_path / "raw")


def test_a_file_outside_the_partitions_is_named(tmp_path: Path, schema: Path) -> None:
    schema.write_text(NAMING_DAY)
    write(tmp_path / "logs" / "day=1" / "part-0.parquet", 1)
    write(tmp_path / "logs" / "part-1.parquet", 2)
    with pytest.raises(DataError, match=r"but .*part-1\.parquet is in no such folder: write the column into all files"):
        read(tmp_path / "logs", schema, tmp_path / "raw")


def test_a_partition_folder_that_is_named_by_path_is_only_a_folder(tmp_path: Path, schema: Path) -> None:
    part = write(tmp_path / "logs" / "colour=red" / "clicked=1" / "part-0.parquet")
    for path in (part, part.parent, part.parent.parent / "clicked=1" / ".." / "clicked=1"):
        assert read(path, schema, tmp_path / "raw")[1] == ["0-0", "0-1", "0-2"]
    schema.write_text(SCHEMA.replace("name: colour", "name: day"))
    write(tmp_path / "logs" / "day=7" / "part-0.parquet")
    with pytest.raises(
        SchemaError,
        match="wants column 'day', which does not exist; the folder 'day=…' is read as a column only below the given path",
    ):
        read(tmp_path / "logs" / "day=7", schema, tmp_path / "raw")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("_delta_log/0.json", "a Delta Lake table"),
        (".hoodie/x", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
    ],
)
def test_tables_with_a_log_of_their_own_are_refused(tmp_path: Path, schema: Path, entry: str, words: str) -> None:
    write(tmp_path / "logs" / "data" / "part-0.parquet")
    (tmp_path / "logs" / entry).parent.mkdir()
    (tmp_path / "logs" / entry).write_text("{}")
    with pytest.raises(DataError, match=f"is {words} .* export its current rows to plain parquet"):
        read(tmp_path / "logs", schema, tmp_path / "raw")


def test_two_copies_of_a_file_are_refused_and_files_without_rows_are_not(tmp_path: Path, schema: Path) -> None:
    logs = tmp_path / "logs"
    first = write(logs / "part-0.parquet")
    for i in (1, 2):
        write(logs / f"part-{i}.parquet", rows=0)
    assert read(logs, schema, tmp_path / "raw")[0].rows == 3
    shutil.copyfile(first, logs / "part-0 copy.parquet")
    with pytest.raises(
        DataError, match=r"part-0 copy\.parquet and part-0\.parquet have the same content, so their 3 rows would"
    ):
        read(logs, schema, tmp_path / "raw")
    (logs / "part-0 copy.parquet").unlink()
    os.link(first, logs / "x.parquet")
    with pytest.raises(DataError, match=r"part-0\.parquet and x\.parquet have the same content"):
        read(logs, schema, tmp_path / "raw")


def test_links_are_followed_once(tmp_path: Path, schema: Path) -> None:
    logs, other = tmp_path / "logs", tmp_path / "other"
    write(logs / "part-0.parquet")
    write(other / "part-1.parquet", 1)
    (logs / "linked").symlink_to(other, target_is_directory=True)
    (logs / "loop").symlink_to(logs, target_is_directory=True)
    (other / "back").symlink_to(logs, target_is_directory=True)
    (logs / "zz-latest.parquet").symlink_to(logs / "part-0.parquet")
    snapshot, rows = read(logs, schema, tmp_path / "raw")
    assert rows == ["1-0", "1-1", "1-2", "0-0", "0-1", "0-2"]
    assert snapshot.left_out == {
        "linked/back/": "the same folder as ./",
        "loop/": "the same folder as ./",
        "zz-latest.parquet": "the same file again as part-0.parquet",
    }


def test_links_that_lead_to_nothing(tmp_path: Path, schema: Path) -> None:
    logs = tmp_path / "logs"
    write(logs / "part-0.parquet")
    (logs / "README").symlink_to("nowhere")
    (logs / "self").symlink_to("self")
    assert read(logs, schema, tmp_path / "raw")[0].left_out == dict.fromkeys(["README", "self"], "a broken link")
    (logs / "part-1.parquet").symlink_to("gone.parquet")
    with pytest.raises(DataError, match=r"part-1\.parquet is a broken link: remove it"):
        read(logs, schema, tmp_path / "raw")


def test_a_pipe_is_not_waited_for(tmp_path: Path, schema: Path) -> None:
    write(tmp_path / "logs" / "part-0.parquet")
    os.mkfifo(tmp_path / "logs" / "part-1.parquet")
    assert read(tmp_path / "logs", schema, tmp_path / "raw")[0].left_out == {"part-1.parquet": "not a file"}


def test_a_name_that_is_no_utf8_is_one_sentence(tmp_path: Path, schema: Path) -> None:
    part = write(tmp_path / "logs" / "part-0.parquet")
    part.rename(Path(os.fsdecode(os.fsencode(part.parent) + b"/part-\xff.parquet")))
    with pytest.raises(DataError, match=r"the name of .*part-\\udcff\.parquet is not UTF-8 text: rename the file"):
        read(tmp_path / "logs", schema, tmp_path / "raw")


def test_a_folder_without_a_log_says_what_it_has(tmp_path: Path, schema: Path) -> None:
    (tmp_path / "logs" / ".git").mkdir(parents=True)
    (tmp_path / "logs" / "notes.md").write_text("nothing")
    with pytest.raises(
        DataError, match=r"contains no \*\.parquet file \(left out: \.git/ \(hidden\), notes\.md \(no data\)\): give"
    ):
        read(tmp_path / "logs", schema, tmp_path / "raw")


@pytest.mark.parametrize(
    "name", ["part-0.parquet.crc", "part-0.parquet.md5", "part-0.parquet.json", "Thumbs.db", "LICENSE"]
)
def test_what_stands_beside_a_part_and_is_no_data_is_left_out(tmp_path: Path, schema: Path, name: str) -> None:
    write(tmp_path / "logs" / "part-0.parquet")
    (tmp_path / "logs" / name).write_bytes(b'{"a": 1}' if name.endswith("json") else b"crc\0\1\2")
    assert read(tmp_path / "logs", schema, tmp_path / "raw")[0].left_out == {name: "no data"}


def test_a_folder_with_a_snapshot_json_of_its_own_is_no_raw_log(tmp_path: Path, schema: Path) -> None:
    write(tmp_path / "logs" / "part-0.parquet")
    (tmp_path / "logs" / "snapshot.json").write_text('{"table": "impressions"}')
    assert read(tmp_path / "logs", schema, tmp_path / "raw")[0].rows == 3


def test_a_column_that_some_parts_lack_is_told(tmp_path: Path, schema: Path) -> None:
    write(tmp_path / "logs" / "a.parquet")
    pq.write_table(pa.table({"clicked": [1]}), tmp_path / "logs" / "b.parquet")
    snapshot, rows = read(tmp_path / "logs", schema, tmp_path / "raw")
    assert rows == ["0-0", "0-1", "0-2", None]
    assert snapshot.what_was_read() == [
        "2 files read",
        "1 column of the schema not in every file, and empty there: colour (not in b.parquet)",
    ]


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path, schema: Path) -> None:
    write(tmp_path / "logs" / "a.parquet")
    pq.write_table(pa.table({"user": [1]}), tmp_path / "logs" / "users.parquet")
    with pytest.raises(
        SchemaError, match=r"users\.parquet has none of the columns that the schema names \(clicked, colour\)"
    ):
        read(tmp_path / "logs", schema, tmp_path / "raw")
