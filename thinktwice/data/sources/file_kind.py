"""Detection of file formats from their first bytes, and how to convert them to parquet."""

from __future__ import annotations

import bz2
import lzma
import re
import shlex
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from thinktwice.storage.object_path import AnyPath

HEAD_BYTES = 1 << 16

TEXT_LOGS = frozenset({"csv", "tsv", "jsonl", "ndjson"})  # endings of nothing but logs of text
PARQUET = "a parquet file"
#: First bytes -> format. A longer prefix comes before a shorter one that it starts with.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", PARQUET),
    (b"PARE", "an encrypted parquet file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"ARROW1", "an Arrow (Feather) file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"FEA1", "a Feather version 1 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer"),
    *((b"\x80" + bytes([version]) + b"\x95", "a pickle") for version in (4, 5)),
)
_PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
)


class FileKind(NamedTuple):
    """``words``: name of the format; ``is_data``: whether it may contain rows of a log; ``fix``: how to convert it to
    parquet."""

    words: str
    is_data: bool
    fix: str = ""

    @property
    def is_parquet(self) -> bool:
        return self.words == PARQUET

    @property
    def is_text(self) -> bool:
        """Whether it is CSV, TSV or JSON lines, plain or gzipped."""
        return re.match("an? (gzip-compressed )?(CSV|TSV|JSON lines)", self.words) is not None


def kind_of(path: AnyPath) -> FileKind:
    """Detect the format from the first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=HEAD_BYTES) as handle:
        head = handle.read(HEAD_BYTES)
        if head.startswith(b"PK\x03\x04"):
            return _zip(handle, path)
    return _of_bytes(head, path)


def _of_bytes(head: bytes, path: AnyPath) -> FileKind:
    if not head:
        return FileKind("empty", False, "give the whole file")
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return FileKind(words, True, _fix(words, path))
    if head[8:12] == b"DUCK":
        return FileKind(
            "a DuckDB database", True, f"export its table: COPY the_table TO {_new(path)!r} (FORMAT parquet)"
        )
    for magic, codec in _PACKED:
        if head.startswith(magic):
            return _packed(head, codec, path)
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", True, "unpack it and give the parquet files in it")
    return _text(head, path)


def _fix(words: str, path: AnyPath) -> str:
    if words == "an ORC file":
        return _python(
            f"import pyarrow.orc as o, pyarrow.parquet as p; p.write_table(o.read_table({str(path)!r}), {_new(path)!r})"
        )
    if words == "an Avro file":
        return _polars(f"read_avro({str(path)!r}).write_parquet({_new(path)!r})")
    if words == "an Arrow (Feather) file":
        return _polars(f"read_ipc({str(path)!r}).write_parquet({_new(path)!r})")
    if words == "an Arrow stream":
        return _polars(f"read_ipc_stream({str(path)!r}).write_parquet({_new(path)!r})")
    if words == "a Git LFS pointer":
        return "fetch the actual file with `git lfs pull`"
    if words == "an encrypted parquet file":
        return "decrypt it first"
    return "export it as CSV or parquet with the program that wrote it"


def _zip(handle: BinaryIO, path: AnyPath) -> FileKind:
    try:
        with zipfile.ZipFile(handle) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return FileKind("a damaged zip archive", True, "copy it again")
    if any(name.startswith("xl/") for name in names):
        return FileKind("an Excel workbook", True, "save the sheet as CSV, then convert that to parquet")
    return FileKind("a zip archive", True, "unpack it and give the parquet files in it")


def _packed(head: bytes, codec: str, path: AnyPath) -> FileKind:
    inner = _unpacked(head, codec)
    article = "an" if codec in ("xz", "lz4") else "a"
    tool = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd", "lz4": "unlz4"}.get(codec)
    unpack = f"unpack it with `{tool}`" if tool else "unpack it"
    if inner is None:
        return FileKind(f"{article} {codec}-compressed file", True, f"{unpack} and give the parquet file in it")
    kind = _of_bytes(inner, path.with_suffix(""))
    noun = kind.words.removeprefix("an ").removeprefix("a ")
    if kind.words.startswith("a CSV") or kind.words.startswith("a TSV"):
        return FileKind(f"{article} {codec}-compressed {noun}", True, _csv_fix(path, inner))
    return FileKind(f"{article} {codec}-compressed {noun}", True, f"{unpack} first")


def _unpacked(head: bytes, codec: str) -> bytes | None:
    """The first decompressed bytes, as far as the head of the file contains them; None for an unsupported codec."""
    try:
        if codec == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
                head, 1 << 12
            )  # of a truncated file, what there is
        if codec == "bzip2":
            return bz2.BZ2Decompressor().decompress(head, 1 << 12)
        if codec == "xz":
            return lzma.LZMADecompressor().decompress(head, 1 << 12)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        return None
    return None


def _text(head: bytes, path: AnyPath) -> FileKind:
    unknown = FileKind("no table", False)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    else:
        try:
            text = _cut(head).decode("utf-8-sig")
        except UnicodeDecodeError:
            text = head.decode("latin-1")
    if "\0" in text:
        if not _is_named_as_text(path):
            return FileKind("a binary file of an unknown format", False)
        text = text.replace("\0", "")  # its lines with NUL bytes are kept apart when it is read
    start = text.lstrip()[:2000]
    if start.lower().startswith(("<!doctype html", "<html")):
        return FileKind("an HTML page, perhaps the error page of a download", False, "download the file again")
    if start.startswith(("{", "[")):
        return _json(start, path)
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    complete = lines[:-1] if len(lines) > 2 else lines  # the last line may be cut
    for delimiter, name in (("\t", "TSV"), (",", "CSV"), (";", "CSV"), ("|", "CSV"), ("\x01", "CSV")):
        counts = {_cells(line, delimiter) for line in complete}
        if len(complete) > 1 and len(counts) == 1 and counts != {1}:
            return FileKind(f"a {name} file", True, _csv_fix(path, head))
    if path.suffix.lower() in (".csv", ".tsv") and lines:
        return FileKind(f"a {path.suffix[1:].upper()} file", True, _csv_fix(path, head))
    return unknown


def _is_named_as_text(path: AnyPath) -> bool:
    ending = next((e for e in reversed(path.name.lower().split(".")[1:]) if e not in ("gz", "gzip")), "")
    return ending in TEXT_LOGS


def _cut(head: bytes) -> bytes:
    """The bytes without a character cut at the end of the head."""
    for missing in range(min(4, len(head))):
        try:
            head[: len(head) - missing].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return head[: len(head) - missing]
    return head


def _cells(line: str, delimiter: str) -> int:
    """Cells of a line; a delimiter in double quotes separates nothing."""
    return sum(part.count(delimiter) for part in line.split('"')[::2]) + 1


def _json(start: str, path: AnyPath) -> FileKind:
    lines = [line for line in start.splitlines() if line.strip()]
    named = path.suffix.lower() in (".jsonl", ".ndjson")
    if start.startswith("{") and (named or sum(line.startswith("{") for line in lines) > 1):
        return FileKind("a JSON lines file", True, _polars(f"read_ndjson({str(path)!r}).write_parquet({_new(path)!r})"))
    if start[1:].lstrip().startswith("{") and start.startswith("["):
        return FileKind("a JSON file", True, _polars(f"read_json({str(path)!r}).write_parquet({_new(path)!r})"))
    return FileKind("a JSON document", False, "give the log itself")


def _csv_fix(path: AnyPath, head: bytes) -> str:
    line = head.split(b"\n", 1)[0]
    best = max((b",", b"\t", b";", b"|", b"\x01"), key=line.count)
    separator = "" if best == b"," else f", separator={best.decode()!r}"
    # Every column stays text: ids keep their leading zeros, and the validation reads numbers and times from text.
    exact = ", glob=False" if set("*?[]{}").intersection(str(path)) else ""
    return _polars(f"scan_csv({str(path)!r}{separator}, infer_schema=False{exact}).sink_parquet({_new(path)!r})")


def _new(path: AnyPath) -> str:
    name = path.name
    while Path(name).suffix.lower() in (
        *(
            ".gz",
            ".gzip",
            ".bz2",
            ".xz",
            ".csv",
            ".tsv",
            ".txt",
            ".json",
            ".jsonl",
            ".ndjson",
            ".orc",
            ".avro",
            ".arrow",
        ),
        *(".feather", ".ipc", ".arrows"),
    ):
        name = Path(name).stem
    return str(path.with_name(f"{name}.parquet"))


def _polars(call: str) -> str:
    return _python(f"import polars as pl; pl.{call}")


def _python(code: str) -> str:
    return f"convert it to parquet, e.g. with `python -c {shlex.quote(code)}`"
