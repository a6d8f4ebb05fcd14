"""paged_prefill where it runs on the kernel of Hopper GPUs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda._src.paged import primitive, shapes
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, run_paged
from jax_baracuda.testing.paged_cases import LAYOUTS
from jax_baracuda.testing.paged_hopper_cases import HOPPER_PREFILL_CASES as CASES
from jax_baracuda.testing.paged_hopper_cases import PAGE_SIZES

# What a CPU is quick at.
FEW = [case for case in CASES if case.call.query_length * case.call.keys < 10**5][1::5]


def case_id(case):
    return case.name


def test_the_names_of_cases_are_their_own():
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.pages.page_size for case in CASES} == set(PAGE_SIZES)
    assert {case.pages.kv_layout for case in CASES} == set(LAYOUTS)


def test_every_case_is_one_of_this_kernel():
    for case in CASES:
        assert case.pages.page_size % 16 == 0
        assert case.call.head_dim % 8 == 0
        assert case.call.dtype in ("bfloat16", "float16")


@pytest.mark.parametrize("case", FEW, ids=case_id)
def test_reference(case):
    """The cases are right themselves."""
    inputs = make_paged_inputs(case)
    for report in check_paged(case, inputs, *run_paged(case, inputs, implementation="reference")):
        report.check()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_cuda(case):
    """Value, log-sum-exp and poison: what no request has, holds NaN and infinity in every case."""
    inputs = make_paged_inputs(case)
    for report in check_paged(case, inputs, *run_paged(case, inputs, implementation="cuda")):
        report.check()


def call(arrays, *kernels, nhd=False, **options):
    """What each of the kernels ("portable" or not) gives, from one program."""
    head_dim = arrays["query"].shape[-1]
    longest = int(np.diff(arrays["qo_indptr"]).max())
    static = shapes.check_prefill_options(
        head_dim, max_seqlen_q=longest, kv_layout="NHD" if nhd else "HND", **options
    )
    missing = np.zeros((0,), np.float32)
    operands = [arrays.get(name, missing) for name in shapes.OPERANDS["paged_prefill"]]

    @jax.jit
    def both(*operands):
        function = functools.partial(primitive.prefill_kernel, **static)
        return [function(*operands, portable=kernel == "portable") for kernel in kernels]

    return [[np.asarray(x, np.float32) for x in results] for results in both(*operands)]


def normal(shape, dtype, seed):
    """Drawn on the host: XLA would compile something for every shape."""
    draws = np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)
    return draws.astype(jnp.dtype(dtype))


def make(rows, keys, page_size, *, nhd, heads=(8, 2), dim=128, dtype="bfloat16", seed=0):
    """Requests in pages at random places."""
    counts = -(-np.asarray(keys) // page_size)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pages = int(bounds[-1]) + 3
    store = (pages, page_size, heads[1], dim) if nhd else (pages, heads[1], page_size, dim)
    return {
        "query": normal((sum(rows), heads[0], dim), dtype, seed),
        "k_pages": normal(store, dtype, seed + 1),
        "v_pages": normal(store, dtype, seed + 2),
        "qo_indptr": np.concatenate([[0], np.cumsum(rows)]).astype(np.int32),
        "page_indices": np.random.default_rng(seed).permutation(pages)[: bounds[-1]],
        "page_indptr": bounds,
        "last_page_len": (np.asarray(keys) - (counts - 1) * page_size).astype(np.int32),
    } | {"sinks": np.linspace(-1, 1, heads[0], dtype=np.float32)[None]}


SIZES = {
    "chunks": ((512,) * 4, (512, 1500, 4096, 5000)),
    "mixed": ((512, *[1] * 40, 300), (4608, *range(100, 4100, 100), 300)),
    "few rows": ((5, 17, 33, 2, 130), (5000, 17, 4000, 2222, 131)),
}


OPTIONS = (
    {},
    dict(is_causal=False),
    dict(local_window_size=700, sink_tokens=5),
    dict(logits_soft_cap=9.0),
)


def check_both_kernels(arrays, **options):
    (out, lse), (wanted, wanted_lse) = call(arrays, "ours", "portable", **options)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-3, rtol=1e-5)
    assert np.linalg.norm(out - wanted) <= 5e-3 * np.linalg.norm(wanted)
    if jax.devices()[0].compute_capability == "9.0":  # or the same kernel ran twice
        assert (out != wanted).any()


@pytest.mark.gpu
@pytest.mark.parametrize("nhd", [False, True], ids=["HND", "NHD"])
@pytest.mark.parametrize("page_size", [16, 32, 48, 64, 128, 256])
@pytest.mark.parametrize("sizes", SIZES)
def test_both_kernels_agree(sizes, page_size, nhd):
    arrays = make(*SIZES[sizes], page_size, nhd=nhd)
    turn = list(SIZES).index(sizes) + page_size // 16 + nhd
    check_both_kernels(arrays, nhd=nhd, **OPTIONS[turn % len(OPTIONS)])


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (32, 1), (40, 2)], ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_both_kernels_agree_on_heads(heads, dim):
    page_size = 64 if heads[1] == 2 else 16
    sizes = SIZES["mixed"]
    check_both_kernels(make(*sizes, page_size, nhd=False, heads=heads, dim=dim, dtype="float16"))


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_keys_that_lie_in_pages_or_not_give_the_same_bits(page_size, dim):
    """The kernel of contiguous keys adds up the same blocks in the same order."""
    # At head_dim 64 its blocks are as long as those of pages from 8192 keys on.
    rows, keys = (512, 64, 1, 300), (8192 if dim == 64 else 2048, 1984, 129, 300)
    arrays = make(rows, keys, page_size, nhd=True, heads=(32, 8), dim=dim)  # too many to split
    ((out, lse),) = call(arrays, "ours", nhd=True)
    ids = np.asarray(arrays["page_indices"])
    packed = {
        name: np.concatenate(
            [
                store[ids[first:end]].reshape(-1, *store.shape[2:])[:count]
                for first, end, count in zip(
                    arrays["page_indptr"][:-1], arrays["page_indptr"][1:], keys, strict=True
                )
            ]
        )
        for name, store in (("key", arrays["k_pages"]), ("value", arrays["v_pages"]))
    }
    contiguous, contiguous_lse = jax_baracuda.flash_attention_varlen(
        arrays["query"],
        *packed.values(),
        arrays["qo_indptr"],
        np.concatenate([[0], np.cumsum(keys)]).astype(np.int32),
        max_seqlen_q=max(rows),
        max_seqlen_k=max(keys),
        is_causal=True,
        sinks=arrays["sinks"][0],
        return_lse=True,
        implementation="cuda",
    )
    np.testing.assert_array_equal(out, np.asarray(contiguous, np.float32))
    np.testing.assert_array_equal(lse, np.asarray(contiguous_lse).T)


@pytest.mark.gpu
def test_poison_everywhere_but_in_a_history():
    """Rows behind the history, pages of nobody and queries of nobody are NaN; one key is seen."""
    for keys in (1, 15, 17, 127, 129, 200):
        rows = (min(keys, 3),)
        arrays = make(rows, (keys,), 32, nhd=False)
        (clean,) = call(arrays, "ours")
        own = np.zeros(arrays["k_pages"].shape, bool)
        for position in range(keys):
            own[arrays["page_indices"][position // 32], :, position % 32] = True
        for name in ("k_pages", "v_pages"):
            arrays[name] = np.where(own, arrays[name], arrays[name].dtype.type(np.nan))
        nobody = np.full((5, *arrays["query"].shape[1:]), np.nan, arrays["query"].dtype)
        arrays["query"] = np.concatenate([arrays["query"], nobody])
        (poisoned,) = call(arrays, "ours")
        for got, want in zip(poisoned, clean, strict=True):
            np.testing.assert_array_equal(got[: rows[0]], want)
        assert (poisoned[0][rows[0] :] == 0).all()
        assert (poisoned[1][rows[0] :] == -np.inf).all()


@pytest.mark.gpu
def test_bounds_of_nonsense_end():
    """Any qo_indptr and any table: the call ends, and reads and writes what is its own."""
    arrays = make((20,) * 40, (90,) * 40, 16, nhd=False)
    extremes = np.array([-(2**31), 2**31 - 1, -1, 0, 7, 800, 10**6], np.int32)
    rng = np.random.default_rng(0)
    static = shapes.check_prefill_options(128, max_seqlen_q=20)
    function = jax.jit(functools.partial(primitive.prefill_kernel, **static))
    for _ in range(20):
        drawn = {
            name: rng.choice(extremes, array.shape) if name in shapes.INTEGERS else array
            for name, array in arrays.items()
        }
        operands = [drawn.get(n, jnp.zeros((0,))) for n in shapes.OPERANDS["paged_prefill"]]
        jax.block_until_ready(function(*operands))
