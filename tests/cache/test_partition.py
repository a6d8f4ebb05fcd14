"""The sharding rule of the CUDA lowerings, with the references in the place of the kernels.

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

from jax_baracuda import apply_rope, kv_cache_append, paged_append
from jax_baracuda._src import primitives
from jax_baracuda._src.cache import primitive
from jax_baracuda.testing.cache_cases import AppendCase, make_append_inputs

FIELDS = dict(dtype="float32", kv_heads=4, query_heads=8, head_dim=8, value_dim=6)
CASES = [
    AppendCase(f"{name}-{layout}-{layers}", kv_layout=layout, layers=layers, **fields, **FIELDS)
    for name, fields in (
        ("paged", dict(page_size=4)),
        ("cached", dict(capacity=20, lengths=(5, 0, 17, 19), new=(2,) * 4)),
    )
    for layout, layers in (("HND", None), ("NHD", 2))
]
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
COMMUNICATION = r"= \(?(\w+\[[\d,]*\])\S* (all-\w+|collective-\w+|reduce-scatter)[-\w]*\("


@functools.cache
def stand_in(kind):
    """The primitive of an op, but with its CUDA lowering everywhere and the reference inside."""
    op = primitive.OPS[kind]
    rule = op.partitioned(op.reference)
    pair = primitives.define_pair(dataclasses.replace(op, kernel=op.reference, reference=rule))
    if kind == "apply_rope":
        primitive.make_linear(pair)
    return pair


@pytest.fixture(autouse=True)
def partitioned_reference(monkeypatch):
    monkeypatch.setattr(primitive, "PRIMITIVES", {kind: stand_in(kind) for kind in primitive.OPS})


def mesh_of(devices, *kinds):
    kinds = kinds or (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=kinds, devices=devices)


def function_of(case, **options):
    call = {"paged_append": paged_append, "kv_cache_append": kv_cache_append}[case.function]
    return lambda arrays: call(**arrays, kv_layout=case.kv_layout, rope={}, **options)


def stores_of(case):
    return ("k_pages", "v_pages") if case.page_size else ("k_cache", "v_cache")


def specs_of(case, heads=None, batch=None, query="same"):
    """A spec for each operand, by which mesh axes its heads and its batch go over."""
    batch = None if case.page_size else batch
    nhd, layers = case.kv_layout == "NHD", [None] * (case.layers is not None)

    def rows(heads, nhd):
        return P(batch, None, heads) if nhd else P(batch, heads)

    rows_nhd = nhd and not case.page_size
    store = P(*layers, *rows(heads, nhd))
    new = P(None, heads) if case.page_size else rows(heads, rows_nhd)
    query = heads if query == "same" else query
    turned = P(None, query) if case.page_size else rows(query, rows_nhd)
    specs = dict.fromkeys(stores_of(case), store) | {"key": new, "value": new, "query": turned}
    return specs | ({} if case.page_size else {"lengths": P(batch)})


def place(mesh, arrays, specs):
    return {n: jax.device_put(a, NamedSharding(mesh, specs.get(n, P()))) for n, a in arrays.items()}


def run(mesh, case, specs, function=None):
    """The results, and what is communicated: a list of (shape, operation)."""
    arrays = place(mesh, make_append_inputs(case).arrays, specs)
    compiled = jax.jit(function or function_of(case)).lower(arrays).compile()
    return compiled(arrays), re.findall(COMMUNICATION, compiled.as_text())


def check(case, got):
    want = function_of(case, implementation="reference")(make_append_inputs(case).arrays)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize(
    "axes",
    [
        {"heads": "y"},
        {"heads": "x", "query": ("x", "y")},
        {"heads": "y", "query": None},
        {"heads": None, "query": "y"},
        {"batch": "x"},
        {"heads": "y", "batch": "x"},
        {},
    ],
    ids=str,
)
def test_nothing_is_communicated(eight_devices, case, axes, with_context):
    mesh, specs = mesh_of(eight_devices), specs_of(case, **axes)
    if with_context:
        with jax.set_mesh(mesh):
            got, communicated = run(mesh, case, specs)
    else:
        got, communicated = run(mesh, case, specs)
    assert communicated == []
    for array, name in zip(got, (*stores_of(case), "query"), strict=True):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), array.ndim), name
    check(case, got)


@EVERY
def test_rows_follow_the_stores(eight_devices, case):
    """Rows that no one has sharded are cut to what each device needs: no store moves."""
    mesh, specs = mesh_of(eight_devices), specs_of(case, heads="y", batch="x")
    for name in ("key", "value", "query", "lengths"):
        specs.pop(name, None)
    got, communicated = run(mesh, case, specs)
    sizes = [
        np.prod([int(n) for n in re.findall(r"\d+", s.split("[")[1])]) for s, _ in communicated
    ]
    inputs = make_append_inputs(case).arrays
    assert max(sizes, default=0) <= inputs["query"].size
    check(case, got)


@EVERY
def test_what_cannot_stay_sharded_is_gathered_and_right(eight_devices, case):
    mesh, specs = mesh_of(eight_devices), specs_of(case)
    specs |= {"query": P(*[None] * (make_append_inputs(case).arrays["query"].ndim - 1), "y")}
    specs |= {"value": P(*[None] * (make_append_inputs(case).arrays["value"].ndim - 1), "x")}
    got, communicated = run(mesh, case, specs)
    assert communicated
    check(case, got)


@EVERY
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_explicit_meshes(eight_devices, case, kind):
    mesh = mesh_of(eight_devices, kind, AxisType.Explicit)
    specs = specs_of(case, heads="y", batch="x" if kind == AxisType.Explicit else None)
    got, communicated = run(mesh, case, specs)
    assert communicated == []
    for array, name in zip(got, (*stores_of(case), "query"), strict=True):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), array.ndim), name
    if kind == AxisType.Explicit:
        arrays = place(mesh, make_append_inputs(case).arrays, specs)
        types = jax.eval_shape(function_of(case), arrays)
        given = (*stores_of(case), "query")
        assert [aval.sharding for aval in types] == [jax.typeof(arrays[n]).sharding for n in given]
    check(case, got)


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("k_pages", P("x"), r"k_pages is sharded over \('x',\) along its pages"),
        ("k_pages", P(None, None, None, "x"), "k_pages is sharded over .* head dimension"),
        ("key", P("x"), "key is sharded over .* along its tokens"),
        ("key", P(None, "y"), "key is sharded over .*'y'.* heads and k_pages over .*'x'"),
    ],
)
def test_explicit_shardings_that_do_not_fit_are_errors(eight_devices, name, spec, words):
    mesh, case = mesh_of(eight_devices, AxisType.Explicit, AxisType.Explicit), CASES[0]
    case = dataclasses.replace(case, new=(2, 4, 2))
    arrays = make_append_inputs(case).arrays
    arrays = {n: a[:16] if n.endswith("_pages") else a for n, a in arrays.items()}
    specs = specs_of(case, heads="x" if spec == P(None, "y") else None) | {name: spec}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(function_of(case), place(mesh, arrays, specs))


@EVERY
def test_a_loop_keeps_its_stores_sharded(eight_devices, case):
    mesh, names = mesh_of(eight_devices), stores_of(case)
    specs = specs_of(case, heads="y", batch="x")

    def steps(arrays):
        rest = {n: a for n, a in arrays.items() if n not in names}

        def step(_, stores):
            return function_of(case)(dict(zip(names, stores, strict=True)) | rest)[:2]

        return jax.lax.fori_loop(0, 3, step, tuple(arrays[name] for name in names))

    got, communicated = run(mesh, case, specs, steps)
    assert communicated == []
    for array, name in zip(got, names, strict=True):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), array.ndim)


def rope_operands(mesh, spec, shape=(4, 8, 8, 6)):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    positions = np.arange(8, dtype=np.int32)
    return jax.device_put(x, NamedSharding(mesh, spec)), positions


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize(
    "spec", [P("x", None, "y"), P(None, ("x", "y")), P("x", "y"), P()], ids=str
)
def test_rope_and_its_gradient(eight_devices, spec, kind):
    mesh = mesh_of(eight_devices, kind, kind)
    x, positions = rope_operands(mesh, spec)

    def both(x):
        out, pull = jax.vjp(lambda x: apply_rope(x, positions), x)
        return out, pull(out)[0]

    compiled = jax.jit(both).lower(x).compile()
    assert re.findall(COMMUNICATION, compiled.as_text()) == []
    out, back = compiled(x)
    want = apply_rope(np.asarray(x), positions, implementation="reference")
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-6)
    for array in (out, back):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 4)


def test_rope_of_split_columns_is_an_error_where_shardings_are_explicit(eight_devices):
    mesh = mesh_of(eight_devices, AxisType.Explicit, AxisType.Explicit)
    x, positions = rope_operands(mesh, P(None, None, None, "x"))
    with pytest.raises(ValueError, match=r"x is sharded over \('x',\) along its head dimension"):
        jax.eval_shape(apply_rope, x, positions)


def test_vmap_of_sharded_stores(eight_devices):
    mesh, case = mesh_of(eight_devices), CASES[0]
    specs = {n: P(None, *spec) for n, spec in specs_of(case, heads="y").items()}
    arrays = {n: np.stack([a, a]) for n, a in make_append_inputs(case).arrays.items()}
    function = jax.jit(jax.vmap(function_of(case)))
    placed = place(mesh, arrays, specs)
    assert re.findall(COMMUNICATION, function.lower(placed).compile().as_text()) == []
    for one in zip(*function(placed), strict=True):
        check(case, one)


def test_one_device_lowers_to_the_plain_call(eight_devices, monkeypatch):
    monkeypatch.undo()  # the real primitives, lowered for CUDA
    case, mesh = CASES[0], mesh_of(eight_devices)
    arrays = make_append_inputs(case).arrays

    def text(given):
        return jax.jit(function_of(case)).trace(given).lower(lowering_platforms=("cuda",)).as_text()

    assert "CustomSPMDPartitioning" not in text(arrays)
    assert "CustomSPMDPartitioning" in text(place(mesh, arrays, specs_of(case, heads="y")))


def test_shard_map_over_an_abstract_mesh_exports_for_cuda(monkeypatch):
    monkeypatch.undo()
    mesh, case = AbstractMesh((2, 4), ("x", "y")), CASES[0]
    specs = specs_of(case, heads="y")
    avals = {
        n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, specs.get(n, P())))
        for n, a in make_append_inputs(case).arrays.items()
    }
    in_specs = ({n: specs.get(n, P()) for n in avals},)
    out_specs = tuple(specs[n] for n in (*stores_of(case), "query"))
    function = jax.shard_map(function_of(case), mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    target = "jax_baracuda_append"
    exported = export.export(
        jax.jit(function),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(target)],
    )(avals)
    assert exported.nr_devices == 8
    assert f"@{target}" in exported.mlir_module()


def test_empty_stores_have_nothing_to_shard(eight_devices):
    mesh = mesh_of(eight_devices)
    store = jax.device_put(np.zeros((0, 4, 2, 8), np.float32), NamedSharding(mesh, P(None, "y")))
    rows = jnp.zeros((3, 4, 8))
    integers = jnp.zeros((3,), jnp.int32), jnp.zeros((3,), jnp.int32), jnp.zeros((2,), jnp.int32)
    results = jax.jit(paged_append)(store, store, rows, rows, *integers, jnp.array([0, 2]))
    assert [array.shape for array in results] == [store.shape] * 2
