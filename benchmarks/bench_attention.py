"""flash_attention beside its peers, forward, backward and both, all in one run.

    python benchmarks/bench_attention.py                    # the whole grid, five minutes
    python benchmarks/bench_attention.py --quick            # eleven cells, 40 s
    python benchmarks/bench_attention.py --cells 4096-128-causal --impls jax_baracuda --passes fwd

bf16, B * S = 16384 and H * D = 2048. Every time is that of the GPU: calls are queued back to back.
TFLOP/s count 4 S S D H B forward, half of it under a causal mask, and 2.5 times that backward. The
cells of options, of sequences of different lengths and of the portable kernels are ours alone, each
behind the plain cell of as much work. Each framework has a worker process of its own. A peer that
fails in a cell leaves a row with its error.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from typing import Any

import runs
from attention_peers import ENGINES, IMPLS, OPTIONAL, PASSES, AttentionCell, grid_cell
from workers import attempt

GQA = AttentionCell(8192, 128, True, query_heads=32, kv_heads=8, batch=2)
WINDOW = grid_cell(16384, 128, True, window=1024)
# What an idle GPU is kept busy for: 0.8 to 1.0 s after work begins, one that comes to its power
# limit is slower by up to a fifth.
IDLE_SECONDS = 1.1
LENGTHS = (4096, 16384, 1024, 8192, 512, 2048)
FEATURES = ("soft-cap", "alibi", "bias", "bias-full", "dropout", "uneven", "portable")


def varied(plain: AttentionCell) -> list[AttentionCell]:
    """What the options of a cell cost, or sequences that differ: as much work as the plain cell."""
    names: list[str] = []
    if plain.causal and plain.length in (4096, 16384):
        names.append("deterministic")
    if plain.length == 4096 and plain.causal and plain.head_dim < 256:
        names += FEATURES
    if plain.length == 4096 and not plain.causal and plain.head_dim == 128:
        names += ("deterministic", "uneven")
    return [dataclasses.replace(plain, variant=name) for name in names]


def grid() -> Iterator[AttentionCell]:
    """All cells: what tells most first, and what is compared one after the other."""
    for length in LENGTHS:
        for head_dim in (128, 64, 256):
            for causal in (True, False):
                plain = grid_cell(length, head_dim, causal)
                yield plain
                if plain == dataclasses.replace(WINDOW, window=0):
                    yield WINDOW
                yield from varied(plain)
        if length == LENGTHS[1]:
            yield GQA


GRID = list(grid())
QUICK = [
    grid_cell(1024, 128, False),
    grid_cell(1024, 128, True),
    grid_cell(4096, 64, True),
    grid_cell(4096, 128, True),
    grid_cell(4096, 256, True),
    GQA,
    grid_cell(16384, 128, True),
    WINDOW,
    *(grid_cell(4096, 128, True, variant=name) for name in ("deterministic", "alibi", "uneven")),
]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", default="all", help="all, or names such as 4096-128-causal,...")
    parser.add_argument("--impls", help=f"comma list of {', '.join(IMPLS)}")
    parser.add_argument("--passes", default=",".join(PASSES), help=f"of {', '.join(PASSES)}")
    parser.add_argument(
        "--quick", action="store_true", help="eleven cells, 0.05 s a measurement, not 0.07 s"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=360,
        metavar="SECONDS",
        help="after this long, only ours is measured",
    )
    runs.add_file_options(parser, "attention")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> list[AttentionCell]:
    """The cells that --cells or --quick names."""
    if options.cells == "all":
        return QUICK if options.quick else GRID
    known = {cell.name: cell for cell in GRID}
    return [known[name] for name in runs.chosen(options.cells, list(known))]


def impls_of(text: str | None) -> list[str]:
    """The implementations that --impls names, or that are there."""
    if text is not None:
        return runs.chosen(text, list(IMPLS))
    return [i for i in IMPLS if i not in OPTIONAL or importlib.util.find_spec(i)]


class Run(runs.Run):
    """Measures cells."""

    def __init__(self, impls: list[str], options: argparse.Namespace) -> None:
        engines = dict.fromkeys(IMPLS[impl] for impl in impls)
        super().__init__("attention", {name: ENGINES[name] for name in engines}, options)
        self.impls, self.passes = impls, runs.chosen(options.passes, list(PASSES))
        self.cells = 0

    def cell(self, cell: AttentionCell) -> None:
        """Measures one cell, once every worker has prepared."""
        late = self.seconds > self.options.budget
        impls = ["jax_baracuda"] if late or cell.alone else self.impls
        jobs: dict[str, list[tuple[str, str]]] = {}
        for impl, passes in itertools.product(impls, self.passes):
            if passes in cell.passes:
                jobs.setdefault(IMPLS[impl], []).append((impl, passes))
        busy = {engine: self.workers[engine] for engine in jobs}
        for engine, worker in busy.items():
            worker.send("prepare", jobs[engine], cell)
        first = len(self.rows)
        with self.turn_of(busy):
            self.measure(cell, impls)
        print(line(cell, self.rows[first:], self.seconds), flush=True)
        if late and not cell.alone:
            print("  past the --budget: the peers were left out", flush=True)

    def measure(self, cell: AttentionCell, impls: list[str]) -> None:
        """All implementations of a pass one after the other, then those of the next pass.

        One call is measured in vain, until the GPU is as fast as its power limit allows for long,
        and each cell begins with another implementation.
        """
        seconds = 0.05 if self.options.quick else 0.07
        turn = self.cells % len(impls)
        impls = impls[turn:] + impls[:turn]
        self.cells += 1
        passes = [name for name in self.passes if name in cell.passes]
        worker = self.workers[IMPLS[impls[0]]]
        attempt(worker, "measure", impls[0], passes[0], cell, IDLE_SECONDS)
        for name, impl in itertools.product(passes, impls):
            answer = attempt(self.workers[IMPLS[impl]], "measure", impl, name, cell, seconds)
            numbers: dict[str, Any] = {"ms": None, "tflops": None}
            if isinstance(answer, str):
                numbers["error"] = answer[:2000]
            else:
                numbers |= answer | {"tflops": cell.flops(name) / answer["ms"] / 1e9}
            self.add(cell, impl, name, numbers)

    def add(self, cell: AttentionCell, impl: str, passes: str, numbers: dict[str, Any]) -> None:
        """Appends a row."""
        config = {
            "B": cell.batch,
            "S": cell.length,
            "Hq": cell.query_heads,
            "Hkv": cell.kv_heads,
            "D": cell.head_dim,
            "causal": cell.causal,
            "window": cell.window or None,
            "dtype": "bfloat16",
        }
        config |= {"variant": cell.variant} if cell.variant else {}
        self.add_row("flash_attention", passes, impl, config, numbers)


def line(cell: AttentionCell, rows: list[dict[str, Any]], seconds: float) -> str:
    """One printed line: TFLOP/s of every implementation and pass in the cell."""
    parts: dict[str, list[str]] = {}
    for row in rows:
        text = f"{row['tflops']:.0f}" if row["tflops"] else f"FAILED ({row['error'][:90]})"
        parts.setdefault(row["impl"], []).append(f"{row['pass']} {text}")
    named = "; ".join(f"{impl}: {', '.join(texts)}" for impl, texts in parts.items())
    return f"[{seconds:4.0f} s] {cell.name:>17}  {named}"


def window_gain(rows: list[dict[str, Any]]) -> list[str]:
    """By pass, how many times faster the sliding window is than the whole causal mask."""
    like = {"B": WINDOW.batch, "S": WINDOW.length, "D": WINDOW.head_dim, "causal": True}
    times = {
        (row["pass"], bool(row["config"]["window"])): row["ms"]
        for row in rows
        if row["impl"] == "jax_baracuda" and like.items() <= row["config"].items() and row["ms"]
        if "variant" not in row["config"]
    }
    return [
        f"{passes} {times[passes, False] / times[passes, True]:.1f}x"
        for passes in PASSES
        if (passes, False) in times and (passes, True) in times
    ]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if ours failed anywhere."""
    options = parse(arguments)
    cells, impls = cells_of(options), impls_of(options.impls)
    run = Run(impls, options)
    for cell in cells:
        run.cell(cell)
    gains = window_gain(run.rows)
    if gains:
        print(f"window {WINDOW.window} over full causal, S = {WINDOW.length}: {', '.join(gains)}")
    return run.finish()


if __name__ == "__main__":
    raise SystemExit(main())
