"""The tables and plots of attention, decode and int4, from rows made up here."""

from __future__ import annotations

import sys

import attention_earlier
import attention_plot
import bench_attention
import bench_int4
import int4_plot
import plot
import pytest
import rows as result_rows
from cells import DECODE_GRID

ORIGIN = {"gpu": "NVIDIA H200", "versions": {"jax": "0.0"}, "date": "2026-01-01", "commit": "abc"}


def attention_rows(speeds):
    """Rows of the whole grid from TFLOP/s by implementation."""
    return [
        {
            "op": "flash_attention",
            "pass": passes,
            "impl": impl,
            "config": {
                "B": cell.batch,
                "S": cell.length,
                "Hq": cell.query_heads,
                "Hkv": cell.kv_heads,
                "D": cell.head_dim,
                "causal": cell.causal,
                "window": cell.window or None,
            }
            | ({"variant": cell.variant} if cell.variant else {}),
            "ms": 1.0 if not cell.window else 0.1,
            "tflops": tflops * (0.7 if cell.variant == "bias" else 1.0),
            **ORIGIN,
        }
        for cell in bench_attention.GRID
        for passes in cell.passes
        for impl, tflops in speeds.items()
        if impl == "jax_baracuda" or not cell.alone
    ]


def test_attention_table_has_peers_of_another_day_by_their_ratio():
    text = attention_plot.table(attention_rows({"jax_baracuda": 200.0, "torch_cudnn": 200.0}))
    assert text.count("By their ratio to torch's cuDNN on another day") == 2  # not of both passes
    # D = 128, causal, 8192 backward: 546 of FlashAttention-4 to cuDNN's 478.
    ratio = attention_earlier.over_cudnn("flash4", "bwd", 128, True, 8192)
    assert ratio == pytest.approx(546 / 478)
    assert attention_earlier.over_cudnn("flash_attn_jax", "fwd", 256, False, 1024) is None
    assert attention_earlier.over_cudnn("flash4", "fwdbwd", 128, True, 8192) is None
    assert "window of 1024 against the whole causal mask" in text
    assert "10.0x" in text
    assert "32 query heads on 8 key/value heads" in text


def test_attention_table_tells_what_options_cost():
    speeds = {"jax_baracuda": 200.0, "torch_cudnn": 200.0, "torch_flash": 210.0}
    text = attention_plot.table(attention_rows(speeds))
    assert "| 64 causal 4096 fwd | 200 | - | 1.00 | 1.00 | 0.70 | 1.00 | 1.00 | 1.00 |" in text
    assert "| 64 causal 4096 bwd | 200 | 1.00 | 1.00 | 1.00 | 0.70 | 1.00 | 1.00 | 1.00 |" in text
    assert "deterministic=True: at least 0.83 in 7 of 7 cells (1.00 the least)." in text
    assert "dropout: at least 0.80 in 8 of 10 cells; below" in text
    assert "below at 64 causal 4096 fwd bias (0.70)" in text
    assert "packed: at least 0.90 in 6 of 6 cells (1.00 the least)." in text
    assert "FlashAttention-2: at least 1.00 in 0 of 6 cells; below at 128 causal 4096" in text
    assert "ahead of every peer in 0 of 36 cells" in text


def test_attention_table_prefers_a_peer_that_was_there():
    speeds = {"jax_baracuda": 300.0, "torch_cudnn": 200.0, "flash_attn_jax": 100.0}
    text = attention_plot.table(attention_rows(speeds))
    assert "ahead of FlashAttention-2 in 36 of 36 cells (3.00x at the least" in text
    assert "another day: ahead of FlashAttention-4" in text
    assert "ahead of FlashAttention-2 (JAX) in" not in text


def test_figures_of_another_day_are_of_the_grid():
    grid = {
        (cell.head_dim, cell.causal)
        for cell in bench_attention.GRID
        if cell.query_heads == cell.kv_heads
    }
    for cells in attention_earlier.FIGURES.values():
        assert set(cells) == grid
        for figures in cells.values():
            assert set(figures) == {"torch_cudnn", *attention_earlier.LABELS}
            assert all(len(row) == len(attention_earlier.LENGTHS) for row in figures.values())


def test_decode_table_names_the_cells_below_a_target():
    rows = []
    for cell in DECODE_GRID:
        slow = cell.name == "8x64x8192"
        for impl, gbps in {
            "read_ceiling": 4000.0,
            "torch_cudnn": 3000.0,
            "jax_baracuda": 3600.0 if slow or cell.name == "8x1x2048" else 3900.0,
        }.items():
            config = {
                "Hkv": cell.kv_heads,
                "B": cell.batch,
                "K": cell.capacity,
                "mb": cell.bytes / 1e6,
            }
            row = {"op": "flash_decode", "pass": "fwd", "impl": impl, "config": config}
            rows.append(row | {"gbps": gbps, "ms": 1.0, "percent_of_read": gbps / 40} | ORIGIN)
    text = plot.table(rows)
    assert (
        "One request, K up to 32k, over the best peer: at least 1.15 in 5 of 5 cells (1.20 the"
        in text
    )
    assert "from 256 MB up: at least 0.97 in 14 of 15 cells; below at 8, 64, 8192 (0.90)." in text


def int4_rows(factor):
    """Rows of the grid: ours so many times as fast as cuBLAS."""
    rows = []
    for cell in bench_int4.cells_of(bench_int4.parse([])):
        for impl, ms in {"cublas": 1.0, "jax_baracuda": 1 / factor(cell), "xla_int4": 2.0}.items():
            numbers = {"ms": ms, "x_cublas": 1 / ms}
            if impl == "xla_int4" and cell.rows == 4096:
                numbers = {"ms": None, "error": "out of memory"}
            head = {"op": "int4_matmul", "pass": "fwd", "impl": impl}
            rows.append(head | {"config": bench_int4.config_of(cell)} | numbers | ORIGIN)
    return rows


def test_int4_table_names_the_cells_below_a_target():
    def factor(cell):
        return 1.0 if cell.rows == 128 and cell.in_features == 4096 else 3.3

    text = int4_plot.table(int4_rows(factor))
    assert "8192 x 28672, M up to 16: at least 3.20 in 5 of 5 cells (3.30 the least)." in text
    assert "M = 128: at least 1.15 in 2 of 4 cells; below at float16, 4096 x 4096, 128" in text
    assert "Did not run: XLA int4 at M = 4096." in text
    assert text.count(" 1000 us |") == 48 + 10
    assert "bfloat16, times as fast as float16: at least 0.97 in 10 of 10 cells" in text


def test_plots_of_every_kind_of_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    files = {
        "attention": attention_rows({"jax_baracuda": 2.0, "torch_cudnn": 1.0}),
        "int4": int4_rows(lambda cell: 2.0),
    }
    for name, rows in files.items():
        result_rows.write(tmp_path / f"{name}.json", rows)
    paths = [str(tmp_path / f"{name}.json") for name in files]
    monkeypatch.setattr(sys, "argv", ["plot.py", "--no-readme", *paths])
    plot.main()
    assert "| 4096 x 4096 float16 |" in capsys.readouterr().out
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in files)


def test_the_readme_has_a_place_for_every_table():
    readme = (result_rows.ROOT / "README.md").read_text()
    for name in ("graphs", "attention", "training", "decode", "paged", "int4"):
        assert readme.count(f"<!-- bench:{name} -->") == 1
        assert readme.count(f"<!-- /bench:{name} -->") == 1


def test_origin_names_every_run():
    one = {**ORIGIN, "commit": "abd", "date": "2026-01-02"}
    assert result_rows.origin([ORIGIN]) == "NVIDIA H200, 2026-01-01, commit abc; jax 0.0."
    assert result_rows.origin([one, ORIGIN, ORIGIN]) == (
        "NVIDIA H200, 2026-01-01, commit abc (2 rows), 2026-01-02, commit abd (1 rows); jax 0.0."
    )
