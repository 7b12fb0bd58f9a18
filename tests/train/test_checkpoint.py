"""A killed training continues to the same bits; a checkpoint is whole or absent, and of this training or refused."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.synthetic import FIELDS, random_rows
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.errors import ResourceError, StorageError, TrainingError
from thinktwice.files import sha256_file
from thinktwice.models import build_backbone
from thinktwice.models.config import backbone_config
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import fit as fit_pretrained
from thinktwice.train.augment import Augmenter
from thinktwice.train.checkpoint import Checkpoint, Checkpoints
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.run import Trained, train

TRAIN, VALID = random_rows(700, 1), random_rows(200, 2)
CONFIG = FinetuneConfig(batch_size=128, rate=1e-2, checks_per_epoch=2)


class _KilledError(Exception):
    """Ends a run like a kill, but in this process."""


def trained(
    folder: Path | None,
    *,
    ends_at: int = 0,
    sparse: bool = False,
    schedule: str = "linear",
    rate: float = 1e-2,
    **options: Any,
) -> tuple[Any, Trained]:
    """A run with dropout; with ``ends_at`` it ends before that step."""
    config = CONFIG.model_copy(update={"sparse_rows": 1 if sparse else 200_000, "schedule": schedule, "rate": rate})
    model = build_backbone(backbone_config("dcnv2", dim=4, hidden=(8,), dropout=0.2, init_sd=0.1), FIELDS, seed=3)
    augmenter: Any = Augmenter("mask_block", TRAIN, FIELDS, config)
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == ends_at:
            raise _KilledError
        return augmenter(*arguments)

    run = None if folder is None else Checkpoints(str(folder), {"schema": "a"}, every_s=0.0).run("run")
    done = train(
        model, counted, BlockLoader(TRAIN), BlockLoader(VALID), config,  # type: ignore[arg-type]
        table_l2=1e-4, epochs=3.0, seed=5, checkpoints=run, **options,
    )  # fmt: skip
    return model, done


@pytest.mark.parametrize(("schedule", "annealed"), [("linear", False), ("linear", True), ("averaged", False)])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_that_ends_anywhere_continues_to_the_same_bits(
    sparse: bool, annealed: bool, schedule: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"sparse": sparse, "annealed": annealed, "schedule": schedule}
    expected, whole = trained(None, **options)
    for ends_at in (1, 2, 5, 6, 11, 15):
        folder = tmp_path / str(ends_at)
        with pytest.raises(_KilledError):
            trained(folder, ends_at=ends_at, **options)
        if 2 < ends_at < 14:
            with pytest.raises(_KilledError):  # and again on the way
                trained(folder, ends_at=2, **options)
        model, done = trained(folder, **options)
        assert done == whole
        for name, value in expected.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (ends_at, name)
        assert trained(folder, ends_at=1, **options)[1] == whole  # nothing is left to be done


def test_a_run_that_ended_early_is_not_continued(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "averaged", "ends": lambda done, best: done - best >= 0.5}
    expected, whole = trained(None, rate=0.2, **options)
    assert whole.curve[-1].epoch < 3.0
    with pytest.raises(_KilledError):
        trained(tmp_path, ends_at=4, rate=0.2, **options)
    for ends_at in (0, 1):  # the second time, nothing is left to be done
        model, done = trained(tmp_path, ends_at=ends_at, rate=0.2, **options)
        assert done == whole
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())


def test_pre_training_continues_to_the_same_bits_and_the_same_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import thinktwice.pretrain.pretrain as module

    config = PretrainConfig(batch_size=128, epochs=3.0, full_softmax=32, negatives=20)
    backbone = backbone_config("deepfm", dim=4, hidden=(8,), dropout=0.2)
    whole = fit_pretrained(TRAIN, FIELDS, backbone, config, seed=1)
    checkpoints = Checkpoints(str(tmp_path), every_s=0.0)
    calls, loss = 0, module.denoising_loss

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise _KilledError
        return loss(*arguments)

    monkeypatch.setattr(module, "denoising_loss", dies)
    with pytest.raises(_KilledError):
        fit_pretrained(TRAIN, FIELDS, backbone, config, seed=1, checkpoints=checkpoints)
    again = fit_pretrained(TRAIN, FIELDS, backbone, config, seed=1, checkpoints=checkpoints)
    assert calls == 6 + 1 + 9 and again.curve == whole.curve
    for name, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, again.denoiser.state_dict()[name]), name


SCRIPT = """
import sys
from thinktwice import recipes
from thinktwice.train import checkpoint
from thinktwice.train.finetune import finetune
original = checkpoint.training_checkpoints
import thinktwice.train.finetune as module
module.training_checkpoints = lambda *a, **k: checkpoint.Checkpoints(original(*a, **k).where, original(*a, **k).identity, 0.0)
recipe = recipes.resolved("tiny", settings=sys.argv[4:])
finetune(sys.argv[1], sys.argv[2], recipe.model, recipe.finetune, seed=2, checkpoints=sys.argv[3])
"""


def test_kill_at_random_moments_and_resume_gives_the_bytes_of_a_run_in_peace(tmp_path: Path) -> None:
    """A real process, killed with SIGKILL at random moments until it gets through, in a search whose runs find their length."""
    data = build_small(tmp_path / "set", rows=2500)
    own = ["schedule=averaged", "budget=6", "epochs=3", "rate=0.03", "table_l2=[0.001, 0.003]"]
    settings = [*(f"finetune.{pair}" for pair in own), "model.dropout=0.1"]
    recipe = recipes.resolved("tiny", settings=settings)
    assert len(finetune(data, tmp_path / "whole", recipe.model, recipe.finetune, seed=2).trials) > 1
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(data),
        str(tmp_path / "model"),
        str(tmp_path / "checkpoints"),
        *settings,
    ]
    pause, kills = random.Random(4), 0
    while True:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        written = len(list((tmp_path / "checkpoints").rglob("*.safetensors")))
        if kills < 4:  # it has done something, then a random moment
            begun = {path.name for path in (tmp_path / "checkpoints").rglob("*")}
            while process.poll() is None and {p.name for p in (tmp_path / "checkpoints").rglob("*")} == begun:
                time.sleep(0.01)
            time.sleep(pause.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            left = list((tmp_path / "checkpoints").rglob("*.safetensors"))
            done = (tmp_path / "model" / "weights.safetensors").is_file()  # then its checkpoints go
            assert done or len(left) >= min(1, written)
            if process.returncode == 0:
                break
        elif process.wait() == 0:
            break
        else:
            pytest.fail(f"the process ended with {process.returncode}")
    assert kills >= 1
    for name in ("weights.safetensors", "model.json"):
        assert sha256_file(tmp_path / "model" / name) == sha256_file(tmp_path / "whole" / name)
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))  # removed at the end


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"a": torch.full((3,), float(step))}, {"note": [step, 0.1]})


def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    run = Checkpoints(str(tmp_path), {"schema": "a"}).run("run-1e-3")
    assert run.last() is None
    for step in (1, 2, 30, 1000):
        run.write(checkpoint(step))
    files = sorted((tmp_path / "run-1e-3").iterdir())
    assert [int(file.stem) for file in files] == [30, 1000]
    for damage in (b"", files[1].read_bytes()[:50], b"\xff" * 100):
        files[1].write_bytes(damage)
        last = run.last()
        assert last is not None and last.step == 30 and last.extra == {"note": [30, 0.1]}
        assert torch.equal(last.tensors["a"], torch.full((3,), 30.0))


def test_a_checkpoint_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path), {"schema": "a", "seed": "1"}).run("run").write(checkpoint(1))
    for identity, named in (({"schema": "b", "seed": "1"}, "schema"), ({"schema": "a", "seed": "2"}, "seed")):
        with pytest.raises(TrainingError, match=f"of a training with another {named}: give another location"):
            Checkpoints(str(tmp_path), identity).run("run").last()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Checkpoints(str(tmp_path)).run("run")
    run.write(checkpoint(1))
    import thinktwice.storage.local as local

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.shutil, "copyfileobj", full)
    with pytest.raises(ResourceError, match=r"no space left while writing .*2\.safetensors: free some disk space"):
        run.write(checkpoint(2))
    monkeypatch.undo()
    last = run.last()
    assert last is not None and last.step == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000000000001.safetensors"]
    run.write(checkpoint(2))
    assert run.last().step == 2  # type: ignore[union-attr]


def test_a_limit_on_the_size_of_files_is_a_sentence(tmp_path: Path) -> None:
    """A real refusal of the kernel in a real process."""
    code = (
        "import resource, sys, torch\n"
        "from thinktwice.train.checkpoint import Checkpoint, Checkpoints\n"
        "run = Checkpoints(sys.argv[1]).run('run')\n"
        "run.write(Checkpoint(1, {'a': torch.zeros(3)}, {}))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    run.write(Checkpoint(2, {'a': torch.zeros(30_000)}, {}))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print(run.last().step)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "ResourceError a file is too large while writing" in done.stdout and done.stdout.endswith("\n1\n")


def test_a_location_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ftp://x"):
        Checkpoints("ftp://x/y").run("run").last()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        Checkpoints(str(tmp_path / "file")).run("run").write(checkpoint(1))
