"""A log that is no parquet file is called by its name, and the way that is named leads to one that can be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.orc
import pytest

from thinktwice.data.ingest import ingest
from thinktwice.data.sources.file_kind import kind_of
from thinktwice.errors import DataError

SCHEMA = "name: mine\ntime: {column: at, format: datetime}\nlabel: {column: clicked}\nfields: [{name: zip}, {name: price, kind: numeric}]\n"
FRAME = pl.DataFrame(
    {
        "at": ["2024-03-01 10:00:00", "2024-03-01 11:00:00"],
        "clicked": [0, 1],
        "zip": ["0042", "a, b"],
        "price": [1.5, 2.0],
    }
)
CSV = FRAME.write_csv()

WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "log.csv": ("a CSV file", lambda p: p.write_text(CSV)),
    "log.txt": ("a CSV file", lambda p: FRAME.write_csv(p, separator=";")),
    "log.tsv": ("a TSV file", lambda p: FRAME.write_csv(p, separator="\t")),
    "log.psv": ("a CSV file", lambda p: FRAME.write_csv(p, separator="|")),
    "log.csv.gz": ("a gzip-compressed CSV file", lambda p: p.write_bytes(gzip.compress(CSV.encode()))),
    "train.gz": ("a gzip-compressed CSV file", lambda p: p.write_bytes(gzip.compress(CSV.encode()))),
    "mislabelled.parquet": ("a CSV file", lambda p: p.write_text(CSV)),
    "with [1] it's.csv": ("a CSV file", lambda p: p.write_text(CSV)),
    "log.jsonl": ("a JSON lines file", FRAME.write_ndjson),
    "lines.json": ("a JSON lines file", FRAME.write_ndjson),
    "log.json": ("a JSON file", FRAME.write_json),
    "log.avro": ("an Avro file", FRAME.write_avro),
    "log.feather": ("an Arrow (Feather) file", FRAME.write_ipc),
    "log.arrows": ("an Arrow stream", FRAME.write_ipc_stream),
    "log.orc": (
        "an ORC file",
        lambda p: pa.orc.write_table(
            FRAME.to_arrow().cast(
                pa.schema([("at", pa.string()), ("clicked", pa.int64()), ("zip", pa.string()), ("price", pa.float64())])
            ),
            p,
        ),
    ),
}


def refusal(path: Path, tmp_path: Path) -> str:
    schema = tmp_path / "mine.yaml"
    schema.write_text(SCHEMA)
    with pytest.raises(DataError) as caught:
        ingest("parquet", path, schema, tmp_path / "raw")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_the_command_in_the_sentence_makes_a_log_that_is_read(tmp_path: Path, name: str) -> None:
    words, write = WRITERS[name]
    write(tmp_path / name)
    message = refusal(tmp_path / name, tmp_path)
    assert f"{name} is {words}, and a log is read from parquet: convert it to parquet, e.g. with `" in message
    command = shlex.split(message.split("e.g. with `")[1].split("`")[0])
    as_text = words.split()[-2] in ("CSV", "TSV", "lines")
    assert message.endswith("; or read it as it is with --source log") == as_text
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = set(tmp_path.glob("*.parquet")) - {tmp_path / name}
    ingest("parquet", made, tmp_path / "mine.yaml", tmp_path / "raw")
    log = pl.read_parquet(tmp_path / "raw" / "log.parquet")
    assert log["zip"].to_list() == ["0042", "a, b"], "ids and codes keep their zeros"
    assert log["price"].cast(pl.Float64).to_list() == [1.5, 2.0] and log["clicked"].cast(pl.Int64).to_list() == [0, 1]


def excel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("log.csv", CSV)


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "log.xlsx": ("an Excel workbook, and a log is read from parquet: save the sheet as CSV", excel),
    "log.xls": ("an old Excel workbook", lambda p: p.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 99)),
    "log.zip": ("a zip archive, and a log is read from parquet: unpack it", zipped),
    "cut.zip": ("a damaged zip archive", lambda p: p.write_bytes(b"PK\x03\x04 cut")),
    "log.parquet.gz": ("a gzip-compressed parquet file", lambda p: p.write_bytes(gzip.compress(parquet_bytes()))),
    "log.parquet.bz2": ("a bzip2-compressed", lambda p: p.write_bytes(bz2.compress(parquet_bytes()))),
    "log.csv.xz": ("an xz-compressed CSV file", lambda p: p.write_bytes(lzma.compress(CSV.encode()))),
    "log.zst": ("a zstd-compressed file", lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 20)),
    "log.h5": ("an HDF5 file", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 20)),
    "log.pkl": ("a pickle", lambda p: p.write_bytes(b"\x80\x04\x95" + b"x" * 20)),
    "log.npy": ("a NumPy array file", lambda p: p.write_bytes(b"\x93NUMPY" + b"x" * 20)),
    "log.duckdb": ("a DuckDB database", lambda p: p.write_bytes(b"\0" * 8 + b"DUCK" + b"x" * 20)),
    "log.tar": ("a tar archive", lambda p: p.write_bytes(b"x" * 257 + b"ustar" + b"x" * 20)),
    "log.parquet": (
        "an HTML page, perhaps the error page of a download",
        lambda p: p.write_text("<!DOCTYPE html><p>404"),
    ),
    "lfs.parquet": ("a Git LFS pointer", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid x\n")),
    "meta.json": ("a JSON document", lambda p: p.write_text('{"name": "x"}')),
    "empty.parquet": ("empty: give the whole file", lambda p: p.touch()),
    "note.txt": ("not an intact parquet file", lambda p: p.write_text("hello")),
    "utf16.csv": ("a CSV file", lambda p: p.write_text(CSV, encoding="utf-16")),
}


def parquet_bytes() -> bytes:
    import io

    out = io.BytesIO()
    FRAME.write_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_called_by_their_names(tmp_path: Path, name: str) -> None:
    words, write = OTHERS[name]
    write(tmp_path / name)
    assert f"{name} is {words}" in refusal(tmp_path / name, tmp_path)


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "anything.csv").write_bytes(parquet_bytes())
    assert kind_of(tmp_path / "anything.csv").is_parquet
    refused = tmp_path / "x.yaml"
    refused.write_text(SCHEMA)
    assert ingest("parquet", tmp_path / "anything.csv", refused, tmp_path / "raw").rows == 2


@pytest.mark.parametrize(
    "path", ["s3://bucket/log.parquet", "gs://b/x", "https://example.org/log.parquet", "hdfs://n/x", "abfss://c@a/x"]
)
def test_only_the_source_log_reads_urls(tmp_path: Path, path: str) -> None:
    for given in (path, Path(path)):
        with pytest.raises(
            DataError,
            match=f"{re.escape(path)} is not a local path, and source 'parquet' reads files of this machine: copy",
        ):
            ingest("parquet", given, _schema(tmp_path), tmp_path / "raw")


def _schema(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(SCHEMA)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("source", ["criteo", "avazu"])
def test_sources_of_text_name_a_file_that_is_none(tmp_path: Path, source: str) -> None:
    (tmp_path / "log.parquet").write_bytes(parquet_bytes())
    excel(tmp_path / "log.xlsx")
    for name, words in (("log.parquet", "a parquet file"), ("log.xlsx", "an Excel workbook")):
        with pytest.raises(DataError, match=rf"{name} is {words}, and this source reads text, plain or gzipped"):
            ingest(source, tmp_path / name, None, tmp_path / "raw")
