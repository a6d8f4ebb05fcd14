"""Points of the decode benchmarks' grids, and how calls rotate over their inputs."""

from __future__ import annotations

import dataclasses
import math


class Rotating:
    """Cells that read new bytes in every call: sets of inputs, together far larger than the L2.

    Attributes:
      bytes: what a call moves.
      most_calls: a bound on the calls of a program.
    """

    bytes: int
    most_calls: int = 96

    @property
    def sets(self) -> int:
        """How many sets of inputs to rotate: a gigabyte, or 48 sets (at least 200 MB)."""
        return max(1, min(48, self.most_calls, math.ceil((1 << 30) / self.bytes)))

    @property
    def calls(self) -> int:
        """Calls of a graph: whole rounds of the sets, a few milliseconds but at most 96."""
        rounds = min(self.most_calls, 8e9 / self.bytes) / self.sets
        return self.sets * max(1, round(rounds))


@dataclasses.dataclass(frozen=True)
class Cell(Rotating):
    """One point of the decode grid: bf16, query length 1, full caches."""

    kv_heads: int
    batch: int
    capacity: int
    query_heads: int = 32
    head_dim: int = 128

    @property
    def name(self) -> str:
        """As in --cells: Hkv x B x K."""
        return f"{self.kv_heads}x{self.batch}x{self.capacity}"

    @property
    def bytes(self) -> int:
        """K and V of the cell, read once."""
        return 2 * 2 * self.batch * self.kv_heads * self.capacity * self.head_dim

    def cache_shape(self, layout: str) -> tuple[int, int, int, int]:
        """[B, Hkv, K, D] or [B, K, Hkv, D]."""
        rows = (self.capacity, self.kv_heads)
        return (self.batch, *(rows if layout == "NHD" else rows[::-1]), self.head_dim)


# Hkv, B, K: what flash_decode and paged_decode are measured in.
DECODE_GRID = [
    *(Cell(8, 1, k) for k in (1024, 2048, 8192, 32768, 131072)),
    *(Cell(8, 8, k) for k in (1024, 2048, 8192, 32768, 131072)),
    *(Cell(8, 64, k) for k in (1024, 2048, 8192, 32768, 131072)),
    *(Cell(8, 256, k) for k in (1024, 2048, 8192, 32768)),
    Cell(32, 1, 8192),
    Cell(32, 64, 2048),
    Cell(32, 64, 8192),
]
