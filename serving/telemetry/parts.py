"""A folder of whole files with a bound on its size, shared by the workers of a predictor."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Literal

from thinktwice.files import atomic_file

READABLE = 0o640  # by the group alone: a part may hold ids of users, and the folder may be open to anybody
STALE_SECONDS = 3600.0  # after which a half-written file belongs to nobody: a part takes seconds

WhenFull = Literal["drop_new", "drop_old"]


class PartFolder:
    """Writes parts aside and renames them, so that a kill at any moment leaves whole parts only.

    Several processes may write into one folder. Each looks at the folder before it writes, so together they may exceed
    ``max_bytes`` by one part each.

    Args:
        folder: made when it is checked, or when the first part is written.
        max_bytes: of all parts together.
        when_full: ``drop_new`` writes no more; ``drop_old`` removes the oldest parts.
    """

    def __init__(self, folder: Path, max_bytes: int, when_full: WhenFull) -> None:
        self.folder, self._max_bytes, self._when_full = folder, max_bytes, when_full
        self._name, self._number = uuid.uuid4().hex[:8], 0

    def check(self) -> None:
        """Write an empty file and remove it: a mounted folder may be there and refuse.

        Raises:
            OSError: nothing can be written.
        """
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".served-", suffix=".part", dir=self.folder)
        os.close(handle)
        Path(name).unlink()

    def full(self) -> bool:
        """Whether no part at all would find room."""
        return self._when_full == "drop_new" and sum(size for _, size in self._parts()) >= self._max_bytes

    def write(self, data: memoryview) -> bool:
        """Write one part; False when there is no room for it.

        Raises:
            OSError: the disk or the folder cannot take it.
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
        """Parts with their sizes, the oldest first; one that another process removes meanwhile is not there."""
        found = []
        for path in sorted(self.folder.glob("served-*.parquet")):
            try:
                found.append((path, path.stat().st_size))
            except FileNotFoundError:
                continue
        return found

    def _make_room(self, wanted: int) -> bool:
        if wanted > self._max_bytes:
            return False
        parts = self._parts()
        total = sum(size for _, size in parts)
        if self._when_full == "drop_old":
            for path, size in parts:
                if total + wanted <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
        return total + wanted <= self._max_bytes

    def _remove_abandoned(self) -> None:
        """What a killed process left half-written would add up over many kills."""
        for path in self.folder.glob(".served-*.part"):
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue
