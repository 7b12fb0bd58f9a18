"""The same inputs, seed and number of threads give the same bytes, pre-training included, whatever else the machine does."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.testtime.world import make_training_set
from thinktwice.files import sha256_file
from thinktwice.threads import VARIABLE

ROOT = Path(__file__).resolve().parents[1]
BURNERS = 2 * (os.cpu_count() or 1)
#: Ends with whoever started it, so that a killed test leaves no load behind.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
BATCH = 1000  # so large that torch shares sums among threads

#: All that is computed for a bundle, in one process of its own. Costs are given: measured ones are the one thing that may differ.
SCRIPT = f"""
import sys
from pathlib import Path

from tests.selection.prices import fixed
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import write_candidate
from thinktwice.pretrain.pretrain import pretrain
from thinktwice.selection.fit import fit_test_time
from thinktwice.train.finetune import finetune
from thinktwice import recipes

data, out = map(Path, sys.argv[1:])
recipe = recipes.get("tiny")
recipe = recipe.model_copy(
    update={{
        "pretrain": recipe.pretrain.model_copy(update={{"batch_size": {BATCH}, "full_softmax": 64}}),
        "finetune": recipe.finetune.model_copy(update={{"batch_size": {BATCH}}}),
    }}
)
pretrain(data, out / "denoiser", recipe.model, recipe.pretrain, seed=3)
finetune(data, out / "pretrained", recipe.model, recipe.finetune, seed=3, init_dir=out / "denoiser")
finetune(data, out / "plain", recipe.model, recipe.finetune, seed=3)
fit_test_time(data, out / "plain", out / "pretrained", out / "test_time", price=fixed)
evaluation = evaluate(data, out / "plain", out / "pretrained", out / "test_time", out / "evaluation")
write_candidate(
    out / "bundle",
    evaluation=evaluation,
    evaluation_dir=out / "evaluation",
    training_set_dir=data,
    model_dirs={{"plain": out / "plain", "pretrained": out / "pretrained"}},
    test_time_dir=out / "test_time",
    snapshot_id="0123456789abcdef",
    model_version="same",
    feature_version="same",
    package_version="0.1.0",
)
"""
COMPARED = ("denoiser", "pretrained", "plain", "test_time", "bundle")


def started(data: Path, out: Path, threads: int, seed: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, VARIABLE: str(threads), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)}
    # What the caller's environment says about threads must not matter.
    environment["OMP_NUM_THREADS"] = str(1 + seed % 5)
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(out)], env=environment)


def hashes(out: Path) -> dict[str, str]:
    files = [path for folder in COMPARED for path in sorted((out / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): sha256_file(path) for path in files}


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.timeout(600)
def test_a_bundle_made_under_load_has_the_same_bytes(threads: int, tmp_path: Path) -> None:
    data = tmp_path / "set"
    make_training_set(data, rows=3000)
    assert started(data, tmp_path / "alone", threads, seed=1).wait(timeout=500) == 0
    with ExitStack() as stack:
        for _ in range(BURNERS):
            burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(burner.kill)
        busy = started(data, tmp_path / "busy", threads, seed=2)
        stack.callback(busy.kill)
        assert busy.wait(timeout=500) == 0
    alone = hashes(tmp_path / "alone")
    assert {path.split("/")[0] for path in alone} == set(COMPARED)
    again = hashes(tmp_path / "busy")
    assert {path for path in alone if alone[path] != again.get(path)} == set()
    assert set(again) == set(alone)
