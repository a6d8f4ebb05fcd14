"""The int4 benchmark: its cells, and one tiny run of every implementation."""

import json
import operator
import os

import bench_int4
import int4_engines
import pytest
from int4_engines import Int4Cell


def test_the_grid():
    cells = bench_int4.cells_of(bench_int4.parse([]))
    assert [sum(cell.dtype == dtype for cell in cells) for dtype in ("float16", "bfloat16")] == [
        48,
        10,
    ]
    assert cells[0] == Int4Cell(1, 8192, 28672)
    xla = [cell.rows for cell in cells if "xla_int4" in bench_int4.impls_of(cell, None)]
    assert xla == [1, 16, 128, 1024] * 4
    cells = bench_int4.cells_of(bench_int4.parse(["--cells", "3x64x128", "--dtypes", "bfloat16"]))
    assert cells == [Int4Cell(3, 64, 128, "bfloat16")]
    with pytest.raises(SystemExit, match=r"unknown \['marlin'\]"):
        bench_int4.impls_of(cells[0], "cublas,marlin")


@pytest.mark.parametrize("impl", int4_engines.IMPLS)
def test_weights_are_past_the_l2_cache(impl):
    for cell in bench_int4.cells_of(bench_int4.parse([])):
        assert cell.weights(impl) * cell.weight_bytes(impl) > 200e6
        assert cell.weights(impl) * cell.bytes(impl) < 20e9
    assert Int4Cell(1, 4096, 4096).bytes("cublas") == 2 * 4096**2 + 4 * 4096


def test_a_run(monkeypatch):
    """In this process, with few weights."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # the engine adds to it
    monkeypatch.setattr(int4_engines, "MOST_WEIGHTS", 3)
    engine = int4_engines.int4_engine()
    impls = list(int4_engines.IMPLS)
    for cell in (Int4Cell(5, 256, 128), Int4Cell(7, 256, 128), Int4Cell(7, 128, 256)):
        engine.prepare(impls, cell)
        weights = {impl: engine.weights(impl, cell) for impl in impls}
        for impl in impls:
            numbers = engine.measure(impl, cell, 0.01)
            assert numbers["ms"] > 0
            assert numbers["weights"] == 3
            assert ("error_vs_float32" in numbers) == (impl == "jax_baracuda")
            assert all(map(operator.is_, engine.weights(impl, cell), weights[impl]))


def test_rows_of_a_file(tmp_path, monkeypatch):
    class Worker:
        def send(self, name, *args):
            assert name == "prepare"

        def receive(self, timeout):
            pass

        def call(self, name, impl, cell, seconds):
            if impl == "xla_int4":
                raise RuntimeError("out of memory")
            return {"ms": 0.4 if impl == "cublas" else 0.1}

        def kill(self):
            pass

    monkeypatch.setattr(
        "runs.start_workers", lambda makers: ({name: Worker() for name in makers}, "NVIDIA X1", {})
    )
    out = tmp_path / "int4.json"
    assert bench_int4.main(["--cells", "16x256x128", "--out", str(out)]) == 0
    rows = {row["impl"]: row for row in json.loads(out.read_text())}
    assert rows["jax_baracuda"]["x_cublas"] == 4
    assert rows["jax_baracuda"]["config"]["M"] == 16
    assert rows["cublas"]["gbps"] == pytest.approx((2 * 256 * 128 + 32 * 384) / 0.4 / 1e6)
    assert rows["xla_int4"]["error"] == "out of memory"
