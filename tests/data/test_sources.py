"""Every source reads its published layout, loses no line, and says in one sentence what is wrong with a bad file."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thinktwice.data.ingest import ingest
from thinktwice.data.sources import registry
from thinktwice.data.sources.ads import CRITEO
from thinktwice.data.sources.registry import SOURCES, builtin_schema
from thinktwice.errors import DataError, SchemaError
from thinktwice.schema import load_schema
from thinktwice.schema.columns import named_columns

AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def read(folder: Path, name: str = "log") -> pl.DataFrame:
    return pl.read_parquet(folder / f"{name}.parquet")


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if s.has_schema])
def test_a_builtin_schema_is_valid_and_named_after_its_source(name: str) -> None:
    schema = builtin_schema(name)
    assert schema.name == name
    assert len(schema.model_fields_in_order()) >= 10


def movielens_1m(folder: Path) -> Path:
    """The official layout with made-up rows; one rating line and one user line are broken."""
    path = folder / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n2::M::56::16::70072-0001\n3::M::25\n")
        films = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Les Misérables (1998)::Drama\n"
        archive.writestr("ml-1m/movies.dat", films.encode("latin-1"))
        ratings = "1::1::5::978300760\n1::2::3::978302109\n2::2::4::978301968\nbroken line\n3::1::1::978301968\n"
        archive.writestr("ml-1m/ratings.dat", ratings)
    return path


def test_movielens_1m_in_the_official_layout(tmp_path: Path) -> None:
    snapshot = ingest("ml-1m", movielens_1m(tmp_path), None, tmp_path / "raw")
    assert (snapshot.rows, snapshot.unparsable_rows) == (4, 1)
    assert snapshot.side_unparsable == {"users.dat": 1, "movies.dat": 0}
    log = read(tmp_path / "raw")
    assert log["title"].to_list() == [
        "Toy Story (1995)",
        "Les Misérables (1998)",
        "Les Misérables (1998)",
        "Toy Story (1995)",
    ]
    assert log["zip3"].to_list() == [
        "480",
        "480",
        "700",
        None,
    ]  # the broken line of user 3 costs attributes, not the rating
    assert log["year_bucket"].to_list() == ["1995", "1998", "1998", "1995"]
    assert log["main_genre"].to_list() == ["Animation", "Drama", "Drama", "Animation"]
    assert log["source_row"].to_list() == [0, 1, 2, 4]
    broken = read(tmp_path / "raw", "unparsable")
    assert broken.select("source_row", "raw", "error").rows() == [(3, "broken line", "1 cells instead of 4")]
    assert not set(broken["row_id"]) & set(log["row_id"])


def test_movielens_100k_in_the_official_layout(tmp_path: Path) -> None:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("1\t2\t5\t881250949\n2\t1\t2\t891717742\n")
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|T8H1N\n")
    flags = ["0"] * 19
    one, two = flags.copy(), flags.copy()
    one[3] = one[5] = "1"
    films = [["1", "Amélie (1995)", "01-Jan-1995", "", "http://x", *one], ["2", "unknown", "", "", "", *two]]
    (folder / "u.item").write_bytes("\n".join("|".join(f) for f in films).encode("latin-1"))
    ingest("ml-100k", folder, None, tmp_path / "raw")
    log = read(tmp_path / "raw")
    assert log["main_genre"].to_list() == [None, "Animation"]
    assert log["genre"].to_list()[1] == "Animation|Comedy"
    assert log["year_bucket"].to_list() == [None, "1995"]
    assert log["title"].to_list() == ["unknown", "Amélie (1995)"]
    assert log["zip3"].to_list() == ["857", "T8H"]


def criteo_lines(num: int) -> list[str]:
    return [
        "\t".join([str(i % 2), *(str(i * c) if c % 3 else "" for c in range(13)), *(f"{i:x}{c:x}" for c in range(26))])
        for i in range(num)
    ]


def test_criteo_plain_and_gzipped_give_the_same_rows(tmp_path: Path) -> None:
    text = "\n".join(criteo_lines(50)) + "\n"
    plain, packed = tmp_path / "train.txt", tmp_path / "train.txt.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    first = ingest("criteo", plain, None, tmp_path / "a")
    ingest("criteo", packed, None, tmp_path / "b")
    assert first.rows == 50
    log = read(tmp_path / "a")
    assert log.columns == ["row_id", "source_row", *CRITEO]
    assert log["I1"].null_count() == 50  # an empty cell is missing
    assert log["C2"][7] == "71"
    assert log.equals(read(tmp_path / "b"))


def test_a_criteo_sample_in_its_published_layout(tmp_path: Path, shared: Path) -> None:
    sample = pl.read_parquet(shared / "data/criteo-8k/ctr.parquet").select(CRITEO)
    sample.write_csv(tmp_path / "train.txt", include_header=False, separator="\t")
    assert ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw").rows == 8000
    assert read(tmp_path / "raw").select(CRITEO).equals(sample.cast(pl.String))


def test_an_avazu_sample_in_its_published_layout(tmp_path: Path, shared: Path) -> None:
    columns = AVAZU.split(",")
    sample = pl.read_parquet(shared / "data/avazu-9k/ctr.parquet").rename({"label": "click"})
    sample = sample.with_row_index("id").select(columns)
    sample.write_csv(tmp_path / "train.csv")
    assert ingest("avazu", tmp_path / "train.csv", None, tmp_path / "raw").rows == 8999
    assert read(tmp_path / "raw").select(columns).equals(sample.cast(pl.String))


def test_avazu_keeps_what_does_not_split(tmp_path: Path) -> None:
    row = "1,0,14102100,1005" + ",x" * 20
    file = tmp_path / "train.gz"
    file.write_bytes(gzip.compress("\r\n".join([AVAZU, row, row + ",more", "", row.replace("x", '"x"', 1)]).encode()))
    snapshot = ingest("avazu", file, None, tmp_path / "raw")
    assert (snapshot.rows, snapshot.unparsable_rows) == (2, 2)
    assert read(tmp_path / "raw")["banner_pos"].to_list() == ["x", "x"]
    assert read(tmp_path / "raw", "unparsable")["error"].to_list() == [
        "25 cells instead of 24",
        "1 cells instead of 24",
    ]


def kuairand(folder: Path) -> Path:
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(
        "user_id,video_id,date,hourmin,time_ms,is_click,tab\n7,1,20220408,900,1649379600000,1,1\n7,2,20220408,900,1649379600000,0,1\n"
    )
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text(
        "user_id,video_id,date,hourmin,time_ms,is_click,tab\n8,2,20220422,900,1650589200000,1,0\n"
    )
    numbers = "follow_user_num,fans_user_num,friend_user_num,register_days"
    flags = "user_active_degree,is_lowactive_period,is_live_streamer,is_video_author"
    (folder / "user_features_pure.csv").write_text(f"user_id,{flags},{numbers}\n7,full_active,0,0,1,5,6,7,100\n")
    (folder / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,video_duration,music_id,music_type,tag\n"
        '1,11,NORMAL,2022-04-01,Web,1000,5,9.0,"39,12"\n2,12,AD,2022-04-01,Web,1000,5,9.0,\n'
    )
    return folder


def test_kuairand_joins_users_and_videos_over_all_logs(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    assert ingest("kuairand", kuairand(source), None, tmp_path / "raw").rows == 3
    log = read(tmp_path / "raw")
    assert log["source_row"].to_list() == [0, 1, 2]
    assert log["main_tag"].to_list() == ["39", None, None]
    assert log["tag"].to_list()[0] == "39,12"
    assert log["register_days"].to_list() == ["100", "100", None]
    assert log["author_id"].to_list() == ["11", "12", "12"]
    assert set(named_columns(builtin_schema("kuairand"))) <= set(log.columns)


SCHEMA = """
name: mine
time: {column: at, format: s}
label: {column: clicked}
entities: {user: {key: user_id, column: uid}}
fields: [{name: colour}]
"""


def own_log(folder: Path, **columns: list) -> tuple[Path, Path]:
    schema, log = folder / "mine.yaml", folder / "mine.parquet"
    schema.write_text(SCHEMA)
    columns = columns or {"at": [1, 2, 3], "clicked": [0, 1, 0], "uid": [42, 43, None], "colour": ["red", "", None]}
    pq.write_table(pa.table(columns), log)
    return log, schema


def test_an_own_log_keeps_its_types_and_its_other_columns(tmp_path: Path) -> None:
    log, schema = own_log(tmp_path)
    folder = tmp_path / "many"
    folder.mkdir()
    pq.write_table(pq.read_table(log), folder / "0.parquet")
    pq.write_table(pq.read_table(log).append_column("extra", pa.array([[1.0], None, [2.0]])), folder / "1.parquet")
    snapshot = ingest("parquet", folder, schema, tmp_path / "raw", limit=5)
    assert snapshot.rows == 5
    got = read(tmp_path / "raw")
    assert got["uid"].to_list() == [42, 43, None, 42, 43]
    assert got["colour"].to_list()[:3] == ["red", "", None]  # a file with types says itself what is missing
    assert got["extra"].to_list() == [None, None, None, [1.0], None]


def test_a_schema_that_does_not_fit_names_the_nearest_column(tmp_path: Path) -> None:
    log, schema = own_log(tmp_path, at=[1], clicked=[1], uid=[1], color=["red"])
    with pytest.raises(
        SchemaError, match=r"field 'colour' wants column 'colour'.*did you mean 'color'\?.*at, clicked, uid, color"
    ):
        ingest("parquet", log, schema, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_an_avazu_file_without_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1,0,14102100" + "".join(f",v{i}" for i in range(21)) + "\n")
    with pytest.raises(SchemaError, match="wants column 'hour'"):
        ingest("avazu", tmp_path / "train.csv", None, tmp_path / "raw")


@pytest.mark.parametrize("cut", [0, 3, 200, -3])
def test_a_truncated_parquet_is_named(tmp_path: Path, cut: int) -> None:
    log, schema = own_log(tmp_path)
    log.write_bytes(log.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"mine\.parquet is (empty|not an intact parquet file)"):
        ingest("parquet", log, schema, tmp_path / "raw")


def test_a_parquet_damaged_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    log, schema = own_log(
        tmp_path, at=list(range(50_000)), clicked=[0] * 50_000, uid=list(range(50_000)), colour=["x"] * 50_000
    )
    data = bytearray(log.read_bytes())
    data[200:4000] = b"\xff" * 3800
    log.write_bytes(data)
    with pytest.raises(DataError, match=r"mine\.parquet is damaged"):
        ingest("parquet", log, schema, tmp_path / "raw")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.parquet", "mine.yaml"]


def test_bad_input_gets_one_sentence(tmp_path: Path) -> None:
    empty, garbage, cut = tmp_path / "empty.txt", tmp_path / "test.txt", tmp_path / "cut.gz"
    empty.touch()
    garbage.write_text("1\t2\n3\t4\n")
    cut.write_bytes(gzip.compress(("\n".join(criteo_lines(5000))).encode())[:-2000])
    out = tmp_path / "raw"
    cases = [
        (("criteo", empty), r"empty\.txt is empty"),
        (("criteo", garbage), r"none of the 2 lines of .*test\.txt.*2 cells instead of 40"),
        (("criteo", cut), r"cut\.gz is truncated or damaged"),
        (("criteo", tmp_path), r"is a folder"),
        (("criteo", tmp_path / "no"), r"no such path"),
        (("criteo", None), r"give --path"),
        (("kuairand", tmp_path), r"contains no log_standard"),
        (("parquet", empty), r"needs a schema file"),
        (("ml-1m", garbage), r"not an intact zip"),
        (("sim", garbage), r"takes no path"),
        (("mm-1m", None), r"unknown source 'mm-1m': did you mean 'ml-1m'\? Known are ml-1m, ml-100k, criteo"),
    ]
    for (source, path), message in cases:
        with pytest.raises(DataError, match=message):
            ingest(source, path, None, out)
    assert not out.exists()


def test_the_wrong_movielens_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no u\.data, so it is not the official ml-100k\.zip"):
        ingest("ml-100k", movielens_1m(tmp_path), None, tmp_path / "raw")


def test_a_column_with_a_reserved_name_is_refused(tmp_path: Path) -> None:
    log, schema = own_log(tmp_path, at=[1], clicked=[1], uid=[1], colour=["a"], row_id=["x"])
    with pytest.raises(SchemaError, match=r"column 'row_id' .* reserved"):
        ingest("parquet", log, schema, tmp_path / "raw")


@pytest.mark.parametrize("source", ["ml-1m", "kuairand", "parquet"])
def test_a_folder_that_may_not_be_listed_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    _, schema = own_log(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\): give a path that you may read"):
        ingest(source, tmp_path, schema, tmp_path / "raw")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    log, schema_file = own_log(tmp_path)
    schema = load_schema(schema_file)
    archive = movielens_1m(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    for source, path in (("parquet", log), ("criteo", archive)):
        with pytest.raises(DataError, match=rf"{path.name} cannot be read \(Permission denied\)"):
            registry.source_named(source).open(path, 0, 0, schema)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match=r"ml-1m\.zip cannot be read \(Permission denied\)"):
        registry.source_named("ml-1m").open(archive, 0, 0, schema)


def test_a_zip_damaged_inside_is_named(tmp_path: Path) -> None:
    path = movielens_1m(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"1::F::1")] = ord("9")  # the archive is stored, so its checksum breaks and nothing else
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"users\.dat is truncated or damaged .*copy or download it again"):
        ingest("ml-1m", path, None, tmp_path / "raw")
