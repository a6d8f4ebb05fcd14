"""The paged ops in shard_map and on Explicit meshes: values, types and errors."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda.testing import paged_odd as odd
from jax_baracuda.testing.paged_odd import KINDS, odd_call, odd_operands

both = pytest.mark.parametrize("kind", KINDS)


def assert_close(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def by_name(kind, **options):
    """The public function of one argument: operands by name."""
    call = odd_call(kind, **options)
    return lambda given: call(**given)


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind), devices=devices[:4])


HEADS = {
    "query": P(None, "y"),
    "k_pages": P(None, "y"),
    "v_pages": P(None, "y"),
    "sinks": P("y"),
    "alibi_slopes": P(None, "y"),
}


def place(mesh, given, specs=HEADS):
    return {
        name: jax.device_put(array, NamedSharding(mesh, specs.get(name, P())))
        for name, array in given.items()
    }


@both
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_heads(kind, eight_devices, axis_type, check_vma):
    mesh = mesh_of(eight_devices, axis_type)
    given = odd_operands(kind)
    specs = {name: HEADS.get(name, P()) for name in given}
    seen = []

    def local(given):
        out, lse = by_name(kind)(given)
        seen.append([jax.typeof(a).manual_axis_type.varying for a in (out, lse)])
        assert jax.typeof(out).shape[1:] == (odd.HQ // 2, odd.D)
        return out, lse

    function = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(P(None, "y"),) * 2,
            check_vma=check_vma,
        )
    )
    placed = place(mesh, given)
    assert_close(function(placed), by_name(kind)(given))
    assert seen[0] == [frozenset({"y"}) if check_vma else frozenset()] * 2
    text = function.trace(placed).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"custom_call @jax_baracuda_{kind}") == 1
    assert "CustomSPMDPartitioning" not in text


@both
def test_shard_map_with_a_store_and_a_table_a_device(kind, eight_devices):
    """Data parallelism: every device has requests, pages and a table of its own."""
    mesh = mesh_of(eight_devices)
    many = [odd_operands(kind, seed, optional=False) for seed in range(2)]
    stacked = {name: np.stack([given[name] for given in many]) for name in many[0]}

    def local(given):
        out, lse = by_name(kind)({name: array[0] for name, array in given.items()})
        return out[None], lse[None]

    function = jax.shard_map(local, mesh=mesh, in_specs=(P("x"),), out_specs=(P("x"),) * 2)
    want = [by_name(kind)(given) for given in many]
    assert_close(jax.jit(function)(stacked), [np.stack(p) for p in zip(*want, strict=True)])


@both
def test_shard_map_over_a_part_of_the_mesh(kind, eight_devices):
    mesh = mesh_of(eight_devices)
    given = odd_operands(kind)
    specs = {name: HEADS.get(name, P()) for name in given}
    function = jax.jit(
        jax.shard_map(
            by_name(kind),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(P(None, "y"),) * 2,
            axis_names={"y"},
        )
    )
    assert_close(function(place(mesh, given)), by_name(kind)(given))
    with pytest.raises(NotImplementedError, match=r"\['x'\] are left to jit.*every axis"):
        function.trace(place(mesh, given)).lower(lowering_platforms=("cuda",))


@both
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_explicit_mesh_types_the_results(kind, eight_devices, implementation):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    given = odd_operands(kind)
    function = jax.jit(by_name(kind, implementation=implementation))
    with jax.set_mesh(mesh):
        got, types = function(place(mesh, given)), jax.eval_shape(function, place(mesh, given))
    for results in (got, types):
        assert [a.sharding.spec for a in results] == [P(None, "y", None), P(None, "y")]
    assert_close(got, by_name(kind)(given))


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k_pages": P("x"), "v_pages": P("x")}, "k_pages is sharded over .*'x'.* pages"),
        ({"v_pages": P(None, None, "y")}, "v_pages is sharded over .*'y'.* rows of a page"),
        ({"query": P("x")}, "query is sharded over .*'x'.* supported are the heads"),
        ({"page_indices": P("x")}, "page_indices is sharded over .*'x'.* entries"),
        ({"last_page_len": P("y")}, "last_page_len is sharded over .*'y'.* requests"),
        ({"query": P(None, "x")}, "k_pages over .*'y'|query is sharded over .*'x'.* heads"),
    ],
)
def test_explicit_shardings_that_do_not_fit_are_errors(kind, eight_devices, changes, words):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    given = odd_operands(kind)
    if kind == "paged_prefill" and changes.get("query") == P("x"):
        given["query"] = given["query"][:8]
    specs = {n: s for n, s in HEADS.items() if n not in ("sinks", "alibi_slopes")} | changes
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(by_name(kind), place(mesh, given, specs))
