"""The cells of bench_paged.py, and what it runs of them."""

from __future__ import annotations

import bench_paged
import numpy as np
import paged_grid
import pytest
from cells import DECODE_GRID
from hypothesis import given
from hypothesis import strategies as st
from paged_cells import AppendCell, Job, LayersCell, PrefillCell, padded, page_table

CELLS = [cell for cells in paged_grid.FULL.values() for cell in cells]


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=9),
    page_size=st.sampled_from((1, 3, 16, 64)),
    spare=st.integers(0, 3),
)
def test_page_table_gives_each_request_pages_of_its_own(lengths, page_size, spare):
    needed = sum(-(-length // page_size) for length in lengths)
    table = page_table(lengths, page_size, needed + spare)
    assert all(array.dtype == np.int32 for array in table)
    assert len(table.indices) == needed == table.indptr[-1]
    assert len(set(table.indices.tolist())) == needed
    assert not needed or table.indices.max() < needed + spare
    counts = np.diff(table.indptr)
    held = np.maximum(counts - 1, 0) * page_size + table.last_page_len
    np.testing.assert_array_equal(held, lengths)
    assert (table.last_page_len <= page_size).all()
    assert padded(lengths, page_size) == needed * page_size


def test_the_pages_of_a_table_are_shuffled():
    indices = page_table((1024,), 16, 64).indices
    assert (np.diff(indices) == 1).mean() < 0.2


def test_cells_are_told_apart_and_fit_the_card():
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    assert set(names) >= paged_grid.QUICK
    assert all(cell.bytes * cell.sets < 60e9 for cell in CELLS)


def test_decode_covers_what_flashinfer_was_measured_in():
    shapes = {(cell.kv_heads, cell.batch, cell.capacity) for cell in DECODE_GRID}
    assert set(paged_grid.FLASHINFER_EARLIER) == shapes
    measured = {(c.kv_heads, c.batch, c.capacity) for c in paged_grid.FULL["decode"]}
    assert measured == shapes


def test_decode_cells_read_every_live_row_once():
    cell = next(cell for cell in paged_grid.FULL["uneven"] if "131072" in cell.name)
    assert cell.bytes == 4 * 8 * 128 * (131072 + 63 * 512)


@pytest.mark.parametrize("cell", paged_grid.FULL["uneven"], ids=lambda cell: cell.name)
def test_uneven_cells_have_a_control_with_as_many_bytes(cell):
    pairs = {c.control or c.uneven for c in paged_grid.FULL["uneven"]}
    twins = [c for c in paged_grid.FULL["uneven"] if cell.uneven and c.control == cell.uneven]
    assert len(pairs) * 2 == len(paged_grid.FULL["uneven"])
    assert all(twin.bytes == cell.bytes for twin in twins)
    assert bool(twins) == bool(cell.uneven)


@given(st.lists(st.integers(0, 500), min_size=1).filter(any))
def test_evenly_keeps_the_rows_of_the_live_requests(lengths):
    even = paged_grid.evenly(lengths)
    assert sum(even) == sum(lengths)
    assert len(even) == sum(length > 0 for length in lengths)
    assert max(even) - min(even) <= 1


def test_prefill_counts_the_keys_that_rows_see():
    cell = PrefillCell(
        jobs=(), queries=(3, 1), lengths=(5, 7), query_heads=2, kv_heads=1, head_dim=8
    )
    assert cell.flops == 4 * 8 * 2 * ((3 + 4 + 5) + 7)
    assert cell.rate(2.0)["tflops"] == pytest.approx(cell.flops / 2e9)


def test_appends_count_what_is_read_and_written():
    fields = {"jobs": (), "op": "paged_append", "batch": 2, "new": 5, "history": 30}
    plain = AppendCell(**fields, kv_heads=2, query_heads=4, head_dim=8)
    rotated = AppendCell(**fields, kv_heads=2, query_heads=4, head_dim=8, rope=True)
    rows = 2 * 5 * 8 * 2  # bytes of one head
    assert plain.bytes == 2 * rows * (2 + 2)
    assert rotated.bytes == 2 * rows * (2 + 2 + 4)
    assert plain.capacity % 16 == 0
    assert (plain.starts + plain.new <= plain.capacity).all()


def test_a_step_reads_all_layers():
    cell = LayersCell(jobs=(), layers=3, batch=2, length=100, kv_heads=2, head_dim=8)
    assert cell.bytes == 3 * 2 * 100 * (2 * 2 * 8 * 2)
    assert cell.pages * 16 == 2 * 128


# ---- what a run chooses


def test_deadlines_hand_on_what_a_part_leaves():
    parts = ["decode", "layers"]
    ends = bench_paged.deadlines(parts, 90.0)
    assert ends["decode"] == pytest.approx(90 * 72 / (72 + 18))
    assert ends["layers"] == pytest.approx(90.0)


def test_parts_and_cells_are_chosen_by_name():
    options = bench_paged.parse(["--parts", "append,decode", "--cells", "paged-64,8x1x1024"])
    found = bench_paged.cells_of(options)
    assert {part: [c.name for c in cells] for part, cells in found.items()} == {
        "decode": ["8x1x1024"],
        "append": ["paged-64"],
    }
    with pytest.raises(SystemExit, match=r"unknown \['nonsense'\]"):
        bench_paged.cells_of(bench_paged.parse(["--parts", "nonsense"]))


def test_quick_has_every_part_and_a_dry_run_is_tiny():
    quick = bench_paged.cells_of(bench_paged.parse(["--quick"]))
    tiny = bench_paged.cells_of(bench_paged.parse(["--dry-run"]))
    assert set(quick) == set(tiny) == set(bench_paged.PARTS)
    assert max(cell.bytes for cells in tiny.values() for cell in cells) < 1e6
    kinds = {type(cell) for cell in CELLS}
    assert {type(cell) for cells in tiny.values() for cell in cells} == kinds


def test_a_dry_run_needs_jax_alone():
    options = bench_paged.parse(["--dry-run"])
    jobs = [job for cell in CELLS for job in bench_paged.jobs_of(cell, options)]
    assert {job.engine for job in jobs} == {"jax", "jax_loop"}


def test_jobs_name_their_engine_and_config():
    assert Job("flashinfer", 16).engine == "torch"
    assert Job("device_copy").engine == "ceiling"
    assert Job("jax_baracuda", graph="loop").engine == "jax_loop"
    assert Job("jax_baracuda", 16).config == {"page_size": 16}
    assert Job("xla").config == {}
