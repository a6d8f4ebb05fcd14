"""How bench_paged.py turns answers into rows and lines, and rows into tables."""

from __future__ import annotations

import json

import bench_paged
import paged_grid
import paged_plot
import pytest
import runs
import turns
from paged_cells import Job

ORIGIN = {"gpu": "NVIDIA H200", "versions": {"jax": "0.0"}, "date": "2026-01-01", "commit": "abc"}


class FakeWorker:
    """Answers with what a table says of a job, a time or an error."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def send(self, name, *args):
        self.asked.append((name, *args))

    def receive(self, timeout):
        self.asked.append(("receive",))

    def call(self, name, *args):
        self.asked.append((name, *args))
        if name != "measure":
            return None
        answer = self.answers[args[0]]
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return {"ms": answer, "fastest": answer, "slowest": answer}

    def kill(self):
        self.asked.append(("kill",))


@pytest.fixture
def start(monkeypatch, tmp_path):
    """A run of some cells whose workers answer from a table."""

    def start(parts, answers, *arguments):
        def workers(makers):
            return {name: FakeWorker(answers) for name in makers}, "NVIDIA H200", {"jax": "0"}

        monkeypatch.setattr(runs, "start_workers", workers)
        options = bench_paged.parse(["--out", str(tmp_path / "paged.json"), *arguments])
        return bench_paged.Run(parts, options)

    return start


def cell_named(name):
    return next(c for cells in paged_grid.FULL.values() for c in cells if c.name == name)


def test_rows_have_speeds_shares_and_errors(start):
    cell = cell_named("8x1x1024")
    answers = dict.fromkeys(cell.jobs, 1.0)
    answers |= {Job("read_ceiling"): 0.5, Job("flash_decode"): "wrong result: 3"}
    run = start({"decode": [cell]}, answers)
    run.run()
    by_impl = {(row["impl"], row["config"].get("page_size")): row for row in run.rows}
    ours = by_impl["jax_baracuda", 16]
    assert ours["op"] == "paged_decode"
    assert ours["pass"] == "fwd"
    assert ours["gbps"] == pytest.approx(cell.bytes / 1e6)
    assert ours["percent_of_read"] == pytest.approx(50)
    assert ours["config"]["K"] == 1024
    assert by_impl["flash_decode", None]["error"] == "wrong result: 3"
    assert by_impl["flash_decode", None]["ms"] is None
    assert json.loads(run.path().read_text()) == run.rows
    assert run.finish() == 0


def test_a_failure_of_ours_fails_the_run(start):
    cell = cell_named("8x1x1024")
    answers = dict.fromkeys(cell.jobs, 1.0) | {Job("jax_baracuda", 16): "no"}
    run = start({"decode": [cell]}, answers)
    run.run()
    assert run.finish() == 1


@pytest.mark.parametrize("large", [False, True])
def test_beside_other_benchmarks_all_is_compiled_before_the_turn(
    start, monkeypatch, tmp_path, large
):
    monkeypatch.setenv(turns.FILE, str(tmp_path / "turn"))
    cell = cell_named("8x64x131072" if large else "8x1x1024")
    run = start({"decode": [cell]}, dict.fromkeys(cell.jobs, 1.0))
    order = []
    for worker in run.workers.values():
        worker.asked = order
    run.run()
    asked = [name for name, *_ in order]
    workers = len(run.workers)
    assert asked[: 2 * workers] == ["prepare"] * workers + ["receive"] * workers
    # What a large cell took is not left with the worker.
    assert asked.count("kill") == (workers if large else 0)
    assert asked.count("release") == (0 if large else workers)


def test_a_late_part_leaves_rows_that_say_so(start):
    parts = {"decode": [cell_named("8x1x1024")], "append": [cell_named("paged-64")]}
    run = start(parts, {}, "--budget", "0")
    run.run()
    assert len(run.rows) == sum(
        len(bench_paged.jobs_of(cell, run.options)) for cells in parts.values() for cell in cells
    )
    assert all("not measured" in row["error"] for row in run.rows)
    assert not any(worker.asked for worker in run.workers.values())


def test_prefill_rows_have_tflops(start):
    cell = cell_named("prefill-1x2048+4096")
    run = start({"prefill": [cell]}, dict.fromkeys(cell.jobs, 2.0))
    run.run()
    assert all(row["tflops"] == pytest.approx(cell.flops / 2e9) for row in run.rows)
    assert "TF 2000.0us" in bench_paged.line(cell, run.rows, 1.0)


def test_lines_show_copies_and_errors():
    row = {"impl": "jax_baracuda", "config": {"graph": "body"}, "ms": 1.0, "gbps": 5.0}
    assert bench_paged.figure(row | {"store_copies": 2}).endswith("2 COPIES")
    assert "COPIES" not in bench_paged.figure(row | {"store_copies": 0})
    failed = {"impl": "xla", "config": {}, "ms": None, "error": "first\nsecond"}
    assert bench_paged.figure(failed) == "xla FAILED: first"


# ---- tables


def measured(times):
    """Rows of all cells of the grid; ``times`` gives the milliseconds of (cell, job)."""
    rows = []
    for cells in paged_grid.FULL.values():
        for cell in cells:
            for job in cell.jobs:
                ms = times(cell, job)
                numbers = {"ms": ms, **cell.rate(ms)} if ms else {"ms": None, "error": "not there"}
                if cell.op == "decode_step":
                    numbers["store_copies"] = 0
                config = cell.config | job.config
                head = {"op": cell.op, "pass": cell.passes, "impl": job.impl, "config": config}
                rows.append(head | numbers | ORIGIN)
    return rows


def test_table_names_the_cells_below_a_target():
    def times(cell, job):
        slow = cell.name in ("8x8x2048", "8x64x8192") and job == Job("jax_baracuda", 16)
        return None if job.impl == "flashinfer" else 2.0 if slow else 1.0

    text = paged_plot.table(measured(times))
    assert "at least 0.97 in 20 of 22 cells; below at 8, 8, 2048 (0.50); 8, 64, 8192 (0.50)" in text
    assert "Pages of 1 over it: at least 0.75 in 6 of 6 cells (1.00 the least)." in text
    assert "Did not run: flashinfer in paged_decode: not there; flashinfer in paged_prefill" in text
    for head in ("| lengths |", "| rows |", "| op |", "| shared_prefix_decode |", "| layers, B, K"):
        assert head in text


def test_table_takes_flashinfer_from_another_day_where_it_was_not_run():
    rows = [row for row in measured(lambda cell, job: 1.0) if row["impl"] != "flashinfer"]
    text = paged_plot.table(rows)
    assert "another day" in text
    assert "| 480 |" in text
    other = paged_plot.table([row | {"gpu": "NVIDIA A100"} for row in rows])
    assert "another day" not in other


def test_table_of_a_part_alone_has_nothing_else():
    rows = [row for row in measured(lambda cell, job: 1.0) if row["op"] == "apply_rope"]
    text = paged_plot.table(rows)
    assert "| op |" in text
    assert "paged_decode" not in text


def test_every_op_of_the_grid_is_known_to_the_plot(tmp_path):
    rows = measured(lambda cell, job: 1.0)
    assert {row["op"] for row in rows} == paged_plot.OPS
    pytest.importorskip("matplotlib")
    paged_plot.plot(rows, tmp_path / "paged.png")
    assert (tmp_path / "paged.png").stat().st_size > 0
