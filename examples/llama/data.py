"""The corpus: the standard library's own sources, real text that every Python brings along.

Tokens are bytes. A zero byte, which no Python source holds, ends each file.
"""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

END_OF_TEXT = 0

# Tests and third-party packages are not there on every machine; `encodings` is generated tables.
_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
)
_VALIDATION_SHARE = 20  # one file in so many


class Corpus(NamedTuple):
    """Training and validation bytes, uint8 [n] each. No file is in both."""

    train: np.ndarray
    validation: np.ndarray


def load_corpus(root: Path | None = None) -> Corpus:
    """Reads every source below ``root`` (default: the standard library).

    A file's side is decided by a checksum of its path relative to ``root``, so the split is the
    same on every machine and no file moves when others come or go.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _EXCLUDED.isdisjoint(name.parts):
            held_out = zlib.crc32(name.as_posix().encode()) % _VALIDATION_SHARE == 0
            sides[held_out].append(path.read_bytes() + bytes([END_OF_TEXT]))
    if not all(sides):
        raise FileNotFoundError(f"too few Python sources below {root} to train on")
    return Corpus(*(np.frombuffer(b"".join(side), np.uint8) for side in sides))


def train_batch(data: np.ndarray, batch: int, context: int, *, seed: int, step: int) -> np.ndarray:
    """Random windows, uint8 [batch, context + 1]: inputs and, one byte later, targets.

    A function of ``(seed, step)`` alone, so that a resumed run sees what the first would have.
    """
    starts = np.random.default_rng((seed, step)).integers(0, len(data) - context, batch)
    return data[starts[:, None] + np.arange(context + 1)]


def validation_batches(data: np.ndarray, batch: int, context: int, windows: int) -> np.ndarray:
    """Windows spread evenly over the data, uint8 [batches, batch, context + 1].

    As many of ``windows`` as fill whole batches, fewer if the data has not that many.
    """
    count = min(windows, (len(data) - 1) // context) // batch * batch
    if count == 0:
        raise ValueError(f"{len(data)} bytes do not fill one batch of {batch} x {context}")
    starts = np.linspace(0, len(data) - context - 1, count).astype(np.int64)
    return data[starts[:, None] + np.arange(context + 1)].reshape(-1, batch, context + 1)
