"""Every command of docs/feedback.md is executed as it stands, in a folder that has what it names."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.feedback.counts import TEXT
from serving.feedback.join import CLICK_FATES, IMPRESSION_FATES, OUTCOMES, UNMATCHED
from tests.conftest import ROOT
from tests.feedback.server import running, send
from tests.feedback.stores import make_store, write_clean
from tests.feedback.test_commands import served_part
from tests.feedback.test_monitoring import DAY, LOG, SCHEMA
from thinktwice.records.events import CLICK_COLUMNS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PAGE = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
RUN = "thinktwice feedback run --log events"
RECORD = "thinktwice feedback run --log outcomes-only --record-only"
DRIFT = "thinktwice drift --log served --feedback events"  # needs a bundle: tests/feedback/test_monitoring.py has what it shows


@pytest.mark.server
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    store = make_store(tmp_path, LOG, SCHEMA)
    write_clean(tmp_path / "later", [*LOG, *DAY], SCHEMA)
    served_part(tmp_path / "served", DAY)
    clicks = [{"request_id": f"q{n}", "item_id": r.item, "at": r.time} for n, r in enumerate(DAY) if r.clicked]
    pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), tmp_path / "clicks.parquet")
    event = {"kind": "click", "request_id": "q0", "item_id": "i", "at": DAY[-1].time / 1e6}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert RUN in COMMANDS and DRIFT in COMMANDS and len(COMMANDS) == 11
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "thinktwice"
        if command == RUN:
            with running(tmp_path / "events", store) as (url, _):
                assert url.endswith("/v1/events") and send(url, [event])[0] == 202
            # Its clock is that of today; the files below are of the log's day.
            shutil.rmtree(tmp_path / "events")
            continue
        if command == RECORD:
            with running(tmp_path / "outcomes-only", store, "--record-only") as (url, _):
                assert send(url, [event])[0] == 202
            continue
        if command == DRIFT:
            words = [*words, "--help"]
        elif words[1:3] != ["feedback", "status"]:
            words += ["--store", str(store)]
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "thinktwice", *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert ended.returncode in ((0, 1) if words[1] == "skew" else (0,)), (command, ended.stdout, ended.stderr)
        assert "Traceback" not in ended.stderr


def test_every_fate_has_words_and_is_on_the_page() -> None:
    assert set(TEXT) == {*IMPRESSION_FATES, *CLICK_FATES, *OUTCOMES, UNMATCHED}
    assert "outcomes_clicked_late" in PAGE and "/healthz" in PAGE and "/metrics" in PAGE
