"""Training of a model in a process of its own, beside this one, where a core is idle.

A training computes with one thread (:mod:`thinktwice.threads`), so a second one beside it halves the time of two. The process is a
fork: it has the rows of this one without a copy. It writes the weights to a file and ends. Weights are the same to the bit wherever
they were trained, so a process that cannot be started, or ends without weights, costs nothing but time: the model is then trained here.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from thinktwice import progress
from thinktwice.threads import num_threads, usable_cores
from thinktwice.train.device import training_device

WEIGHTS = "weights.safetensors"
MOST_BYTES = 1 << 30  # of training rows: a second training needs memory for its own copies
_PR_SET_PDEATHSIG = 1  # constant of Linux' prctl

M = TypeVar("M", bound=nn.Module)


class Training(Generic[M]):
    """A model that is being trained, here or beside this process.

    Args:
        build: makes the model with its first weights.
        train: trains it in place, and leaves it in evaluation mode.
        process: that trains it, and writes its weights to ``file``; None: it is trained by :meth:`model`.
    """

    def __init__(
        self, build: Callable[[], M], train: Callable[[M], object], process: ForkProcess | None, file: Path | None
    ) -> None:
        self._build, self._train, self._process, self._file = build, train, process, file

    def model(self) -> M:
        """The trained model; waits for it.

        Raises:
            TrainingError: the loss diverged.
        """
        model = self._build()
        if self._process is not None and self._file is not None:
            self._process.join()
            with contextlib.suppress(OSError, SafetensorError):
                model.load_state_dict(load_file(str(self._file)))
                return model.eval()
        self._train(model)
        return model


@contextmanager
def beside(build: Callable[[], M], train: Callable[[M], object], num_bytes: int) -> Iterator[Training[M]]:
    """Start a training beside this process if a core is idle; at the end of the context it is stopped.

    Args:
        num_bytes: size of its training rows.
    """
    if not may_train_beside(num_bytes):
        yield Training(build, train, None, None)
        return
    with tempfile.TemporaryDirectory(prefix="thinktwice-training-") as folder:
        file = Path(folder) / WEIGHTS
        process = multiprocessing.get_context("fork").Process(
            target=_in_child, args=(build, train, file, os.getpid()), daemon=True
        )
        with warnings.catch_warnings():
            # From Python 3.12 on: libraries have threads, none of which the training uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        try:
            yield Training(build, train, process, file)
        finally:
            process.kill()
            process.join()


def here(build: Callable[[], M], train: Callable[[M], object]) -> AbstractContextManager[Training[M]]:
    """A training that begins when its model is asked for, in this process."""
    return nullcontext(Training(build, train, None, None))


def may_train_beside(num_bytes: int) -> bool:
    """Whether a training of so many bytes of rows may run in a fork: on Linux, on a CPU, with a core that this process does not use."""
    return (
        sys.platform == "linux"
        and num_bytes <= MOST_BYTES
        and num_threads() == 1
        and usable_cores() > 1
        and not multiprocessing.current_process().daemon
        and training_device().type == "cpu"
    )


def _in_child(build: Callable[[], M], train: Callable[[M], object], file: Path, parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with its parent, however that ends
        if os.getppid() != parent:
            os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ.pop(progress.VARIABLE, None)  # the parent reports its own work meanwhile
    with contextlib.suppress(Exception):  # the parent trains it again, and raises the error
        model = build()
        train(model)
        partial = file.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, str(partial))
        partial.replace(file)
    os._exit(0)
