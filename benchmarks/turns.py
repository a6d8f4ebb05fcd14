"""Whose turn it is on the GPU, when several benchmarks run at once.

Compiling takes longer than measuring and needs no GPU. So bench_all.py runs benchmarks side by
side, each of which waits for its turn before it uses the GPU: while one measures, nothing else runs
there. A benchmark that runs alone never waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

FILE = "JAX_BARACUDA_BENCH_TURN"  # the path of a file, whose lock is the turn


def shared() -> bool:
    """Whether other benchmarks run at the same time."""
    return FILE in os.environ


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Waits for the turn, and has it; not to be taken twice. It ends with the process, too."""
    if not shared():
        yield
        return
    with open(os.environ[FILE], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
