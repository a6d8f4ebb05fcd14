"""The sharding rule of the CUDA lowering, with the reference in the place of the kernel.

What XLA does with the rule does not depend on what runs inside it, so eight CPU devices tell.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import flash_decode
from jax_baracuda._src import compat
from jax_baracuda._src.decode import partition, primitive

B, K, D = 4, 32, 16
R = P()
TARGET = "jax_baracuda_flash_decode"


@functools.cache
def stand_in():
    """flash_decode_p, but with its CUDA lowering everywhere and the reference as the kernel."""

    def lowering(*operands, insist, **options):
        return partition.partitioned(primitive.reference_call)(*operands, **options)

    probe = Primitive("stand_in")
    probe.multiple_results = True
    probe.def_abstract_eval(primitive._abstract_eval)
    mlir.register_lowering(probe, mlir.lower_fun(lowering, multiple_results=True))
    batching.primitive_batchers[probe] = functools.partial(primitive.OP.batch, probe)
    compat.require_devices_during_lowering(probe)
    return probe


@pytest.fixture(autouse=True)
def partitioned_reference(monkeypatch):
    monkeypatch.setattr(primitive, "flash_decode_p", stand_in())


def operands(q_heads, kv_heads, layout="HND"):
    rng = np.random.default_rng(q_heads * 100 + kv_heads)
    cache = (B, kv_heads, K, D) if layout == "HND" else (B, K, kv_heads, D)
    arrays = [rng.normal(size=shape) for shape in ((B, q_heads, D), cache, cache, (q_heads,))]
    query, key, value, sinks = (array.astype(np.float32) for array in arrays)
    return query, key, value, np.array([0, 20, K, 5], np.int32), sinks


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


def decode(query, key, value, lengths=None, sinks=None, **options):
    return flash_decode(query, key, value, lengths, sinks=sinks, return_lse=True, **options)


def run(mesh, arrays, specs, **options):
    """Results, and what is communicated: a list of (operation, number of elements)."""
    arrays = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]
    function = jax.jit(lambda *args: decode(*args, **options))
    text = function.lower(*arrays).compile().as_text()
    pattern = r"= \w+\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)[-\w]*\("
    found = [
        (m[2], np.prod([int(d) for d in m[1].split(",") if d])) for m in re.finditer(pattern, text)
    ]
    return function(*arrays), found


def check(got, arrays, **options):
    want = decode(*arrays, implementation="reference", **options)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize(
    ("heads", "specs", "result"),
    [
        pytest.param((8, 4), [P("x"), P("x"), P("x"), P("x"), R], P("x"), id="batch"),
        pytest.param((8, 4), [P(None, "y")] * 3 + [R, P("y")], P(None, "y"), id="heads"),
        pytest.param((8, 4), [P("x", "y")] * 3 + [P("x"), P("y")], P("x", "y"), id="both"),
        pytest.param((4, 4), [P("x", "y")] * 3 + [P("x"), P("y")], P("x", "y"), id="no groups"),
        pytest.param((8, 1), [P("x", "y"), P("x"), P("x"), P("x"), P("y")], P("x", "y"), id="MQA"),
        pytest.param(
            (8, 8), [P(None, ("x", "y"))] * 3 + [R, R], P(None, ("x", "y")), id="both axes"
        ),
        pytest.param(
            (8, 2),
            [P(None, ("x", "y")), P(None, "x"), P(None, "x"), R, R],
            P(None, ("x", "y")),
            id="groups over one axis, their heads over the other",
        ),
        pytest.param((8, 4), [P("x", "y"), R, R, R, R], P("x", "y"), id="query only"),
        pytest.param((8, 4), [R, P("x", "y"), P("x", "y"), R, R], P("x", "y"), id="cache only"),
        pytest.param((8, 4), [R] * 5, P(), id="replicated"),
    ],
)
def test_nothing_is_communicated(eight_devices, heads, specs, result, with_context):
    mesh = mesh_of(eight_devices)
    arrays = operands(*heads)
    if with_context:
        with jax.set_mesh(mesh):
            got, communicated = run(mesh, arrays, specs)
    else:
        got, communicated = run(mesh, arrays, specs)
    assert communicated == []
    assert [array.sharding.spec for array in got] == [result, result]
    check(got, arrays)


def test_the_other_layout(eight_devices):
    cache = P("x", None, "y")
    arrays = operands(8, 4, "NHD")
    specs = [P("x", "y"), cache, cache, P("x"), P("y")]
    got, communicated = run(mesh_of(eight_devices), arrays, specs, kv_layout="NHD")
    assert communicated == []
    check(got, arrays, kv_layout="NHD")


@pytest.mark.parametrize(
    ("heads", "specs"),
    [
        # Two key/value heads cannot go round four devices.
        pytest.param((8, 2), [P("x", "y"), P("x"), P("x"), P("x"), R], id="too few heads"),
        pytest.param((8, 4), [P(None, "x"), P(None, "y"), P(None, "y"), R, R], id="other axes"),
    ],
)
def test_a_query_that_fits_badly_moves_and_the_cache_stays(eight_devices, heads, specs):
    arrays = operands(*heads)
    got, communicated = run(mesh_of(eight_devices), arrays, specs)
    assert communicated  # the results or the query, both small
    assert max(size for _, size in communicated) <= arrays[0].size < arrays[1].size // 4
    check(got, arrays)


@pytest.mark.parametrize(
    "specs",
    [
        pytest.param([P("x"), P("x", None, "y"), P("x", None, "y"), P("x"), R], id="rows"),
        pytest.param([P("x", None, "y")] + [P("x", None, None, "y")] * 2 + [P("x"), R], id="dims"),
        pytest.param([P("x", "y"), P("y", "x"), P("y", "x"), P("x"), R], id="crossed"),
        pytest.param([P("y"), P("x"), P("x", None, "y"), R, P("x")], id="muddled"),
    ],
)
def test_what_cannot_stay_sharded_is_gathered_and_right(eight_devices, specs):
    arrays = operands(8, 4)
    got, communicated = run(mesh_of(eight_devices), arrays, specs)
    assert communicated
    check(got, arrays)


@pytest.mark.parametrize("axes", ["y", ("y", "x"), ("x", "y")])
@pytest.mark.parametrize("heads", [(8, 2), (8, 4), (8, 8), (8, 1), (16, 2)])
def test_a_cache_made_under_jit_takes_what_sharding_it_can(eight_devices, heads, axes):
    """Shardy may shard it over parts of mesh axes, which have no names."""
    query, key, *_ = operands(*heads)
    mesh = mesh_of(eight_devices)

    def function(query, row, **options):
        key = jnp.sin(jnp.broadcast_to(row, (B, *row.shape)))
        return decode(query, key, 2 * key, **options)

    want = function(query, key[0], implementation="reference")
    sharded = jax.device_put(query, NamedSharding(mesh, P(None, axes)))
    got = jax.jit(function)(sharded, jax.device_put(key[0], NamedSharding(mesh, R)))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kinds",
    [
        (AxisType.Explicit, AxisType.Explicit),
        (AxisType.Explicit, AxisType.Auto),
        (AxisType.Auto, AxisType.Explicit),
    ],
)
@pytest.mark.parametrize("with_context", [True, False])
def test_explicit_meshes(eight_devices, kinds, with_context):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=kinds, devices=eight_devices)
    arrays = operands(8, 4)
    specs = [P("x", "y")] * 3 + [P("x"), P("y")]
    if with_context:
        with jax.set_mesh(mesh):
            got, communicated = run(mesh, arrays, specs)
    else:
        got, communicated = run(mesh, arrays, specs)
    assert communicated == []
    assert got[0].sharding.is_equivalent_to(NamedSharding(mesh, P("x", "y")), 3)
    check(got, arrays)


def test_explicit_mesh_with_a_replicated_cache(eight_devices):
    arrays = operands(8, 1)
    specs = [P("x", "y"), P("x"), P("x"), P("x"), R]
    got, communicated = run(mesh_of(eight_devices, AxisType.Explicit), arrays, specs)
    assert communicated == []
    assert got[0].sharding.spec == P("x", "y", None)
    check(got, arrays)


def test_vmap_of_sharded_operands(eight_devices):
    mesh = mesh_of(eight_devices)
    query, key, value, *_ = operands(8, 4)
    queries = np.stack([query, -query])
    arrays = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in ((queries, P(None, "x", "y")), (key, P("x", "y")), (value, P("x", "y")))
    ]
    function = jax.jit(jax.vmap(decode, in_axes=(0, None, None)))
    assert "all-gather" not in function.lower(*arrays).compile().as_text()
    got = function(*arrays)
    for index, one in enumerate(queries):
        want = decode(one, key, value, implementation="reference")
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-5, atol=1e-6)


def test_a_decode_loop_keeps_its_cache_sharded(eight_devices):
    mesh = mesh_of(eight_devices)
    query, key, value, *_ = operands(8, 4)
    arrays = [jax.device_put(a, NamedSharding(mesh, P("x", "y"))) for a in (query, key, value)]

    def function(query, key, value):
        def step(length, state):
            query, key = state
            row = jax.lax.dynamic_slice_in_dim(value, length, 1, axis=2)
            key = jax.lax.dynamic_update_slice_in_dim(key, row, length, axis=2)
            return decode(query, key, value, jnp.full((B,), length + 1))[0], key

        return jax.lax.fori_loop(3, 9, step, (query, key))

    compiled = jax.jit(function).lower(*arrays).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())
    assert compiled(*arrays)[1].sharding.is_equivalent_to(arrays[1].sharding, 4)


def test_one_device_and_shard_map_lower_to_the_plain_call(eight_devices, monkeypatch):
    monkeypatch.undo()  # the real primitive, lowered for CUDA
    arrays = operands(8, 4)

    def text(function, *args):
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()

    assert f"@{TARGET}" in text(decode, *arrays)
    assert "CustomSPMDPartitioning" not in text(decode, *arrays)
    mesh = mesh_of(eight_devices)
    sharded = [jax.device_put(array, NamedSharding(mesh, P("x"))) for array in arrays[:4]]
    assert "CustomSPMDPartitioning" in text(decode, *sharded)
    mapped = jax.shard_map(decode, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert f"@{TARGET}" in text(mapped, *sharded)
    assert "CustomSPMDPartitioning" not in text(mapped, *sharded)


def test_shard_map_over_an_abstract_mesh_exports_for_cuda(monkeypatch):
    monkeypatch.undo()
    mesh = AbstractMesh((2, 4), ("x", "y"))
    sharding = NamedSharding(mesh, P("x", "y"))
    avals = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for array in operands(8, 4)[:3]
    ]
    function = jax.shard_map(decode, mesh=mesh, in_specs=P("x", "y"), out_specs=P("x", "y"))
    exported = export.export(
        jax.jit(function),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(TARGET)],
    )(*avals)
    assert exported.nr_devices == 8
    assert f"@{TARGET}" in exported.mlir_module()


def test_empty_batches_and_caches_have_nothing_to_shard(eight_devices):
    mesh = mesh_of(eight_devices)
    query, key = np.zeros((0, 8, D), np.float32), np.zeros((0, 4, K, D), np.float32)
    arrays = [
        jax.device_put(array, NamedSharding(mesh, P(None, "y"))) for array in (query, key, key)
    ]
    assert [array.shape for array in jax.jit(decode)(*arrays)] == [(0, 8, D), (0, 8)]
