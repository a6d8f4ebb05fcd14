"""The README's table and the plot of bench_training.py's rows."""

from __future__ import annotations

import pathlib
from typing import Any

import figures
import rows as result_rows

OP = "llama_training"
OURS = "jax_baracuda"
LABELS = {OURS: "jax_baracuda", "jax_cudnn": "JAX cuDNN", "jax_nn": "jax.nn"}
COLORS = {OURS: "#d62728", "jax_cudnn": "#2ca02c", "jax_nn": "#8c564b"}

# (S, remat) -> implementation -> row.
Cells = dict[tuple[int, str], dict[str, dict[str, Any]]]


def by_cell(rows: list[dict[str, Any]]) -> Cells:
    """Those that were measured, by cell."""
    cells: Cells = {}
    for row in rows:
        if row["ms"]:
            config = row["config"]
            cells.setdefault((config["S"], config["remat"]), {})[row["impl"]] = row
    return cells


def table(rows: list[dict[str, Any]]) -> str:
    """A line a cell: milliseconds, utilisation and memory of ours and of the peers."""
    cells = by_cell(rows)
    impls = [impl for impl in LABELS if any(impl in cell for cell in cells.values())]
    peers = [impl for impl in impls if impl != OURS]
    titles = ["S", "kept for the backward pass", *(LABELS[impl] for impl in impls)]
    titles += [f"x {LABELS[impl]}" for impl in peers] + ["losses within"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for (length, remat), cell in cells.items():
        ours = cell.get(OURS)
        texts = [str(length), f"`{remat}`", *(_figures(cell.get(impl)) for impl in impls)]
        for impl in peers:
            both = ours and impl in cell
            texts.append(f"{cell[impl]['ms'] / ours['ms']:.2f}" if ours and both else "-")
        difference = (ours or {}).get("loss_difference")
        texts.append("-" if difference is None else f"{difference:.4f}")
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *_notes(rows), result_rows.origin(rows)])


def _figures(row: dict[str, Any] | None) -> str:
    """Milliseconds a step, MFU (or TFLOP/s, where the peak is not known) and memory."""
    if row is None:
        return "-"
    speed = f"{100 * row['mfu']:.1f}%" if "mfu" in row else f"{row['tflops']:.3g} TFLOP/s"
    size = f", {row['gb']:.0f} GB" if row.get("gb") else ""
    return f"{row['ms']:.1f} ms, {speed}{size}"


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What the figures mean, and what went wrong."""
    lines = []
    first = next((row for row in rows if row["ms"]), None)
    if first:
        config = first["config"]
        share = f", of {first['peak_tflops']} TFLOP/s dense bfloat16" if "mfu" in first else ""
        lines.append(
            f"A step of {config['B'] * config['S']} tokens, {first['parameters'] / 1e6:.0f} M "
            f"parameters: milliseconds, model FLOPs utilisation (6 N + 6 L H D S flops a token"
            f"{share}), memory. Losses in bits per byte, of every step from the same start."
        )
    for row in rows:
        if "error" in row:
            name = f"{LABELS[row['impl']]} at {row['config']['S']}, {row['config']['remat']}"
            lines.append(f"Failed: {name}: {row['error'].splitlines()[0][:200]}.")
    return lines


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bars of utilisation by cell, and the loss curves of the first cell of every length."""
    cells = by_cell(rows)
    curves = {length: cell for (length, _), cell in reversed(cells.items())}
    panels = sorted(curves)
    figure, axes = figures.start(1, 1 + len(panels), figsize=(4.2 + 3.2 * len(panels), 3.6))
    _bars(axes[0][0], cells)
    for axis, length in zip(axes[0][1:], panels, strict=True):
        _curves(axis, curves[length])
        axis.set_title(f"loss, S = {length}", fontsize=10)
    title = f"A training step of a Llama in bfloat16, {rows[0]['gpu']}"
    figures.finish(figure, title, path)


def _bars(axis: Any, cells: Cells) -> None:
    """MFU, or TFLOP/s where the peak is not known."""
    known = all("mfu" in row for cell in cells.values() for row in cell.values())
    impls = [impl for impl in LABELS if any(impl in cell for cell in cells.values())]
    width = 0.8 / max(1, len(impls))
    for index, impl in enumerate(impls):
        found = [(at, cell[impl]) for at, cell in enumerate(cells.values()) if impl in cell]
        heights = [100 * row["mfu"] if known else row["tflops"] for _, row in found]
        places = [at + (index - (len(impls) - 1) / 2) * width for at, _ in found]
        bars = axis.bar(places, heights, 0.92 * width, color=COLORS[impl])
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
    names = [f"{length}\n{remat.replace('_', chr(10))}" for length, remat in cells]
    axis.set_xticks(range(len(cells)), names, fontsize=8)
    axis.margins(y=0.12)
    axis.set_axisbelow(True)
    axis.set_title("MFU, %" if known else "TFLOP/s", fontsize=10)
    axis.grid(alpha=0.3, axis="y")


def _curves(axis: Any, cell: dict[str, dict[str, Any]]) -> None:
    """Losses over steps: the peers' broad, so that one sees ours on them."""
    for impl in reversed(LABELS):
        if impl in cell:
            axis.plot(
                cell[impl]["losses"],
                color=COLORS[impl],
                label=LABELS[impl],
                linewidth=1.5 if impl == OURS else 4,
                alpha=1 if impl == OURS else 0.4,
            )
    axis.set_xlabel("step")
    axis.set_ylabel("bits per byte")
    axis.grid(alpha=0.3)
