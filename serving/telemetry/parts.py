"""A folder of complete part files with a maximum size, shared by the workers of a predictor."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Literal

from thinktwice.files import atomic_file

READABLE = 0o640  # by the group only: a part may contain user ids, and the folder may be world-readable
STALE_SECONDS = 3600.0  # age after which a partial file is abandoned: writing a part takes seconds

WhenFull = Literal["drop_new", "drop_old"]


class PartFolder:
    """Writes parts to temporary files and renames them, so that a kill at any time leaves only complete parts.

    Several processes may write into one folder. Each checks the size of the folder before it writes, so together they may exceed
    ``max_bytes`` by one part per process.

    Args:
        folder: created when it is checked, or when the first part is written.
        max_bytes: of all parts together.
        when_full: ``drop_new`` stops writing; ``drop_old`` removes the oldest parts.
    """

    def __init__(self, folder: Path, max_bytes: int, when_full: WhenFull) -> None:
        self.folder, self._max_bytes, self._when_full = folder, max_bytes, when_full
        self._name, self._number = uuid.uuid4().hex[:8], 0

    def check(self) -> None:
        """Write an empty file and remove it: a mounted folder may exist but not be writable.

        Raises:
            OSError: the folder is not writable.
        """
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".served-", suffix=".part", dir=self.folder)
        os.close(handle)
        Path(name).unlink()

    def full(self) -> bool:
        """Whether there is no room for any part."""
        return self._when_full == "drop_new" and sum(size for _, size in self._parts()) >= self._max_bytes

    def write(self, data: memoryview) -> bool:
        """Write one part. Returns False if there is no room for it.

        Raises:
            OSError: the part cannot be written.
            ResourceError: no space left.
        """
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._remove_abandoned()
        if not self._make_room(len(data)):
            return False
        self._number += 1
        name = f"served-{time.time_ns():020d}-{self._name}-{self._number:06d}.parquet"
        with atomic_file(self.folder / name, READABLE) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return True

    def _parts(self) -> list[tuple[Path, int]]:
        """Parts with their sizes, oldest first, without those that another process removes meanwhile."""
        parts = []
        for path in sorted(self.folder.glob("served-*.parquet")):
            try:
                parts.append((path, path.stat().st_size))
            except FileNotFoundError:
                continue
        return parts

    def _make_room(self, size_needed: int) -> bool:
        if size_needed > self._max_bytes:
            return False
        parts = self._parts()
        total = sum(size for _, size in parts)
        if self._when_full == "drop_old":
            for path, size in parts:
                if total + size_needed <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
        return total + size_needed <= self._max_bytes

    def _remove_abandoned(self) -> None:
        """Remove partial files of killed processes, which would accumulate."""
        for path in self.folder.glob(".served-*.part"):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue
