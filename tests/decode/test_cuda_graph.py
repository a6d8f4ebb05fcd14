"""Decode loops in CUDA graphs: XLA captures them, and the results stay the same bit for bit."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import loops

STEPS, LAYERS = 64, 3


def loop_inputs() -> loops.State:
    """Two requests, one of which begins empty."""
    return loops.loop_inputs(
        batch=2,
        kv_heads=2,
        query_heads=8,
        head_dim=64,
        capacity=200,
        layers=LAYERS,
        lengths=(0, 130),
    )


@pytest.mark.gpu
@pytest.mark.long
def test_loop_is_captured(tmp_path):
    """Every kernel of ours sits in a command buffer; with WHILE enabled the loop itself does."""
    for got in loops.check_captured(__file__, tmp_path, "cuda").values():
        assert got.shape == (STEPS, 2, 8, 64)
        assert len(np.unique(got[:, 0, 0], axis=0)) == STEPS  # every step is another one


def test_loops_grow_the_lengths(tmp_path):
    """The loops compute what step-by-step calls compute, on any machine (no graph asked for)."""
    process = loops.start_process(__file__, tmp_path, "", "reference")
    results = loops.finish_process(process, tmp_path)
    attend = functools.partial(jax_baracuda.flash_decode, implementation="reference")
    state = loop_inputs()
    step = jax.jit(functools.partial(loops.decode_step, attend=attend))
    queries = []
    for _ in range(STEPS):
        state = step(state)
        queries.append(np.asarray(state[0], np.float32))
    assert state[1].tolist() == [STEPS, 130 + STEPS]
    for name in loops.LOOPS:
        got = results[name].view(jnp.bfloat16).astype(np.float32)
        np.testing.assert_allclose(got, np.stack(queries), rtol=0.05, atol=0.05)


def test_thunk_dump_is_read():
    """The reader of XLA's dumps tells what is captured from what is not."""
    text = (
        "000: kCopy\n"
        "001: kWhile\n"
        "condition:\n"
        "  000: kKernel\n"
        "body:\n"
        "  000: kCommandBuffer\n"
        "    000: kCustomCall jax_baracuda_flash_decode\n"
        "  001: kCustomCall other\n"
        "002: kCommandBuffer\n"
        "  000: kWhile\n"
        "    000: kCustomCall\n"
    )
    assert loops.parse_thunks(text) == [
        ("kCopy", False),
        ("kWhile", False),
        ("kKernel", False),
        ("kCommandBuffer", False),
        ("kCustomCall", True),
        ("kCustomCall", False),
        ("kCommandBuffer", False),
        ("kWhile", True),
        ("kCustomCall", True),
    ]


@pytest.mark.gpu
def test_scan_over_stacked_layers_copies_no_cache():
    """A scan over [layers, ...] caches hands each layer's slice to the kernel without a copy."""
    layers, shape = 5, (2, 4, 320, 128)

    @jax.jit
    def model(query, keys, values, lengths):
        def layer(query, caches):
            out = jax_baracuda.flash_decode(query, *caches, lengths, implementation="cuda")
            return (query + out).astype(query.dtype), None

        return jax.lax.scan(layer, query, (keys, values))[0]

    stacked = jax.random.normal(jax.random.key(0), (2, layers, *shape), jnp.bfloat16)
    query = jax.random.normal(jax.random.key(1), (2, 16, 128), jnp.bfloat16)
    lengths = jnp.asarray((320, 77), jnp.int32)
    compiled = model.lower(query, stacked[0], stacked[1], lengths).compile()
    copies = loops.written_arrays(compiled.as_text(), "bf16[" + ",".join(map(str, shape)) + "]")
    assert copies == []

    expected = query
    for key, value in zip(stacked[0], stacked[1], strict=True):
        expected += jax_baracuda.flash_decode(expected, key, value, lengths, implementation="cuda")
    np.testing.assert_array_equal(
        np.asarray(compiled(query, stacked[0], stacked[1], lengths)).view(np.uint16),
        np.asarray(expected).view(np.uint16),
    )


def test_arrays_that_are_written_are_found():
    """The search for copies finds a copy, and leaves slices inside of fusions alone."""
    hlo = (
        "%wrapped (p: bf16[5,4,8]) -> bf16[4,2] {\n"
        "  %slice.1 = bf16[4,8]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,4,8}\n"
        "}\n\n"
        "ENTRY %main (k: bf16[5,4,8]) -> bf16[4,2] {\n"
        "  %k = bf16[4,8]{1,0} parameter(0)\n"
        "  %copy.3 = bf16[4,8]{1,0} copy(%k)\n"
        "  ROOT %out = bf16[4,2]{1,0} fusion(%copy.3), kind=kCustom, calls=%wrapped\n"
        "}\n"
    )
    assert loops.written_arrays(hlo, "bf16[4,8]") == ["%copy.3 = bf16[4,8]{1,0} copy(%k)"]


if __name__ == "__main__":
    path, implementation = sys.argv[1:]
    attend = functools.partial(jax_baracuda.flash_decode, implementation=implementation)
    loops.run_loops(attend, loop_inputs(), STEPS, path)
