"""The paged ops against the float64 oracle of the same call over contiguous keys."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import run_decode
from jax_baracuda.testing.attention import run_attention
from jax_baracuda.testing.attention_oracle import attention_oracle
from jax_baracuda.testing.cases import DecodeCase
from jax_baracuda.testing.oracle import decode_oracle
from jax_baracuda.testing.paged import (
    check_paged,
    make_paged_inputs,
    paged_arrays,
    paged_function,
    run_paged,
)
from jax_baracuda.testing.paged_cases import (
    PAGED_DECODE_CASES,
    PAGED_PREFILL_CASES,
    PagedDecodeCase,
    PagedPrefillCase,
    Pages,
)
from jax_baracuda.testing.paged_random import paged_decode_cases, paged_prefill_cases

CASES = (*PAGED_DECODE_CASES, *PAGED_PREFILL_CASES)
# What runs quickly on a CPU, of every kind.
FEW = (*PAGED_DECODE_CASES[1::11], *PAGED_DECODE_CASES[-19:-8], *PAGED_PREFILL_CASES[2::9])
ODD = tuple(case for case in PAGED_PREFILL_CASES[-14:] if "uneven" not in case.name)


def case_id(case):
    return f"{'decode' if isinstance(case, PagedDecodeCase) else 'prefill'}-{case.name}"


def check(case, inputs, out, lse, **yardstick):
    for report in check_paged(case, inputs, out, lse, **yardstick):
        report.check()


def rounded(case, inputs):
    """The oracle, and the best that the dtypes of a result can hold of it."""
    if isinstance(case, PagedDecodeCase):
        oracle = decode_oracle(case.call, inputs)
        best = oracle.out.astype(case.call.numpy_dtype), oracle.lse.astype(np.float32)
        return {"oracle": oracle, "reference": best}
    oracle = attention_oracle(case.call, inputs)
    best = {name: array.astype(np.float32) for name, array in oracle.results.items()}
    best["out"] = best["out"].astype(case.call.numpy_dtype)
    return {"oracle": oracle, "reference": best}


# ---- the reference, which is what runs without a GPU


@pytest.mark.parametrize("case", [*FEW, *ODD], ids=case_id)
def test_reference_lowering(case):
    """Float32 arithmetic inside: the exact result, rounded, but for float32's own error."""
    inputs = make_paged_inputs(case)
    out, lse = run_paged(case, inputs, implementation="reference")
    assert out.dtype == case.call.numpy_dtype
    assert lse.dtype == np.float32
    check(case, inputs, out, lse, **rounded(case, inputs))


@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_the_reference_does_not_grow_with_the_longest_request(kind):
    """64 requests share a table of 64 pages, of which any one could have them all."""
    requests, page_size, heads, dim = 64, 16, 2, 64
    store = jax.ShapeDtypeStruct((64, heads, page_size, dim), jnp.float32)
    query = jax.ShapeDtypeStruct((requests, heads, dim), jnp.float32)
    sizes = {"page_indices": 64, "page_indptr": requests + 1, "last_page_len": requests}
    given = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name, size in sizes.items()}
    call = functools.partial(getattr(jax_baracuda, kind), implementation="reference")
    if kind == "paged_prefill":
        given["qo_indptr"] = given["page_indptr"]
        call = functools.partial(call, max_seqlen_q=1)
    lowered = jax.jit(call).lower(query=query, k_pages=store, v_pages=store, **given)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 16 * np.prod(store.shape) * 4


# ---- the CUDA kernels


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_cuda(case):
    """Value, log-sum-exp and poison: what no request has, holds NaN and infinity in every case."""
    inputs = make_paged_inputs(case)
    out, lse = run_paged(case, inputs, implementation="cuda")
    assert out.dtype == case.call.numpy_dtype
    assert lse.dtype == np.float32
    check(case, inputs, out, lse)


@pytest.mark.gpu
@pytest.mark.long
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=paged_decode_cases() | paged_prefill_cases())
def test_cuda_random_cases(case):
    inputs = make_paged_inputs(case)
    check(case, inputs, *run_paged(case, inputs, implementation="cuda"))


LENGTHS = (500, 3, 0, 129, 64)
ACROSS = [
    PagedDecodeCase(
        DecodeCase(
            f"across-{dtype}",
            batch=5,
            capacity=500,
            lengths=LENGTHS,
            head_dim=128,
            dtype=dtype,
            local_window_size=100,
            sink_tokens=3,
            sinks=True,
            alibi_slopes="head",
        ),
        Pages(page_size),
    )
    for dtype, page_size in (("bfloat16", 16), ("float16", 3), ("float32", 64))
]


def across(case, implementation):
    """Paged and contiguous: a kernel sums in another order, which rounding alone may show."""
    inputs = make_paged_inputs(case)
    paged = run_paged(case, inputs, implementation=implementation)
    if isinstance(case, PagedDecodeCase):
        contiguous = run_decode(case.call, inputs, implementation=implementation)
    else:
        results = run_attention(case.call, inputs, implementation=implementation)
        contiguous = results["out"], results["lse"].T
    eps = float(jnp.finfo(case.call.dtype).eps)
    out, want = (array[0].astype(np.float64) for array in (paged, contiguous))
    np.testing.assert_allclose(out, want, rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(paged[1], contiguous[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "implementation", ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("case", [*ACROSS, *PAGED_PREFILL_CASES[5:60:18]], ids=case_id)
def test_pages_and_contiguous_keys_give_the_same(case, implementation):
    across(case, implementation)


def random_store(pages, page_size, heads, dim, dtype, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return [jax.random.normal(key, (pages, heads, page_size, dim), dtype) for key in keys]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_cuda_survives_a_table_of_nonsense(kind):
    """Whatever a table holds, nothing outside of the store is read; good requests stay right."""
    rng = np.random.default_rng(0)
    k_pages, v_pages = random_store(20, 16, 2, 64, jnp.bfloat16)
    query = jax.random.normal(jax.random.key(5), (4, 8, 64), jnp.bfloat16)
    call = functools.partial(getattr(jax_baracuda, kind), implementation="cuda")
    options = {"num_splits": 3}
    if kind == "paged_prefill":
        options = {"max_seqlen_q": 1, "qo_indptr": jnp.arange(5)}
    extremes = np.array([-(2**31), 2**31 - 1, -1, 20, 10**6], np.int32)
    good = np.array([3, 4, 5], np.int32)
    step = jax.jit(
        lambda indices, bounds, last: call(
            query=query,
            k_pages=k_pages,
            v_pages=v_pages,
            page_indices=indices,
            page_indptr=bounds,
            last_page_len=last,
            **options,
        )
    )
    seen = []
    for _ in range(20):
        indices = rng.choice(extremes, 12).astype(np.int32)
        indices[:3] = good
        bounds = np.array([0, 3, *rng.choice([*extremes, 12, 7, 0], 3)], np.int32)
        last = np.array([9, *rng.choice([*extremes, 5], 3)], np.int32)
        out, lse = step(indices, bounds, last)
        seen.append((np.asarray(out[0], np.float32), np.asarray(lse[0])))
    for got in seen[1:]:
        np.testing.assert_array_equal(got[0], seen[0][0])
        np.testing.assert_array_equal(got[1], seen[0][1])
    key, value = (
        store[good].swapaxes(0, 1).reshape(2, 48, 64)[None] for store in (k_pages, v_pages)
    )
    want = jax_baracuda.flash_decode(query[:1], key, value, jnp.array([41]))
    np.testing.assert_allclose(seen[0][0], np.asarray(want[0], np.float32), atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [1, 16])
def test_cuda_one_long_request_among_short_ones(page_size):
    """128k keys beside 63 short histories: with equal keys the log-sum-exp counts them all."""
    lengths = np.array([131072 + 3, *[(7 * i) % 90 for i in range(63)]])
    counts = -(-lengths // page_size)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    last = (lengths - (counts - 1) * page_size).astype(np.int32)
    pages = int(bounds[-1]) + 4
    ids = np.random.default_rng(0).permutation(pages)[: bounds[-1]].astype(np.int32)
    store = jnp.zeros((pages, 8, page_size, 128), jnp.bfloat16)
    out, lse = jax_baracuda.paged_decode(
        jnp.ones((64, 32, 128), jnp.bfloat16),
        store,
        store + 1,
        ids,
        bounds,
        last,
        implementation="cuda",
    )
    with np.errstate(divide="ignore"):
        want = np.log(lengths)
    np.testing.assert_allclose(np.asarray(lse), want[:, None].repeat(32, 1), rtol=1e-6)
    some = (lengths > 0)[:, None, None]
    np.testing.assert_allclose(
        np.asarray(out, np.float32), some * np.ones((1, 32, 128)), rtol=2**-8
    )


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
@pytest.mark.parametrize("kv_layout", ["HND", "NHD"])
def test_cuda_offsets_past_2_31(kind, kv_layout):
    """Stores of more than 2^31 elements: the pages in use lie at the very end, the rest is NaN."""
    call = DecodeCase("far", batch=2, kv_heads=8, capacity=40, lengths=(40, 17), head_dim=128)
    case = PagedDecodeCase(call, Pages(16, kv_layout))
    inputs = make_paged_inputs(case)
    arrays = paged_arrays(case, inputs)
    small, pages = len(arrays["k_pages"]), 135_000
    shape = (pages, *arrays["k_pages"].shape[1:])
    assert np.prod(shape, dtype=np.int64) > 2**31

    @jax.jit
    def embed(rows):
        store = jnp.full(shape, jnp.nan, rows.dtype)
        return jax.lax.dynamic_update_slice_in_dim(store, rows, pages - small, 0)

    arrays |= {name: embed(arrays[name]) for name in ("k_pages", "v_pages")}
    arrays["page_indices"] = arrays["page_indices"] + np.int32(pages - small)
    if kind == "paged_decode":
        run = paged_function(case, implementation="cuda")
    else:
        run = functools.partial(
            jax_baracuda.paged_prefill,
            qo_indptr=jnp.arange(3),
            max_seqlen_q=1,
            kv_layout=kv_layout,
            implementation="cuda",
        )
    out, lse = jax.jit(run)(**arrays)
    check(case, inputs, np.asarray(out), np.asarray(lse))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
@pytest.mark.parametrize(
    "mapped",
    [
        ("query",),
        ("page_indices",),
        ("k_pages", "v_pages"),
        ("k_pages", "v_pages", "query"),
        ("v_pages",),
    ],
)
def test_cuda_vmap(kind, mapped):
    """vmap over any mix of operands gives what the calls one by one give."""
    pick = {"paged_decode": PAGED_DECODE_CASES, "paged_prefill": PAGED_PREFILL_CASES}[kind]
    name = {"paged_decode": "bfloat16-128-page-16", "paged_prefill": "bfloat16-128-page-3"}[kind]
    (case,) = (case for case in pick if case.name == name)
    many = [paged_arrays(case, make_paged_inputs(case, seed)) for seed in range(3)]
    if mapped == ("page_indices",):  # finite everywhere: any page may be named
        stores = {n: np.nan_to_num(many[0][n].astype(np.float32)) for n in ("k_pages", "v_pages")}
        stores = {n: np.clip(a, -9, 9).astype(many[0][n].dtype) for n, a in stores.items()}
        many = [
            many[0] | stores | {"page_indices": np.roll(many[0]["page_indices"], shift)}
            for shift in range(3)
        ]
        many = [m | {"page_indices": np.clip(m["page_indices"], 0, None) % 4} for m in many]
    stacked = many[0] | {n: np.stack([m[n] for m in many]) for n in mapped}
    axes = {n: 0 if n in mapped else None for n in stacked}
    call = paged_function(case, implementation="cuda")
    got = jax.jit(jax.vmap(lambda o: call(**o), in_axes=(axes,)))(stacked)
    one = jax.jit(lambda o: call(**o))
    for index in range(3):
        want = one(many[0] | {n: stacked[n][index] for n in mapped})
        for ours, theirs in zip(got, want, strict=True):
            ours, theirs = np.asarray(ours[index], np.float32), np.asarray(theirs, np.float32)
            np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_cuda_sharded(kind):
    """Heads split over the GPUs: the result of one GPU, and no store is gathered."""
    devices = jax.devices("cuda")
    if len(devices) < 2:
        pytest.skip(f"needs 2 GPUs, there is {len(devices)}")
    if kind == "paged_decode":
        case = ACROSS[0]
        case = dataclasses.replace(case, call=dataclasses.replace(case.call, num_splits=4))
    else:
        (case,) = (case for case in PAGED_PREFILL_CASES if case.name == "sinks-page-16")
    assert isinstance(case, PagedDecodeCase | PagedPrefillCase)
    inputs = make_paged_inputs(case)
    expected = run_paged(case, inputs, implementation="cuda")
    mesh = jax.sharding.Mesh(np.asarray(devices[:2]), ("x",))
    heads = {"query": (None, "x"), "sinks": ("x",), "alibi_slopes": ("x",)}
    store = (None, None, "x") if case.pages.kv_layout == "NHD" else (None, "x")
    specs = heads | {"k_pages": store, "v_pages": store}
    placed = {
        name: jax.device_put(
            array,
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*specs.get(name, ()))),
        )
        for name, array in paged_arrays(case, inputs).items()
    }
    call = paged_function(case, implementation="cuda")
    compiled = jax.jit(lambda operands: call(**operands)).lower(placed).compile()
    assert "all-gather" not in compiled.as_text()
    for got, want in zip(compiled(placed), expected, strict=True):
        assert len(got.sharding.device_set) == 2
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))
