"""Batch and heads of flash_attention spread over the GPUs of one process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import flash_attention

B, S, HQ, HKV, D = 4, 300, 8, 4, 64


def operands():
    rng = np.random.default_rng(0)
    shapes = [(B, S, HQ, D), (B, S, HKV, D), (B, S, HKV, D), (B, S, HQ, D)]
    query, key, value, dout = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes
    )
    bias = jnp.asarray(rng.standard_normal((1, HQ, 1, S)), jnp.float32)
    return query, key, value, bias, dout


def value_and_gradients(query, key, value, bias, dout):
    """Dropout too: its bits belong to absolute heads and batch entries, wherever those lie."""
    seed = jnp.array([3, 4], jnp.uint32)

    def call(query, key, value, bias):
        return flash_attention(
            query,
            key,
            value,
            bias=bias,
            is_causal=True,
            dropout_rate=0.2,
            dropout_seed=seed,
            deterministic=True,
            implementation="cuda",
        )

    out, vjp = jax.vjp(call, query, key, value, bias)
    return out, *vjp(dout)


@pytest.mark.gpu
@pytest.mark.parametrize("axis", ["batch", "heads", "both"])
def test_cuda_sharded(axis):
    """The same bits as on one GPU, but for the bias gradient, which is summed over the batch."""
    devices = jax.devices("cuda")
    needed = 4 if axis == "both" else 2
    if len(devices) < needed:
        pytest.skip(f"needs {needed} GPUs, there are {len(devices)}")
    shape = {"batch": (2, 1), "heads": (1, 2), "both": (2, 2)}[axis]
    mesh = Mesh(np.asarray(devices[:needed]).reshape(shape), ("x", "y"))
    arrays = operands()
    expected = [np.asarray(x, np.float32) for x in jax.jit(value_and_gradients)(*arrays)]

    rows, bias = P("x", None, "y"), P(None, "y")
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, (rows, rows, rows, bias, rows), strict=True)
    ]
    compiled = jax.jit(value_and_gradients).lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()
    got = compiled(*placed)
    for array, want in zip(got[:4], expected[:4], strict=True):
        assert len(array.sharding.device_set) == needed
        np.testing.assert_array_equal(np.asarray(array, np.float32), want)
    np.testing.assert_allclose(np.asarray(got[4]), expected[4], rtol=1e-5, atol=1e-4)
