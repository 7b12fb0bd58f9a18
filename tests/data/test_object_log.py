"""The source ``log`` at ``s3://``: the same rows as from files, bounded memory, and one sentence for every fault."""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.arguments import RunArguments
from pipelines.check import check_arguments
from pipelines.run import _write_request
from pipelines.versions import data_version
from tests.data import shop_tables
from tests.data.own_logs import SCHEMA, small_log
from tests.data.test_own_log_source import WRITERS
from tests.storage.faults import Answer, Proxy, Seen, proxy
from tests.storage.servers import Bucket, environment, moto
from thinktwice.cli import main
from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.sources.own_log import open_log
from thinktwice.data.sources.paths import expanded
from thinktwice.errors import DataError, SchemaError, StorageError
from thinktwice.schema import load_schema, parse_schema
from thinktwice.storage import object_path, s3
from thinktwice.storage.object_path import Bucket as Listing
from thinktwice.storage.object_path import Buckets, ObjectPath, has_magic
from thinktwice.storage.store import Entry

pytestmark = pytest.mark.server

_numbers = itertools.count(1)
#: The commands of docs/logs.md.
OBJECT_LOG = (
    "thinktwice data infer-schema s3://clicks/2024/ --out shop.yaml",
    'thinktwice data ingest --source log --path "s3://clicks/2024/*.csv" --schema s3://clicks/shop.yaml --since 2024-03-02 --out raw',
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as started:
        yield started


def use(address: str, patch: pytest.MonkeyPatch, **others: str) -> None:
    for name, value in {**environment(address), **others}.items():
        patch.setenv(name, value)


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    use(address, monkeypatch)
    monkeypatch.setattr(s3, "LONGEST_PAUSE_S", 0.0)
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    return Bucket(address, f"logs-{next(_numbers)}", "moto")


@pytest.fixture
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy(bucket.address) as started:
        use(started.address, monkeypatch)
        yield started


def upload(bucket: Bucket, folder: Path, prefix: str = "logs") -> str:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=file.read_bytes())
    return f"{bucket.uri}/{prefix}"


def read(path: str | Path, out: Path, **window: str) -> tuple[Snapshot, pl.DataFrame]:
    snapshot = ingest("log", path, parse_schema(SCHEMA, where="here"), out, **window)
    return snapshot, pl.read_parquet(out / "log.parquet", hive_partitioning=False)


def write(log: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.suffix == ".gz"
    plain = path.with_suffix("") if packed else path
    WRITERS[plain.suffix.lstrip(".")](log, plain)
    if packed:
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        plain.unlink()


names = st.sampled_from(
    ["2.csv", "10.csv", "b/1.csv", "day=1/x.csv", "day=2/x.csv", "_tmp/x.csv", ".x.csv", "é/ü 1.csv", "a/#?+&=.csv"]
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(names, min_size=1, unique=True), ending=st.sampled_from([".csv", ".csv.gz", ".jsonl", ".parquet"])
)
def test_objects_and_files_are_the_same_log(chosen: list[str], ending: str, address: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        use(address, patch)
        bucket, folder = Bucket(address, f"logs-{next(_numbers)}", "moto"), Path(scratch) / "logs"
        log = small_log(10 * len(chosen))
        for number, name in enumerate(chosen):
            write(log[10 * number : 10 * (number + 1)], folder / name.replace(".csv", ending))
        (folder / "README").write_text("a text")
        upload(bucket, folder)
        outcomes = []
        for where, out in ((str(folder), "files"), (f"{bucket.uri}/logs", "objects")):
            try:
                outcomes.append(read(where, Path(scratch) / out))
            except DataError as error:
                outcomes.append(str(error).replace(where, "LOG"))
        if isinstance(outcomes[0], str):
            assert outcomes[0] == outcomes[1] and "contains no log file" in outcomes[0]
            return
        (of_files, rows), (of_objects, object_rows) = outcomes
        assert object_rows.equals(rows) and of_objects == of_files


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_patterns_match_objects_as_files(data: st.DataObject) -> None:

    part = st.sampled_from(["a", "b", "aa", ".a", "a.csv", "b.csv", "[a]"])
    keys = data.draw(
        st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True)
    )
    keys = [key for key in keys if not any(other.startswith(f"{key}/") for other in keys)]
    wanted = st.sampled_from(["*", "a*", "?", "[ab]", "**", "*.csv", "a", ".*", "[!a]*"])
    pattern = "/".join(data.draw(st.lists(wanted, min_size=1, max_size=4)))
    if not has_magic(f"s3://b/{pattern}"):
        return
    with tempfile.TemporaryDirectory() as scratch:
        for key in keys:
            (Path(scratch) / key).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / key).touch()
        local = {name.rstrip("/") for name in glob.glob(pattern, root_dir=scratch, recursive=True)} - {""}  # noqa: PTH207
    buckets, listing = Buckets(), Listing.__new__(Listing)
    listing.name, listing._objects = "bucket", {}
    listing._folders = {
        f: tuple(Entry(k, 1) for k in sorted(keys) if k.startswith(f)) for f in ("", "a/", "a/a/", "a/a/a/")
    }
    buckets._open["bucket"] = listing
    found = {path.key for path in buckets.matches(f"s3://bucket/{pattern}")}
    assert found == local


def test_a_pattern_an_exact_name_and_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("day[1].csv", "day1.csv", "day2.csv"):
        write(small_log(10), tmp_path / "logs" / name) if name != "day2.csv" else write(
            small_log(20)[10:], tmp_path / "logs" / name
        )
    base = upload(bucket, tmp_path / "logs")
    assert [path.name for path in expanded(f"{base}/day[12].csv")] == ["day1.csv", "day2.csv"]
    assert [path.name for path in expanded(f"{base}/day[1].csv")] == ["day[1].csv"]  # it exists: no pattern
    assert [str(path) for path in expanded(f"{base}/\n{base}/*2.csv")] == [base, f"{base}/day2.csv"]
    for path in (f"{base}/day1.csv\n{base}/day[1-2].csv", f"{base}\n{base}/"):
        with pytest.raises(DataError, match="is given twice"):
            expanded(path)


def test_the_documented_commands_read_a_log_and_a_schema_at_s3(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for day, piece in enumerate(small_log(600).iter_slices(200)):
        write(piece, tmp_path / "logs" / f"2024-03-0{day + 1}.csv")
    clicks = Bucket(bucket.address, "clicks", "moto")
    upload(clicks, tmp_path / "logs", "2024")
    clicks.client.put_object(Bucket="clicks", Key="shop.yaml", Body=SCHEMA.encode())
    monkeypatch.chdir(tmp_path)
    infer, read_part = (shlex.split(line)[1:] for line in OBJECT_LOG)
    assert main([*infer, "--label", "bought"]) == 0
    assert parse_schema(Path("shop.yaml").read_text(), where="inferred").label.column == "bought"
    assert main([*read_part, "--until", "2024-03-03T00:00:00Z"]) == 0
    shown = capsys.readouterr().out
    rows = pl.read_parquet("raw/log.parquet")
    times = rows["at"]
    assert 0 < len(rows) < 600 and times.min() >= "2024-03-02" and times.max() < "2024-03-03"  # type: ignore[operator]
    assert "3 files read" in shown and f"{600 - len(rows)} rows outside --since and --until were not read" in shown
    assert load_schema(Path("s3://clicks/shop.yaml")) == load_schema("raw/schema.yaml")


def test_a_run_checks_the_log_first_and_reads_it_again_when_it_changes(bucket: Bucket, tmp_path: Path) -> None:
    write(small_log(10), tmp_path / "logs/1.csv")
    base = upload(bucket, tmp_path / "logs")
    bucket.client.put_object(Bucket=bucket.name, Key="shop.yaml", Body=SCHEMA.encode())
    schema = f"{bucket.uri}/shop.yaml"
    check_arguments(RunArguments(source="log", source_path=base, schema_path=schema, since="2024-03-01"))
    with pytest.raises(DataError, match="no such object or folder"):
        check_arguments(RunArguments(source="log", source_path=f"{base}/none.csv", schema_path=schema))
    with pytest.raises(StorageError, match="has no such object"):
        check_arguments(RunArguments(source="log", source_path=base, schema_path=f"{schema}x", since="2024-03-01"))
    with pytest.raises(DataError, match="reads files of this machine"):
        check_arguments(RunArguments(source="parquet", source_path=base, schema_path=schema))
    with pytest.raises(DataError, match="needs a schema file"):
        check_arguments(RunArguments(source="log", source_path=base))
    first = data_version(*expanded(base), schema)
    arguments = RunArguments(source="log", source_path=base, schema_path=schema)
    asked = json.loads(_write_request(arguments, tmp_path / "work", tmp_path / "state", tmp_path / "run").read_text())
    assert asked["arguments"]["source_path"] == base and asked["arguments"]["schema_path"] == schema
    assert first and first != asked["arguments"]["data_version"] == data_version(schema, *expanded(base))
    write(small_log(11), tmp_path / "logs/1.csv")
    upload(bucket, tmp_path / "logs")
    assert data_version(*expanded(base), schema) != first


def test_a_schema_that_is_no_schema(bucket: Bucket) -> None:
    for body, message in (
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"", "is empty"),
        (b"name: [", "schema s3://"),
        (b"x" * (2 << 20), "more than"),
    ):
        bucket.client.put_object(Bucket=bucket.name, Key="s.yaml", Body=body)
        with pytest.raises((SchemaError, StorageError), match=message) as caught:
            load_schema(f"{bucket.uri}/s.yaml")
        assert f"{bucket.uri}/s.yaml" in str(caught.value)


# What is broken: (what is done to the bucket or its log, what the store answers) -> the sentence.
def _refused(status: int, code: str) -> Callable[[Seen], Answer | None]:
    return lambda seen: Answer(status=status, code="" if seen.method == "HEAD" else code)


REFUSALS = {
    "403": (_refused(403, "AccessDenied"), "denies access"),
    "expired": (_refused(400, "ExpiredToken"), "because they have expired"),
    "keys": (_refused(403, "InvalidAccessKeyId"), "does not accept the keys"),
    "region": (_refused(400, "AuthorizationHeaderMalformed"), "another region"),
    "redirect": (_refused(301, "PermanentRedirect"), "another region"),
    "busy": (_refused(503, "SlowDown"), "cannot answer now"),
    "reset": (lambda seen: Answer(reset=True), "cannot be reached"),
    "half": (
        lambda seen: Answer(cut=True) if seen.method == "GET" and "range" in seen.headers else None,
        "stopped in the middle of the object|fewer bytes",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("form", ["{}/1.csv", "{}", "{}/*.csv"])
def test_refusals_are_one_sentence(kind: str, form: str, bucket: Bucket, faulty: Proxy, tmp_path: Path) -> None:
    write(small_log(10), tmp_path / "logs/1.csv")
    base = upload(bucket, tmp_path / "logs")
    plan, message = REFUSALS[kind]
    faulty.plan(plan)
    with pytest.raises((StorageError, DataError), match=message) as caught:
        read(form.format(base), tmp_path / "raw")
    told = str(caught.value)
    assert told.startswith("s3://") and "\n" not in told and "secret" not in told and not (tmp_path / "raw").exists()


def test_what_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    for path, message in (
        (f"{bucket.uri}/none.csv", "no such object or folder"),
        (f"{bucket.uri}/none/*.csv", "nothing matches the pattern"),
        (f"{bucket.uri}-other/x.csv", "has no such bucket"),
        (f"{bucket.uri}-other/", "has no such bucket"),
        (f"{bucket.uri}/", "contains no log file"),
        ("s3://", "is not an object or a folder of an object store"),
        ("s3://buck*t/x.csv", "is not an object or a folder"),
        ("gs://bucket/x.csv", "is not an object or a folder"),
    ):
        with pytest.raises((StorageError, DataError), match=message):
            read(path, tmp_path / "raw")
    bucket.client.put_object(Bucket=bucket.name, Key="folder/", Body=b"")  # a marker is not an object
    with pytest.raises(DataError, match="no such object or folder"):
        read(f"{bucket.uri}/folder", tmp_path / "raw")


@pytest.mark.parametrize("name", ["x.parquet", "x.csv.gz", "x.jsonl.gz"])
def test_a_half_file_is_named(name: str, bucket: Bucket, tmp_path: Path) -> None:
    write(small_log(200), tmp_path / "logs" / name)
    content = (tmp_path / "logs" / name).read_bytes()
    bucket.client.put_object(Bucket=bucket.name, Key=name, Body=content[: len(content) // 2])
    with pytest.raises(DataError, match="truncated") as caught:
        read(f"{bucket.uri}/{name}", tmp_path / "raw")
    assert f"{bucket.uri}/{name}" in str(caught.value) and not (tmp_path / "raw").exists()


def test_folders_that_thinktwice_has_written_are_not_read_as_files(bucket: Bucket, tmp_path: Path) -> None:
    write(small_log(20), tmp_path / "1.csv")
    read(tmp_path / "1.csv", tmp_path / "raw")
    with pytest.raises(DataError, match="is a folder that thinktwice has written"):
        read(upload(bucket, tmp_path / "raw", "raw"), tmp_path / "again")


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket: Bucket, tmp_path: Path) -> None:
    write(small_log(20), tmp_path / "logs/1.csv")
    base = upload(bucket, tmp_path / "logs")
    reading = open_log(base, 0, 0, parse_schema(SCHEMA, where="here"))
    write(small_log(21), tmp_path / "logs/1.csv")
    upload(bucket, tmp_path / "logs")
    with pytest.raises(StorageError, match="has another object than a moment ago"):
        list(reading.chunks())


@pytest.mark.parametrize(
    ("algorithm", "size"), [("SHA256", 100), ("SHA256", 9 << 20), ("SHA1", 9 << 20), ("CRC32", 9 << 20)]
)
def test_damaged_bytes_are_found_by_the_checksum(algorithm: str, size: int, bucket: Bucket, faulty: Proxy) -> None:
    """Of a small object boto3 checks the one answer; of a large one the content is checked as a whole."""
    body = b"user,item\n" * (size // 10)
    bucket.client.put_object(Bucket=bucket.name, Key="1.csv", Body=body, ChecksumAlgorithm=algorithm)
    assert Buckets().path(f"{bucket.uri}/1.csv").sha256() == hashlib.sha256(body).hexdigest()
    faulty.plan(lambda seen: Answer(damage=seen.method == "GET" and "range" in seen.headers))
    with pytest.raises(StorageError, match="sends other bytes than were written"):
        Buckets().path(f"{bucket.uri}/1.csv").sha256()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_memory_requests_and_disk_are_bounded(
    ending: str, bucket: Bucket, faulty: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of one row group is read in ranges; no bytes are stored, and few are requested twice."""
    rows = 1 << 20
    draw = np.random.default_rng(0)
    log = pl.DataFrame(
        {"at": np.arange(rows), "bought": draw.integers(0, 2, rows), "user": draw.integers(0, 1 << 40, rows)}
        | {"item": draw.integers(0, 1 << 40, rows), "price": draw.random(rows)}
    )
    path = tmp_path / f"big{ending}"
    log.write_csv(path) if ending == ".csv" else log.write_parquet(
        path, row_group_size=rows, compression="uncompressed"
    )
    size = path.stat().st_size
    bucket.client.put_object(Bucket=bucket.name, Key=path.name, Body=path.read_bytes())
    schema = parse_schema(
        "name: big\ntime: {column: at, format: s}\nlabel: {column: bought}\n"
        "entities: {user: {key: user}, item: {key: item}}\nfields:\n  - {name: price, kind: numeric}\n",
        where="here",
    )
    used, most = pa.total_allocated_bytes(), 0
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    reading = open_log(f"{bucket.uri}/{path.name}", 0, 0, schema)
    read_rows = 0
    faulty.seen.clear()
    for chunk in reading.chunks():
        read_rows += chunk.table.num_rows
        most = max(most, pa.total_allocated_bytes() - used)
    assert read_rows == rows and not list(scratch.iterdir())
    ranges = [
        seen.headers["range"].removeprefix("bytes=").split("-") for seen in faulty.seen if "range" in seen.headers
    ]
    lengths = [int(end) - int(start) + 1 for start, end in ranges]
    assert max(lengths) <= 8 << 20 and sum(lengths) < 1.1 * size + (2 << 20)
    assert most < size / 2


def test_the_connection_lives_as_long_as_its_paths(bucket: Bucket) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="1.csv", Body=b"a,b\n1,2\n")
    path = expanded(f"{bucket.uri}/1.csv")[0]
    assert isinstance(path, ObjectPath)
    with path.open("rb") as file:
        assert file.read() == b"a,b\n1,2\n"
    assert (path.name, path.suffix, str(path.with_suffix(".tsv"))) == ("1.csv", ".csv", f"{bucket.uri}/1.tsv")
    assert str(path.with_name("x") / "y") == f"{bucket.uri}/x/y" and object_path.sha256_of(path) == path.sha256()


def tables_at(bucket: Bucket, folder: Path, kind: str = "parquet") -> Path:
    """A shop log on this machine whose side tables are at s3://; returns its schema file."""
    folder.mkdir(exist_ok=True)
    shop_tables.written(folder, shop_tables.impressions(), "log.csv")
    for rows, name in ((shop_tables.users(), f"users.{kind}"), (shop_tables.items(), f"items.{kind}")):
        body = shop_tables.written(folder, rows, name).read_bytes()
        bucket.client.put_object(Bucket=bucket.name, Key=f"tables/{name}", Body=body)
    base = f"{bucket.uri}/tables"
    tables = f"tables: {{users: {{path: {base}/users.{kind}}}, items: {{path: {base}/items.{kind}}}}}"
    (folder / "s.yaml").write_text(shop_tables.SCHEMA.replace("TABLES", tables))
    return folder / "s.yaml"


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_side_tables_at_s3_are_those_of_files(kind: str, bucket: Bucket, tmp_path: Path) -> None:
    schema = tables_at(bucket, tmp_path / "log", kind)
    ingest("log", tmp_path / "log/log.csv", schema, tmp_path / "objects")
    local = schema.read_text().replace(f"{bucket.uri}/tables/", "")
    (tmp_path / "log/local.yaml").write_text(local)
    ingest("log", tmp_path / "log/log.csv", tmp_path / "log/local.yaml", tmp_path / "files")
    # Relative to a schema at s3:// too.
    bucket.client.put_object(Bucket=bucket.name, Key="tables/s.yaml", Body=local.encode())
    ingest("log", tmp_path / "log/log.csv", f"{bucket.uri}/tables/s.yaml", tmp_path / "relative")
    for name in ("users.parquet", "items.parquet"):
        read_back = [pl.read_parquet(tmp_path / folder / name) for folder in ("files", "objects", "relative")]
        assert read_back[0].height > 4 and all(table.equals(read_back[0]) for table in read_back[1:])


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_of_a_side_table_are_one_sentence(kind: str, bucket: Bucket, faulty: Proxy, tmp_path: Path) -> None:
    schema = tables_at(bucket, tmp_path / "log", "csv")
    plan, message = REFUSALS[kind]
    faulty.plan(lambda seen: plan(seen) if "items" in seen.path else None)
    with pytest.raises((StorageError, DataError), match=message) as caught:
        ingest("log", tmp_path / "log/log.csv", schema, tmp_path / "raw")
    told = str(caught.value)
    assert f"{bucket.uri}/tables/items.csv" in told and "\n" not in told and not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["items.parquet", "items.csv.gz"])
def test_a_missing_and_a_half_side_table_are_named(name: str, bucket: Bucket, tmp_path: Path) -> None:
    schema = tables_at(bucket, tmp_path / "log")
    at = f"{bucket.uri}/tables/{name}"
    schema.write_text(schema.read_text().replace(f"{bucket.uri}/tables/items.parquet", at))
    content = (tmp_path / "log/items.parquet").read_bytes()
    if name.endswith(".gz"):
        many = "item,name,color,price,look\n" + "".join(f'{n},x{n * n},red,1,"[1.0, 2.0]"\n' for n in range(3000))
        content = gzip.compress(many.encode(), mtime=0)
    bucket.client.put_object(Bucket=bucket.name, Key=f"tables/{name}", Body=content[: len(content) // 2])
    with pytest.raises(DataError, match="truncated") as caught:
        ingest("log", tmp_path / "log/log.csv", schema, tmp_path / "raw")
    assert at in str(caught.value)
    bucket.client.delete_object(Bucket=bucket.name, Key=f"tables/{name}")
    with pytest.raises((DataError, StorageError), match=r"no such object|has no such object") as caught:
        ingest("log", tmp_path / "log/log.csv", schema, tmp_path / "raw")
    assert at in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "raw").exists()
