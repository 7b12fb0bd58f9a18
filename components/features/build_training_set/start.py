"""The bundle that a training continues, where the step can read it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinktwice.data.warm_start import Start
from thinktwice.release.warm_start import start_of
from thinktwice.schema import LogSchema
from thinktwice.storage.location import is_remote


@contextmanager
def opened_start(bundle: str, schema: LogSchema, version: str) -> Iterator[Start | None]:
    """The start of a training: a bundle in a folder, or copied from ``s3://BUCKET/FOLDER`` as long as it is used; None for "".

    Raises:
        DataError, BundleError: as :func:`thinktwice.release.warm_start.start_of`. StorageError: the bundle cannot be fetched.
    """
    if not bundle:
        yield None
    elif is_remote(bundle):
        from components.training.launch_trainjob.folders import fetch_folder

        with tempfile.TemporaryDirectory(prefix="thinktwice-bundle-") as folder:
            fetch_folder(bundle, Path(folder))
            yield start_of(folder, schema, version)
    else:
        yield start_of(bundle, schema, version)
