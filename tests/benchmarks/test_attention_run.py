"""The attention benchmark: its cells, their order, and a run with workers that measure nothing."""

from __future__ import annotations

import json

import bench_attention
import pytest


class Worker:
    """Answers at once; remembers what was measured, in all workers together."""

    def __init__(self, measured):
        self.measured, self.prepared = measured, []

    def send(self, name, jobs, cell):
        assert name == "prepare"
        self.prepared = [(job, cell) for job in jobs]

    def receive(self, timeout):
        pass

    def call(self, name, impl, passes, cell, seconds):
        assert name == "measure"
        assert ((impl, passes), cell) in self.prepared
        self.measured.append((impl, passes, seconds))
        if impl == "torch_flash":
            raise RuntimeError("no kernel")
        return {"ms": 2.0}

    def kill(self):
        pass


@pytest.fixture
def measured(monkeypatch):
    found = []
    monkeypatch.setattr(
        "runs.start_workers",
        lambda makers: ({name: Worker(found) for name in makers}, "NVIDIA X1", {}),
    )
    return found


def test_the_grid_has_every_cell_once():
    names = [cell.name for cell in bench_attention.GRID]
    assert len(set(names)) == len(names)
    plain = [
        cell for cell in bench_attention.GRID if not cell.alone and cell != bench_attention.GQA
    ]
    assert len(plain) == 36
    assert {cell.name for cell in bench_attention.QUICK} <= set(names)
    for cell in bench_attention.GRID:  # what is compared is measured one after the other
        if cell.alone:
            mask = "causal" if cell.causal else "full"
            before = names[: names.index(cell.name)]
            last = next(name for name in reversed(before) if name.count("-") == 2)
            assert last in (f"{cell.length}-{cell.head_dim}-{mask}", bench_attention.WINDOW.name)


def test_implementations_of_a_pass_take_turns(measured, tmp_path):
    out = tmp_path / "attention.json"
    cells = "4096-128-causal,4096-128-causal-deterministic,512-64-full"
    impls = "torch_cudnn,torch_flash,jax_baracuda,jax_cudnn"
    arguments = ["--cells", cells, "--impls", impls, "--out", str(out)]
    assert bench_attention.main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["impl"] for row in rows[:4]] == impls.split(",")
    assert [row["pass"] for row in rows[:12]] == ["fwd"] * 4 + ["bwd"] * 4 + ["fwdbwd"] * 4
    assert [(row["impl"], row["pass"]) for row in rows[12:14]] == [
        ("jax_baracuda", "bwd"),
        ("jax_baracuda", "fwdbwd"),
    ]
    assert rows[14]["impl"] == "jax_baracuda"  # another one begins
    assert len(rows) == 26
    assert len(measured) == 29  # and once in vain, in each cell
    assert all("error" in row for row in rows if row["impl"] == "torch_flash")
    assert all(row["tflops"] > 0 for row in rows if row["impl"] != "torch_flash")


def test_past_the_budget_only_ours_is_measured(measured, capsys):
    arguments = ["--cells", "512-64-full", "--budget", "-1", "--out", "-"]
    assert bench_attention.main(arguments) == 0
    assert {impl for impl, _, _ in measured} == {"jax_baracuda"}
    assert "the peers were left out" in capsys.readouterr().out
