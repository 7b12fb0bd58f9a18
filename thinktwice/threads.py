"""Number of compute threads of the library, and sums in an order that does not depend on timing.

Training and scoring use small batches: a second thread rarely makes them faster, costs CPU time while it waits for the
first, and changes the order of sums and so the last bits of the weights. So the library computes with one thread unless
``THINKTWICE_THREADS`` sets another number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinktwice.errors import ResourceError

VARIABLE = "THINKTWICE_THREADS"
MOST = 1024
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def num_threads(environment: Mapping[str, str] = os.environ) -> int:
    """The number of compute threads: the value of ``THINKTWICE_THREADS``, default 1.

    Raises:
        ResourceError: the variable is not a valid number of threads.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text:
        return 1
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MOST:
        raise ResourceError(f"{VARIABLE}={text!r} is not a number of threads from 1 to {MOST}: correct or unset it")
    return int(text)


def usable_cores(limit_file: Path = CPU_LIMIT) -> int:
    """Number of cores that this process may use: those that it may run on, and no more than the CPU limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit_file.read_text(encoding="ascii").split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no control groups of version 2, or the limit is "max"
        return cores


def thread_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that limit a child process, including its numerical libraries, to :func:`num_threads` threads.

    Raises:
        ResourceError: as :func:`num_threads`.
    """
    count = str(num_threads(environment))
    return {name: count for name in (VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute in torch with :func:`num_threads` threads and, on the CPU, without operations whose bits depend on timing.

    With the same number of threads the same inputs then give the same bits under any load. Also a decorator. The previous
    settings are restored at the end.

    Raises:
        ResourceError: as :func:`num_threads`.
    """
    import torch

    count = num_threads()
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    if threads != count:
        torch.set_num_threads(count)
    if not torch.cuda.is_available():  # on a GPU some sums have no ordered form
        torch.set_deterministic_debug_mode("error")
        settings.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(mode)
        if threads != count:
            torch.set_num_threads(threads)
