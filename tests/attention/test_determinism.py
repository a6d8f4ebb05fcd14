"""The same call gives the same bits: a thousand times, under XLA's flag, in a CUDA graph."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import (
    AttentionCase,
    attention_function,
    gradient_function,
    loops,
    make_attention_inputs,
    run_attention,
)
from jax_baracuda.testing.calls import count_differences

# Enough blocks of queries and keys that they run at the same time on every multiprocessor.
CASES = {
    "causal": AttentionCase(
        "causal", batch=4, query_length=1024, kv_heads=4, group=4, head_dim=128, is_causal=True
    ),
    "bias": AttentionCase(
        "bias",
        batch=4,
        query_length=500,
        kv_heads=4,
        dtype="float16",
        bias="q",
        sinks=True,
        dropout_rate=0.1,
        lse_cotangent=True,
    ),
    "float32": AttentionCase(
        "float32", batch=3, query_length=400, key_length=700, dtype="float32", local_window_size=150
    ),
    "varlen": AttentionCase(
        "varlen",
        query_length=3000,
        kv_heads=2,
        group=8,
        head_dim=96,
        cu_seqlens_q=(0, 700, 701, 701, 1900, 3000),
        cu_seqlens_k=(0, 900, 950, 950, 1900, 3000),
        is_causal=True,
    ),
    "split": AttentionCase(
        "split", batch=1, query_length=40, key_length=5000, group=4, head_dim=128, is_causal=True
    ),
    "groups": AttentionCase(
        "groups", batch=60, query_length=16, key_length=500, kv_heads=4, group=8, head_dim=128
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def operands_of(case: AttentionCase, *, cotangents: bool) -> dict[str, jax.Array]:
    inputs = make_attention_inputs(case)
    arrays = dict(inputs.arrays())
    if cotangents:
        arrays["dout"] = inputs.dout
        if inputs.dlse is not None:
            arrays["dlse"] = inputs.dlse
    return jax.device_put(arrays)


def bits(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}") for n, a in results.items()}


def check_equal(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert set(got) == set(want)
    for name, array in bits(got).items():
        np.testing.assert_array_equal(array, bits(want)[name], err_msg=name)


@pytest.mark.gpu
@every_case
def test_forward_repeats_bitwise(case):
    call = attention_function(case, implementation="cuda")
    step = jax.jit(lambda operands: call(**operands))
    assert count_differences(step, operands_of(case, cotangents=False), 1000) == 0


@pytest.mark.gpu
@every_case
def test_backward_repeats_bitwise(case):
    """With deterministic=True no sum depends on which block comes first."""
    case = dataclasses.replace(case, deterministic=True)
    call = gradient_function(case, implementation="cuda")
    step = jax.jit(lambda operands: call(**operands))
    assert count_differences(step, operands_of(case, cotangents=True), 1000) == 0


# ---- in processes of their own, with XLA's flags


def start(folder: pathlib.Path, task: str, flags: str) -> subprocess.Popen:
    """A task below in a process with these XLA flags, dumping to the folder."""
    folder.mkdir(exist_ok=True)
    xla_flags = f"{flags} --xla_dump_to={folder} --xla_dump_hlo_as_text"
    environment = os.environ | {"XLA_FLAGS": xla_flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        [sys.executable, __file__, task, str(folder / "results.npz")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, folder: pathlib.Path) -> dict[str, np.ndarray]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return dict(np.load(folder / "results.npz"))


def repeat_gradients() -> dict[str, np.ndarray]:
    """The gradients without the argument, and how often they differed in 200 calls."""
    case = CASES["causal"]
    call = gradient_function(case, implementation="cuda")
    step = jax.jit(lambda operands: call(**operands))
    operands = operands_of(case, cotangents=True)
    differences = np.asarray(count_differences(step, operands, 200))
    results = {name: np.asarray(array) for name, array in step(operands).items()}
    return bits(results) | {"differences": differences}


@pytest.mark.gpu
@pytest.mark.long
def test_xla_flag_asks_for_determinism(tmp_path):
    """--xla_gpu_deterministic_ops=true is as good as the argument: the same bits."""
    process = start(tmp_path, "repeat", "--xla_gpu_deterministic_ops=true")
    case = dataclasses.replace(CASES["causal"], deterministic=True)
    inputs = make_attention_inputs(case)
    want = run_attention(case, inputs, gradients=True, implementation="cuda")
    got = finish(process, tmp_path)
    assert got.pop("differences") == 0
    check_equal(got, bits(want))


def train_layers() -> dict[str, np.ndarray]:
    """The gradients of three layers, with options whose lengths are data."""

    def loss(parameters, lengths):
        x = parameters["x"]
        for index in range(3):
            out = jax_baracuda.flash_attention(
                x,
                x[:, :, :2] * (index + 1),
                x[:, :, 2:],
                is_causal=True,
                sinks=parameters["sinks"],
                bias=parameters["bias"],
                key_value_seq_lengths=lengths,
                deterministic=True,
                implementation="cuda",
            )
            x = (x + out).astype(x.dtype)
        return jnp.sum(x.astype(jnp.float32) ** 2)

    @jax.jit
    def train(parameters, lengths):
        value, gradients = jax.value_and_grad(loss)(parameters, lengths)
        return {"value": value, **gradients}

    keys = jax.random.split(jax.random.key(0), 3)
    parameters = {
        "x": jax.random.normal(keys[0], (2, 300, 4, 64), jnp.bfloat16),
        "sinks": jax.random.normal(keys[1], (4,)),
        "bias": jax.random.normal(keys[2], (1, 4, 300, 300)),
    }
    lengths = jnp.asarray((300, 117), jnp.int32)
    for _ in range(3):  # a graph is built in the first runs and replayed after
        results = train(parameters, lengths)
    return bits({name: np.asarray(array)[None] for name, array in results.items()})


@pytest.mark.gpu
@pytest.mark.long
def test_cuda_graph_gives_the_same_bits(tmp_path):
    """Forward and backward in a CUDA graph, every kernel of ours in it, equal those without."""
    folders = {mode: tmp_path / mode for mode in ("none", "body")}
    processes = {m: start(f, "train", loops.GRAPH_FLAGS[m]) for m, f in folders.items()}
    results = {mode: finish(processes[mode], folder) for mode, folder in folders.items()}

    plain = loops.thunks(folders["none"], "jit_train")
    assert not any(kind == "kCommandBuffer" for kind, _ in plain), plain
    assert sum(kind == "kCustomCall" for kind, _ in plain) >= 9, plain  # three of each kernel
    captured = loops.thunks(folders["body"], "jit_train")
    assert any(kind == "kCommandBuffer" for kind, _ in captured), captured
    assert not any(kind == "kCustomCall" and not inside for kind, inside in captured), captured

    assert np.isfinite(results["none"]["value"].view(np.float32)).all()
    check_equal(results["body"], results["none"])


if __name__ == "__main__":
    np.savez(sys.argv[2], **{"repeat": repeat_gradients, "train": train_layers}[sys.argv[1]]())
