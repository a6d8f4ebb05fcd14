"""The README's tables and the plot of bench_attention.py's rows."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import attention_earlier
import figures
import rows as result_rows
from attention_peers import VARIANTS
from bench_attention import GQA, PASSES, WINDOW, window_gain
from paged_plot import markdown, verdict

OURS = "jax_baracuda"
FLASH2 = ("torch_flash", "flash_attn_jax")
LABELS = {
    OURS: "jax_baracuda",
    "jax_cudnn": "JAX cuDNN",
    "torch_cudnn": "torch cuDNN",
    "torch_flash": "FlashAttention-2 (torch)",
    "flash_attn_jax": "FlashAttention-2 (JAX)",
    "tokamax": "tokamax",
}
COLORS = {
    OURS: "#d62728",
    "jax_cudnn": "#2ca02c",
    "torch_cudnn": "#1f77b4",
    "torch_flash": "#9467bd",
    "flash_attn_jax": "#8c564b",
    "tokamax": "#ff7f0e",
}
TITLES = {"fwd": "Forward", "bwd": "Backward alone", "fwdbwd": "Forward and backward"}

# (D, causal, S) -> implementation -> TFLOP/s, None where it failed.
Cells = dict[tuple[int, bool, int], dict[str, float | None]]


def grid(rows: list[dict[str, Any]], passes: str) -> Cells:
    """The cells with as many key/value heads as query heads and no window."""
    cells: Cells = {}
    for row in rows:
        config = row["config"]
        alone = config["window"] or "variant" in config
        if row["pass"] == passes and config["Hq"] == config["Hkv"] and not alone:
            key = (config["D"], config["causal"], config["S"])
            cells.setdefault(key, {})[row["impl"]] = row["tflops"]
    return cells


def implementations(rows: list[dict[str, Any]]) -> list[str]:
    """Those that have a row, in the order of the labels."""
    return [impl for impl in LABELS if any(row["impl"] == impl for row in rows)]


def table(rows: list[dict[str, Any]]) -> str:
    """A table a pass, a row for D and mask, a column for each length; then the two other cells."""
    impls = implementations(rows)
    lines = [f"TFLOP/s of {' / '.join(LABELS[impl] for impl in impls)}; the best is bold.", ""]
    for passes in PASSES:
        cells = grid(rows, passes)
        if cells:
            lines += [*_pass_table(TITLES[passes], cells, impls), "", _verdict(cells)]
            lines += [*_earlier(cells, passes), ""]
    gqa = [_gqa(rows, passes, impls) for passes in PASSES]
    if any(gqa):
        lines += [
            f"{GQA.query_heads} query heads on {GQA.kv_heads} key/value heads, D = {GQA.head_dim}, "
            f"causal, B = {GQA.batch}, S = {GQA.length}: {'; '.join(filter(None, gqa))}.",
            "",
        ]
    gains = window_gain(rows)
    if gains:
        lines += [
            f"A sliding window of {WINDOW.window} against the whole causal mask, S = "
            f"{WINDOW.length}, D = {WINDOW.head_dim}, ours: {', '.join(gains)} as fast.",
            "",
        ]
    return "\n".join([*lines, *_variants(rows), result_rows.origin(rows)])


# Variants, the pass that counts, and at least how fast they are to be beside the plain call.
VARIANT_TARGETS = (
    ("deterministic=True", ("deterministic",), ("bwd",), 1 / 1.2),
    (
        "Soft cap, ALiBi, bias and dropout",
        ("soft-cap", "alibi", "bias", "bias-full", "dropout"),
        ("fwd",),
        0.8,
    ),
    ("Sequences of different lengths, packed", ("uneven",), ("fwd", "bwd"), 0.9),
)


def _variants(rows: list[dict[str, Any]]) -> list[str]:
    """What options cost: the speed of ours with them, over that without."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    peers: dict[tuple[Any, ...], float] = {}
    for row in rows:
        config = row["config"]
        key = (config["D"], config["causal"], config["S"], config["Hkv"], row["pass"])
        if row["impl"] == OURS and row["ms"] and not config["window"]:
            found.setdefault(key, {})[config.get("variant", "")] = row["tflops"]
        elif row["impl"] in FLASH2 and row["ms"]:
            peers[key] = max(row["tflops"], peers.get(key, 0))
    found = {key: cell for key, cell in found.items() if len(cell) > 1 and "" in cell}
    if not found:
        return []
    names = [name for name in VARIANTS if any(name in cell for cell in found.values())]
    ratios = {
        (key, name): cell[name] / cell[""]
        for key, cell in sorted(found.items())
        for name in names
        if name in cell
    }

    def title(key: tuple[Any, ...]) -> str:
        return f"{key[0]} {'causal' if key[1] else 'full'} {key[2]} {key[4]}"

    lines = [
        [title(key), f"{found[key]['']:.0f}"]
        + [f"{ratios[key, name]:.2f}" if (key, name) in ratios else "-" for name in names]
        for key in sorted(found)
    ]
    verdicts = [
        verdict(
            what,
            {
                f"{title(key)} {name}": ratio
                for (key, name), ratio in ratios.items()
                if name in variants and key[4] in passes
            },
            target,
        )
        for what, variants, passes, target in VARIANT_TARGETS
        if set(variants) & set(names)
    ]
    portable = {
        title(key): cell["portable"] / peers[key]
        for key, cell in found.items()
        if "portable" in cell and key in peers
    }
    if portable:
        verdicts.append(verdict("The portable kernels over FlashAttention-2", portable, 1.0))
    head = ["D, mask, S, pass", "plain, TFLOP/s", *names]
    return ["Ours with an option, over ours without:", "", *markdown(head, lines), "", *verdicts]


def _pass_table(title: str, cells: Cells, impls: list[str]) -> list[str]:
    lengths = sorted({length for _, _, length in cells})
    lines = [
        f"| {title}: D, mask | " + " | ".join(str(length) for length in lengths) + " |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    for head_dim, causal in sorted({key[:2] for key in cells}):
        texts = [_figures(cells.get((head_dim, causal, s), {}), impls) for s in lengths]
        name = f"{head_dim} {'causal' if causal else 'full'}"
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return lines


def _figures(cell: dict[str, float | None], impls: list[str]) -> str:
    best = max((speed or 0 for speed in cell.values()), default=0)
    texts = []
    for impl in impls:
        speed = cell.get(impl)
        text = f"{speed:.0f}" if speed else "-"
        texts.append(f"**{text}**" if speed and speed == best else text)
    return " / ".join(texts)


def _verdict(cells: Cells) -> str:
    """In how many cells ours leads all peers, and FlashAttention-2."""
    sentences = []
    for name, peers in (("FlashAttention-2", FLASH2), ("every peer", tuple(LABELS)[1:])):
        best = {
            key: max((cell.get(peer) or 0 for peer in peers), default=0)
            for key, cell in cells.items()
        }
        sentences.append(_lead(name, cells, best))
    sentences = [sentence for sentence in sentences if sentence]
    return f"Ours: {'; '.join(sentences)}." if sentences else "There was no peer."


def _earlier(cells: Cells, passes: str) -> list[str]:
    """The same against peers that were not there, by their ratio to cuDNN on another day."""
    sentences = []
    for peer, label in attention_earlier.LABELS.items():
        if not any(peer in cell for cell in cells.values()):
            best = {
                key: (attention_earlier.over_cudnn(peer, passes, *key) or 0)
                * (cell.get("torch_cudnn") or 0)
                for key, cell in cells.items()
            }
            sentences.append(_lead(label, cells, best))
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        return []
    return [f"By their ratio to torch's cuDNN on another day: {'; '.join(sentences)}."]


def _lead(name: str, cells: Cells, theirs: dict[tuple[int, bool, int], float]) -> str:
    """In how many cells ours is as fast as a figure of theirs; "" if there is none."""
    ratios = {}
    for key, cell in cells.items():
        head_dim, causal, length = key
        ours = cell.get(OURS)
        if ours and theirs[key]:
            mask = "causal" if causal else "full"
            ratios[f"{head_dim} {mask} {length}"] = ours / theirs[key]
    if not ratios:
        return ""
    ahead = sum(ratio >= 1 for ratio in ratios.values())
    worst = min(ratios, key=ratios.__getitem__)
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return (
        f"ahead of {name} in {ahead} of {len(ratios)} cells "
        f"({ratios[worst]:.2f}x at the least, {worst}; {mean:.2f}x on the average)"
    )


def _gqa(rows: list[dict[str, Any]], passes: str, impls: list[str]) -> str:
    """The figures of the cell with fewer key/value heads."""
    cell = {
        row["impl"]: row["tflops"]
        for row in rows
        if row["pass"] == passes and row["config"]["Hq"] != row["config"]["Hkv"]
    }
    return f"{TITLES[passes].lower()} {_figures(cell, impls)}" if cell else ""


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """TFLOP/s over S: a row of panels a pass, a panel for D and mask."""
    grids = {passes: grid(rows, passes) for passes in PASSES}
    grids = {passes: cells for passes, cells in grids.items() if cells}
    panels = sorted({key[:2] for cells in grids.values() for key in cells})
    figure, axes = figures.start(
        len(grids),
        len(panels),
        figsize=(2.7 * len(panels) + 0.6, 2.5 * len(grids) + 1),
        sharex=True,
        sharey="row",
    )
    handles: dict[str, Any] = {}
    for line, (passes, cells) in zip(axes, grids.items(), strict=True):
        line[0].set_ylabel(f"{TITLES[passes]}, TFLOP/s")
        for axis, (head_dim, causal) in zip(line, panels, strict=True):
            handles |= _draw(axis, cells, head_dim, causal, implementations(rows))
        line[0].set_ylim(bottom=0)  # of the whole row, and only now that all of it is drawn
    for axis, (head_dim, causal) in zip(axes[0], panels, strict=True):
        axis.set_title(f"D = {head_dim}, {'causal' if causal else 'full'}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("S")
    title = f"flash_attention, bf16, B x S = 16384, H x D = 2048, {rows[0]['gpu']}"
    figures.finish(figure, title, path, handles)


def _draw(axis: Any, cells: Cells, head_dim: int, causal: bool, impls: list[str]) -> dict[str, Any]:
    """The lines of a panel; the handles by label."""
    handles = {}
    for impl in impls:
        points = sorted(
            (length, cell[impl])
            for (d, c, length), cell in cells.items()
            if (d, c) == (head_dim, causal) and cell.get(impl)
        )
        if points:
            (handles[LABELS[impl]],) = axis.plot(
                *zip(*points, strict=True),
                color=COLORS[impl],
                marker="o",
                markersize=3,
                linewidth=2 if impl == OURS else 1.2,
            )
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    return handles
