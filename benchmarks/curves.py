"""Panels of curves: the speed of implementations over the length of a cache."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import figures

OURS, CEILING = "jax_baracuda", "read_ceiling"

# (Hkv, B, K) -> implementation -> row.
Cells = dict[tuple[int, int, int], dict[str, dict[str, Any]]]


def draw(
    cells: Cells,
    labels: Mapping[str, str],
    colors: Mapping[str, str],
    title: str,
    path: pathlib.Path,
) -> None:
    """GB/s over the cache length, one panel a (Hkv, batch); those with a line to draw.

    Args:
      cells: the rows to draw.
      labels: those of the implementations, in the order of the legend.
      colors: theirs.
      title: of the figure.
      path: the file that is written.
    """
    panels: dict[tuple[int, int], list[int]] = {}
    for kv_heads, batch, capacity in cells:
        panels.setdefault((kv_heads, batch), []).append(capacity)
    panels = {name: lengths for name, lengths in panels.items() if len(lengths) > 2} or panels
    figure, axes = figures.start(1, len(panels), figsize=(3.4 * len(panels), 3.6), sharey=True)
    for axis, ((kv_heads, batch), lengths) in zip(axes[0], panels.items(), strict=True):
        for impl, label in labels.items():
            points = [
                (k, cells[kv_heads, batch, k][impl]["gbps"])
                for k in sorted(lengths)
                if cells[kv_heads, batch, k].get(impl, {}).get("gbps")
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=label,
                    color=colors[impl],
                    marker="o",
                    markersize=3,
                    linewidth=2 if impl == OURS else 1.2,
                    linestyle="--" if impl == CEILING else "-",
                )
        axis.set_title(f"B = {batch}, Hkv = {kv_heads}", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("cache length K")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("GB/s of K and V")
    axes[0][0].set_ylim(bottom=0)
    figures.finish(figure, title, path)
