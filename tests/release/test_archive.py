"""An archive is checked before anything is unpacked: code, other files, odd names and bombs do not get past its directory."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.releases import pack, rehash, rezip
from thinktwice.errors import BundleError, ResourceError, ThinktwiceError
from thinktwice.files import read_json
from thinktwice.release import archive as archive_module
from thinktwice.release.archive import HANDLER, MAR_MANIFEST, SETTINGS_FILE, open_archive
from thinktwice.release.bundle import bundle_hash, verify_bundle

Change = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def mar(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good archive; nobody writes into it."""
    return pack(small / "bundle", tmp_path_factory.mktemp("packed"))


def unpacked(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    with open_archive(archive) as content:
        content.unpack(folder)
    return folder


def test_what_is_unpacked_is_the_bundle_and_settings_of_our_own_writing(mar: Path, small: Path, tmp_path: Path) -> None:
    folder = unpacked(mar, tmp_path / "out")
    assert verify_bundle(folder / "bundle") == verify_bundle(small / "bundle")
    assert bundle_hash(folder / "bundle") == bundle_hash(small / "bundle")
    others = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "bundle" not in p.parts}
    assert others == {MAR_MANIFEST, SETTINGS_FILE}
    assert read_json(folder / MAR_MANIFEST)["model"]["handler"] == HANDLER
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()} == {0o600}


def test_spelling_that_two_parsers_may_read_differently_is_not_passed_on(mar: Path, tmp_path: Path) -> None:
    """TorchServe reads these files with Java's parsers; it gets them written anew."""

    def spell(files: dict[str, bytes]) -> None:
        files[SETTINGS_FILE] = b"&x {minWorkers: 0x1, maxWorkers: 0xa} # comment\n"
        files[MAR_MANIFEST] = files[MAR_MANIFEST].replace(b'"python"', b'"pyt\\u0068on"')

    folder = unpacked(rezip(mar, tmp_path / "a.mar", spell), tmp_path / "out")
    assert (folder / SETTINGS_FILE).read_text() == "maxWorkers: 10\nminWorkers: 1\n"
    assert b"\\u" not in (folder / MAR_MANIFEST).read_bytes()


def put(name: str, data: bytes = b"import os\n") -> Change:
    return lambda files: files.update({name: data})


def manifest(**change: object) -> Change:
    def apply(files: dict[str, bytes]) -> None:
        value = json.loads(files[MAR_MANIFEST])
        value["model"] |= {k: v for k, v in change.items() if k != "top"}
        files[MAR_MANIFEST] = json.dumps(value | change.get("top", {})).encode()  # type: ignore[operator]

    return apply


REFUSED: dict[str, tuple[Change, str]] = {
    **{
        f"code: {name}": (put(name), r"contains code \(")
        for name in (
            "handler.py",
            "serving/adapters/torchserve_handler.py",
            "json.py",
            "bundle/x.py",
            "sitecustomize.pyc",
            "x.so",
            "evil.pth",
            "requirements.txt",
            "bundle/weights.pt",
            "bundle/model.PKL",
            "x.zip",
            "inner.mar",
        )
    },
    **{
        f"name: {name!r}": (put(name), "contains the unknown file")
        for name in (
            "../evil",
            "bundle/../../evil",
            "/etc/evil",
            "bundle\\schema.yaml",
            "BUNDLE/schema.yaml",
            "bundle/Schema.yaml",
            "bundle/",
            "a/",
            "bundle/report/",
            "bundle/notes.json",
            "bundle/signature.json",
            "MAR-INF/MORE.json",
            " ",
            "bundle/schema.yaml ",
            "ä",
        )
    },
    "listed nowhere": (put("bundle/heads.safetensors"), "heads.safetensors is not in the manifest of its bundle"),
    "missing": (lambda files: files.pop("bundle/schema.yaml"), "bundle/schema.yaml is missing"),  # type: ignore[dict-item,return-value]
    "no manifest": (lambda files: files.pop(MAR_MANIFEST), "does not contain a bundle with"),  # type: ignore[dict-item,return-value]
    "other size": (put("bundle/schema.yaml", b"x"), "unpacks to 1 bytes instead of"),
    "handler": (
        manifest(handler="handler.py"),
        "names the handler 'handler.py' instead of serving.adapters.torchserve_handler",
    ),
    "default handler": (manifest(handler="base_handler"), "names the handler 'base_handler'"),
    "function": (manifest(handler=f"{HANDLER}:open_service"), "names the handler"),
    "path": (manifest(handler=f"/tmp/evil/{HANDLER}"), "names the handler"),
    "requirements": (manifest(requirementsFile="requirements.txt"), "requirementsFile: Extra inputs"),
    "envelope": (manifest(envelope="json"), "envelope: Extra inputs"),
    "model file": (manifest(modelFile="model.py"), "modelFile: Extra inputs"),
    "runtime": (manifest(top={"runtime": "LSP"}), "runtime: Input should be 'python', not 'LSP'"),
    "version": (manifest(modelVersion="2"), "declares version '2' and contains 'small-20260101-abc'"),
    "settings": (put(SETTINGS_FILE, b"minWorkers: 1\nhandler: evil.py\n"), "the setting 'handler' is unknown"),
    "text": (put(SETTINGS_FILE, b"minWorkers: '1; rm'\n"), "minWorkers is not a number"),
    "tag": (put(SETTINGS_FILE, b"a: !!javax.script.ScriptEngineManager []\n"), "model-config.yaml is wrong"),
    "twice": (put(SETTINGS_FILE, b"minWorkers: 1\nminWorkers: 2\n"), "the key 'minWorkers' twice, at lines 1 and 2"),
    "deep": (put(MAR_MANIFEST, b"[" * 50_000), "nested too deeply"),
    "large": (put(SETTINGS_FILE, b" " * (1 << 17)), "has more than 65536 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_but_a_bundle_is_accepted(mar: Path, tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    bad = rezip(mar, tmp_path / "archive" / "ctr.mar", change)
    with pytest.raises(BundleError, match=words) as caught:
        unpacked(bad, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == [], "nothing was unpacked"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "out"]


def raw(mar: Path, target: Path, edit: Callable[[zipfile.ZipInfo, str], None], twice: str = "") -> Path:
    """A copy whose entries were changed as :mod:`zipfile` lets nobody ask for."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name)
            edit(info, name)
            new.writestr(info, old.read(name))
            if name == twice:
                new.filelist[-1], info = info, zipfile.ZipInfo(name)
                with pytest.warns(UserWarning, match="Duplicate"):
                    new.writestr(info, b"other")
    return target


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_devices_are_refused(mar: Path, tmp_path: Path, kind: int) -> None:
    def edit(info: zipfile.ZipInfo, name: str) -> None:
        if name == "bundle/schema.yaml":
            info.external_attr = (kind | 0o644) << 16

    with pytest.raises(BundleError, match=r"bundle/schema.yaml is not a plain file"):
        unpacked(raw(mar, tmp_path / "a.mar", edit), tmp_path / "out")


def test_a_name_that_is_there_twice_is_refused(mar: Path, tmp_path: Path) -> None:
    bad = raw(mar, tmp_path / "a.mar", lambda info, name: None, twice="bundle/schema.yaml")
    with pytest.raises(BundleError, match=r"bundle/schema.yaml appears twice"):
        unpacked(bad, tmp_path / "out")


def test_a_name_with_a_hidden_end_is_refused(mar: Path, tmp_path: Path) -> None:
    """:mod:`zipfile` cuts names at a NUL; other readers do not."""
    data = mar.read_bytes().replace(b"bundle/schema.yaml", b"bundle/schema.ya\x00l")
    (tmp_path / "a.mar").write_bytes(data)
    with pytest.raises(BundleError, match=r"unknown file 'bundle/schema\.ya\\x00l'"):
        unpacked(tmp_path / "a.mar", tmp_path / "out")


def test_two_names_for_one_entry_are_refused(mar: Path, tmp_path: Path) -> None:
    """The directory says one name and the entry another."""
    data = mar.read_bytes()
    place = data.index(b"bundle/schema.yaml")
    (tmp_path / "a.mar").write_bytes(data[:place] + b"bundle/xchema.yaml" + data[place + 18 :])
    with pytest.raises(BundleError, match="cannot be read"):
        unpacked(tmp_path / "a.mar", tmp_path / "out")


def test_other_packings_and_encryption_are_refused(mar: Path, tmp_path: Path) -> None:
    def bz2(info: zipfile.ZipInfo, name: str) -> None:
        info.compress_type = zipfile.ZIP_BZIP2 if name == "bundle/model.json" else zipfile.ZIP_STORED

    with pytest.raises(BundleError, match=r"bundle/model\.json is encrypted, or packed in another way"):
        unpacked(raw(mar, tmp_path / "a.mar", bz2), tmp_path / "out")
    data = bytearray(mar.read_bytes())
    place = data.index(b"PK\1\2")  # first entry of the directory
    data[place + 8] |= 1
    (tmp_path / "b.mar").write_bytes(bytes(data))
    with pytest.raises(BundleError, match="is encrypted"):
        unpacked(tmp_path / "b.mar", tmp_path / "out2")


def test_a_bomb_is_refused_by_its_directory(
    mar: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with consistent hashes whose report is 300 MB of nothing: 300 kB of archive."""
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    with (tmp_path / "bundle" / "report" / "report.html").open("ab") as file:
        file.truncate(300 << 20)
    rehash(tmp_path / "bundle")
    from components.deployment.package.archive import _normalize, _run_archiver

    (tmp_path / "scratch").mkdir()
    _normalize(_run_archiver(tmp_path / "bundle", tmp_path / "scratch", "small-20260101-abc"), tmp_path / "a.mar", "x")
    assert (tmp_path / "a.mar").stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="it may be made to fill a disk"):
        unpacked(tmp_path / "a.mar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(archive_module, "FREE_BYTES", 1 << 30)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="has room for 0 MiB"):
        unpacked(tmp_path / "a.mar", tmp_path / "out2")


def test_a_directory_of_many_entries_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as file:
        for number in range(5000):
            file.writestr(f"bundle/{number:030}", b"")
    with pytest.raises(BundleError, match="lists too many files"):
        unpacked(tmp_path / "a.mar", tmp_path / "out")
    # With a zip64 end, whose length counts instead.
    with zipfile.ZipFile(tmp_path / "b.mar", "w") as file:
        for number in range(66_000):
            file.writestr(str(number), b"")
    with pytest.raises(BundleError, match="lists too many files"):
        unpacked(tmp_path / "b.mar", tmp_path / "out2")


def test_what_is_no_archive_is_named(mar: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no zip")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "comment").write_bytes(mar.read_bytes()[:-2] + b"\5\0hello")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("text", "empty", "comment", "folder", "pipe", "gone"):
        with pytest.raises(BundleError, match=rf"archive .*{name} (is not a zip file|cannot be read)"):
            unpacked(tmp_path / name, tmp_path / f"out-{name}")


def test_files_of_the_right_size_are_hashed_as_they_are_written(mar: Path, tmp_path: Path) -> None:
    def flip(files: dict[str, bytes]) -> None:
        data = bytearray(files["bundle/weights.safetensors"])
        data[-1] ^= 1
        files["bundle/weights.safetensors"] = bytes(data)

    bad = rezip(mar, tmp_path / "a.mar", flip)
    with pytest.raises(BundleError, match=r"weights\.safetensors has SHA-256"):
        unpacked(bad, tmp_path / "out")
    with pytest.raises(BundleError, match=r"weights\.safetensors has SHA-256"), open_archive(bad) as content:
        content.verify()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_ends_in_anything_but_a_sentence(data: st.DataObject, mar: Path, tmp_path: Path) -> None:
    """Flipped, cut, doubled and inserted bytes: the bundle is the same, or the archive is refused."""
    whole = bytearray(mar.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # The directory is a few of many bytes, and the part that a parser reads.
        place = data.draw(
            st.one_of(st.integers(0, len(whole) - 1), st.integers(max(len(whole) - 2500, 0), len(whole) - 1))
        )
        match data.draw(st.sampled_from(["flip", "set", "cut", "insert", "drop"])):
            case "flip":
                whole[place] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                whole[place : place + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"PK\1\2", b"PK\5\6"]))
            case "cut":
                del whole[place + 1 :]
            case "insert":
                whole[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del whole[place : place + data.draw(st.integers(1, 8))]
        if not whole:
            whole = bytearray(b"x")
    (tmp_path / "a.mar").write_bytes(bytes(whole))
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        unpacked(tmp_path / "a.mar", out)
    except ThinktwiceError as error:
        assert "\n" not in str(error)
    else:
        with open_archive(mar) as content:
            assert bundle_hash(out / "bundle") == content.bundle_hash
            verify_bundle(out / "bundle")
    assert {p.name for p in tmp_path.iterdir()} == {"a.mar", "out"}
