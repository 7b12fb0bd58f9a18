"""Reader of delimited text in blocks: lines as columns of strings, and the lines with a wrong number of cells.

An empty cell is a null. Nothing else is interpreted. A quoted field may contain the delimiter but not a line break.
"""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thinktwice.data.reading import Chunk, Unparsable
from thinktwice.data.sources.file_kind import HEAD_BYTES, kind_of
from thinktwice.errors import DataError
from thinktwice.storage.object_path import AnyPath

BLOCK_BYTES = 8 << 20
TEXT = ("a CSV", "a TSV", "a JSON", "a gzip-compressed")  # kinds of files that this reader can open

#: Opens a file or archive member from its start.
Opener = Callable[[], BinaryIO]


def file_opener(path: AnyPath) -> Opener:
    """Opener of a plain or gzipped file; detected from its first bytes.

    Raises:
        DataError: it is a folder, cannot be read, or is empty.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of the file itself")
    try:
        with path.open("rb", buffering=HEAD_BYTES) as handle:
            magic = handle.read(2)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a readable file") from error
    if not magic:
        raise DataError(f"{path} is empty: give the whole file")
    kind = kind_of(path)
    if kind.is_data and not kind.words.startswith(TEXT):
        raise DataError(
            f"{path} is {kind.words}, and this source reads text, plain or gzipped: give the file as published"
        )
    if magic == b"\x1f\x8b":
        return lambda: gzip.open(path if isinstance(path, Path) else path.open("rb"), "rb")  # type: ignore[return-value]
    return lambda: path.open("rb")


@contextmanager
def _read_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{where} is truncated or damaged ({error}): copy or download it again") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror or error}): give a readable file") from error


def blocks(open_stream: Opener, where: str) -> Iterator[bytes]:
    """Whole lines in blocks of about :data:`BLOCK_BYTES`, line ends normalised to one newline byte, without the last one."""
    partial = b""
    first = True
    with _read_errors(where), open_stream() as stream:
        while data := stream.read(BLOCK_BYTES):
            data = partial + data
            if first:
                data = data.removeprefix(b"\xef\xbb\xbf")
                first = False
            end = data.rfind(b"\n")
            if end < 0:
                partial = data
                continue
            partial = data[end + 1 :]
            block = data[:end]
            yield block.replace(b"\r\n", b"\n").removesuffix(b"\r") if b"\r" in block else block
    if partial:
        yield partial.removesuffix(b"\r")


def first_line(open_stream: Opener, where: str, encoding: str = "utf-8") -> str:
    """The first line of a text, without its end."""
    for block in blocks(open_stream, where):
        return block.split(b"\n", 1)[0].decode(encoding, errors="replace")
    raise DataError(f"{where} is empty: give the whole file")


def read_table(
    open_stream: Opener,
    where: str,
    columns: list[str],
    delimiter: str,
    *,
    header: bool,
    encoding: str = "utf-8",
    quotes: bool = False,
    start: int = 0,
) -> Iterator[Chunk]:
    """Read delimited lines as chunks of string columns (null where a cell is empty).

    Args:
        columns: their names, in file order; a line with another number of cells is unparsable.
        header: skip the first line.
        encoding: ``utf-8`` or ``latin-1``.
        quotes: understand double quotes around cells.
        start: number of the first record.
    """
    skip = header
    for block in blocks(open_stream, where):
        if skip:
            skip = False
            _, newline, block = block.partition(b"\n")
            if not newline:
                continue
        chunk = _split_block(block, columns, delimiter, encoding, quotes, start)
        start += chunk.table.num_rows + len(chunk.unparsable)
        yield chunk


def _lines(block: bytes, encoding: str) -> tuple[pa.Array, dict[int, str]]:
    """Lines of a block as strings, and the numbers of those that are not text, with the reason."""
    if encoding == "latin-1":
        return pa.array([block.decode("latin-1")], pa.large_string()), {}
    try:
        return pa.array([block], pa.large_binary()).cast(pa.large_string()), {}
    except pa.ArrowInvalid:
        problems: dict[int, str] = {}
        texts = []
        for number, line in enumerate(block.split(b"\n")):
            try:
                texts.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                texts.append(line.decode("utf-8", errors="backslashreplace"))
                problems[number] = f"byte {error.start + 1} is not UTF-8 text"
        return pa.array(["\n".join(texts)], pa.large_string()), problems


def _split_block(block: bytes, columns: list[str], delimiter: str, encoding: str, quotes: bool, start: int) -> Chunk:
    text, problems = _lines(block, encoding)
    lines = pc.split_pattern(text, "\n").flatten()
    cells = pc.split_pattern(lines, delimiter)
    sizes = pc.list_value_length(cells).to_numpy(zero_copy_only=False)
    valid = sizes == len(columns)
    valid[list(problems)] = False
    quoted: dict[int, list[str]] = {}
    if quotes:
        for number in np.flatnonzero(pc.match_substring(lines, '"').to_numpy(zero_copy_only=False)):
            if int(number) in problems:
                continue
            cell_values, problem = _split_quoted(lines[int(number)].as_py(), delimiter, len(columns))
            valid[number] = not problem
            if problem:
                problems[int(number)] = problem
            else:
                quoted[int(number)] = cell_values
    unparsable = tuple(
        Unparsable(
            start + int(n),
            lines[int(n)].as_py(),
            problems.get(int(n), f"{sizes[n]} cells instead of {len(columns)}"),
        )
        for n in np.flatnonzero(~valid)
    )
    good_rows = np.flatnonzero(valid)
    if quoted:
        rows = [quoted.get(int(n)) or cells[int(n)].as_py() for n in good_rows]
        arrays = [pa.array([row[c] for row in rows], pa.large_string()) for c in range(len(columns))]
    else:
        flat = cells.filter(pa.array(valid)).flatten()
        arrays = [flat.take(pa.array(np.arange(c, len(flat), len(columns)))) for c in range(len(columns))]
    empty = pa.scalar("", pa.large_string())
    arrays = [pc.if_else(pc.equal(a, empty), pa.scalar(None, a.type), a).cast(pa.string()) for a in arrays]
    return Chunk(pa.table(arrays, names=columns), start + good_rows.astype(np.int64), unparsable)


def _split_quoted(line: str, delimiter: str, width: int) -> tuple[list[str], str]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return [], f"quotes do not close ({error})"
    return cells, "" if len(cells) == width else f"{len(cells)} cells instead of {width}"
