"""Options shared by several commands: one name, one meaning and one default each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WORK = Path(".thinktwice")
LAST_RUN = "last_run.json"  # in the work folder: outputs of the last finished run

Work = Annotated[Path, typer.Option("--work", help="Folder for runs: outputs, logs and the cache.")]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="Folder of the champion, the model being served.",
        show_default="state in the folder of --work",
    ),
]
Since = Annotated[
    str,
    typer.Option(
        help="Read only impressions from this time on, e.g. 2024-03-01 (local to the schema's zone).",
        show_default=False,
    ),
]
Until = Annotated[str, typer.Option(help="Read only impressions before this time.", show_default=False)]


def state_folder(state: Path | None, work: Path) -> Path:
    """The folder of the champion."""
    return work / "state" if state is None else state
