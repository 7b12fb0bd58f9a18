"""Launcher of the KServe predictor as a child process: it ends when its parent ends."""

from __future__ import annotations

import sys

from serving.exits import leave_after
from serving.local.launcher import end_with_parent


def main() -> None:
    """``python -m serving.local.kserve_launcher`` with the arguments of :mod:`serving.adapters.kserve_predictor`."""
    end_with_parent()
    from serving.adapters.kserve_predictor import main as predict

    leave_after(lambda: predict(sys.argv[1:]))


if __name__ == "__main__":
    main()
