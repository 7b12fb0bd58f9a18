"""Replay of a quarantine with the side tables that a corrected schema names."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from thinktwice.data.side_tables import read_tables
from thinktwice.schema import load_schema
from thinktwice.schema.tables import located
from thinktwice.validate.split import SplitResult
from thinktwice.validate.split import replay as judge_again


def replay(
    quarantine_dir: Path, clean_dir: Path, still_quarantined_dir: Path, *, schema_path: Path | None, now: datetime
) -> SplitResult:
    """Judge quarantined rows again, see :func:`thinktwice.validate.split.replay`. Side tables are read anew if ``schema_path`` is given;
    otherwise they are those of the quarantine."""
    schema = None if schema_path is None else located(load_schema(schema_path), schema_path)
    with tempfile.TemporaryDirectory(prefix="thinktwice-replay-") as scratch:
        if schema is not None:
            read_tables(schema, "replay", Path(scratch))
        return judge_again(
            quarantine_dir,
            clean_dir,
            still_quarantined_dir,
            run_id="replay",
            schema_path=schema_path,
            tables_dir=None if schema is None else scratch,
            as_of=now,
            ingested_at=now,
        )
