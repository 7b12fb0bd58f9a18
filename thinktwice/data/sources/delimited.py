"""CSV and TSV files of a user's own log: detection of encoding and separator, and reading in blocks of bounded memory.

Quotes follow RFC 4180: a cell may be quoted, and then contain the separator, line breaks and doubled quotes. A record with
another number of cells than the header, with a broken quote or with bytes of another encoding is unparsable; it is kept with
its text and line number, and reading continues with the next line. Lines without any character are no records.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from thinktwice.data.reading import Chunk, Unparsable
from thinktwice.data.sources.text import Opener, blocks
from thinktwice.errors import DataError, RowsLostError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "\x01": "the control character 1"}
SAMPLE_LINES = 100  # from which the separator is detected
MAX_RECORD_LINES, MAX_RECORD_BYTES = 1000, 1 << 20  # of a record with line breaks in quotes
LATIN = "thinktwice-latin"  # cp1252, with the five bytes that it leaves undefined read as latin-1

codecs.register_error(LATIN, lambda error: (error.object[error.start : error.end].decode("latin-1"), error.end))  # type: ignore[attr-defined]

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dialect:
    """How a file is written. ``encoding`` is utf-8, utf-16 or cp1252."""

    delimiter: str
    encoding: str

    @property
    def words(self) -> str:
        return f"cells separated by {DELIMITERS[self.delimiter]}, encoding {self.encoding}"


def detect(open_stream: Opener, where: str) -> Dialect:
    """The dialect of a file, from its first block.

    Raises:
        DataError: it is empty, its lines end with carriage returns alone, or no separator splits its first line.
    """
    encoding = _encoding(next(blocks(open_stream, where), b""))
    head = next(_text_blocks(open_stream, where, encoding), b"").decode("utf-8", errors="replace")
    lines = [line for line in head.split("\n", SAMPLE_LINES + 1)[: SAMPLE_LINES + 1] if line]
    if not lines:
        raise DataError(f"{where} is empty: give the whole file")
    lines = lines[:-1] if len(lines) > SAMPLE_LINES else lines
    if len(lines) == 1 and "\r" in lines[0]:
        raise DataError(
            f"{where} ends its lines with carriage returns alone: write it with line feeds, such as with `tr '\\r' '\\n'`"
        )

    def fit(delimiter: str) -> tuple[float, int]:
        cells = [_num_cells(line, delimiter) for line in lines]
        return (sum(n == cells[0] for n in cells) / len(cells) if cells[0] > 1 else 0.0, cells[0])

    best = max(DELIMITERS, key=fit)
    if fit(best)[1] < 2:
        raise DataError(
            f"{where}: its first line {lines[0][:60]!r} is one cell; cells are separated by {', '.join(DELIMITERS.values())}: "
            "write the file with one of these and a header line"
        )
    return Dialect(best, encoding)


def header(open_stream: Opener, where: str, dialect: Dialect) -> list[str]:
    """Column names in the first line.

    Raises:
        DataError: a name is missing or repeated, or the line contains numbers instead of names.
    """
    first = next(_text_blocks(open_stream, where, dialect.encoding), b"").lstrip(b"\n").split(b"\n", 1)[0]
    try:
        line = first.decode("utf-8")
        names = [name.strip() for name in next(csv.reader([line], delimiter=dialect.delimiter, strict=True))]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{where}, line 1: the header cannot be read ({error}): correct the names of the columns"
        ) from error
    if all(_is_number(name) for name in names):
        raise DataError(f"{where}, line 1: {line[:60]!r} are values and not names of columns: add a header line")
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"{where}, line 1: column {number} has no name; give it one (pandas writes a column without a name for the "
                "index, unless index=False)"
            )
        if name in names[: number - 1]:
            raise DataError(
                f"{where}, line 1: the name {name!r} is repeated, in columns {names.index(name) + 1} and {number}: rename one"
            )
    return names


def read_delimited(
    open_stream: Opener, where: str, dialect: Dialect, columns: list[str], start: int = 0
) -> Iterator[Chunk]:
    """Records after the header as chunks of string columns, null where a cell is empty; ``start`` numbers the first one."""
    rest, line, skip = b"", 1, True
    incoming = _text_blocks(open_stream, where, dialect.encoding)
    block = next(incoming, None)
    while block is not None:
        following = next(incoming, None)
        data = rest + b"\n" + block if rest else block
        if skip:
            stripped = data.lstrip(b"\n")
            line += len(data) - len(stripped)
            _, newline, data = stripped.partition(b"\n")
            line, skip = line + len(newline), False
        split = _split(data, len(columns), dialect.delimiter, last=following is None)
        rest = split.rest
        yield _chunk(split, columns, dialect.delimiter, start, line)
        start += split.num_records
        line += split.num_lines
        block = following


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    lines = head.split(b"\n")
    broken = valid = False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        broken = True
        valid = any(map(_is_utf8, lines))
    return "cp1252" if broken and not valid else "utf-8"


def _is_utf8(line: bytes) -> bool:
    """Whether a line has other characters than ASCII and is UTF-8: hardly any text of another encoding is."""
    if line.isascii():
        return False
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _text_blocks(open_stream: Opener, where: str, encoding: str) -> Iterator[bytes]:
    """Whole lines as UTF-8; a file that claims to be UTF-8 is not checked here.

    Raises:
        DataError: the first block is Windows-1252, and a later line is UTF-8, which would be read as other characters.
    """
    if encoding == "utf-8":
        yield from blocks(open_stream, where)
        return
    if encoding == "cp1252":
        number = 0
        for block in blocks(open_stream, where):
            lines = [] if block.isascii() else block.split(b"\n")
            found = next((place for place, line in enumerate(lines, number + 1) if _is_utf8(line)), None)
            if found is not None:
                raise DataError(
                    f"{where}, line {found} is UTF-8, and the lines before it are Windows-1252: write the file in one encoding, such as "
                    "with iconv"
                )
            number += block.count(b"\n") + 1
            yield block.decode("cp1252", LATIN).encode("utf-8")
        return
    yield from blocks(lambda: _Transcoded(open_stream(), encoding), where)  # type: ignore[arg-type, return-value]


class _Transcoded:
    """A stream of another encoding, read as UTF-8."""

    def __init__(self, stream: io.BufferedIOBase, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def read(self, size: int) -> bytes:
        while data := self._stream.read(size):
            if text := self._decoder.decode(data):
                return text.encode("utf-8")
        return self._decoder.decode(b"", final=True).encode("utf-8")

    def __enter__(self) -> _Transcoded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _Split(NamedTuple):
    """A block cut into records.

    ``good`` are the bytes of ``num_good`` readable records; ``bad`` is (line in the block, text, reason) of the others;
    ``is_good`` [num_records] tells them apart in order. ``rest`` belongs to the next block.
    """

    good: bytes
    num_good: int
    bad: list[tuple[int, str, str]]
    is_good: Flags
    num_records: int
    num_lines: int
    rest: bytes


def _split(block: bytes, width: int, delimiter: str, *, last: bool) -> _Split:
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == 10)
    starts = np.concatenate([[0], ends + 1])
    ends = np.concatenate([ends, [len(data)]])
    separators = np.flatnonzero(data == ord(delimiter))
    num_quotes = np.zeros(len(starts), np.int64)
    slow = np.zeros(len(starts), np.bool_)
    if b'"' in block:
        quotes = np.flatnonzero(data == 34)
        before = np.searchsorted(quotes, starts)
        num_quotes = np.diff(before, append=len(quotes))
        odd = (np.arange(len(quotes)) - np.repeat(before, num_quotes)) % 2 == 1  # a closing quote, or the first of two
        slow = num_quotes % 2 == 1
        misplaced = quotes[_misplaced(data, quotes, odd, ord(delimiter))]
        slow[np.searchsorted(starts, misplaced, side="right") - 1] = True
        # Separators in quotes separate nothing.
        inside = np.searchsorted(quotes, separators) % 2 == 1
        if slow.any():
            line = np.searchsorted(starts, separators, side="right") - 1
            inside ^= (before[line] % 2).astype(np.bool_)
        separators = separators[~inside]
    cells = np.diff(np.searchsorted(separators, starts), append=len(separators)) + 1
    wrong_bytes = _not_utf8(block, starts, ends)
    blank = starts == ends
    good = ~blank & ~slow & (cells == width)
    good[list(wrong_bytes)] = False
    is_record, records, bad, rest_from = ~blank, {}, [], len(starts)
    reasons = {n: f"{cells[n]} cells instead of {width}" for n in np.flatnonzero(~good & ~blank & ~slow).tolist()}
    reasons |= wrong_bytes
    consumed = -1
    for n in np.flatnonzero(slow).tolist():
        if n <= consumed or n in wrong_bytes:
            continue
        row, end = _quoted_record(block, starts, ends, num_quotes, n, width, delimiter)
        if end is None and not last and len(block) - starts[n] < MAX_RECORD_BYTES:
            rest_from = n
            break
        if isinstance(row, str) or end is None:
            reasons[n] = row if isinstance(row, str) else "a quote is not closed"
            continue
        records[n], consumed = row, end
        is_record[n + 1 : end + 1] = False
        good[n + 1 : end + 1] = False
        for inside in range(n, end + 1):
            reasons.pop(inside, None)
        good[n] = True
    rest = block[starts[rest_from] :] if rest_from < len(starts) else b""
    keep = slice(0, rest_from)
    is_record[rest_from:] = False
    bad = [
        (n, block[starts[n] : ends[n]].decode("utf-8", errors="backslashreplace"), reasons[n])
        for n in sorted(reasons)
        if n < rest_from
    ]
    pieces = _pieces(block, starts, ends, good[keep], records, delimiter)
    is_good = good[is_record]
    return _Split(pieces, int(is_good.sum()), bad, is_good, len(is_good), rest_from, rest)


def _pieces(
    block: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    good: Flags,
    records: dict[int, list[str]],
    delimiter: str,
) -> bytes:
    """The good lines, one below the other; ``records`` are written anew with quotes around every cell."""
    if not records and len(good) == len(starts) and good.all():
        return block
    plain = good.copy()
    plain[list(records)] = False
    borders = np.flatnonzero(np.diff(np.concatenate([[False], plain, [False]]).astype(np.int8)))
    out = [(int(a), block[starts[a] : ends[b - 1]]) for a, b in zip(borders[::2], borders[1::2], strict=True)]
    for n, row in records.items():
        cells = (f'"{cell.replace(chr(34), chr(34) * 2)}"' if cell else "" for cell in row)
        out.append((n, delimiter.join(cells).encode("utf-8")))
    return b"\n".join(text for _, text in sorted(out))


def _not_utf8(block: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> dict[int, str]:
    """Lines that are not UTF-8 or contain a NUL, with the reason."""
    nul = b"\0" in block
    if not nul and block.isascii():
        return {}
    if not nul:
        try:
            pa.array([block], pa.large_binary()).cast(pa.large_string())
            return {}
        except pa.ArrowInvalid:
            pass
    out = {}
    for n, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        line = block[a:b]
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            out[n] = f"byte {error.start + 1} is not UTF-8 text, as the rest of the file is"
        if nul and b"\0" in line:
            out[n] = f"byte {line.index(0) + 1} is NUL, which is not text"
    return out


def _misplaced(data: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64], odd: Flags, delimiter: int) -> Flags:
    """[len(quotes)] whether a quote is neither at the border of its cell nor one of two.

    ``odd``: it is the second, fourth, ... of its line, so it closes a cell or is followed by its twin.
    """
    around = np.where(odd, quotes + 1, quotes - 1)
    outside = (around < 0) | (around >= len(data))
    neighbour = data[np.clip(around, 0, len(data) - 1)]
    return ~(outside | (neighbour == delimiter) | (neighbour == 10) | (neighbour == 34))


def _quoted_record(
    block: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    num_quotes: npt.NDArray[np.int64],
    line: int,
    width: int,
    delimiter: str,
) -> tuple[list[str] | str, int | None]:
    """The record that begins in ``line`` and its last line; or the reason why there is none. (.., None): no end in the block."""
    row = _parsed(block[starts[line] : ends[line]], width, delimiter)
    if not isinstance(row, str) or num_quotes[line] % 2 == 0:
        return row, line
    until = min(len(starts), line + MAX_RECORD_LINES)
    odd = np.flatnonzero(num_quotes[line + 1 : until] % 2)
    if not len(odd):
        return "a quote is not closed", None if until == len(starts) else line
    end = line + 1 + int(odd[0])
    if ends[end] - starts[line] > MAX_RECORD_BYTES:
        return "a quote is not closed", line
    joined = _parsed(block[starts[line] : ends[end]], width, delimiter)
    return ("a quote is not closed", line) if isinstance(joined, str) else (joined, end)


def _parsed(text: bytes, width: int, delimiter: str) -> list[str] | str:
    """The cells of one record, or why it is none."""
    try:
        rows = list(csv.reader(io.StringIO(text.decode("utf-8"), newline=""), delimiter=delimiter, strict=True))
    except UnicodeDecodeError:
        return "its bytes are not UTF-8 text"
    except csv.Error as error:
        return "a quote is not closed" if "unexpected end" in str(error) else f"a quote is misplaced ({error})"
    if len(rows) != 1:
        return "a quote is misplaced"
    return rows[0] if len(rows[0]) == width else f"{len(rows[0])} cells instead of {width}"


def _chunk(split: _Split, columns: list[str], delimiter: str, start: int, first_line: int) -> Chunk:
    numbers = start + np.arange(split.num_records, dtype=np.int64)
    bad = numbers[~split.is_good]
    unparsable = tuple(
        Unparsable(int(number), text, f"line {first_line + n}: {why}")
        for number, (n, text, why) in zip(bad, split.bad, strict=True)
    )
    kind = pa.schema([(name, pa.string()) for name in columns])
    if not split.num_good:
        return Chunk(kind.empty_table(), np.zeros(0, np.int64), unparsable)
    table = pacsv.read_csv(
        pa.BufferReader(split.good),
        pacsv.ReadOptions(column_names=columns, block_size=len(split.good) + 1, use_threads=False),
        pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False),
        pacsv.ConvertOptions(
            column_types=kind, null_values=[""], strings_can_be_null=True, check_utf8=False, include_columns=columns
        ),
    )
    if table.num_rows != split.num_good:
        raise RowsLostError(
            f"{split.num_good} records became {table.num_rows} rows from line {first_line}: report this as a bug"
        )
    return Chunk(table, numbers[split.is_good], unparsable)


def _num_cells(line: str, delimiter: str) -> int:
    return sum(part.count(delimiter) for part in line.split('"')[::2]) + 1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
