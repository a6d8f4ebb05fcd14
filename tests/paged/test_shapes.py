"""Validation, workspace, explain and the reading of page tables."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jax_baracuda
from jax_baracuda._src import registry
from jax_baracuda._src.decode import shapes as decode_shapes
from jax_baracuda._src.paged import shapes, table


def aval(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def integers(*shape):
    return aval(*shape, dtype="int32")


TABLE = (integers(40), integers(5), integers(4))
STORES = {"HND": aval(64, 8, 16, 128), "NHD": aval(64, 16, 8, 128)}
SIZES = dict(q_heads=32, kv_heads=8, head_dim=128, pages=64, page_size=16, entries=40)


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_operands_give_the_sizes_of_either_layout(layout):
    stores = [STORES[layout]] * 2
    shape = shapes.check_operands(aval(4, 32, 128), *stores, *TABLE, kv_layout=layout)
    assert shape == shapes.PagedShape(rows=4, requests=4, dtype="bfloat16", **SIZES)
    shape = shapes.check_operands(
        aval(9, 32, 128), *stores, *TABLE, qo_indptr=integers(5), kv_layout=layout
    )
    assert shape == shapes.PagedShape(rows=9, requests=4, dtype="bfloat16", **SIZES)


@pytest.mark.parametrize("num_splits", [0, 1, 5])
@pytest.mark.parametrize("entries", [0, 1, 40, 2**20])
def test_the_workspace_is_that_of_flash_decode(num_splits, entries):
    """As if every entry of the table were of one request, whichever."""
    sizes = SIZES | {"entries": entries}
    shape = shapes.PagedShape(rows=4, requests=4, dtype="bfloat16", **sizes)
    contiguous = decode_shapes.DecodeShape(4, 32, 8, entries * 16, 128, "bfloat16")
    expected = decode_shapes.workspace_bytes(contiguous, num_splits)
    assert shapes.decode_workspace_bytes(shape, num_splits) == expected


def test_the_workspace_does_not_grow_with_the_table():
    shape = functools.partial(shapes.PagedShape, rows=64, requests=64, dtype="bfloat16")
    small, large = (shape(**SIZES | {"entries": n}) for n in (2**12, 2**25))
    found = [shapes.decode_workspace_bytes(s, 0) for s in (small, large)]
    assert found[0] == found[1] < 2**22


def test_prefill_options_in_the_form_of_the_kernel():
    assert shapes.check_prefill_options(64, max_seqlen_q=7) == {
        "nhd": False,
        "scale": 0.125,
        "causal": True,
        "window_left": -1,
        "window_right": -1,
        "sink_tokens": 0,
        "logits_soft_cap": 0.0,
        "max_seqlen_q": 7,
    }
    given = shapes.check_prefill_options(
        64,
        is_causal=False,
        max_seqlen_q=np.int64(2**40),
        kv_layout="NHD",
        scale=np.float32(2),
        local_window_size=(5, None),
        sink_tokens=3,
        logits_soft_cap=30,
    )
    assert given == {
        "nhd": True,
        "scale": 2.0,
        "causal": False,
        "window_left": 5,
        "window_right": -1,
        "sink_tokens": 3,
        "logits_soft_cap": 30.0,
        "max_seqlen_q": 2**31 - 1,
    }
    causal = shapes.check_prefill_options(64, max_seqlen_q=1, local_window_size=(5, 9))
    assert (causal["window_left"], causal["window_right"]) == (5, 0)


# ---- explain

CALLS = {
    "paged_decode": (aval(4, 32, 128), STORES["HND"], STORES["HND"], *TABLE),
    "paged_prefill": (aval(9, 32, 128), integers(5), STORES["HND"], STORES["HND"], *TABLE),
}
explain_decode = functools.partial(jax_baracuda.explain, "paged_decode", *CALLS["paged_decode"])
explain_prefill = functools.partial(
    jax_baracuda.explain, "paged_prefill", *CALLS["paged_prefill"], max_seqlen_q=8
)


@pytest.mark.parametrize("num_splits", [None, 4])
def test_explain_tells_of_paged_decode_on_any_machine(num_splits):
    info = explain_decode(implementation="cuda", num_splits=num_splits, sinks=np.zeros(32))
    assert (info.op, info.name, info.implementation) == ("paged_decode", "paged_decode_mma", "cuda")
    assert (info.dtype, info.accumulator, info.deterministic) == ("bfloat16", "float32", True)
    assert info.batch_invariant is (num_splits is not None)
    shape = shapes.PagedShape(rows=4, requests=4, dtype="bfloat16", **SIZES)
    assert info.workspace_bytes == shapes.decode_workspace_bytes(shape, num_splits or 0)


def test_explain_tells_of_paged_prefill_on_any_machine():
    info = explain_prefill(implementation="cuda", local_window_size=(7, None), is_causal=False)
    assert (info.op, info.name) == ("paged_prefill", "paged_prefill_mma")
    assert info.batch_invariant
    assert info.workspace_bytes == shapes.PREFILL_WORKSPACE_BYTES


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "page_size", "obstacle"),
    [
        ("bfloat16", 128, 16, ""),
        ("float16", 72, 48, ""),
        ("bfloat16", 70, 16, "multiples of 8"),
        ("bfloat16", 128, 24, "multiples of 16"),
        ("float16", 64, 1, "multiples of 16"),
        ("float32", 128, 16, "float32"),
    ],
)
def test_explain_names_the_kernel_of_a_hopper_gpu(
    monkeypatch, layout, dtype, head_dim, page_size, obstacle
):
    monkeypatch.setattr(registry, "serving_architecture", lambda: "90a")
    middle = (8, page_size) if layout == "HND" else (page_size, 8)
    store = aval(64, *middle, head_dim, dtype=dtype)
    query = aval(9, 32, head_dim, dtype=dtype)
    info = jax_baracuda.explain(
        "paged_prefill",
        *(query, integers(5), store, store, *TABLE),
        max_seqlen_q=8,
        kv_layout=layout,
        logits_soft_cap=5.0,
        implementation="cuda",
    )
    assert info.name == ("paged_prefill_mma" if obstacle else "paged_prefill_wgmma")
    assert ("wgmma does not take" in info.note) == bool(obstacle)
    assert obstacle in info.note


def test_the_hopper_kernel_takes_no_empty_store():
    sizes = dict(rows=9, requests=4, q_heads=32, kv_heads=8, head_dim=128, page_size=16)
    found = [
        shapes.hopper_obstacles(
            shapes.PagedShape(**sizes, pages=pages, entries=entries, dtype="bfloat16")
        )
        for pages, entries in ((64, 40), (0, 40), (64, 0))
    ]
    assert [len(obstacles) for obstacles in found] == [0, 1, 1]


@pytest.mark.parametrize("explain", [explain_decode, explain_prefill])
def test_explain_tells_of_the_reference_and_of_obstacles(explain, monkeypatch):
    info = explain(implementation="reference")
    assert (info.name, info.implementation, info.arch) == ("reference", "reference", None)
    assert info.workspace_bytes == 0
    missing = registry.Extension(frozenset(), {}, "no luck")
    monkeypatch.setattr(registry, "register", lambda: missing)
    assert "no luck" in explain(implementation="cuda").note


def test_explain_refuses_what_the_call_refuses():
    with pytest.raises(ValueError, match="num_splits is 0"):
        explain_decode(num_splits=0)
    with pytest.raises(ValueError, match="sinks has shape"):
        explain_prefill(sinks=np.zeros(3))
    with pytest.raises(TypeError, match="number_of_splits"):
        explain_decode(number_of_splits=1)
    with pytest.raises(TypeError, match="max_seqlen_q"):
        jax_baracuda.explain("paged_prefill", *CALLS["paged_prefill"])
    with pytest.raises(ValueError, match="implementation is 'triton'"):
        explain_decode(implementation="triton")


ROWS = aval(7, 8, 128)
APPENDS = {
    "paged_append": (
        STORES["HND"],
        STORES["HND"],
        ROWS,
        ROWS,
        integers(7),
        integers(7),
        *TABLE[:2],
    ),
    "kv_cache_append": (*[aval(3, 8, 64, 128)] * 2, *[aval(3, 8, 1, 128)] * 2, integers(3)),
    "apply_rope": (ROWS, integers(7)),
}


@pytest.mark.parametrize("op", APPENDS)
def test_explain_tells_of_appends_and_rotations(op):
    info = jax_baracuda.explain(op, *APPENDS[op], implementation="cuda")
    assert (info.op, info.name, info.implementation) == (op, op, "cuda")
    assert (info.dtype, info.workspace_bytes, info.deterministic) == ("bfloat16", 0, True)
    assert jax_baracuda.explain(op, *APPENDS[op], implementation="reference").name == "reference"
    with pytest.raises(ValueError, match="has shape"):
        jax_baracuda.explain(op, *APPENDS[op][:-1], integers(2, 2, 2))
    with pytest.raises(ValueError, match="implementation"):
        jax_baracuda.explain(op, *APPENDS[op], implementation="triton")


def test_explain_of_appends_takes_arrays_among_the_options():
    options = {"query": aval(7, 32, 128), "rope": {}, "implementation": "cuda"}
    info = jax_baracuda.explain("paged_append", *APPENDS["paged_append"], **options)
    assert "rotations in float32" in info.note
    stacked = [aval(2, 3, 8, 64, 128)] * 2
    rest = APPENDS["kv_cache_append"][2:]
    assert jax_baracuda.explain("kv_cache_append", *stacked, *rest, layer=1).dtype == "bfloat16"


def test_explain_tells_of_merged_states():
    states = (ROWS, aval(7, 8, dtype="float32")) * 2
    info = jax_baracuda.explain("merge_attention_states", *states)
    assert (info.implementation, info.dtype) == ("xla", "bfloat16")
    with pytest.raises(ValueError, match="lse_b"):
        jax_baracuda.explain("merge_attention_states", *states[:3], integers(7, 8))


# ---- page tables


def slow_table(page_indices, page_indptr, last_page_len, page_size):
    """Lengths and page ids of the requests, by the definition."""
    entries = len(page_indices)
    found = []
    for request, last in enumerate(last_page_len):
        first, end = np.clip(page_indptr[request : request + 2], 0, entries)
        ids = page_indices[first:end].tolist()
        last = min(max(last, 0), page_size)
        found.append(((len(ids) - 1) * page_size + last if ids else 0, ids))
    return found


@st.composite
def tables(draw):
    """Bounds in any order whose ranges do not overlap, with gaps and out of range."""
    requests, entries = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    bounds = sorted(draw(st.lists(st.integers(-2, entries + 2), min_size=1, max_size=requests)))
    while len(bounds) < requests + 1:  # a request without pages: equal bounds, or decreasing ones
        bounds.append(draw(st.integers(-(2**31), bounds[-1])) if len(bounds) > 1 else bounds[0])
    last = draw(st.lists(st.integers(-3, 9), min_size=requests, max_size=requests))
    return np.arange(100, 100 + entries), np.array(bounds), np.array(last), draw(st.integers(1, 5))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(given=tables())
def test_a_table_is_read_and_dealt(given):
    page_indices, page_indptr, last_page_len, page_size = given
    arrays = [np.asarray(array, np.int32) for array in given[:3]]
    requests = table.read(*arrays, page_size)
    expected = slow_table(page_indices, page_indptr, last_page_len, page_size)
    hypothesis.assume(sum(len(ids) for _, ids in expected) <= len(page_indices))
    assert requests.lengths.tolist() == [length for length, _ in expected]
    assert requests.pages.tolist() == [len(ids) for _, ids in expected]
    owner, nth = map(np.asarray, table.deal(requests.pages, len(page_indices)))
    for request, (_, ids) in enumerate(expected):
        mine = owner == request
        assert nth[mine].tolist() == list(range(len(ids)))
        assert page_indices[np.asarray(requests.first)[request] + nth[mine]].tolist() == ids
    assert (owner[sum(len(ids) for _, ids in expected) :] == len(expected)).all()


def test_ranges_that_overlap_name_no_more_pages_than_there_are():
    page_indptr = jnp.array([0, 8, 0, 8, 0, 8])
    requests = table.read(jnp.arange(8), page_indptr, jnp.full(5, 2), 2)
    assert int(requests.pages.sum()) <= 8
    assert (requests.lengths >= 0).all()
