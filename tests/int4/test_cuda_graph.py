"""Products in loops: CUDA graphs capture them, and scans over layers copy no weights."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import int4_matmul
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import loops

STEPS, LAYERS, FEATURES = 32, 3, 512
ROWS = (5, 80)  # one of each kernel on Hopper; other shapes than the scales


def weights_of(dtype: Any) -> list[Int4Weight]:
    keys = jax.random.split(jax.random.key(0), LAYERS)
    matrices = [jax.random.normal(key, (FEATURES, FEATURES), dtype) for key in keys]
    return [Int4Weight.quantize(matrix / FEATURES**0.5) for matrix in matrices]


def loop_inputs(rows: int) -> tuple[jax.Array, jax.Array, list[Int4Weight]]:
    x = jax.random.normal(jax.random.key(1), (rows, FEATURES), jnp.bfloat16)
    return x, jnp.int32(0), weights_of(jnp.bfloat16)


def step(state: Any, matmul: Any) -> Any:
    """All layers once; a wave that moves on makes every step another one."""
    x, index, weights = state
    for weight in weights:
        x = (jnp.tanh(matmul(x, weight)) + jnp.cos(index * 0.7 + jnp.arange(FEATURES))) / 2
        x = x.astype(jnp.bfloat16)
    return x, index + 1, weights


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize("rows", ROWS)
def test_loop_is_captured(rows, tmp_path):
    results = loops.check_captured(__file__, tmp_path, str(rows), "cuda")
    for got in results.values():
        assert got.shape == (STEPS, rows, FEATURES)
        assert len(np.unique(got[:, 0], axis=0)) == STEPS


def test_loops_compute_what_calls_do(tmp_path):
    """On any machine; no graph is asked for."""
    process = loops.start_process(__file__, tmp_path, "", "5", "reference")
    results = loops.finish_process(process, tmp_path)
    state, seen = loop_inputs(5), []
    matmul = functools.partial(int4_matmul, implementation="reference")
    advance = jax.jit(functools.partial(step, matmul=matmul))
    for _ in range(STEPS):
        state = advance(state)
        seen.append(np.asarray(state[0], np.float32))
    for name in loops.LOOPS:
        got = results[name].view(jnp.bfloat16).astype(np.float32)
        np.testing.assert_allclose(got, np.stack(seen), atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_scan_over_stacked_layers_copies_no_weights(rows, dtype):
    """Neither the nibbles nor the scales nor the zero points, in what XLA has compiled."""
    weights = weights_of(dtype)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    x = jax.random.normal(jax.random.key(1), (rows, FEATURES), dtype)
    matmul = functools.partial(int4_matmul, implementation="cuda")

    @jax.jit
    def layers(x, stacked):
        return jax.lax.scan(lambda x, weight: (matmul(x, weight), None), x, stacked)[0]

    compiled = layers.lower(x, stacked).compile()
    short = {"uint8": "u8", "float16": "f16", "bfloat16": "bf16"}
    for leaf in jax.tree.leaves(weights[0]):
        shape = f"{short[str(leaf.dtype)]}[{','.join(map(str, leaf.shape))}]"
        assert loops.written_arrays(compiled.as_text(), shape) == []

    want = x
    for weight in weights:
        want = matmul(want, weight)
    got = compiled(x, stacked)
    np.testing.assert_array_equal(np.asarray(got).view(np.uint16), np.asarray(want).view(np.uint16))


if __name__ == "__main__":
    path, count, implementation = sys.argv[1:]
    multiply = functools.partial(int4_matmul, implementation=implementation)
    loops.run_loops(multiply, loop_inputs(int(count)), STEPS, path, step=step)
