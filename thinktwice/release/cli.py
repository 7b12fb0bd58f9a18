"""The commands ``release keygen | sign | verify`` and ``bundle verify | push | pull | list | versions``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from thinktwice.console.options import WORK, State, Work, state_folder
from thinktwice.console.output import Column, Record, print_table, tell
from thinktwice.console.terminal import console_here
from thinktwice.errors import BundleError
from thinktwice.printable import printable

release = typer.Typer(no_args_is_help=True, help="Create keys, and sign and verify releases (the deployed folders).")
bundle = typer.Typer(no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Release folder with ctr.mar, and feature_store/ if the model has one.")]


@release.command()
def keygen(out: Annotated[Path, typer.Option(help="Folder for the two key files.")]) -> None:
    """Generate a key pair: a private key to sign releases, and a public key for predictors."""
    from thinktwice.release.signing import SIGNING_KEY, TRUSTED_KEYS, make_keys

    private, public = make_keys(out)
    tell(f"{private}: keep it secret; set {SIGNING_KEY} to this file where models are packaged and deployed")
    tell(f"{public}: copy it to predictors; set {TRUSTED_KEYS} to this file, or to a folder of keys")


@release.command()
def sign(folder: Folder, key: Annotated[Path, typer.Option(help="File of the private key.")]) -> None:
    """Write release.json for a folder and sign it. The deploy step does this if THINKTWICE_SIGNING_KEY_FILE is set."""
    from thinktwice.release.release import write_release

    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: use a release folder")
    written = write_release(folder, key)
    tell(f"{printable(written.model_version)}: signed, {_covered(written.not_covered)}")


@release.command()
def verify(
    folder: Folder,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of a trusted key; can be repeated. Default: THINKTWICE_TRUSTED_KEYS.", show_default=False
        ),
    ] = None,
    oldest: Annotated[
        datetime | None, typer.Option(help="Refuse a release written before this time (UTC).", show_default=False)
    ] = None,
) -> None:
    """Check the hashes of a release, and its signature if there are trusted keys. Nothing is unpacked."""
    from thinktwice.release.release import ReleasePolicy, verify_release
    from thinktwice.release.signing import trusted_keys

    trusted = tuple(key) if key else trusted_keys()
    aware = oldest if oldest is None or oldest.tzinfo else oldest.replace(tzinfo=timezone.utc)
    accepted = verify_release(folder, ReleasePolicy(oldest=aware), trusted)
    signed = f"signed with the key {accepted.key_id}" if trusted else "its signature was not checked"
    tell(f"{printable(accepted.release.model_version)}: whole, {signed}, {_covered(accepted.release.not_covered)}")
    tell(f"written at {printable(accepted.release.created)}, release {accepted.hash}, bundle {accepted.release.bundle}")


@bundle.callback()
def bundles() -> None:
    """Check bundles, and move model versions to and from the store that predictors read."""


@bundle.command("verify")
def verify_bundle_folder(folder: Annotated[Path, typer.Argument(help="Bundle folder.")]) -> None:
    """Check all hashes of a bundle and load it."""
    from thinktwice.release.bundle import load_bundle

    loaded = load_bundle(folder)
    tell(f"{printable(loaded.manifest.model_version)}: whole, bundle {loaded.hash}")


@bundle.command()
def push(
    to: Annotated[
        str,
        typer.Option(help="Folder of the models: s3://BUCKET/FOLDER, or a folder of this machine.", show_default=False),
    ],
    state: State = None,
    work: Work = WORK,
    model: Annotated[
        str,
        typer.Option(
            help="Copy this instead: the folder model/ of a deploy step with --target manifest, here or in the store (s3://...).",
            show_default="the champion",
        ),
    ] = "",
) -> None:
    """Copy the files that a predictor reads to TO/VERSION/, which KServe's storageUri names.

    The store and its keys are those of the AWS_* variables of the environment. A version is written once; a second call completes an
    interrupted one.
    """
    from thinktwice.release.champion import require_champion, verify_archive
    from thinktwice.release.model_store import push_model

    if not model:
        champion = require_champion(state_folder(state, work), "--state, --work or --model")
        verify_archive(champion)
        model = str(champion.folder)
    uri, keys = push_model(model, to)
    for key in keys:
        tell(key, indent=2)
    typer.echo(f"storageUri: {uri if '://' in uri else Path(uri).resolve().as_uri() + '/'}")


@bundle.command()
def pull(
    version: Annotated[str, typer.Argument(help="Folder of a version: s3://BUCKET/FOLDER/VERSION, or a folder.")],
    to: Annotated[Path, typer.Option(help="Folder to create.", show_default=False)],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of a trusted key; can be repeated. Default: THINKTWICE_TRUSTED_KEYS.", show_default=False
        ),
    ] = None,
) -> None:
    """Copy a version to this machine. It is verified, its signature too if there are trusted keys, before it appears in TO."""
    from thinktwice.release.model_store import pull_model
    from thinktwice.release.signing import trusted_keys

    trusted = tuple(key) if key else trusted_keys()
    pulled = pull_model(version, to, trusted)
    checked = "signature and hashes are right" if trusted else "hashes are right, the signature was not checked"
    tell(f"{printable(pulled.model_version)}: {checked}, in {to}")


@bundle.command("list")
def list_(where: Annotated[str, typer.Argument(help="Folder of the models: s3://BUCKET/FOLDER, or a folder.")]) -> None:
    """List the versions in a store, the newest first."""
    from thinktwice.release.model_store import list_versions

    versions = list_versions(where)
    if not versions:
        tell(f"no model version in {where}")
        return
    columns = [
        Column("version", right=False),
        Column("created"),
        Column("bytes"),
        Column("signed"),
        Column("state", right=False),
    ]
    records = [
        Record(
            [v.name, v.created, f"{v.size:,}", "yes" if v.signed else "no", v.state],
            "" if v.state == "complete" else "red",
        )
        for v in versions
    ]
    print_table(console_here(), columns, records)


@bundle.command("versions")
def local_versions(state: State = None, work: Work = WORK) -> None:
    """List the champion, earlier champions and challengers of a state folder, by bundle hash."""
    from thinktwice.release.challenger import versions
    from thinktwice.release.champion import read_champion

    folder = state_folder(state, work)
    champion = read_champion(folder)
    if not (found := versions(folder)):
        tell(f"no model version in {folder}")
    for version in found:
        role = "earlier champion"
        if champion is not None and version.folder == champion.folder:
            role = "champion"
        elif version.challenger is not None:
            accepted = "accepted offline" if version.challenger.accepted else "not accepted offline"
            role = f"challenger, {version.challenger.mode}, {accepted}"
        typer.echo(f"{version.bundle_hash[:16]}\t{printable(version.model_version)}\t{role}")


def _covered(excluded: tuple[str, ...]) -> str:
    return f"all but {', '.join(excluded)}" if excluded else "with everything that is served"
