"""The serving ops beside contiguous ones, peers and ceilings, all in one run.

    python benchmarks/bench_paged.py                        # every part, under three minutes
    python benchmarks/bench_paged.py --parts decode,uneven --quick
    python benchmarks/bench_paged.py --cells 8x64x2048,paged-64
    python benchmarks/bench_paged.py --dry-run              # tiny, on the CPU: does all of it run?

bf16, 32 query heads of 128, pages in random order. Parts:

    decode   paged_decode with pages of 16, 1 and 64 beside flash_decode on the same bytes
    uneven   paged_decode on lengths that differ, beside even ones with as many bytes
    prefill  paged_prefill beside flash_attention_varlen on the same bytes
    append   paged_append, kv_cache_append and apply_rope beside a copy of as many bytes
    shared   shared_prefix_decode beside paged_decode whose tables all name the prefix
    layers   a decode step that scans over stacked layers, beside the same calls one by one,
             and those of either op

Each part has a share of the time; what it does not get to leaves rows that say so. GB/s count what
has to move, once. Each framework has a worker process of its own; while torch measures, jax
compiles. A peer that fails leaves a row with its error, and a wrong result has no time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any

import paged_grid
import runs
from paged_cells import Job, PagedCell
from paged_grid import BUDGETS, PARTS
from paged_peers import ENGINES
from workers import measure

Parts = dict[str, list[PagedCell]]
# What a row's speed is a share of: in its own cell, or in the cell before.
CEILINGS = {"read_ceiling": "percent_of_read", "device_copy": "percent_of_copy"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="comma list of the parts")
    parser.add_argument("--cells", help="comma list of cells' names, as they are printed")
    parser.add_argument("--impls", help="comma list of implementations; all that are there")
    parser.add_argument("--quick", action="store_true", help="16 cells, 0.05 s a measurement")
    parser.add_argument("--dry-run", action="store_true", help="tiny cells on the CPU, jax alone")
    parser.add_argument(
        "--budget",
        type=float,
        default=sum(BUDGETS.values()),
        metavar="SECONDS",
        help="of all parts together; a part that is not asked for leaves its share to the others",
    )
    runs.add_file_options(parser, "paged")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> Parts:
    """The cells of every part that is asked for."""
    grid = paged_grid.tiny() if options.dry_run else paged_grid.FULL
    names = [cell.name for cells in grid.values() for cell in cells]
    if options.cells:
        names = runs.chosen(options.cells, names)
    elif options.quick and not options.dry_run:
        names = [name for name in names if name in paged_grid.QUICK]
    parts = {part: grid[part] for part in runs.chosen(options.parts, list(PARTS))}
    found = {p: [cell for cell in cells if cell.name in names] for p, cells in parts.items()}
    return {part: cells for part, cells in found.items() if cells}


def jobs_of(cell: PagedCell, options: argparse.Namespace) -> list[Job]:
    """The jobs of a cell: those of --impls, or all; FlashInfer where it is there."""
    present = bool(importlib.util.find_spec("flashinfer"))
    if options.impls is not None:
        named = options.impls.split(",")
        return [job for job in cell.jobs if job.impl in named]
    jobs = [job for job in cell.jobs if present or job.impl != "flashinfer"]
    return [job for job in jobs if not options.dry_run or job.engine.startswith("jax")]


def deadlines(parts: list[str], budget: float) -> dict[str, float]:
    """Until which second each part may begin a cell: what one leaves, the next may use."""
    total = sum(BUDGETS[part] for part in parts)
    ends, end = {}, 0.0
    for part in parts:
        end += budget * BUDGETS[part] / total
        ends[part] = end
    return ends


class Run(runs.Run):
    """Measures cells."""

    def __init__(self, parts: Parts, options: argparse.Namespace) -> None:
        self.parts = parts
        self.seconds_each = 0.0 if options.dry_run else 0.05 if options.quick else 0.12
        cells = [cell for cells in parts.values() for cell in cells]
        needed = {job.engine for cell in cells for job in jobs_of(cell, options)}
        makers = {name: engine for name, engine in ENGINES.items() if name in needed}
        super().__init__("paged", makers, options)

    def run(self) -> None:
        """All parts, each until its deadline."""
        ends = deadlines(list(self.parts), self.options.budget)
        for part, cells in self.parts.items():
            for cell in cells:
                first = len(self.rows)
                if self.seconds < ends[part]:
                    self.cell(cell)
                else:
                    for job in jobs_of(cell, self.options):
                        self.add(cell, job, "not measured: the part's time was over")
                print(line(cell, self.rows[first:], self.seconds), flush=True)

    def cell(self, cell: PagedCell) -> None:
        """Measures one cell: everything of one engine, then the next."""
        jobs: dict[str, list[Job]] = {name: [] for name in self.workers}
        for job in jobs_of(cell, self.options):
            jobs[job.engine].append(job)
        busy = {name: worker for name, worker in self.workers.items() if jobs[name]}
        for name, worker in busy.items():
            worker.send("prepare", jobs[name], cell)
        ceilings: dict[str, float] = {}
        for name, worker in self.in_turn(busy):
            for job in jobs[name]:
                answer = measure(worker, job, cell, self.seconds_each)
                self.add(cell, job, answer, ceilings)
            self.free(worker, cell.bytes * cell.sets)

    def add(
        self, cell: PagedCell, job: Job, answer: Any, ceilings: dict[str, float] | None = None
    ) -> None:
        """Appends a row: a measurement, or the text of an error."""
        numbers: dict[str, Any] = {"ms": None}
        if isinstance(answer, str):
            numbers["error"] = answer[:2000]
        else:
            numbers |= answer | cell.rate(answer["ms"])
        ceilings = {} if ceilings is None else ceilings
        if job.impl in CEILINGS and "gbps" in numbers:
            ceilings[job.impl] = numbers["gbps"]
        for ceiling, share in CEILINGS.items():
            if ceiling in ceilings and "gbps" in numbers:
                numbers[share] = 100 * numbers["gbps"] / ceilings[ceiling]
        self.add_row(cell.op, cell.passes, job.impl, cell.config | job.config, numbers)


def line(cell: PagedCell, rows: list[dict[str, Any]], seconds: float) -> str:
    """One printed line: the speed of every implementation in the cell."""
    return f"[{seconds:5.0f} s] {cell.name:>24}  " + "; ".join(figure(row) for row in rows)


def figure(row: dict[str, Any]) -> str:
    """What a printed line says of a row."""
    config = row["config"]
    marks = [f"p{config['page_size']}"] if "page_size" in config else []
    marks += [config["graph"]] if "graph" in config else []
    name = "/".join([row["impl"], *marks])
    if not row["ms"]:
        return f"{name} FAILED: {row['error'].splitlines()[0][:90]}"
    speed = f"{row['tflops']:.0f} TF" if "tflops" in row else f"{row['gbps']:.0f}"
    share = next((row[share] for share in CEILINGS.values() if share in row), None)
    percent = f" ({share:.0f}%)" if share and row["impl"] not in CEILINGS else ""
    copies = f" {row['store_copies']} COPIES" if row.get("store_copies") else ""
    return f"{name} {speed}{percent} {row['ms'] * 1e3:.1f}us{copies}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if ours failed anywhere."""
    options = parse(arguments)
    if options.dry_run:
        os.environ["JAX_PLATFORMS"] = "cpu"
        options.out = options.out or "-"
    run = Run(cells_of(options), options)
    run.run()
    return run.finish()


if __name__ == "__main__":
    raise SystemExit(main())
