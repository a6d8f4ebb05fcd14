"""Turns result files into the README's tables, and plots the ops'.

python benchmarks/plot.py benchmarks/results/h200/decode.json
python benchmarks/plot.py benchmarks/results/h200/attention.json
python benchmarks/plot.py benchmarks/results/h200/decode_step.json
python benchmarks/plot.py benchmarks/results/h200/paged.json
python benchmarks/plot.py benchmarks/results/h200/training.json
python benchmarks/plot.py benchmarks/results/h200/int4.json
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import attention_plot
import curves
import int4_plot
import paged_plot
import rows as result_rows
import training_plot

OURS, CEILING = curves.OURS, curves.CEILING
LABELS = {
    CEILING: "read ceiling",
    OURS: "jax_baracuda",
    "torch_cudnn": "torch cuDNN",
    "jax_cudnn": "JAX cuDNN",
    "flashinfer": "FlashInfer",
    "pallas": "Pallas",
    "xla": "XLA",
}
COLORS = {
    CEILING: "0.6",
    OURS: "#d62728",
    "torch_cudnn": "#1f77b4",
    "jax_cudnn": "#2ca02c",
    "flashinfer": "#9467bd",
    "pallas": "#ff7f0e",
    "xla": "#8c564b",
}

Cells = curves.Cells


def by_cell(rows: list[dict[str, Any]]) -> Cells:
    """(Hkv, B, K) -> implementation -> row."""
    cells: Cells = {}
    for row in rows:
        config = row["config"]
        cells.setdefault((config["Hkv"], config["B"], config["K"]), {})[row["impl"]] = row
    return cells


def best_peer(cell: dict[str, dict[str, Any]]) -> float:
    """GB/s of the fastest peer; 0 if none ran."""
    return max(
        (row["gbps"] or 0 for impl, row in cell.items() if impl not in (OURS, CEILING)), default=0
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The README's table: GB/s of K and V, our time, and the ratio to the cell's best peer."""
    cells = by_cell(rows)
    peers = [
        impl
        for impl in LABELS
        if impl not in (OURS, CEILING) and any(impl in cell for cell in cells.values())
    ]
    names = [LABELS[impl] for impl in peers]
    titles = ["Hkv, B, K", "jax_baracuda", "us", "of read ceiling", *names, "x best peer"]
    lines = [
        "| " + " | ".join(titles) + " |",
        "|---" * (5 + len(peers)) + "|",
    ]
    behind, failed = [], []
    compared = 0
    for key, cell in cells.items():
        best = best_peer(cell)
        ours = cell.get(OURS, {"gbps": None})

        def speed(impl: str, cell: dict[str, dict[str, Any]] = cell, best: float = best) -> str:
            row = cell.get(impl)
            if row is None:
                return "-"
            if not row["gbps"]:
                return result_rows.missing(row)
            ahead = row["gbps"] >= best if impl == OURS else False
            return f"**{row['gbps']:.0f}**" if ahead else f"{row['gbps']:.0f}"

        name = ", ".join(str(number) for number in key)
        share = ours.get("percent_of_read")
        ratio = ours["gbps"] / best if ours["gbps"] and best else None
        if ratio is not None:
            compared += 1
            if ratio < 1:
                behind.append(f"{name} ({ratio:.2f}x)")
        failed += [f"{LABELS[impl]} at {name}" for impl, row in cell.items() if not row["gbps"]]
        lines.append(
            "| "
            + " | ".join(
                [
                    name,
                    speed(OURS),
                    f"{ours['ms'] * 1e3:.1f}" if ours.get("ms") else "-",
                    f"{share:.0f}%" if share else "-",
                    *(speed(impl) for impl in peers),
                    f"{ratio:.2f}" if ratio else "-",
                ]
            )
            + " |"
        )
    lines.append("")
    verdict = f"Ahead of every peer in {compared - len(behind)} of {compared} cells"
    lines.append(verdict + (f"; behind at {'; '.join(behind)}." if behind else "."))
    lines += [target for target in decode_targets(cells) if target]
    if failed:
        lines.append(f"Did not run: {'; '.join(failed)}.")
    lines.append(result_rows.origin(rows))
    return "\n".join(lines)


def decode_targets(cells: Cells) -> list[str]:
    """How far ours is where it has to be ahead, and where only the memory may hold it back."""
    ahead, shares = {}, {}
    for (kv_heads, batch, capacity), cell in cells.items():
        ours, best = cell.get(OURS, {}), best_peer(cell)
        name = f"{kv_heads}, {batch}, {capacity}"
        if ours.get("gbps") and best and batch == 1 and capacity <= 32768:
            ahead[name] = ours["gbps"] / best
        if "percent_of_read" in ours and ours["config"]["mb"] >= 256:
            shares[name] = ours["percent_of_read"] / 100
    return [
        paged_plot.verdict(what, ratios, target) if ratios else ""
        for what, ratios, target in (
            ("One request, K up to 32k, over the best peer", ahead, 1.15),
            ("Of the read ceiling, from 256 MB up", shares, 0.97),
        )
    ]


GRAPHS = {
    "none": "no CUDA graphs (`--xla_gpu_enable_command_buffer=`)",
    "default": "XLA's default",
    "body": "`--xla_gpu_graph_min_graph_size=1`",
    "loop": "both flags above: the loop itself in the graph",
}


def step_table(rows: list[dict[str, Any]]) -> str:
    """The README's table of graph_step.py: microseconds of a decode step by what is captured."""
    slowest = rows[0]["ms"]
    config = rows[0]["config"]
    lines = ["| captured | us a step | x |", "|---|---|---|"]
    lines += [
        f"| {GRAPHS[row['config']['graph']]} | {row['ms'] * 1e3:.1f} | {slowest / row['ms']:.2f} |"
        for row in rows
    ]
    lines += [
        "",
        f"{config['steps']} steps in one `while_loop`, {config['layers']} layers that append a row "
        f"and call flash_decode: B = {config['B']}, Hq = {config['Hq']}, Hkv = {config['Hkv']}, "
        f"D = {config['D']}, {config['K']} rows and growing. {result_rows.origin(rows)}",
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """GB/s over the cache length, one panel a (Hkv, batch); those with a line to draw."""
    title = f"flash_decode, bf16, 32 query heads, D = 128, {rows[0]['gpu']}"
    curves.draw(by_cell(rows), LABELS, COLORS, title, path)


def linked(image: pathlib.Path, title: str, text: str) -> str:
    """The text below the image, if a page of the repository can show that."""
    if not image.resolve().is_relative_to(result_rows.ROOT):
        return text
    return f"![{title}]({image.resolve().relative_to(result_rows.ROOT)})\n\n{text}"


def insert(readme: pathlib.Path, name: str, text: str) -> None:
    """Puts a text between the markers `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`."""
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    content = readme.read_text()
    if content.count(start) != 1 or content.count(end) != 1:
        raise SystemExit(f"{readme} must hold {start} and {end} once each")
    head, rest = content.split(start)
    tail = rest.split(end)[1]
    readme.write_text(f"{head}{start}\n{text}\n{end}{tail}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=pathlib.Path, nargs="+")
    parser.add_argument("--readme", type=pathlib.Path, default=result_rows.ROOT / "README.md")
    parser.add_argument("--no-readme", action="store_true", help="only plot and print the table")
    options = parser.parse_args()
    for path in options.results:
        rows = result_rows.read(path)
        image = path.with_suffix(".png")
        if rows[0]["op"] in paged_plot.OPS:
            paged_plot.plot(rows, image)
            name, text = "paged", paged_plot.table(rows)
            if image.exists():
                text = linked(image, "GB/s over the cache length", text)
        elif rows[0]["op"] == int4_plot.OP:
            int4_plot.plot(rows, image)
            name, text = "int4", linked(image, "Speed-up over rows", int4_plot.table(rows))
        elif rows[0]["op"] == training_plot.OP:
            training_plot.plot(rows, image)
            name = "training"
            text = linked(
                image, "Utilisation of a training step and loss curves", training_plot.table(rows)
            )
        elif rows[0]["pass"] == "step":
            name, text = "graphs", step_table(rows)
        elif rows[0]["op"] == "flash_attention":
            attention_plot.plot(rows, image)
            name, text = "attention", attention_plot.table(rows)
            text = linked(image, "TFLOP/s over the sequence length", text)
        else:
            plot(rows, image)
            name, text = "decode", linked(image, "GB/s over the cache length", table(rows))
        print(text)
        if not options.no_readme:
            insert(options.readme, name, text)


if __name__ == "__main__":
    main()
