"""flash_decode under jax's transformations gives what a Python loop over it gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import flash_decode
from jax_baracuda._src.decode.primitive import flash_decode_p, local_flash_decode_p

B, HQ, HKV, K, D, N = 4, 8, 4, 24, 8, 3
SHAPES = {
    "query": (B, HQ, D),
    "key": (B, HKV, K, D),
    "value": (B, HKV, K, D),
    "lengths": (B,),
    "sinks": (HQ,),
    "slopes": (B, HQ),
}


def decode(query, key, value, lengths=None, sinks=None, slopes=None, **options):
    return flash_decode(
        query, key, value, lengths, sinks=sinks, alibi_slopes=slopes, return_lse=True, **options
    )


def random(name, shape):
    rng = np.random.default_rng(list(name.encode()))
    if name == "lengths":
        return rng.integers(0, K + 1, shape).astype(np.int32)
    return rng.normal(size=shape).astype(np.float32)


def operands(**axes):
    """Every operand; those named have a mapped axis of size N at the place that is given."""
    arrays = []
    for name, shape in SHAPES.items():
        axis = axes.get(name)
        full = shape if axis is None else (*shape[:axis], N, *shape[axis:])
        arrays.append(random(name, full))
    return arrays


def assert_close(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def loop(function, args, axes, size=N):
    """What vmap computes, by a Python loop."""
    results = [
        function(*(a if x is None else np.take(a, i, x) for a, x in zip(args, axes, strict=True)))
        for i in range(size)
    ]
    return [np.stack(parts) for parts in zip(*results, strict=True)]


def equations(function, *args):
    """The equations of our primitives in a function."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return jaxpr, [e for e in jaxpr.eqns if e.primitive in (flash_decode_p, local_flash_decode_p)]


MIXES = [m for m in itertools.product([False, True], repeat=len(SHAPES)) if any(m)]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "".join("-m"[mapped] for mapped in mix))
def test_vmap_of_every_mix(mix):
    # The mapped axes are at various places, the same in every run.
    places = np.random.default_rng(MIXES.index(mix)).integers(0, 10, len(mix))
    axes = [
        int(place) % (len(shape) + 1) if mapped else None
        for mapped, place, shape in zip(mix, places, SHAPES.values(), strict=True)
    ]
    args = operands(**dict(zip(SHAPES, axes, strict=True)))
    assert_close(jax.vmap(decode, in_axes=axes)(*args), loop(decode, args, axes))


@pytest.mark.parametrize("mapped", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_vmap_without_the_optional_operands(count, mapped):
    names = list(SHAPES)[:count]
    args = operands(**{names[mapped]: 0})[:count]
    axes = [0 if name == names[mapped] else None for name in names]
    assert_close(jax.vmap(decode, in_axes=axes)(*args), loop(decode, args, axes))


def test_vmap_of_the_other_layout_and_options():
    def function(query, key, value):
        return decode(
            query,
            key,
            value,
            kv_layout="NHD",
            local_window_size=5,
            sink_tokens=2,
            logits_soft_cap=3.0,
            scale=0.7,
        )

    query = random("query", (N, B, HQ, D))
    shared = random("key", (B, K, HKV, D)), random("value", (B, K, HKV, D))
    axes = (0, None, None)
    got = jax.vmap(function, in_axes=axes)(query, *shared)
    assert_close(got, loop(function, (query, *shared), axes))
    own = random("key", (N, B, K, HKV, D)), random("value", (N, B, K, HKV, D))
    assert_close(jax.vmap(function)(query, *own), loop(function, (query, *own), (0, 0, 0)))


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_vmap_of_no_or_one_element(size, shared):
    axes = (0, None, None) if shared else (0, 0, 0)
    args = [
        random(name, SHAPES[name] if axis is None else (size, *SHAPES[name]))
        for name, axis in zip(list(SHAPES)[:3], axes, strict=True)
    ]
    out, lse = jax.vmap(decode, in_axes=axes)(*args)
    assert (out.shape, lse.shape) == ((size, B, HQ, D), (size, B, HQ))
    if size:
        assert_close((out, lse), loop(decode, args, axes, size))


def test_nested_vmap():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, B, N, HQ, D)).astype(np.float32)
    key = rng.normal(size=(2, B, HKV, K, D)).astype(np.float32)
    sinks = rng.normal(size=(N, HQ)).astype(np.float32)

    def function(query, key, sinks):
        return decode(query, key, key, sinks=sinks)

    inner = jax.vmap(function, in_axes=(1, None, 0))  # many queries on one cache
    outer = jax.vmap(inner, in_axes=(0, 0, None))  # for each of many caches
    want = loop(
        lambda q, k, s: loop(function, (q, k, s), (1, None, 0)),
        (query, key, sinks),
        (0, 0, None),
        2,
    )
    assert_close(outer(query, key, sinks), want)


def test_vmap_of_queries_leaves_a_shared_cache_alone():
    args = operands(query=1, sinks=0, slopes=2)
    axes = (1, None, None, None, 0, 2)
    jaxpr, (equation,) = equations(jax.vmap(decode, in_axes=axes), *args)
    assert equation.invars[1:4] == jaxpr.invars[1:4]  # cache and lengths go in as they came
    assert equation.invars[0].aval.shape == (B, N * HQ, D)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_of_caches_beside_the_batch_moves_nothing(axis):
    args = operands(query=0, key=axis, value=axis)[:3]
    jaxpr, (equation,) = equations(jax.vmap(decode, in_axes=(0, axis, axis)), *args)
    made_by = {out: e for e in jaxpr.eqns for out in e.outvars}
    for cache, given in zip(equation.invars[1:3], jaxpr.invars[1:3], strict=True):
        assert made_by[cache].primitive.name == "reshape"
        assert made_by[cache].invars == [given]


def test_vmap_under_jit_lowers_to_one_call():
    args = operands(query=0, key=0)
    function = jax.jit(jax.vmap(decode, in_axes=(0, 0, None, None, None, None)))
    text = function.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@jax_baracuda_flash_decode") == 1


def test_jit_checkpoint_and_cond():
    args = operands()
    want = decode(*args)
    assert_close(jax.jit(decode)(*args), want)
    assert_close(jax.jit(jax.checkpoint(decode))(*args), want)
    either = jax.jit(lambda p, *a: jax.lax.cond(p, decode, lambda *a: decode(*a[:3]), *a))
    assert_close(either(True, *args), want)
    assert_close(either(False, *args), decode(*args[:3]))


def test_a_while_loop_whose_cache_grows():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(K, B, HKV, 1, D)).astype(np.float32)
    query = rng.normal(size=(B, HQ, D)).astype(np.float32)

    def step(state):
        length, key, query = state
        key = jax.lax.dynamic_update_slice_in_dim(key, jnp.asarray(rows)[length], length, axis=2)
        lengths = jnp.full((B,), length + 1, jnp.int32)
        return length + 1, key, flash_decode(query, key, key, lengths)

    # What is not yet written is NaN: the length must keep it out.
    start = (0, jnp.full((B, HKV, K, D), jnp.nan), jnp.asarray(query))
    _, key, got = jax.jit(lambda s: jax.lax.while_loop(lambda s: s[0] < 9, step, s))(start)
    assert np.isnan(key[:, :, 9:]).all()
    want = query
    for length in range(1, 10):
        used = np.concatenate(rows[:length], axis=2)
        want = flash_decode(want, used, used)
    assert_close((got,), (want,))


def test_numpy_weak_types_and_wide_lengths():
    query, key, value, lengths, *_ = operands()
    want = decode(query, key, value, lengths)
    assert_close(decode(*map(jnp.asarray, (query, key, value, lengths))), want)
    for dtype in (np.int64, np.uint8, np.int16):
        assert_close(decode(query, key, value, lengths.astype(dtype)), want)
    assert_close(decode(query, key, value, lengths.tolist()), want)
    ones = jnp.full((B, HQ, D), 1.0)  # a weak type, from a Python number
    assert ones.weak_type
    results = decode(ones, key, value, lengths)
    assert not any(result.weak_type for result in results)


def test_lengths_out_of_range_are_clamped():
    query, key, value, *_ = operands()
    given = np.array([-5, 0, K, 2**31 - 1], np.int32)
    want = decode(query, key, value, np.clip(given, 0, K))
    assert_close(decode(query, key, value, given), want)
    with jax.enable_x64(True):
        wide = np.array([-(2**40), 0, K, 2**32 + 1])  # narrowed, they would wrap
        assert_close(decode(query, key, value, wide), want)


def test_the_reference_is_differentiable_past_nan_padding():
    query, key, value, _, sinks, slopes = operands()
    lengths = np.array([K, 5, 1, 0], np.int32)
    unused = np.arange(K)[None, None, :, None] >= lengths[:, None, None, None]

    def loss(query, key, value, sinks, slopes):
        out, lse = decode(
            query,
            key,
            value,
            lengths,
            sinks,
            slopes,
            implementation="reference",
            logits_soft_cap=5.0,
        )
        return (out**2).sum() + jnp.where(lengths[:, None] > 0, lse, 0).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    want = gradient(query, key, value, sinks, slopes)
    poisoned = (np.where(unused, np.nan, array) for array in (key, value))
    got = gradient(query, *poisoned, sinks, slopes)
    assert_close(got, want)
    assert all(np.isfinite(array).all() for array in got)
    assert (np.where(unused, got[1], 0) == 0).all()
    direction = random("direction", query.shape)
    at = [loss(query + h * direction, key, value, sinks, slopes) for h in (1e-2, -1e-2)]
    np.testing.assert_allclose((at[0] - at[1]) / 2e-2, (got[0] * direction).sum(), rtol=2e-2)


# Meshes of eight CPU devices: 2 for the batch, 4 for the heads.
SPECS = (P("x", "y"), P("x", "y"), P("x", "y"), P("x"), P("y"), P("x", "y"))


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


def place(mesh, specs=SPECS):
    return [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(operands(), specs, strict=True)
    ]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(eight_devices, kind, check_vma):
    mesh = mesh_of(eight_devices, kind)
    seen = []

    def local(*args):
        out, lse = decode(*args)
        seen.append([jax.typeof(a).manual_axis_type.varying for a in (out, lse)])
        assert jax.typeof(out).shape == (B // 2, HQ // 4, D)
        return out, lse

    function = jax.shard_map(
        local, mesh=mesh, in_specs=SPECS, out_specs=(P("x", "y"),) * 2, check_vma=check_vma
    )
    got = jax.jit(function)(*place(mesh))
    assert_close(got, decode(*operands()))
    varying = frozenset({"x", "y"}) if check_vma else frozenset()
    assert seen[0] == [varying, varying]
    text = jax.jit(function).trace(*place(mesh)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@jax_baracuda_flash_decode") == 1
    assert "CustomSPMDPartitioning" not in text


def test_shard_map_types_the_results_as_varying_over_every_operand(eight_devices):
    mesh = mesh_of(eight_devices)
    specs = (P("x"), P(), P(), P(), P(), P())  # only the query differs, and not the cache
    query, key, value, lengths, sinks, slopes = operands()
    args = query, key[:2], value[:2], lengths[:2], sinks, slopes[:2]

    def run(out_spec):
        return jax.jit(
            jax.shard_map(decode, mesh=mesh, in_specs=specs, out_specs=(out_spec, out_spec))
        )(*jax.device_put(args, NamedSharding(mesh, P())))

    halves = [decode(half, *args[1:]) for half in (query[:2], query[2:])]
    assert_close(run(P("x")), [np.concatenate(parts) for parts in zip(*halves, strict=True)])
    with pytest.raises(ValueError, match="out_specs"):  # the type says that they differ
        run(P())


def test_shard_map_over_a_part_of_the_mesh(eight_devices):
    mesh = mesh_of(eight_devices)
    specs = [P("x") if "x" in spec else P() for spec in SPECS]
    function = jax.jit(
        jax.shard_map(
            decode, mesh=mesh, in_specs=tuple(specs), out_specs=(P("x"),) * 2, axis_names={"x"}
        )
    )
    assert_close(function(*place(mesh)), decode(*operands()))
    with pytest.raises(NotImplementedError, match=r"\['y'\] are left to jit.*every axis"):
        function.trace(*place(mesh)).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("with_context", [True, False])
def test_explicit_mesh_types_the_results(eight_devices, implementation, with_context):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    function = jax.jit(lambda *args: decode(*args, implementation=implementation))
    args = place(mesh)
    if with_context:
        with jax.set_mesh(mesh):
            got, types = function(*args), jax.eval_shape(function, *args)
    else:
        got, types = function(*args), jax.eval_shape(function, *args)
    assert [array.sharding.spec for array in types] == [P("x", "y", None), P("x", "y")]
    assert [array.sharding.spec for array in got] == [P("x", "y", None), P("x", "y")]
    assert_close(got, decode(*operands()))


def test_explicit_mesh_under_vmap_and_grad(eight_devices):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    query, key, value, *_ = operands()
    queries, keys = np.stack([query, -query]), np.stack([key, value])
    mapped = [jax.device_put(a, NamedSharding(mesh, P("x", None, "y"))) for a in (queries, keys)]
    got = jax.jit(jax.vmap(lambda q, k: decode(q, k, k)))(*mapped)
    assert got[0].sharding.spec == P("x", None, "y", None)
    assert_close(got, loop(lambda q, k: decode(q, k, k), (queries, keys), (0, 0), 2))

    def loss(query, key, value):
        return (decode(query, key, value, implementation="reference")[0] ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(*place(mesh)[:3])
    assert gradient.sharding.spec == P("x", "y", None)
    assert_close((gradient,), (jax.grad(loss)(query, key, value),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": P("x", None, "y")}, "key is sharded over .*'y'.* cache rows"),
        ({"query": P("x", None, "y")}, "query is sharded over .*'y'.* head dimension"),
        ({"value": P("y")}, "value is sharded over .*'y'.* batch and query over .*'x'"),
        (
            {"query": P(None, "x"), "key": P(None, "y"), "value": P(None, "y")},
            "query is sharded over .*'x'.* heads .* key over .*'y'",
        ),
    ],
)
def test_explicit_shardings_that_do_not_fit_are_errors(eight_devices, changes, words):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    specs = {name: changes.get(name, P("x")) for name in ("query", "key", "value")}
    args = place(mesh, [*specs.values(), P(), P(), P()])
    if "query" in changes and "key" in changes:
        args = place(mesh, [*changes.values(), P(), P(), P()])
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(decode, *args[:3])


def test_jit_of_sharded_operands_on_the_default_lowering(eight_devices):
    mesh = mesh_of(eight_devices)
    function = jax.jit(decode)
    got = function(*place(mesh))
    assert_close(got, decode(*operands()))
    assert [array.sharding.spec for array in got] == [P("x", "y"), P("x", "y")]
    assert "all-gather" not in function.lower(*place(mesh)).compile().as_text()
