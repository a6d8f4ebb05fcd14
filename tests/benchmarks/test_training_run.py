"""The training benchmark: flops, rows, loss curves against the peer's, and one tiny run."""

from __future__ import annotations

import dataclasses
import json
import sys

import bench_training
import plot
import pytest
import runs
import training_engine
import training_plot
from training_engine import TrainingCell

CELL = TrainingCell(length=4096, batch=8, remat="none", steps=12)


def numbers(ms=100.0, losses=(8.0, 7.0, 6.0)):
    """What the engine answers."""
    return {
        "ms": ms,
        "fastest": ms,
        "slowest": ms,
        "tflops": 49450 / ms,
        "tokens_per_second": 1e6,
        "parameters": 346_000_000,
        "gb": 20.0,
        "compile_seconds": 1.0,
        "losses": list(losses),
    }


class FakeWorker:
    """Answers with what a table says of an implementation, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def call(self, name, *args, timeout=0):
        self.asked.append((name, *args))
        if name != "measure":
            return None
        if isinstance(self.answers, str):
            raise RuntimeError(self.answers)
        return {impl: self.answers[impl] for impl in args[0]}

    def kill(self):
        pass


@pytest.fixture
def start(monkeypatch, tmp_path):
    """A run whose worker answers from a table."""

    def start(answers, *arguments):
        def workers(makers):
            return {name: FakeWorker(answers) for name in makers}, "NVIDIA H200", {"jax": "0"}

        monkeypatch.setattr(runs, "start_workers", workers)
        options = bench_training.parse(["--out", str(tmp_path / "training.json"), *arguments])
        cells, impls = bench_training.cells_of(options), bench_training.impls_of(options)
        run = bench_training.Run(cells, impls, options)
        run.run()
        return run

    return start


def test_attention_flops_are_those_of_the_visible_pairs():
    length, layers, heads, head_dim = 64, 3, 4, 8
    pairs = length * (length + 1) / 2  # a triangle with its diagonal
    forward = 2 * 2 * head_dim * pairs * heads * layers  # two products, a multiply and an add each
    counted = length * training_engine.attention_flops(length, layers, heads, head_dim)
    assert counted == pytest.approx(3 * forward * length / (length + 1))


def test_steps_are_warm_up_and_whole_samples():
    for steps in range(2 + training_engine.SAMPLES, 60):
        warm_up = dataclasses.replace(CELL, steps=steps).warm_up
        assert warm_up >= 2
        assert (steps - warm_up) % training_engine.SAMPLES == 0
        assert steps - warm_up >= training_engine.SAMPLES


def test_grid_and_options():
    def cells(*arguments):
        return bench_training.cells_of(bench_training.parse(list(arguments)))

    names = [cell.name for cell in cells()]
    assert names == ["4096-save_products", "16384-save_products", "4096-none", "16384-none"]
    assert {cell.tokens for cell in cells()} == {32768}
    assert [cell.batch for cell in cells("--tokens", "65536", "--quick")] == [16, 4, 16, 4]
    assert [cell.name for cell in cells("--cells", "4096-none")] == ["4096-none"]
    with pytest.raises(SystemExit, match="unknown \\['8-none'\\]"):
        cells("--cells", "8-none")
    options = bench_training.parse(["--impls", "jax_baracuda,jax_cudnn"])
    assert bench_training.impls_of(options) == ["jax_cudnn", "jax_baracuda"]
    assert bench_training.peak("NVIDIA H200") == 989
    assert bench_training.peak("cpu") is None


def test_rows_have_utilisation_and_the_distance_of_the_losses(start):
    answers = {"jax_cudnn": numbers(100.0), "jax_baracuda": numbers(80.0, (8.0, 7.02, 6.01))}
    run = start(answers, "--cells", "4096-none,16384-none")
    peer, ours = run.rows[:2]
    assert len(run.rows) == 4
    assert (peer["impl"], ours["impl"]) == ("jax_cudnn", "jax_baracuda")
    assert peer["mfu"] == pytest.approx(0.5)
    assert ours["mfu"] == pytest.approx(0.5 * 100 / 80)
    assert ours["loss_difference"] == pytest.approx(0.02)
    assert ours["loss_difference_mean"] == pytest.approx(0.01)
    assert "loss_difference" not in peer
    assert json.loads(run.path().read_text()) == run.rows
    assert run.finish() == 0
    asked = [name for name, *_ in run.workers["jax"].asked]
    assert asked == ["prepare", "measure", "measure"]  # nothing compiles beside a measurement


def test_another_loss_curve_fails_the_run(start, capsys):
    wrong = numbers(80.0, (8.0, 7.2, 6.0))
    run = start({"jax_cudnn": numbers(), "jax_baracuda": wrong}, "--cells", "4096-none")
    assert run.rows[1]["error"] == "the loss of step 1 is off by 0.200 bits per byte"
    assert "FAILED: the loss of step 1" in capsys.readouterr().out
    assert run.finish() == 1


def test_a_peer_that_fails_leaves_ours(start):
    answers = {"jax_cudnn": "cuDNN is not detected", "jax_baracuda": numbers()}
    run = start(answers, "--cells", "4096-none")
    assert run.rows[0]["error"] == "cuDNN is not detected"
    assert run.rows[1]["ms"]
    assert run.finish() == 0


def test_a_worker_that_dies_costs_a_cell_both_rows(start):
    run = start("the worker died (exit code -9)", "--cells", "4096-none")
    assert [row["error"] for row in run.rows] == 2 * ["the worker died (exit code -9)"]


def test_cells_past_the_budget_are_left_out(start, capsys):
    answers = dict.fromkeys(("jax_cudnn", "jax_baracuda"), numbers())
    run = start(answers, "--budget", "0")
    assert {row["config"]["S"] for row in run.rows} == {4096}  # the first is measured anyway
    assert capsys.readouterr().out.count("left out") == 3
    assert [name for name, *_ in run.workers["jax"].asked] == ["prepare", "measure"]


def test_table_and_plot(start, tmp_path):
    answers = {"jax_cudnn": numbers(100.0), "jax_baracuda": numbers(80.0, (8.0, 7.02, 6.0))}
    text = training_plot.table(start(answers).rows)
    assert (
        "| 4096 | `none` | 80.0 ms, 62.5%, 20 GB | 100.0 ms, 50.0%, 20 GB | 1.25 | 0.0200 |" in text
    )
    assert "of 989 TFLOP/s dense bfloat16" in text
    rows = start(answers | {"jax_cudnn": "out of memory"}).rows
    assert "Failed: JAX cuDNN at 4096, none: out of memory." in training_plot.table(rows)
    pytest.importorskip("matplotlib")
    for plotted in (start(answers).rows, rows):
        training_plot.plot(plotted, tmp_path / "training.png")
        assert (tmp_path / "training.png").stat().st_size > 0


def test_plot_knows_the_file(start, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    run = start(dict.fromkeys(("jax_cudnn", "jax_baracuda"), numbers()))
    monkeypatch.setattr(sys, "argv", ["plot.py", "--no-readme", str(run.path())])
    plot.main()
    assert "| 4096 | `save_products` |" in capsys.readouterr().out


def test_a_run_on_the_cpu(monkeypatch):
    """The engine in this process, with a network of one layer."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    monkeypatch.setattr(sys, "path", list(sys.path))
    engine = training_engine.TrainingEngine()
    model, run = engine.config.PRESETS["tiny"]
    small = dataclasses.replace(model, num_hidden_layers=1, hidden_size=48, intermediate_size=64)
    monkeypatch.setitem(engine.config.PRESETS, "tiny", (small, run))
    cell = TrainingCell(length=32, batch=2, remat="save_products", steps=12, preset="tiny")
    impls = ["jax_cudnn", "jax_nn", "jax_baracuda"]
    engine.prepare([(impl, cell) for impl in impls])
    cudnn, theirs, ours = engine.measure(impls, cell).values()
    assert len(ours["losses"]) == cell.steps
    assert ours["losses"][-1] < ours["losses"][0]
    assert "error" not in bench_training.differences(ours["losses"], theirs["losses"])
    assert 0 < ours["fastest"] <= ours["ms"] <= ours["slowest"]
    assert ours["tflops"] == pytest.approx(
        64 * engine.token_flops(cell, ours["parameters"]) / ours["ms"] / 1e9
    )
    if engine.jax.default_backend() == "cpu":
        assert "cuDNN" in cudnn
