"""The verbs ``bundle keygen``, ``bundle sign``, ``bundle verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinktwice.printable import printable

app = typer.Typer(no_args_is_help=True, help="Bundles: sign them, and check signatures and hashes.")

Folder = Annotated[Path, typer.Argument(help="Bundle folder.")]


@app.command()
def keygen(out: Annotated[Path, typer.Option(help="Folder for the two files.")]) -> None:
    """Make a pair of keys: one signs bundles, the other is given to predictors."""
    from thinktwice.signing import SIGNING_KEY, TRUSTED_KEYS, make_keys

    private, public = make_keys(out)
    typer.echo(f"{private}: keep it secret; name it in {SIGNING_KEY} where models are packaged")
    typer.echo(f"{public}: give it to predictors; name it, or a folder of several, in {TRUSTED_KEYS}")


@app.command()
def sign(bundle: Folder, key: Annotated[Path, typer.Option(help="File of the private key.")]) -> None:
    """Sign a bundle that is whole. Packaging does it by itself where the environment names a key."""
    from thinktwice.bundle import verify_bundle
    from thinktwice.signing import sign_bundle

    verify_bundle(bundle)
    typer.echo(f"signed with the key {sign_bundle(bundle, key).key_id}")


@app.command()
def verify(
    bundle: Folder,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of a trusted key; may repeat. Default: those the environment names.", show_default=False
        ),
    ] = None,
) -> None:
    """Check the signature (where keys are trusted) and every hash of a bundle."""
    from thinktwice.bundle import bundle_hash, verify_bundle
    from thinktwice.signing import trusted_keys, verify_signature

    trusted = tuple(key) if key else trusted_keys()
    signed = f"signed with the key {verify_signature(bundle, trusted)}" if trusted else "its signature was not checked"
    manifest = verify_bundle(bundle)
    typer.echo(f"{printable(manifest.model_version)}: whole, bundle {bundle_hash(bundle)[:12]}, {signed}")
