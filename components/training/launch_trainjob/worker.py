"""What the pods of a TrainJob run: fetch the training set, train, write the result."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from components.training.launch_trainjob.folders import fetch_folder, has_result, write_result
from components.training.steps import run_training
from thinktwice.errors import ThinktwiceError
from thinktwice.train.device import training_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step; the exit status is 1 for an error, with one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", choices=["pretrain", "finetune"], required=True)
    for name in ("--training-set", "--out", "--recipe"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seed", type=int, required=True)
    for name in ("--pretrained", "--backbone", "--pretraining", "--checkpoints"):
        parser.add_argument(name, default="")
    options = parser.parse_args(arguments)
    try:
        training_device()  # before gigabytes are fetched: the promised GPU must be there
        if has_result(options.out):
            sys.stdout.write("an earlier attempt has finished\n")
            return 0
        with tempfile.TemporaryDirectory(prefix="thinktwice-train-") as scratch:
            folder = Path(scratch)
            fetch_folder(options.training_set, folder / "training_set")
            if options.pretrained:
                fetch_folder(options.pretrained, folder / "pretrained")
            result = run_training(
                options.step,
                str(folder / "training_set"),
                str(folder / "model"),
                options.recipe,
                options.seed,
                str(folder / "pretrained") if options.pretrained else None,
                backbone=options.backbone,
                pretraining=options.pretraining,
                checkpoints=options.checkpoints,
            )
            write_result(options.out, folder / "model", result)
    except ThinktwiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
