"""The README's table and the plot of bench_int4.py's rows."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import figures
import rows as result_rows
from paged_plot import markdown, verdict

OP = "int4_matmul"
OURS, CUBLAS = "jax_baracuda", "cublas"
LABELS = {OURS: "jax_baracuda", "xla_int4": "XLA int4", CUBLAS: "cuBLAS on the dense weight"}
COLORS = {OURS: "#d62728", "xla_int4": "#8c564b", CUBLAS: "0.6"}

# (dtype, IC, OC) -> M -> implementation -> row.
Layers = dict[tuple[str, int, int], dict[int, dict[str, dict[str, Any]]]]


def by_layer(rows: list[dict[str, Any]]) -> Layers:
    """The rows in the order of their file."""
    layers: Layers = {}
    for row in rows:
        config = row["config"]
        layer = layers.setdefault((config["dtype"], config["IC"], config["OC"]), {})
        layer.setdefault(config["M"], {})[row["impl"]] = row
    return layers


def table(rows: list[dict[str, Any]]) -> str:
    """Speed-ups over cuBLAS: a line a layer and implementation, a column for each M."""
    layers = by_layer(rows)
    counts = sorted({m for layer in layers.values() for m in layer})
    lines = []
    for (dtype, inputs, outputs), layer in layers.items():
        for impl, label in LABELS.items():
            if any(impl in cell for cell in layer.values()):
                texts = [_figure(layer.get(m, {}).get(impl), impl) for m in counts]
                lines.append([f"{inputs} x {outputs} {dtype}", label, *texts])
    groups = ", ".join(str(size) for size in sorted({row["config"]["group_size"] for row in rows}))
    text = [
        f"Weights of four bits in groups of {groups}: times as fast as cuBLAS on the dense weight, "
        "of which the microseconds stand here.",
        "",
        *markdown(["IC x OC", "M =", *map(str, counts)], lines),
        "",
        *(verdict(what, ratios, target) for what, ratios, target in targets(layers) if ratios),
    ]
    failed = [row for row in rows if row["impl"] != CUBLAS and "error" in row]
    if failed:
        names = (f"{LABELS[row['impl']]} at M = {row['config']['M']}" for row in failed)
        text.append(f"Did not run: {'; '.join(dict.fromkeys(names))}.")
    return "\n".join([*text, result_rows.origin(rows)])


def _figure(row: dict[str, Any] | None, impl: str) -> str:
    if row is None:
        return "-"
    if not row["ms"]:
        return "failed"
    if impl == CUBLAS:
        return f"{row['ms'] * 1e3:.0f} us"
    return f"{row['x_cublas']:.2f}" if "x_cublas" in row else "-"


def targets(layers: Layers) -> Iterator[tuple[str, dict[str, float], float]]:
    """What is to be reached at which M: by layer for few rows, on all of them for many."""
    wide = ((4096, 14336), (14336, 4096))
    for what, sizes, rows, target in (
        ("8192 x 28672, M up to 16", ((8192, 28672),), range(1, 17), 3.2),
        ("8192 x 28672, M = 32", ((8192, 28672),), (32,), 2.8),
        ("8192 x 28672, M = 64", ((8192, 28672),), (64,), 2.0),
        ("4096 x 14336 and back, M up to 16", wide, range(1, 17), 2.7),
        ("4096 x 4096, M up to 16", ((4096, 4096),), range(1, 17), 2.5),
        ("M = 128", None, (128,), 1.15),
        ("M from 256 up", None, range(256, 1 << 20), 0.95),
    ):
        ratios = {
            f"{dtype}, {inputs} x {outputs}, {m}": cell[OURS]["x_cublas"]
            for (dtype, inputs, outputs), layer in layers.items()
            for m, cell in layer.items()
            if dtype == "float16"
            and (sizes is None or (inputs, outputs) in sizes)
            and m in rows
            and "x_cublas" in cell.get(OURS, {})
        }
        yield what, ratios, target
    yield "bfloat16, times as fast as float16", _of_dtypes(layers), 0.97


def _of_dtypes(layers: Layers) -> dict[str, float]:
    """Ours in bfloat16 over ours in float16."""
    ratios = {}
    for (dtype, inputs, outputs), layer in layers.items():
        for m, cell in layer.items():
            other = layers.get(("float16", inputs, outputs), {}).get(m, {})
            times = [(row.get(OURS) or {}).get("ms") for row in (other, cell)]
            if dtype == "bfloat16" and all(times):
                ratios[f"{inputs} x {outputs}, {m}"] = times[0] / times[1]
    return ratios


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Speed-up over cuBLAS by M, a panel a layer."""
    layers = by_layer(rows)
    figure, axes = figures.start(
        1, len(layers), figsize=(3.2 * len(layers) + 0.4, 3.6), sharey=True
    )
    handles: dict[str, Any] = {}
    for axis, ((dtype, inputs, outputs), layer) in zip(axes[0], layers.items(), strict=True):
        for impl in (OURS, "xla_int4"):
            points = sorted(
                (m, cell[impl]["x_cublas"])
                for m, cell in layer.items()
                if "x_cublas" in cell.get(impl, {})
            )
            if points:
                (handles[LABELS[impl]],) = axis.plot(
                    *zip(*points, strict=True), color=COLORS[impl], marker="o", markersize=3
                )
        handles[LABELS[CUBLAS]] = axis.axhline(1, color=COLORS[CUBLAS], linestyle="--")
        axis.set_title(f"{inputs} x {outputs}, {dtype}", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("rows M")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("times as fast as cuBLAS")
    figures.finish(figure, f"int4_matmul, {rows[0]['gpu']}", path, handles)
