"""int4_matmul beside cuBLAS on the dense weight and XLA's own int4, all in one run.

    python benchmarks/bench_int4.py                                  # the whole grid
    python benchmarks/bench_int4.py --cells 1x4096x4096,64x8192x28672 --impls cublas,jax_baracuda
    python benchmarks/bench_int4.py --layers 8192x28672 --dtypes bfloat16 --quick

M rows of x on a weight [IC, OC], groups of 128. Every time is that of one call in a CUDA graph of
calls that run one after another, each on a weight of its own. GB/s counts the weight as it is
stored, x and the result. Dense and four-bit products have a worker process each.
"""

from __future__ import annotations

import argparse
from typing import Any

import runs
from int4_engines import ENGINES, IMPLS, Int4Cell
from workers import attempt

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
LAYERS = ("8192x28672", "4096x4096", "4096x14336", "14336x4096")
WHOLE_LAYERS, WHOLE_ROWS = ",".join(LAYERS), ",".join(map(str, ROWS))
# XLA's int4 is far behind everywhere and slow to compile: it runs where there is something to see.
XLA_ROWS = (1, 16, 128, 1024)
# The other dtype, of whose speed these tell enough.
BFLOAT16 = [f"{m}x{layer}" for layer in ("4096x4096", "8192x28672") for m in (1, 16, 64, 256, 1024)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", default=None, help="MxICxOC,... instead of the grid")
    parser.add_argument("--layers", default=WHOLE_LAYERS, help="ICxOC,...")
    parser.add_argument("--rows", default=WHOLE_ROWS, help="M,...")
    parser.add_argument("--dtypes", help="float16,bfloat16; float16 and some cells of the other")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument(
        "--impls", help=f"comma list of {', '.join(IMPLS)}; all, but XLA's int4 not in every cell"
    )
    parser.add_argument("--quick", action="store_true", help="0.05 s a measurement, not 0.1 s")
    runs.add_file_options(parser, "int4")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> list[Int4Cell]:
    """The cells that the options name: layer by layer, whose weights stay, the largest first."""
    names = options.cells.split(",") if options.cells else []
    if not names:
        names = [
            f"{m}x{layer}" for layer in options.layers.split(",") for m in options.rows.split(",")
        ]
    dtypes = dict.fromkeys((options.dtypes or "float16").split(","), names)
    whole = (options.cells, options.layers, options.rows) == (None, WHOLE_LAYERS, WHOLE_ROWS)
    if options.dtypes is None and whole:
        dtypes["bfloat16"] = BFLOAT16
    return [
        Int4Cell(*(int(n) for n in name.split("x")), dtype=dtype, group_size=options.group_size)
        for dtype, named in dtypes.items()
        for name in named
    ]


def impls_of(cell: Int4Cell, text: str | None) -> list[str]:
    """What is measured in a cell: the implementations that --impls names, or what is worth it."""
    slow = cell.rows not in XLA_ROWS or cell.dtype != "float16"
    worth = [impl for impl in IMPLS if impl != "xla_int4" or not slow]
    return worth if text is None else runs.chosen(text, list(IMPLS))


class Run(runs.Run):
    """Measures cells."""

    def __init__(self, cells: list[Int4Cell], options: argparse.Namespace) -> None:
        self.jobs = {cell: impls_of(cell, options.impls) for cell in cells}
        needed = {IMPLS[impl] for impls in self.jobs.values() for impl in impls}
        engines = {name: engine for name, engine in ENGINES.items() if name in needed}
        super().__init__("int4", engines, options)
        self.cublas: float | None = None  # milliseconds, of the cell

    def cell(self, cell: Int4Cell) -> None:
        """Measures one cell: every implementation, cuBLAS first."""
        first = len(self.rows)
        impls: dict[str, list[str]] = {}
        for impl in self.jobs[cell]:
            impls.setdefault(IMPLS[impl], []).append(impl)
        for name, mine in impls.items():
            self.workers[name].send("prepare", mine, cell)
        self.cublas = None
        busy = {name: self.workers[name] for name in impls}
        with self.turn_of(busy):
            for impl in self.jobs[cell]:
                self.measure(self.workers[IMPLS[impl]], impl, cell)
        print(line(cell, self.rows[first:], self.seconds), flush=True)

    def measure(self, worker: Any, impl: str, cell: Int4Cell) -> None:
        """Adds the row of an implementation."""
        answer = attempt(worker, "measure", impl, cell, 0.05 if self.options.quick else 0.1)
        numbers: dict[str, Any] = {"ms": None, "tflops": None, "gbps": None}
        if isinstance(answer, str):
            numbers["error"] = answer[:2000]
        else:
            numbers |= answer | rates(cell, impl, answer["ms"])
            self.cublas = answer["ms"] if impl == "cublas" else self.cublas
            if self.cublas:
                numbers["x_cublas"] = self.cublas / answer["ms"]
        self.add_row("int4_matmul", "fwd", impl, config_of(cell), numbers)


def rates(cell: Int4Cell, impl: str, ms: float) -> dict[str, float]:
    """TFLOP/s and GB/s."""
    return {"tflops": cell.flops / ms / 1e9, "gbps": cell.bytes(impl) / ms / 1e6}


def config_of(cell: Int4Cell) -> dict[str, Any]:
    """The cell in a row."""
    return {
        "M": cell.rows,
        "IC": cell.in_features,
        "OC": cell.out_features,
        "group_size": cell.group_size,
        "dtype": cell.dtype,
    }


def line(cell: Int4Cell, rows: list[dict[str, Any]], seconds: float) -> str:
    """One printed line: the time and the speed-up of every implementation."""
    parts = []
    for row in rows:
        if row["ms"]:
            factor = f" ({row['x_cublas']:.2f}x)" if "x_cublas" in row else ""
            rate = f"{row['tflops']:.0f} TFLOP/s" if cell.rows >= 128 else f"{row['gbps']:.0f} GB/s"
            parts.append(f"{row['impl']} {row['ms'] * 1e3:.1f}us{factor} {rate}")
        else:
            parts.append(f"{row['impl']} FAILED: {row['error'].splitlines()[0][:90]}")
    return f"[{seconds:5.0f} s] {cell.name:>16} {cell.dtype}  " + "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if ours failed anywhere."""
    options = parse(arguments)
    run = Run(cells_of(options), options)
    for cell in run.jobs:
        run.cell(cell)
    return run.finish()


if __name__ == "__main__":
    raise SystemExit(main())
