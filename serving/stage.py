"""Staging of a release, run by the image before TorchServe: check the release in the mounted folder and unpack it into a private one.

    python -m serving.stage --archive ctr.mar [--feature-store DIR] --into DIR/ctr

The feature store defaults to ``THINKTWICE_FEATURE_STORE``. Exits with status 1 and a one-line message if the release is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from serving.config import FEATURE_STORE, load_config
from thinktwice.errors import ThinktwiceError
from thinktwice.release.release import stage
from thinktwice.release.signing import trusted_keys


def main(arguments: list[str]) -> int:
    """Entry point; see the module docstring for the arguments."""
    parser = argparse.ArgumentParser(prog="python -m serving.stage", description="Check and unpack a release.")
    parser.add_argument("--archive", type=Path, required=True, help="ctr.mar, with release.json next to it")
    parser.add_argument("--feature-store", type=Path, help=f"default: {FEATURE_STORE}")
    parser.add_argument("--into", type=Path, required=True, help="folder to make, for the server alone")
    options = parser.parse_args(arguments)
    store_path = options.feature_store or os.environ.get(FEATURE_STORE)
    store = Path(store_path) if store_path and Path(store_path).is_dir() else None
    try:
        stage(options.archive, store, options.into, load_config().release, trusted_keys())
    except (ThinktwiceError, OSError) as error:
        sys.stderr.write(f"cannot load: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
