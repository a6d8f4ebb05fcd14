"""flash_decode beside its peers and a read-only ceiling, all in one run.

    python benchmarks/bench_decode.py                       # the whole grid, under four minutes
    python benchmarks/bench_decode.py --cells 8x1x8192,8x64x2048 --impls jax_baracuda,read_ceiling
    python benchmarks/bench_decode.py --cells small --quick

bf16, 32 query heads of 128, query length 1, full caches. Every time is that of one call in a CUDA
graph of calls that run one after another over rotated caches. GB/s counts K and V once. Each
framework has a worker process of its own; a peer that fails in a cell leaves a row with its error.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import runs
from cells import DECODE_GRID, Cell
from peers import ENGINES, IMPLS
from workers import measure

SMALL = [Cell(8, 1, 2048), Cell(8, 1, 8192), Cell(8, 8, 2048), Cell(8, 64, 2048)]
# These two are far behind everywhere and slow to compile: they run where there is something to see.
SLOW_IMPLS = ("pallas", "xla")
SLOW_CELLS = {
    "8x1x8192",
    "8x1x131072",
    "8x8x8192",
    "8x64x2048",
    "8x64x8192",
    "8x256x1024",
    "8x256x8192",
    "32x1x8192",
    "32x64x2048",
    "32x64x8192",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", default="all", help="all, small, or HkvxBxK,... (may repeat)")
    parser.add_argument("--impls", default=None, help=f"comma list of {', '.join(IMPLS)}")
    parser.add_argument("--all-peers", action="store_true", help="Pallas and XLA in every cell")
    parser.add_argument("--quick", action="store_true", help="0.07 s a measurement, not 0.12 s")
    parser.add_argument(
        "--budget",
        type=float,
        default=210,
        metavar="SECONDS",
        help="after this long, only ours, torch and the ceiling are measured",
    )
    runs.add_file_options(parser, "decode")
    return parser.parse_args(arguments)


def cells_of(text: str) -> list[Cell]:
    """The cells that --cells names."""
    if text in ("all", "small"):
        return DECODE_GRID if text == "all" else SMALL
    return [Cell(*(int(number) for number in name.split("x"))) for name in text.split(",")]


def impls_of(text: str | None) -> list[str]:
    """The implementations that --impls names, in the order in which they run."""
    if text is None:
        present = bool(importlib.util.find_spec("flashinfer"))
        return [impl for impl in IMPLS if impl != "flashinfer" or present]
    names = text.split(",")
    unknown = set(names) - set(IMPLS)
    if unknown:
        raise SystemExit(f"unknown implementation {sorted(unknown)}; known are {list(IMPLS)}")
    return [impl for impl in IMPLS if impl in names]


class Run(runs.Run):
    """Measures cells."""

    def __init__(self, impls: list[str], options: argparse.Namespace) -> None:
        engines = {name: ENGINES[name] for name in {IMPLS[impl] for impl in impls}}
        super().__init__("decode", engines, options)

    def cell(self, cell: Cell, impls: list[str]) -> None:
        """Measures one cell: everything of one engine, then the next."""
        seconds = 0.07 if self.options.quick else 0.12
        late = self.seconds > self.options.budget
        ceiling: float | None = None
        first = len(self.rows)
        skipped = ("pallas", "xla", "jax_cudnn") if late else ()
        wanted = [impl for impl in impls if impl not in skipped]
        engines = dict.fromkeys(IMPLS[impl] for impl in impls)
        for engine in engines:
            mine = [impl for impl in wanted if IMPLS[impl] == engine]
            self.workers[engine].send("prepare", mine, cell)
        for engine, worker in self.in_turn({engine: self.workers[engine] for engine in engines}):
            mine = [impl for impl in impls if IMPLS[impl] == engine]
            for impl in mine:
                numbers: dict[str, Any] = {"ms": None, "gbps": None}
                if impl in wanted:
                    answer = measure(worker, impl, cell, seconds)
                else:
                    answer = "not measured: the run was past its --budget"
                if isinstance(answer, str):
                    numbers["error"] = answer[:2000]
                else:
                    numbers |= answer | {"gbps": cell.bytes / answer["ms"] / 1e6}
                if impl == "read_ceiling":
                    ceiling = numbers["gbps"]
                if ceiling and numbers["gbps"]:
                    numbers["percent_of_read"] = 100 * numbers["gbps"] / ceiling
                self.add(cell, impl, numbers)
            self.free(worker, cell.bytes * cell.sets)
        print(line(cell, self.rows[first:], self.seconds), flush=True)

    def add(self, cell: Cell, impl: str, numbers: dict[str, Any]) -> None:
        """Appends a row."""
        config = {
            "B": cell.batch,
            "Hq": cell.query_heads,
            "Hkv": cell.kv_heads,
            "K": cell.capacity,
            "D": cell.head_dim,
            "dtype": "bfloat16",
            "mb": cell.bytes / 1e6,
        }
        self.add_row("flash_decode", "fwd", impl, config, numbers)


def line(cell: Cell, rows: list[dict[str, Any]], seconds: float) -> str:
    """One printed line: GB/s of every implementation in the cell."""
    parts = []
    for row in rows:
        if row["gbps"]:
            percent = row.get("percent_of_read")
            share = f" ({percent:.0f}%)" if percent and row["impl"] != "read_ceiling" else ""
            parts.append(f"{row['impl']} {row['gbps']:.0f}{share} {row['ms'] * 1e3:.1f}us")
        else:
            parts.append(f"{row['impl']} FAILED: {row['error'].splitlines()[0][:90]}")
    return f"[{seconds:5.0f} s] {cell.name:>13}  " + "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if ours failed anywhere."""
    options = parse(arguments)
    cells, impls = cells_of(options.cells), impls_of(options.impls)
    run = Run(impls, options)
    chosen = options.impls is not None or options.all_peers
    for cell in cells:
        run.cell(
            cell,
            [impl for impl in impls if chosen or impl not in SLOW_IMPLS or cell.name in SLOW_CELLS],
        )
    return run.finish()


if __name__ == "__main__":
    raise SystemExit(main())
