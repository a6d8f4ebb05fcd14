"""The sharding rule of the CUDA lowering, with the reference in the place of the kernel.

What XLA does with the rule does not depend on what runs inside it, so eight CPU devices tell.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_baracuda
from jax_baracuda._src import compat, primitives
from jax_baracuda._src.paged import primitive, shapes
from jax_baracuda.testing.paged_odd import KINDS

B, T, D, PAGES, PAGE, N = 4, 8, 16, 12, 8, 10
R = P()
both = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def stand_in(kind):
    """The primitive of jit, but with its CUDA lowering everywhere, the reference as the kernel."""
    op = primitive.OPS[kind]
    spread = op.partitioned(op.reference)
    probe = primitives._define(
        dataclasses.replace(op, reference=spread), f"stand_in_{kind}", spread
    )
    compat.require_devices_during_lowering(probe)
    return probe


@pytest.fixture(autouse=True)
def partitioned_reference(monkeypatch):
    pairs = {kind: (stand_in(kind), pair[1]) for kind, pair in primitive.PRIMITIVES.items()}
    monkeypatch.setattr(primitive, "PRIMITIVES", pairs)


def operands(kind, q_heads, kv_heads, nhd=False):
    rng = np.random.default_rng(q_heads * 100 + kv_heads)
    store = (PAGES, PAGE, kv_heads, D) if nhd else (PAGES, kv_heads, PAGE, D)
    rows = B if kind == "paged_decode" else T
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {
            "query": (rows, q_heads, D),
            "k_pages": store,
            "v_pages": store,
            "sinks": (q_heads,),
        }.items()
    }
    table = {
        "page_indices": rng.integers(0, PAGES, N),
        "page_indptr": [0, 3, 3, 8, 9],
        "last_page_len": [8, 3, 1, 5],
    }
    if kind == "paged_prefill":
        table["qo_indptr"] = [0, 1, 1, 5, 7]
    return arrays | {name: np.asarray(array, np.int32) for name, array in table.items()}


def call(kind, **options):
    if kind == "paged_prefill":
        options["max_seqlen_q"] = 4
    return functools.partial(getattr(jax_baracuda, kind), **options)


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


def place(mesh, given, specs):
    return {
        name: jax.device_put(array, NamedSharding(mesh, specs.get(name, R)))
        for name, array in given.items()
    }


def run(mesh, kind, given, specs, **options):
    """Results, and what is communicated: a list of (operation, number of elements)."""
    placed = place(mesh, given, specs)
    function = jax.jit(lambda given: call(kind, **options)(**given))
    compiled = function.lower(placed).compile()
    pattern = r"= \w+\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)[-\w]*\("
    found = [
        (m[2], np.prod([int(d) for d in m[1].split(",") if d]))
        for m in re.finditer(pattern, compiled.as_text())
    ]
    return compiled(placed), found


def check(got, kind, given, **options):
    want = call(kind, implementation="reference", **options)(**given)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def heads(query, store=None, sinks=None):
    """Specs with these mesh axes for the heads of the query and of the stores."""
    store = query if store is None else store
    return {
        "query": P(None, query),
        "k_pages": P(None, store),
        "v_pages": P(None, store),
        "sinks": P(sinks),
    }


@both
@pytest.mark.parametrize(
    ("sizes", "specs", "result"),
    [
        pytest.param((8, 4), heads("y", sinks="y"), P(None, "y"), id="heads"),
        pytest.param((4, 4), heads("y"), P(None, "y"), id="no groups"),
        pytest.param((8, 8), heads(("x", "y")), P(None, ("x", "y")), id="both axes"),
        pytest.param(
            (8, 2), heads(("x", "y"), "x"), P(None, ("x", "y")), id="heads and their groups"
        ),
        pytest.param((8, 1), heads("y", (), "y"), P(None, "y"), id="MQA"),
        pytest.param((8, 4), {"query": P(None, "y")}, P(None, "y"), id="query only"),
        pytest.param((8, 4), heads((), "y"), P(None, "y"), id="stores only"),
        pytest.param((8, 4), {}, P(), id="replicated"),
    ],
)
def test_nothing_is_communicated(kind, eight_devices, sizes, specs, result):
    given = operands(kind, *sizes)
    got, communicated = run(mesh_of(eight_devices), kind, given, specs)
    assert communicated == []
    assert [array.sharding.spec for array in got] == [result, result]
    check(got, kind, given)


@both
def test_the_other_layout(kind, eight_devices):
    given = operands(kind, 8, 4, nhd=True)
    store = P(None, None, "y")
    specs = {"query": P(None, "y"), "k_pages": store, "v_pages": store}
    with jax.set_mesh(mesh_of(eight_devices)):
        got, communicated = run(
            mesh_of(eight_devices), kind, given, specs, kv_layout="NHD", local_window_size=6
        )
    assert communicated == []
    check(got, kind, given, kv_layout="NHD", local_window_size=6)


@both
@pytest.mark.parametrize(
    ("sizes", "specs"),
    [
        pytest.param((8, 2), heads("y", ()), id="too few heads"),
        pytest.param((8, 4), heads("x", "y"), id="other axes"),
        pytest.param((8, 4), heads("y") | {"query": P("x", "y")}, id="rows"),
        pytest.param((8, 4), heads("y") | {"query": P("x", None, "y")}, id="head dimension"),
        pytest.param((8, 4), heads("y") | {"last_page_len": P("x")}, id="requests"),
    ],
)
def test_what_fits_badly_moves_and_the_stores_stay(kind, eight_devices, sizes, specs):
    given = operands(kind, *sizes)
    got, communicated = run(mesh_of(eight_devices), kind, given, specs)
    assert communicated  # the results or the query, or the table, all of them small
    assert max(size for _, size in communicated) <= given["query"].size < given["k_pages"].size // 2
    check(got, kind, given)


@both
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (P("x", "y"), r"k_pages is sharded over \('x',\) along its pages"),
        (P(None, None, "y"), r"k_pages is sharded over \('y',\) along its rows of a page"),
        (P(None, None, None, "x"), r"k_pages is sharded over \('x',\) along its head dimension"),
    ],
)
def test_a_store_is_never_gathered(kind, eight_devices, spec, words):
    given = operands(kind, 8, 4)
    specs = heads("y") | {"k_pages": spec, "v_pages": spec}
    with pytest.raises(Exception, match=f"{kind}: {words}.*supported are the heads"):
        run(mesh_of(eight_devices), kind, given, specs)


@both
def test_a_store_made_under_jit_takes_what_sharding_it_can(kind, eight_devices):
    mesh = mesh_of(eight_devices)
    given = operands(kind, 8, 4)
    rest = {name: array for name, array in given.items() if name not in shapes.STORES}
    row = given["k_pages"][0]

    def function(given, row):
        store = jnp.sin(jnp.broadcast_to(row, (PAGES, *row.shape)))
        return call(kind)(k_pages=store, v_pages=2 * store, **given)

    got = jax.jit(function)(
        place(mesh, rest, heads("y")), jax.device_put(row, NamedSharding(mesh, R))
    )
    store = np.sin(np.broadcast_to(row, (PAGES, *row.shape)))
    check(got, kind, rest | {"k_pages": store, "v_pages": 2 * store})


@both
@pytest.mark.parametrize(
    "axis_types",
    [
        (AxisType.Explicit, AxisType.Explicit),
        (AxisType.Explicit, AxisType.Auto),
        (AxisType.Auto, AxisType.Explicit),
    ],
)
def test_explicit_meshes(kind, eight_devices, axis_types):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=axis_types, devices=eight_devices)
    given = operands(kind, 8, 4)
    with jax.set_mesh(mesh):
        got, communicated = run(mesh, kind, given, heads("y", sinks="y"))
    assert communicated == []
    assert got[0].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "y")), 3)
    check(got, kind, given)


@both
def test_vmap_of_sharded_operands(kind, eight_devices):
    mesh = mesh_of(eight_devices)
    given = operands(kind, 8, 4)
    tables = np.stack([given["page_indices"], given["page_indices"][::-1]])
    placed = place(mesh, given | {"page_indices": tables}, heads("y"))
    axes = {name: 0 if name == "page_indices" else None for name in given}
    function = jax.jit(jax.vmap(lambda given: call(kind)(**given), in_axes=(axes,)))
    assert "all-gather" not in function.lower(placed).compile().as_text()
    got = function(placed)
    for index, table in enumerate(tables):
        check([array[index] for array in got], kind, given | {"page_indices": table})


@both
def test_a_loop_keeps_its_stores_sharded(kind, eight_devices):
    mesh = mesh_of(eight_devices)
    given = operands(kind, 8, 4)
    rest = {n: a for n, a in given.items() if n not in ("query", "k_pages")}

    def function(query, k_pages, rest):
        def step(page, state):
            query, k_pages = state
            row = jax.lax.dynamic_slice_in_dim(rest["v_pages"], page, 1)
            k_pages = jax.lax.dynamic_update_slice_in_dim(k_pages, row, page + 1, axis=0)
            return call(kind)(query=query, k_pages=k_pages, **rest)[0], k_pages

        return jax.lax.fori_loop(3, 7, step, (query, k_pages))

    placed = place(mesh, given, heads("y"))
    query, k_pages = placed.pop("query"), placed.pop("k_pages")
    compiled = jax.jit(function).lower(query, k_pages, placed).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())
    got = compiled(query, k_pages, placed)
    assert got[1].sharding.is_equivalent_to(k_pages.sharding, 4)
    want = function(given["query"], given["k_pages"], rest)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)


@both
def test_one_device_and_shard_map_lower_to_the_plain_call(kind, eight_devices, monkeypatch):
    monkeypatch.undo()  # the real primitive, lowered for CUDA
    given = operands(kind, 8, 4)

    def text(function, given):
        return jax.jit(function).trace(given).lower(lowering_platforms=("cuda",)).as_text()

    def function(given):
        return call(kind)(**given)

    target = f"custom_call @jax_baracuda_{kind}"
    assert target in text(function, given)
    assert "CustomSPMDPartitioning" not in text(function, given)
    mesh = mesh_of(eight_devices)
    specs = {name: heads("y").get(name, R) for name in given} | {"sinks": P("y")}
    placed = place(mesh, given, specs)
    assert "CustomSPMDPartitioning" in text(function, placed)
    out = P(None, "y")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=(out, out))
    assert target in text(mapped, placed)
    assert "CustomSPMDPartitioning" not in text(mapped, placed)


@both
def test_shard_map_over_an_abstract_mesh_exports_for_cuda(kind, monkeypatch):
    monkeypatch.undo()
    mesh = AbstractMesh((2, 4), ("x", "y"))
    given = operands(kind, 8, 4)
    specs = {name: heads("y", sinks="y").get(name, R) for name in given}
    avals = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, specs[name]))
        for name, a in given.items()
    }
    out = P(None, "y")
    function = jax.shard_map(
        lambda given: call(kind)(**given), mesh=mesh, in_specs=(specs,), out_specs=(out, out)
    )
    target = f"jax_baracuda_{kind}"
    unchecked = [export.DisabledSafetyCheck.custom_call(target)]
    exported = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=unchecked)(
        avals
    )
    assert exported.nr_devices == 8
    assert f"@{target}" in exported.mlir_module()


@both
def test_empty_operands_have_nothing_to_shard(kind, eight_devices):
    mesh = mesh_of(eight_devices)
    given = operands(kind, 8, 4)
    for name, array in (
        ("page_indices", np.zeros(0, np.int32)),
        ("query", given["query"][:0]),
    ):
        changed = given | {name: array}
        if name == "query" and kind == "paged_decode":
            changed |= {
                "page_indptr": np.zeros(1, np.int32),
                "last_page_len": np.zeros(0, np.int32),
            }
        got, _ = run(mesh, kind, changed, heads("y"))
        assert got[0].shape == changed["query"].shape
        assert (np.asarray(got[1]) == -np.inf).all()
