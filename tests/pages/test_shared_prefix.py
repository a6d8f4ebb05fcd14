"""shared_prefix_decode is paged_decode of histories that have the prefix in front."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_baracuda
from jax_baracuda._src import primitives
from jax_baracuda._src.paged import primitive
from jax_baracuda.paged import PageAllocator, copy_pages, shared_prefix_decode
from jax_baracuda.testing import DecodeCase, check_decode, make_inputs
from jax_baracuda.testing.calls import jit_once
from jax_baracuda.testing.paged_cases import Pages, cut

TARGET = "jax_baracuda_paged_decode"
ARGUMENTS = (
    "query",
    "k_pages",
    "v_pages",
    "prefix_indices",
    "prefix_len",
    "page_indices",
    "page_indptr",
    "last_page_len",
)


def make_case(prefix, own, *, pages=Pages(16), name="shared", **fields):  # noqa: B008 - frozen
    """The case of whole histories, its inputs, and the arguments of shared_prefix_decode.

    Pages that nobody has and rows past a length hold NaN and infinity; entries of the tables that
    nobody names are ids outside of the store.
    """
    lengths = tuple(prefix + length for length in own)
    case = DecodeCase(
        name, batch=len(own), capacity=max((prefix, *lengths)), lengths=lengths, **fields
    )
    inputs = make_inputs(case)
    by_row = [array.swapaxes(1, 2) for array in (inputs.key, inputs.value)]
    for rows in by_row:  # views: the cache of every request begins as that of the first
        rows[:, :prefix] = rows[:1, :prefix]
    histories = [
        [rows[0, :prefix] if len(own) else rows.reshape(0, *rows.shape[2:])]
        + [rows[b, prefix:length] for b, length in enumerate(lengths)]
        for rows in by_row
    ]
    paged = cut(name, pages, *histories, inputs.query)
    indptr = paged["page_indptr"]
    shared = paged["page_indices"][indptr[0] : indptr[1]]
    outside = np.full(pages.unused_entries, 2**31 - 1, np.int32)
    arguments = paged | {
        "prefix_indices": np.concatenate([shared, outside]),
        "prefix_len": np.int32(prefix),
        "page_indptr": indptr[1:],
        "last_page_len": paged["last_page_len"][1:],
    }
    return case, inputs, {name: arguments[name] for name in ARGUMENTS}


def call(case, pages, implementation=None):
    return functools.partial(
        shared_prefix_decode,
        kv_layout=pages.kv_layout,
        scale=case.scale,
        logits_soft_cap=case.logits_soft_cap,
        implementation=implementation,
    )


def check(prefix, own, *, pages=Pages(16), implementation=None, **fields):  # noqa: B008 - frozen
    case, inputs, arguments = make_case(prefix, own, pages=pages, **fields)
    given = jax.device_put(arguments)
    out, lse = jit_once(call(case, pages, implementation), jax.default_backend())(given)
    for report in check_decode(case, inputs, np.asarray(out), np.asarray(lse)):
        report.check()
    return arguments, out, lse


DTYPES = ("bfloat16", "float16", "float32")
CASES = {
    "whole pages": dict(prefix=32, own=(5, 40, 16)),
    "a prefix that ends in a page": dict(prefix=37, own=(5, 1, 33)),
    "no prefix": dict(prefix=0, own=(5, 0, 33)),
    "no own part": dict(prefix=48, own=(0, 0)),
    "some own parts": dict(prefix=20, own=(0, 3, 0, 17)),
    "nothing": dict(prefix=0, own=(0, 0)),
    "one request": dict(prefix=70, own=(3,)),
    "many requests": dict(prefix=64, own=tuple(range(32)), kv_heads=2, group=4),
    "single heads": dict(prefix=16, own=(2, 9), kv_heads=3, group=1),
    "one key head": dict(prefix=16, own=(2, 9), kv_heads=1, group=8),
    "soft cap and scale": dict(prefix=33, own=(2, 9), logits_soft_cap=5.0, scale=0.7),
    "pages of one": dict(prefix=9, own=(2, 5), pages=Pages(1)),
    "the other layout": dict(prefix=9, own=(2, 5), pages=Pages(4, "NHD")),
    "open pages": dict(prefix=8, own=(0, 4, 5), pages=Pages(4, opened=True, first_entry=2)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_whole_histories(name):
    dtype = DTYPES[list(CASES).index(name) % 3]
    check(**CASES[name], dtype=dtype, name=name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_results_of_the_kernels(name, dtype):
    check(**CASES[name], dtype=dtype, name=name, implementation="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_results_of_the_kernels_on_long_prefixes(head_dim):
    own = tuple(7 * i % 200 for i in range(32))
    check(4096, own, head_dim=head_dim, kv_heads=2, implementation="cuda", name="long")


@hypothesis.settings(max_examples=6, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    prefix=st.integers(0, 60),
    own=st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple),
    page_size=st.integers(1, 17),
    layout=st.sampled_from(("HND", "NHD")),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    head_dim=st.integers(1, 40),
    cap=st.none() | st.floats(1, 30, width=32),
)
def test_any_shape(prefix, own, page_size, layout, heads, head_dim, cap):
    check(
        prefix,
        own,
        pages=Pages(page_size, layout),
        kv_heads=heads[0],
        group=heads[1],
        head_dim=head_dim,
        logits_soft_cap=cap,
        dtype="float32",
    )


def test_no_requests():
    store = jnp.zeros((4, 2, 16, 8))
    for implementation in (None, "reference"):
        out, lse = shared_prefix_decode(
            jnp.zeros((0, 4, 8)),
            store,
            store,
            jnp.arange(2),
            20,
            jnp.arange(2),
            jnp.zeros(1, jnp.int32),
            jnp.zeros(0, jnp.int32),
            implementation=implementation,
        )
        assert (out.shape, lse.shape) == ((0, 4, 8), (0, 4))


def test_tables_with_the_prefix_in_front_give_the_same():
    """The equivalence itself: paged_decode of concatenated tables, for whole pages."""
    arguments, out, lse = check(48, (0, 5, 16, 33), dtype="float32", group=2)
    shared = arguments["prefix_indices"][:3]
    starts = arguments["page_indptr"]
    rows = [
        np.concatenate([shared, arguments["page_indices"][a:b]])
        for a, b in itertools.pairwise(starts)
    ]
    # A request without pages of its own ends with the prefix.
    alone = [len(row) == 3 for row in rows]
    whole = jax_baracuda.paged_decode(
        *(arguments[name] for name in ARGUMENTS[:3]),
        np.concatenate(rows),
        np.cumsum([0, *map(len, rows)]).astype(np.int32),
        np.where(alone, 16, arguments["last_page_len"]),
    )
    np.testing.assert_allclose(out, whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, whole[1], rtol=1e-5, atol=1e-6)


def test_the_allocator_plugs_in():
    """Forks of one prompt, from the books to the result, with one compiled call a shape."""
    allocator = PageAllocator(40, 4, max_requests=5)
    rng = np.random.default_rng(0)
    k_pages, v_pages = (jnp.full((40, 2, 4, 8), jnp.nan) for _ in range(2))

    def write(k_pages, v_pages, requests, counts):
        tokens = allocator.new_tokens(requests, counts, size=32)
        table = allocator.page_table(requests)
        rows = rng.normal(size=(2, 32, 2, 8)).astype(np.float32)
        return jax_baracuda.paged_append(
            k_pages, v_pages, *rows, tokens.batch_indices, tokens.positions, *table[:2]
        )

    prompt = allocator.alloc(18)
    k_pages, v_pages = write(k_pages, v_pages, [prompt], [18])
    requests = [allocator.fork(prompt) for _ in range(4)] + [allocator.fork(prompt, 17)]
    counts = [1, 7, 0, 3, 5]
    for request, count in zip(requests, counts, strict=True):
        allocator.append(request, count)
    assert allocator.pending_copies == 4
    k_pages, v_pages = copy_pages(k_pages, v_pages, *allocator.take_copies())
    k_pages, v_pages = write(k_pages, v_pages, requests, counts)

    traces = []

    @jax.jit
    def decode(*args):
        traces.append(1)
        return shared_prefix_decode(*args)

    query = rng.normal(size=(5, 4, 8)).astype(np.float32)
    for batch in (requests, requests[:2], [None, requests[3], prompt]):
        shared = allocator.shared_pages(batch)
        assert shared == 4
        prefix = np.zeros(16, np.int32)  # of a fixed size, whatever is shared
        prefix[:shared] = allocator.pages(prompt)[:shared]
        table = allocator.page_table(batch, skip_pages=shared)
        length = np.int32(shared * allocator.page_size)
        got = decode(query, k_pages, v_pages, prefix, length, *table)
        want = jax_baracuda.paged_decode(query, k_pages, v_pages, *allocator.page_table(batch))
        slots = np.array([slot for slot, request in enumerate(batch) if request is not None])
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours[slots], theirs[slots], rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


# Transformations


def arguments_of(prefix=20, own=(3, 0, 17), **fields):
    return make_case(prefix, own, dtype="float32", head_dim=8, **fields)[2]


def test_the_prefix_is_read_once_for_all():
    """Two calls of paged_decode, on the stores as they came; one of them has one request."""
    arguments = arguments_of(kv_heads=2, group=4)
    jaxpr = jax.make_jaxpr(shared_prefix_decode)(**arguments).jaxpr
    calls = [e for e in jaxpr.eqns if e.primitive.name == TARGET]
    stores = [var for var in jaxpr.invars if var.aval.ndim == 4]
    queries = sorted(e.invars[0].aval.shape for e in calls)
    assert queries == [(1, 2 * 3 * 4, 8), (3, 8, 8)]
    for equation in calls:
        assert equation.invars[1:3] == stores
    text = jax.jit(shared_prefix_decode).trace(**arguments)
    assert text.lower(lowering_platforms=("cuda",)).as_text().count(f"@{TARGET}") == 2


def test_export_for_cuda_needs_no_gpu():
    exported = export.export(
        jax.jit(shared_prefix_decode),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(TARGET)],
    )(**arguments_of())
    assert f"@{TARGET}" in exported.mlir_module()


def test_lengths_of_the_prefix_may_be_traced_and_out_of_range():
    arguments = arguments_of(prefix=32)
    traced = []

    def decode(**arguments):
        traced.append(arguments)
        return shared_prefix_decode(**arguments)

    function = jax.jit(decode)
    page_size, entries = 16, len(arguments["prefix_indices"])
    assert entries == 4  # two of them beyond the prefix, and of no page
    arguments["prefix_indices"] = arguments["prefix_indices"][:2]
    whole = function(**arguments)
    for length in (2**31 - 1, 33):
        got = function(**arguments | {"prefix_len": np.int32(length)})
        np.testing.assert_array_equal(got[0], whole[0])
    assert len(traced) == 1
    for length in (0, -5):
        got = function(**arguments | {"prefix_len": np.int32(length)})
        want = jax_baracuda.paged_decode(
            *(arguments[name] for name in (*ARGUMENTS[:3], *ARGUMENTS[5:]))
        )
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    # A Python number, and any integer dtype.
    for length in (2 * page_size, np.uint8(32), np.int64(32)):
        got = shared_prefix_decode(**arguments | {"prefix_len": length})
        np.testing.assert_allclose(got[0], whole[0], rtol=1e-6, atol=1e-6)


def test_vmap_and_scan():
    arguments = arguments_of()
    queries = np.stack([arguments["query"], -arguments["query"]])
    rest = {name: arguments[name] for name in ARGUMENTS[1:]}
    want = [shared_prefix_decode(query, **rest) for query in queries]

    def decode(query):
        return shared_prefix_decode(query, **rest)

    for got in (
        jax.vmap(decode)(queries),
        jax.jit(lambda q: jax.lax.scan(lambda c, x: (c, decode(x)), 0, q)[1])(queries),
    ):
        for i, (out, lse) in enumerate(want):
            np.testing.assert_allclose(got[0][i], out, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got[1][i], lse, rtol=1e-5, atol=1e-6)


def test_the_reference_has_a_derivative():
    arguments = arguments_of()
    rest = {name: arguments[name] for name in ARGUMENTS[1:]}

    def loss(query, implementation):
        out, lse = shared_prefix_decode(query, **rest, implementation=implementation)
        return (out**2).sum() + lse.sum()

    loss = jax.jit(loss, static_argnums=1)
    gradient = jax.grad(loss)(arguments["query"], "reference")
    assert np.isfinite(gradient).all()
    step = 1e-2 * np.cos(arguments["query"])
    change = loss(arguments["query"] + step, None) - loss(arguments["query"] - step, None)
    np.testing.assert_allclose(2 * np.vdot(gradient, step), change, rtol=1e-2)
    with pytest.raises(NotImplementedError, match="paged_decode"):
        jax.grad(loss)(arguments["query"], None)


@pytest.fixture
def partitioned_reference(monkeypatch):
    """paged_decode as it is lowered for CUDA under jit, with the reference as the kernel."""
    op = primitive.OPS["paged_decode"]
    op = dataclasses.replace(op, reference=op.partitioned(op.reference))
    monkeypatch.setitem(primitive.PRIMITIVES, "paged_decode", primitives.define_pair(op))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_heads_that_are_sharded_stay_so(eight_devices, kind, partitioned_reference):
    mesh = jax.make_mesh((4,), ("h",), axis_types=(kind,), devices=eight_devices[:4])
    arguments = arguments_of(kv_heads=4, group=2)
    want = shared_prefix_decode(**arguments)
    heads = dict.fromkeys(ARGUMENTS[:3], P(None, "h"))
    specs = {name: heads.get(name, P()) for name in ARGUMENTS}
    placed = {
        name: jax.device_put(array, NamedSharding(mesh, specs[name]))
        for name, array in arguments.items()
    }
    compiled = jax.jit(shared_prefix_decode).lower(**placed).compile()
    assert not re.search("all-|collective-", compiled.as_text())
    for got in (
        compiled(**placed),
        jax.jit(
            jax.shard_map(
                lambda given: shared_prefix_decode(**given),
                mesh=mesh,
                in_specs=(specs,),
                out_specs=P(None, "h"),
            )
        )(placed),
    ):
        assert got[0].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "h")), 3)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(prefix_indices=jnp.zeros((2, 2), jnp.int32)), ["prefix_indices", "(2, 2)", "[Np]"]),
        (dict(prefix_indices=jnp.zeros(2)), ["prefix_indices", "float32", "integer"]),
        (dict(prefix_len=jnp.zeros(1, jnp.int32)), ["prefix_len", "(1,)", "scalar"]),
        (dict(prefix_len=3.0), ["prefix_len", "float32", "integer"]),
        (dict(prefix_len=None), ["prefix_len", "NoneType"]),
        (dict(query=jnp.zeros((3, 8))), ["query", "(3, 8)", "[B, Hq, D]"]),
        (dict(page_indptr=jnp.zeros(3, jnp.int32)), ["page_indptr", "(3,)", "[B + 1]"]),
        (dict(kv_layout="PHND"), ["kv_layout", "'PHND'"]),
        (dict(implementation="triton"), ["implementation", "'triton'"]),
        (dict(scale="big"), ["scale", "'big'"]),
    ],
)
def test_errors_name_argument_given_and_supported(changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        shared_prefix_decode(**arguments_of() | changes)
    for word in words:
        assert word in str(error.value)


def test_cases_are_what_they_seem():
    """The histories of a case do share their prefix, and differ behind it."""
    case, inputs, arguments = make_case(37, (5, 1, 33), dtype="float32")
    assert dataclasses.asdict(case)["lengths"] == (42, 38, 70)
    for array in (inputs.key, inputs.value):
        np.testing.assert_array_equal(array[0, :, :37], array[2, :, :37])
        assert not np.array_equal(array[0, :, 37:38], array[2, :, 37:38])
    assert len(arguments["prefix_indices"]) == 3 + 2
    assert np.isnan(np.asarray(arguments["k_pages"])).any()
