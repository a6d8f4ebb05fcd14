"""The ops under jax's transformations give what a Python loop over them gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import apply_rope, kv_cache_append, paged_append
from jax_baracuda._src.cache import primitive
from jax_baracuda.testing.cache_cases import AppendCase, make_append_inputs

N = 3
FIELDS = dict(dtype="float32", kv_heads=4, query_heads=8, head_dim=8, value_dim=6, rope={})
PAGED = AppendCase("paged", page_size=4, misplaced=True, **FIELDS)
CACHED = AppendCase("cached", capacity=20, lengths=(5, 0, 17, 19), new=(2,) * 4, **FIELDS)
CASES = [
    pytest.param(
        AppendCase(f"{name}-{layout}", **fields, kv_layout=layout, layers=layers),
        id=f"{name}-{layout}-{layers}",
    )
    for name, fields in (
        ("paged", dict(page_size=4, misplaced=True, **FIELDS)),
        ("cached", dict(capacity=20, lengths=(5, 0, 17, 19), new=(2,) * 4, **FIELDS)),
    )
    for layout, layers in (("HND", None), ("NHD", 2))
]
EVERY = pytest.mark.parametrize("case", CASES)
FUNCTIONS = {"paged_append": paged_append, "kv_cache_append": kv_cache_append}


def function_of(case, **options):
    call, options = FUNCTIONS[case.function], dict(kv_layout=case.kv_layout, rope={}) | options
    return lambda arrays: call(**arrays, **options)


def assert_equal(got, want):
    """NaN for NaN; rotated rows may round otherwise."""
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def mapped(case, axes):
    """Operands, those in ``axes`` of N examples along the axis that is given."""
    many = [make_append_inputs(case, seed).arrays for seed in range(N)]
    if "layer" in axes:
        many = [arrays | {"layer": np.int32(i - 1)} for i, arrays in enumerate(many)]
    stacked = {name: np.stack([a[name] for a in many], axis) for name, axis in axes.items()}
    return many[0] | stacked, {name: axes.get(name) for name in many[0]}


def loop(function, arrays, axes):
    """What vmap computes, by a Python loop."""
    results = [
        function({n: a if axes[n] is None else np.take(a, i, axes[n]) for n, a in arrays.items()})
        for i in range(N)
    ]
    return [np.stack(parts) for parts in zip(*results, strict=True)]


def stores_of(case):
    return ("k_pages", "v_pages") if case.page_size else ("k_cache", "v_cache")


@EVERY
@pytest.mark.parametrize("seed", range(6))
def test_vmap_of_stores_and_any_others(case, seed):
    rng = np.random.default_rng(seed)
    arrays = make_append_inputs(case).arrays
    axes = {
        name: int(rng.integers(array.ndim + 1))
        for name, array in arrays.items()
        if name in stores_of(case) or rng.random() < (0, 1, 0.5, 0.5, 0.5, 0.5)[seed]
    }
    arrays, in_axes = mapped(case, axes)
    function = function_of(case)
    got = jax.jit(jax.vmap(function, in_axes=(in_axes,)))(arrays)
    assert_equal(got, loop(function, arrays, in_axes))


@EVERY
def test_vmap_of_the_query_alone_leaves_the_stores_alone(case):
    arrays, axes = mapped(case, {"query": 1})
    function = function_of(case)
    jaxpr = jax.make_jaxpr(jax.vmap(function, in_axes=(axes,), out_axes=(None, None, 0)))(arrays)
    (equation,) = (e for e in jaxpr.eqns if e.primitive in primitive.PRIMITIVES[case.function])
    names = sorted(arrays)
    places = [names.index(name) for name in stores_of(case)]
    assert equation.invars[:2] == [jaxpr.jaxpr.invars[place] for place in places]
    *stores, query = jax.vmap(function, in_axes=(axes,), out_axes=(None, None, 0))(arrays)
    want = loop(function, arrays, axes)
    assert_equal(stores, [store[0] for store in want[:2]])
    assert_equal([query], want[2:])


@EVERY
@pytest.mark.parametrize("name", ["key", "value", "k_store", "position"])
def test_vmap_that_would_copy_a_store_is_refused(case, name):
    position = "positions" if case.page_size else "lengths"
    name = {"k_store": stores_of(case)[0], "position": position}.get(name, name)
    arrays, axes = mapped(case, {name: 0})
    with pytest.raises(NotImplementedError, match=f"{case.function} in vmap.*Map both stores"):
        jax.vmap(function_of(case), in_axes=(axes,))(arrays)


@EVERY
def test_nested_vmap(case):
    inner, inner_axes = mapped(case, dict.fromkeys((*stores_of(case), "key"), 0))
    outer = {n: np.stack([a, a[::-1]]) if inner_axes[n] == 0 else a for n, a in inner.items()}
    function = jax.vmap(function_of(case), in_axes=(inner_axes,))
    got = jax.vmap(function, in_axes=(inner_axes,))(outer)
    for index in range(2):
        own = {n: a[index] if inner_axes[n] == 0 else a for n, a in outer.items()}
        assert_equal([part[index] for part in got], function(own))


@pytest.mark.parametrize("size", [0, 1])
def test_vmap_of_no_or_one_example(size):
    arrays = {
        n: np.stack([a] * size) if size else a[None][:0]
        for n, a in make_append_inputs(PAGED).arrays.items()
    }
    got = jax.vmap(function_of(PAGED))(arrays)
    assert [len(part) for part in got] == [size] * 3
    if size:
        assert_equal(
            [part[0] for part in got], function_of(PAGED)(make_append_inputs(PAGED).arrays)
        )


def test_vmap_of_stores_in_front_moves_nothing():
    arrays, axes = mapped(PAGED, dict.fromkeys(make_append_inputs(PAGED).arrays, 0))
    jaxpr = jax.make_jaxpr(jax.vmap(function_of(PAGED), in_axes=(axes,)))(arrays)
    (equation,) = (e for e in jaxpr.eqns if e.primitive in primitive.PRIMITIVES["paged_append"])
    places = [sorted(arrays).index(name) for name in stores_of(PAGED)]
    assert equation.invars[:2] == [jaxpr.jaxpr.invars[place] for place in places]


@EVERY
def test_jit_checkpoint_and_cond(case):
    arrays, function = make_append_inputs(case).arrays, function_of(case)
    want = function(arrays)
    assert_equal(jax.jit(function)(arrays), want)
    assert_equal(jax.jit(jax.checkpoint(function))(arrays), want)
    either = jax.jit(
        lambda p, a: jax.lax.cond(p, function, function_of(case, rope={"theta": 2.0}), a)
    )
    assert_equal(either(True, arrays), want)


def test_numpy_and_other_integers():
    arrays = make_append_inputs(PAGED).arrays
    want = function_of(PAGED)(arrays)
    names = ("batch_indices", "positions", "page_indices", "page_indptr")
    with jax.enable_x64(True):
        wide = {n: a.astype(np.int64) for n, a in arrays.items() if n in names}
        assert_equal(function_of(PAGED)(arrays | wide), want)
        # Narrowed without care, these would name real requests, positions and pages.
        far = {n: np.where((a < 0) | (a > 100), a + 2**32, a) for n, a in wide.items()}
        assert_equal(function_of(PAGED)(arrays | far)[:2], want[:2])
    lists = {n: a.tolist() for n, a in arrays.items() if n in names}
    assert_equal(function_of(PAGED)(arrays | lists), want)
    lengths = make_append_inputs(CACHED).arrays["lengths"].astype(np.uint8)
    cached = make_append_inputs(CACHED).arrays
    assert_equal(function_of(CACHED)(cached | {"lengths": lengths}), function_of(CACHED)(cached))


# ---- apply_rope


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


ROPE = [{}, {"interleaved": True}, {"rotary_dim": 4}, {"interleaved": True, "rotary_dim": 6}]
YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("options", [*ROPE, {"scaling": YARN}])
def test_derivatives(options):
    x, direction, positions = random(3, 2, 8), random(3, 2, 8) + 1, np.array([5, -3, 1000])

    def loss(x, implementation=None):
        out = apply_rope(x, positions, **options, implementation=implementation)
        return (jnp.sin(out) * direction).sum()

    plain = functools.partial(loss, implementation="reference")
    tight = dict(rtol=1e-4, atol=1e-5)

    def curved(f):
        """Value and gradient, and how the gradient changes along the direction."""
        return jax.jit(lambda x: jax.jvp(jax.value_and_grad(f), (x,), (direction,)))

    got, want = curved(loss)(x), curved(plain)(x)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, **tight)
    at = [loss(x + h * direction) for h in (1e-2, -1e-2)]
    (_, gradient), _ = got
    np.testing.assert_allclose((at[0] - at[1]) / 2e-2, (gradient * direction).sum(), rtol=1e-2)


def test_the_gradient_is_the_rotation_back():
    x, positions = random(3, 2, 8), np.array([1, 2, 3])
    out, pull = jax.vjp(lambda x: apply_rope(x, positions), x)
    np.testing.assert_allclose(pull(out)[0], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply_rope(out, -positions), x, rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_the_distance():
    query, key = random(1, 8), random(2, 1, 8)[0]
    for options in ROPE:

        def product(i, j, options=options):
            turned = (apply_rope(a, np.int32(p), **options) for a, p in ((query, i), (key, j)))
            return jnp.vdot(*turned)

        np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
        assert abs(product(7, 3) - product(7, 4)) > 1e-2


@pytest.mark.parametrize("axes", [(0, 0), (2, 1), (1, None), (None, 0), (3, 0)])
def test_vmap_of_rope(axes):
    x = random(4, 2, 8) if axes[0] is None else random(*np.insert((4, 2, 8), axes[0], N))
    positions = (
        np.arange(4) if axes[1] is None else np.arange(4 * N).reshape(np.insert([4], axes[1], N))
    )
    for options in ROPE:
        function = functools.partial(apply_rope, **options)
        got = jax.vmap(function, in_axes=axes)(x, positions)
        for index in range(N):
            given = (
                a if k is None else np.take(a, index, k)
                for a, k in zip((x, positions), axes, strict=True)
            )
            np.testing.assert_allclose(got[index], function(*given), rtol=1e-5, atol=1e-6)
        gradient = jax.vmap(jax.grad(lambda x, p: (function(x, p) ** 3).sum()), in_axes=axes)  # noqa: B023
        assert gradient(x, positions).shape[1:] == (4, 2, 8)


def test_positions_broadcast():
    x = random(2, 5, 3, 8)
    want = apply_rope(x, np.broadcast_to(np.arange(5), (2, 5)))
    np.testing.assert_array_equal(apply_rope(x, np.arange(5)), want)
    np.testing.assert_array_equal(apply_rope(x, np.arange(5).tolist()), want)
    np.testing.assert_array_equal(apply_rope(x, 3), apply_rope(x, np.full((2, 5), 3)))
    rows = np.array([[4], [9]], np.uint8)
    np.testing.assert_array_equal(apply_rope(x, rows)[1], apply_rope(x[1], np.full(5, 9)))


# ---- shard_map


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


HEADS = dict(
    k_pages=P(None, "y"),
    v_pages=P(None, "y"),
    key=P(None, "y"),
    value=P(None, "y"),
    query=P(None, "y"),
    k_cache=P("x", "y"),
    v_cache=P("x", "y"),
    lengths=P("x"),
)


def specs_of(case, arrays):
    rows = P("x", "y") if case is CACHED else P(None, "y")
    return {n: rows if n in ("key", "value", "query") else HEADS.get(n, P()) for n in arrays}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("case", [PAGED, CACHED], ids=lambda case: case.function)
def test_shard_map(eight_devices, kind, check_vma, case):
    mesh, arrays = mesh_of(eight_devices, kind), make_append_inputs(case).arrays
    specs = specs_of(case, arrays)
    out_specs = tuple(specs[name] for name in (*stores_of(case), "query"))
    function = jax.shard_map(
        function_of(case), mesh=mesh, in_specs=(specs,), out_specs=out_specs, check_vma=check_vma
    )
    placed = {n: jax.device_put(a, NamedSharding(mesh, specs[n])) for n, a in arrays.items()}
    assert_equal(jax.jit(function)(placed), function_of(case)(arrays))
    text = jax.jit(function).trace(placed).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @jax_baracuda_append") == 1
    assert "CustomSPMDPartitioning" not in text


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shard_map_of_rope_and_its_gradient(eight_devices, kind):
    mesh, x, positions = mesh_of(eight_devices, kind), random(4, 6, 8, 8), np.arange(6)
    spec = P("x", None, "y")
    local = jax.shard_map(apply_rope, mesh=mesh, in_specs=(spec, P()), out_specs=spec)
    placed = (
        jax.device_put(x, NamedSharding(mesh, spec)),
        jax.device_put(positions, NamedSharding(mesh, P())),
    )
    np.testing.assert_allclose(
        jax.jit(local)(*placed), apply_rope(x, positions), rtol=1e-5, atol=1e-6
    )
    gradient = jax.jit(jax.grad(lambda x, p: (local(x, p) ** 3).sum()))(*placed)
    want = jax.grad(lambda x: (apply_rope(x, positions) ** 3).sum())(x)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5)


def test_shard_map_over_a_part_of_the_mesh(eight_devices):
    mesh, arrays = mesh_of(eight_devices), make_append_inputs(PAGED).arrays
    specs = specs_of(PAGED, arrays)
    function = jax.jit(
        jax.shard_map(
            function_of(PAGED),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(P(None, "y"),) * 3,
            axis_names={"y"},
        )
    )
    placed = {n: jax.device_put(a, NamedSharding(mesh, specs[n])) for n, a in arrays.items()}
    assert_equal(function(placed), function_of(PAGED)(arrays))
    with pytest.raises(NotImplementedError, match=r"\['x'\] are left to jit.*every axis"):
        function.trace(placed).lower(lowering_platforms=("cuda",))
