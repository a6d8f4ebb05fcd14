"""Training steps of a Llama on flash_attention and on jax.nn's cuDNN attention, in one run.

    python benchmarks/bench_training.py                # two minutes on an H200
    python benchmarks/bench_training.py --quick        # 12 steps each, not 22 and 17
    python benchmarks/bench_training.py --cells 4096-save_products --tokens 65536
    python benchmarks/bench_training.py --dry-run      # a tiny network on the CPU

The byte-level Llama of examples/ at its preset "medium": 346 M parameters in float32, arithmetic in
bfloat16, AdamW, state donated, layers scanned. Both start from the same parameters, see the same
windows and differ in the attention call alone; both keep the results of their attention kernels
for the backward pass, so that none is computed twice.

Model FLOPs utilisation (MFU) is what the mathematics needs over what the GPU could do meanwhile:
6 N + 12 L H D S / 2 flops a token (N parameters, L layers; half, because the mask is causal; what
remat computes again is not counted), against the data sheet's dense bfloat16 peak, which each row
names. The time is from one device synchronisation to the next, several steps apart; the two take
turns.

Every step's loss must be within 0.05 bits per byte of that on cuDNN's attention: the two round
differently, and every step passes the difference on.
"""

from __future__ import annotations

import argparse
import itertools
import os
from typing import Any

import runs
import turns
from training_engine import ATTENTION, TrainingCell, TrainingEngine
from workers import attempt

PEER = "jax_cudnn"
IMPLS = (PEER, "jax_baracuda")  # the peer first: its losses are what ours are held against
TOLERANCE = 0.05  # bits per byte, at every step
TOKENS = 32768  # of a step; without remat at S = 4096 that takes about 75 GB

# Dense bfloat16 TFLOP/s of data sheets, by what the device's name has in it.
PEAKS = {"H200": 989, "H100 80GB HBM3": 989, "H100 PCIe": 756, "A100": 312, "L40S": 362}


def grid(tokens: int, quick: bool) -> list[TrainingCell]:
    """The cells, those that matter most first."""
    steps = {4096: 12, 16384: 12} if quick else {4096: 22, 16384: 17}
    return [
        TrainingCell(length, max(1, tokens // length), remat, steps[length])
        for remat in ("save_products", "none")
        for length in (4096, 16384)
    ]


TINY = [
    TrainingCell(length, 2, remat, steps=7, preset="tiny")
    for length, remat in ((32, "save_products"), (64, "none"))
]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", help="comma list of LENGTH-REMAT, as they are printed")
    parser.add_argument("--impls", help=f"comma list of {', '.join(ATTENTION)}")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of a step ({TOKENS})")
    parser.add_argument("--quick", action="store_true", help="12 steps each")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, beside jax_nn")
    parser.add_argument(
        "--budget",
        type=float,
        default=120,
        metavar="SECONDS",
        help="after this long no cell is begun",
    )
    runs.add_file_options(parser, "training")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> list[TrainingCell]:
    """The cells that the options name."""
    cells = TINY if options.dry_run else grid(options.tokens, options.quick)
    names = runs.chosen(options.cells, [cell.name for cell in cells])
    return [cell for cell in cells if cell.name in names]


def impls_of(options: argparse.Namespace) -> list[str]:
    """The implementations in the order in which they run: peers first."""
    default = ("jax_nn", "jax_baracuda") if options.dry_run else IMPLS
    names = list(default) if options.impls is None else runs.chosen(options.impls, list(ATTENTION))
    return sorted(names, key=lambda impl: impl == "jax_baracuda")


def peak(gpu: str) -> float | None:
    """Dense bfloat16 TFLOP/s that the data sheet promises, if it is known."""
    return next((tflops for name, tflops in PEAKS.items() if name in gpu), None)


def differences(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """How far two loss curves are apart; with an error if that is too far."""
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    numbers: dict[str, Any] = {
        "loss_difference": max(apart),
        "loss_difference_mean": sum(apart) / len(apart),
        "loss_tolerance": TOLERANCE,
    }
    if max(apart) > TOLERANCE:
        step = apart.index(max(apart))
        numbers["error"] = f"the loss of step {step} is off by {max(apart):.3f} bits per byte"
    return numbers


class Run(runs.Run):
    """Measures cells."""

    def __init__(
        self, cells: list[TrainingCell], impls: list[str], options: argparse.Namespace
    ) -> None:
        super().__init__("training", {"jax": TrainingEngine}, options)
        self.cells, self.impls = cells, impls
        self.peak = peak(self.shared["gpu"])

    def run(self) -> None:
        """Compiles the cells of a remat policy side by side, measures them, then the next."""
        for _, group in itertools.groupby(self.cells, key=lambda cell: cell.remat):
            cells = list(group)
            if not self.late(cells[0]):
                jobs = [(impl, cell) for cell in cells for impl in self.impls]
                with turns.turn():  # XLA tries which matrix products are the fastest
                    self.workers["jax"].call("prepare", jobs, timeout=300)
                print(f"[{self.seconds:4.0f} s] compiled {len(jobs)} programs", flush=True)
            for cell in cells:
                if not self.late(cell):
                    with turns.turn():
                        self.cell(cell)
                else:
                    print(f"{cell.name}: left out, past the --budget", flush=True)

    def late(self, cell: TrainingCell) -> bool:
        """Whether the time is over; the first cell is measured whatever it takes."""
        return cell != self.cells[0] and self.seconds > self.options.budget

    def cell(self, cell: TrainingCell) -> None:
        """Measures one cell."""
        first = len(self.rows)
        peer: list[float] | None = None
        answers = attempt(self.workers["jax"], "measure", self.impls, cell)
        if isinstance(answers, str):  # the worker's own
            answers = dict.fromkeys(self.impls, answers)
        for impl in self.impls:
            answer = answers[impl]
            numbers: dict[str, Any] = {"ms": None, "tflops": None}
            if isinstance(answer, str):
                numbers["error"] = answer[:2000]
            else:
                numbers |= answer
                if self.peak:
                    numbers |= {"mfu": answer["tflops"] / self.peak, "peak_tflops": self.peak}
                if impl == "jax_baracuda" and peer:
                    numbers |= differences(answer["losses"], peer)
                peer = peer or answer["losses"]
            self.add_row("llama_training", "step", impl, config_of(cell), numbers)
        print(line(cell, self.rows[first:], self.seconds), flush=True)


def config_of(cell: TrainingCell) -> dict[str, Any]:
    """The cell in a row."""
    return {
        "preset": cell.preset,
        "B": cell.batch,
        "S": cell.length,
        "remat": cell.remat,
        "steps": cell.steps,
    }


def line(cell: TrainingCell, rows: list[dict[str, Any]], seconds: float) -> str:
    """One printed line: the time of a step and MFU of every implementation."""
    parts = []
    for row in rows:
        text = f"FAILED: {row['error'].splitlines()[0][:90]}" if "error" in row else ""
        if row["ms"]:
            share = f", MFU {100 * row['mfu']:.1f}%" if "mfu" in row else ""
            size = f", {row['gb']:.1f} GB" if row["gb"] else ""
            text = f"{row['ms']:.1f} ms, {row['tflops']:.3g} TFLOP/s{share}{size} {text}".rstrip()
        if "loss_difference" in row:
            text += f", losses within {row['loss_difference']:.4f}"
        parts.append(f"{row['impl']} {text}")
    return f"[{seconds:4.0f} s] {cell.name:>19}  " + "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if ours failed anywhere, or learned something else."""
    options = parse(arguments)
    if options.dry_run:
        os.environ["JAX_PLATFORMS"] = "cpu"
        options.out = options.out or "-"
    run = Run(cells_of(options), impls_of(options), options)
    run.run()
    return run.finish()


if __name__ == "__main__":
    raise SystemExit(main())
