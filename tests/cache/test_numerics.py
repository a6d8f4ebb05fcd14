"""Appends and rotations against exact copies and float64 numpy, on the CPU and on a GPU."""

from __future__ import annotations

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import apply_rope, kv_cache_append, paged_append
from jax_baracuda.testing.cache import (
    check_append,
    check_rope,
    rotate_exactly,
    run_append,
    run_rope,
)
from jax_baracuda.testing.cache_cases import (
    APPEND_CASES,
    ROPE_CASES,
    AppendCase,
    append_cases,
    make_append_inputs,
)

every_append = pytest.mark.parametrize("case", APPEND_CASES, ids=lambda case: case.name)
every_rope = pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)


def check(case, implementation, seed=0):
    inputs = make_append_inputs(case, seed)
    results = run_append(case, inputs, implementation=implementation)
    for report in check_append(case, inputs, results):
        report.check()


# ---- the reference, which is what runs without a GPU


@every_append
def test_reference_append(case):
    check(case, "reference")


@every_rope
def test_reference_rope(case):
    check_rope(case, run_rope(case, implementation="reference")).check()


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=append_cases())
def test_reference_random_appends(case):
    check(case, "reference")


# ---- the CUDA kernel


@pytest.mark.gpu
@every_append
def test_cuda_append(case):
    """Bits: what is copied, and the NaN that fills half of the rest of the stores."""
    check(case, "cuda")


@pytest.mark.gpu
@every_rope
def test_cuda_rope(case):
    check_rope(case, run_rope(case, implementation="cuda")).check()


@pytest.mark.gpu
@pytest.mark.long
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=append_cases())
def test_cuda_random_appends(case):
    check(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 1000, 40000])
def test_cuda_appends_of_any_size(tokens):
    """Few tokens spread their heads over many threads; many take them in turn."""
    new = (tokens // 2, tokens - tokens // 2)
    rope = {"scaling": {"type": "linear", "factor": 8.0}}
    check(
        AppendCase(
            f"tokens-{tokens}",
            page_size=16,
            lengths=(0, 70),
            new=new,
            kv_heads=4,
            query_heads=9,
            head_dim=128,
            rope=rope,
        ),
        "cuda",
    )


# Rows that a CTA's tile does not divide: see docs/cache.md.
TILE_CASES = (
    # many tiles over the heads, the last of them short
    AppendCase("heads-of-several-tiles", 4, kv_heads=300, query_heads=301, head_dim=128),
    AppendCase("wide-heads", 4, kv_heads=67, query_heads=130, head_dim=256, dtype="float32"),
    # one head: tiles of many tokens, no more than threads and their turns allow
    AppendCase("one-narrow-head", 16, kv_heads=1, query_heads=1, head_dim=16, new=(700, 1, 333)),
    AppendCase("one-head", 16, kv_heads=1, query_heads=3, head_dim=128, new=(200, 3, 131)),
    # a row longer than a tile, with and without whole pieces
    AppendCase(
        "a-row-of-several-turns", 2, kv_heads=2, query_heads=1, head_dim=20000, new=(2, 1, 3)
    ),
    AppendCase("a-row-by-elements", 2, kv_heads=1, query_heads=1, head_dim=4098, new=(2, 1, 3)),
    # a cache's rows lie token by token within a head
    AppendCase("cache-of-long-runs", None, 400, new=(300,) * 3, kv_heads=5, query_heads=7),
    AppendCase("cache-of-runs-across-requests", None, new=(7,) * 3, kv_heads=5, query_heads=33),
    AppendCase("cache-nhd", None, 400, new=(300,) * 3, kv_heads=5, query_heads=7, kv_layout="NHD"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("part", [1, 2], ids=["rotated", "half-rotated"])
@pytest.mark.parametrize("case", TILE_CASES, ids=lambda case: case.name)
def test_cuda_rotates_every_tile(case, part, interleaved):
    """Every unit of every tile, at its edges too."""
    width = case.head_dim // (2 * part) * 2
    rope = {"rotary_dim": width, "interleaved": interleaved}
    check(dataclasses.replace(case, rope=rope), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", TILE_CASES, ids=lambda case: case.name)
def test_cuda_copies_every_tile(case):
    check(dataclasses.replace(case, query_heads=0), "cuda")


@pytest.mark.gpu
def test_cuda_rotates_float32_as_well_as_jnp():
    """The angle is reduced exactly: no error grows with the position."""
    x = jax.random.normal(jax.random.key(0), (4096, 2, 128), jnp.float32)
    for first in (0, 10**5, 10**6, 10**7, 2**31 - 4096):
        positions = jnp.arange(first, first + 4096, dtype=jnp.int32)
        exact = rotate_exactly(np.asarray(x), np.asarray(positions), {})
        error = np.abs(apply_rope(x, positions, implementation="cuda") - exact).max()
        assert error < 4e-7 * np.abs(exact).max(), first


def store_past_int32(layers, slots, rows):
    """bfloat16 with more than 2^31 elements: only zeros, made on the device."""
    return jax.jit(lambda: jnp.zeros((layers, slots, 8, rows, 128), jnp.bfloat16))()


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize("paged", [False, True])
def test_cuda_offsets_past_int32(paged):
    """The last row of a store of 2^31 elements and more."""
    layers, slots, rows = 3, 700, 1024
    stores = store_past_int32(layers, slots, rows), store_past_int32(layers, slots, rows)
    assert stores[0].size > 2**31
    new = jax.random.normal(jax.random.key(1), (2, 8, 128), jnp.bfloat16)
    if paged:
        table = (np.array([1, 0]), np.array([rows - 1, 3]), np.array([7, slots - 1]))
        table += (np.array([0, 1, 2]),)
        places = [(slots - 1, rows - 1), (7, 3)]

        def append(k_store, v_store, layer):
            return paged_append(
                k_store, v_store, new, new, *table, layer=layer, implementation="cuda"
            )
    else:
        lengths = np.full(slots, rows, np.int32)
        lengths[[slots - 1, 7]] = rows - 1, 3
        places = [(slots - 1, rows - 1), (7, 3)]
        wide = jnp.zeros((slots, 8, 1, 128), jnp.bfloat16)
        wide = wide.at[jnp.array([slots - 1, 7]), :, 0].set(new)

        def append(k_store, v_store, layer):
            return kv_cache_append(
                k_store, v_store, wide, wide, lengths, layer=layer, implementation="cuda"
            )

    k_store, v_store = jax.jit(append, donate_argnums=(0, 1))(*stores, layers - 1)
    for store in (k_store, v_store):
        for index, (slot, row) in enumerate(places):
            np.testing.assert_array_equal(store[layers - 1, slot, :, row], new[index])
        assert int(jax.jit(jnp.count_nonzero)(store)) == int(jnp.count_nonzero(new))


# ---- the judges themselves


def mutations(case, inputs, results):
    """Wrong results: each breaks one rule."""
    k_store, v_store, query = (np.array(result) for result in results)
    place = next(place for place in inputs.places if place is not None)

    def at(store, slot, row):
        view = store if case.layers is None else store[case.layer]
        return view[slot, row] if case.kv_layout == "NHD" else view[slot, :, row]

    wrong = k_store.copy()
    at(wrong, *place)[0, 0] += 0.5
    yield "a rotated row", (wrong, v_store, query)
    wrong = v_store.copy()
    at(wrong, *place)[-1, -1] = 7
    yield "a copied row", (k_store, wrong, query)
    wrong = v_store.copy()
    wrong[np.unravel_index(np.flatnonzero(np.isnan(wrong.astype(np.float32)))[0], wrong.shape)] = 0
    yield "a NaN that is gone", (k_store, wrong, query)
    wrong = query.copy()
    wrong.reshape(-1)[-1] = np.nan
    yield "the query", (k_store, v_store, wrong)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_wrong_results_are_found(paged, layout):
    case = next(c for c in APPEND_CASES if c.name == f"{'pages' if paged else 'cache'}-float16-HND")
    case = dataclasses.replace(case, kv_layout=layout)
    inputs = make_append_inputs(case)
    results = run_append(case, inputs, implementation="reference")
    assert all(report.ok for report in check_append(case, inputs, results))
    for name, wrong in mutations(case, inputs, results):
        assert not all(report.ok for report in check_append(case, inputs, wrong)), name


def test_wrong_rotations_are_found():
    case = ROPE_CASES[1]
    out = run_rope(case, implementation="reference")
    assert check_rope(case, out).ok
    wrong = out.copy()
    wrong[0, 0, 0, -1] = 3
    assert not check_rope(case, wrong).ok


def test_the_table_drops_tokens_of_both_functions():
    dropped = [case for case in APPEND_CASES if None in make_append_inputs(case).places]
    assert {case.function for case in dropped} == {"paged_append", "kv_cache_append"}
