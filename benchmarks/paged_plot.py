"""The README's tables and the plot of bench_paged.py's rows."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import curves
import rows as result_rows
from paged_grid import FLASHINFER_EARLIER

Row = dict[str, Any]
OPS = {
    "paged_decode",
    "paged_prefill",
    "paged_append",
    "kv_cache_append",
    "apply_rope",
    "shared_prefix_decode",
    "decode_step",
}
LABELS = {
    "read_ceiling": "read ceiling",
    "jax_baracuda": "paged_decode, pages of 16",
    "page 64": "pages of 64",
    "page 1": "pages of 1",
    "flash_decode": "flash_decode",
    "flash_decode_lengths": "with lengths",
    "torch_cudnn": "torch cuDNN",
    "flashinfer": "FlashInfer",
    "pallas": "Pallas",
}
COLORS = {
    "read_ceiling": "0.6",
    "jax_baracuda": "#d62728",
    "page 64": "#e377c2",
    "page 1": "#bcbd22",
    "flash_decode": "#17becf",
    "flash_decode_lengths": "#2ca02c",
    "torch_cudnn": "#1f77b4",
    "flashinfer": "#9467bd",
    "pallas": "#ff7f0e",
}


def series(row: Row) -> str:
    """What a row is a point of: its implementation, and ours by the size of the pages."""
    page_size = row["config"].get("page_size")
    ours = row["impl"] == curves.OURS and page_size not in (None, 16)
    return f"page {page_size}" if ours else str(row["impl"])


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    """The op's name and values of the config, by these names -> series -> row."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        config = row["config"] | {"op": row["op"]}
        key = tuple(config.get(name) for name in names)
        groups.setdefault(key, {})[series(row)] = row
    return groups


def of(rows: Iterable[Row], *ops: str) -> list[Row]:
    """The rows of these ops."""
    return [row for row in rows if row["op"] in ops]


def even_decodes(rows: list[Row]) -> curves.Cells:
    """The part "decode" by (Hkv, B, K)."""
    found = [
        row
        for row in of(rows, "paged_decode")
        if row["config"]["lengths"] == "uniform" and "control" not in row["config"]
    ]
    return grouped(found, "Hkv", "B", "K")  # type: ignore[return-value]


def markdown(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table."""
    head = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return [*head, *("| " + " | ".join(line) + " |" for line in lines)]


def speed(row: Row | None, unit: str = "gbps") -> str:
    """A rate; "-" where there is none, and why where it should be."""
    if row is None:
        return "-"
    if row.get(unit):
        return f"{row[unit]:.0f}"
    return result_rows.missing(row)


def micros(row: Row | None) -> str:
    """Microseconds."""
    return f"{row['ms'] * 1e3:.1f}" if row and row["ms"] else "-"


def ratio(a: Row | None, b: Row | None) -> float | None:
    """How many times as fast a is as b."""
    return b["ms"] / a["ms"] if a and b and a["ms"] and b["ms"] else None


def times(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"


def fastest(group: dict[str, Row], *names: str) -> Row | None:
    """The fastest of these series that ran."""
    found = [group[name] for name in names if group.get(name, {}).get("ms")]
    return min(found, key=lambda row: row["ms"], default=None)


def verdict(what: str, ratios: dict[str, float], target: float) -> str:
    """In how many cells a target is met, and the cells where it is not."""
    if not ratios:
        return f"{what}: not measured."
    short = [f"{name} ({value:.2f})" for name, value in ratios.items() if value < target]
    least = min(ratios.values())
    text = f"{what}: at least {target:.2f} in {len(ratios) - len(short)} of {len(ratios)} cells"
    return f"{text}; below at {'; '.join(short)}." if short else f"{text} ({least:.2f} the least)."


# What a part has to reach: (what is said of it, series, what it is a multiple of, target).
CONTIGUOUS = ("flash_decode", "flash_decode_lengths")
DECODE_TARGETS = (
    ("Pages of 16 over the faster flash_decode", "jax_baracuda", CONTIGUOUS, 0.97),
    ("Pages of 64 over it", "page 64", CONTIGUOUS, 0.97),
    ("Pages of 1 over it", "page 1", CONTIGUOUS, 0.75),
    ("Pages of 16 over FlashInfer", "jax_baracuda", ("flashinfer",), 1.0),
)


def with_earlier_flashinfer(cells: curves.Cells) -> curves.Cells:
    """The cells, with the figures of another day where FlashInfer was not there to be measured."""

    def earlier(key: tuple[int, int, int], group: dict[str, Row]) -> dict[str, Row]:
        known = FLASHINFER_EARLIER.get(key)
        if known is None:
            return group
        moved = 2 * 2 * key[0] * key[1] * key[2] * 128  # bytes of K and V
        return {**group, "flashinfer": {"gbps": known, "ms": moved / known / 1e6}}

    rows = [row for group in cells.values() for row in group.values()]
    if any(row["impl"] == "flashinfer" or "H200" not in row["gpu"] for row in rows):
        return cells
    return {key: earlier(key, group) for key, group in cells.items()}


def decode_section(rows: list[Row]) -> list[str]:
    """paged_decode beside contiguous caches and peers."""
    measured = even_decodes(rows)
    cells = with_earlier_flashinfer(measured)
    others = [name for name in LABELS if name not in ("read_ceiling", "jax_baracuda")]
    lines = []
    for key, group in cells.items():
        ours = group.get("jax_baracuda", {"ms": None})
        share = ours.get("percent_of_read")
        lines.append(
            [
                named(key),
                f"**{speed(ours)}**" if ours["ms"] else "-",
                micros(ours),
                f"{share:.0f}%" if share else "-",
                *(speed(group.get(name)) for name in others),
                times(ratio(ours, fastest(group, *CONTIGUOUS))),
            ]
        )
    if not lines:
        return []
    earlier = "" if cells is measured else " FlashInfer 0.7.2 was measured on another day."
    labels = [LABELS[name] for name in others]
    return [
        "`paged_decode`, GB/s of K and V; pages in random order, contiguous caches of as many "
        f"bytes.{earlier}",
        "",
        *markdown(
            ["Hkv, B, K", "pages of 16", "us", "of read ceiling", *labels, "x flash_decode"], lines
        ),
        "",
        *(
            verdict(text, ratios(cells, mine, base), goal)
            for text, mine, base, goal in DECODE_TARGETS
        ),
        "",
    ]


def named(key: Iterable[Any]) -> str:
    """A cell's name in a table."""
    return ", ".join(str(part) for part in key)


def ratios(cells: curves.Cells, mine: str, base: tuple[str, ...]) -> dict[str, float]:
    """By cell, how many times as fast a series is as the fastest of some others."""
    found = {key: ratio(group.get(mine), fastest(group, *base)) for key, group in cells.items()}
    return {named(key): value for key, value in found.items() if value}


def uneven_section(rows: list[Row]) -> list[str]:
    """Lengths that differ beside even ones."""
    decodes = of(rows, "paged_decode")
    even = grouped((row for row in decodes if "control" in row["config"]), "control")
    cells = grouped((row for row in decodes if row["config"]["lengths"] != "uniform"), "lengths")
    impls = [
        n for n in ("jax_baracuda", "flashinfer") if any(n in group for group in cells.values())
    ]
    lines = []
    for key, group in cells.items():
        control = even.get(key, {})
        line = [key[0].replace("-", " ")]
        for impl in impls:
            row, base = group.get(impl), control.get(impl)
            line += [micros(row), speed(row), speed(base), times(ratio(row, base))]
        lines.append(line)
    columns = ("us", "GB/s", "even lengths, GB/s", "x even")
    titles = [f"{LABELS[impl]}, {columns[0]}" for impl in impls]
    titles = [title for first in titles for title in (first, *columns[1:])]
    text = "Lengths that differ, beside even ones with as many bytes:"
    return [text, "", *markdown(["lengths", *titles], lines), ""] if lines else []


def prefill_section(rows: list[Row]) -> list[str]:
    """paged_prefill beside flash_attention_varlen."""
    cells = grouped(of(rows, "paged_prefill"), "B", "chunk", "history", "mixed")
    names = ("jax_baracuda", "page 64", "page 1", "flash_attention_varlen", "flashinfer")
    lines = []
    for (batch, chunk, past, mixed), group in cells.items():
        share = ratio(group.get("jax_baracuda"), group.get("flash_attention_varlen"))
        name = mixed.replace("-", " ") if mixed else f"{batch} x {chunk} after {past}"
        speeds = [speed(group.get(series), "tflops") for series in names]
        lines.append([name, *speeds, times(share)])
    titles = ["rows", "pages of 16", "64", "1", "flash_attention_varlen", "FlashInfer", "x varlen"]
    text = "`paged_prefill`, causal, TFLOP/s; contiguous keys of as many bytes."
    return [text, "", *markdown(titles, lines), ""] if lines else []


def append_section(rows: list[Row]) -> list[str]:
    """Appends and RoPE beside a copy."""
    cells = grouped(of(rows, "paged_append", "kv_cache_append", "apply_rope"), "op", "T", "rope")
    lines = []
    for (op, tokens, rope), group in cells.items():
        ours, copy = group.get("jax_baracuda"), group.get("device_copy")
        lines.append(
            [
                f"{op}, {tokens} tokens{', RoPE' if rope else ''}",
                micros(ours),
                speed(ours),
                speed(copy),
                times(ratio(ours, copy)),
                micros(group.get("xla")),
            ]
        )
    titles = ["op", "us", "GB/s", "copy, GB/s", "x copy", "XLA, us"]
    text = "In place; bytes read and written, beside a device copy of as many."
    return [text, "", *markdown(titles, lines), ""] if lines else []


def shared_section(rows: list[Row]) -> list[str]:
    """A shared prefix."""
    cells = grouped(of(rows, "shared_prefix_decode"), "B", "prefix", "suffix")
    lines = []
    for (batch, prefix, suffix), group in cells.items():
        ours, plain = group.get("jax_baracuda"), group.get("paged_decode")
        name = f"{batch} requests, {prefix} shared, {suffix} of their own"
        lines.append([name, micros(ours), micros(plain), times(ratio(ours, plain))])
    titles = ["shared_prefix_decode", "us", "paged_decode, us", "x"]
    return [*markdown(titles, lines), ""] if lines else []


def layers_section(rows: list[Row]) -> list[str]:
    """Steps through stacked layers."""
    steps = of(rows, "decode_step")
    loops = grouped((r for r in steps if r["config"].get("graph") == "loop"), "layers", "B", "K")
    cells = grouped((r for r in steps if r["config"].get("graph") != "loop"), "layers", "B", "K")
    lines = []
    for key, group in cells.items():
        single, scan = group.get("unrolled"), group.get("jax_baracuda")
        parts = [group.get(part) for part in ("appends", "decodes")]
        loop = loops.get(key, {}).get("jax_baracuda")
        copies = [row["store_copies"] for row in (scan, loop) if row and "store_copies" in row]
        lines.append(
            [
                named(key),
                *(micros(row) for row in (*parts, single, scan, loop)),
                *(times(ratio(row, single)) for row in (scan, loop)),
                str(max(copies)) if copies else "-",
            ]
        )
    titles = ["layers, B, K", "appends, us", "decodes, us", "both, us"]
    titles += ["scan, us", "scan in a graph, us"]
    titles += ["scan x both", "in a graph", "copies of a store"]
    text = (
        "A step of `paged_append` with RoPE and `paged_decode` in every layer: the calls of either "
        "op, all calls, and a scan over layers that carries the stores."
    )
    return [text, "", *markdown(titles, lines), ""] if lines else []


def table(rows: list[Row]) -> str:
    """The README's tables, of the parts that ran."""
    sections = (
        decode_section,
        uneven_section,
        prefill_section,
        append_section,
        shared_section,
        layers_section,
    )
    lines = [line for section in sections for line in section(rows)]
    failed = sorted(
        {
            f"{series(row)} in {row['op']}: {row['error'].splitlines()[0]}"
            for row in rows
            if "error" in row
        }
    )
    lines += [f"Did not run: {'; '.join(failed)}.", ""] if failed else []
    return "\n".join([*lines, result_rows.origin(rows)])


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """The part "decode" over the cache length."""
    cells = even_decodes(rows)
    if cells:
        title = f"paged_decode, bf16, 32 query heads, D = 128, {rows[0]['gpu']}"
        curves.draw(cells, LABELS, COLORS, title, path)
