"""The paged ops under jax's transformations give what a Python loop over them gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_baracuda
from jax_baracuda._src.paged import primitive, shapes
from jax_baracuda.testing import paged_odd as odd
from jax_baracuda.testing.paged_odd import KINDS, odd_call, odd_operands

EXAMPLES = 3
both = pytest.mark.parametrize("kind", KINDS)


def assert_close(got, want, rtol=1e-5, atol=1e-6):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


@functools.cache
def by_name(kind, **options):
    """The public function of one argument: operands by name."""
    call = odd_call(kind, **options)
    return lambda given: call(**given)


@functools.cache
def compiled(function):
    """Under jit; each runs a few times only, so that compiling fast is what counts."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def mapped(kind, axes, **options):
    """Operands, those in ``axes`` stacked along the axis that is given; and in_axes."""
    many = [odd_operands(kind, seed, **options) for seed in range(EXAMPLES)]
    stacked = {
        name: np.stack([given[name] for given in many], axes[name])
        for name in many[0]
        if name in axes
    }
    return many[0] | stacked, {name: axes.get(name) for name in many[0]}


def loop(function, given, axes, size=EXAMPLES):
    """What vmap computes, by a Python loop."""
    results = [
        compiled(function)(
            {n: a if axes[n] is None else np.take(a, i, axes[n]) for n, a in given.items()}
        )
        for i in range(size)
    ]
    return [np.stack(parts) for parts in zip(*results, strict=True)]


def mixes(kind, count=16):
    """Mapped operands: each alone, all, and some random mixes with axes at random places."""
    rng = np.random.default_rng(7)
    names = list(odd_operands(kind))
    chosen = [[name] for name in names] + [names]
    while len(chosen) < count:
        some = [name for name in names if rng.random() < 0.5]
        if some and some not in chosen:
            chosen.append(some)
    ranks = {name: array.ndim for name, array in odd_operands(kind).items()}
    return [{name: int(rng.integers(0, ranks[name] + 1)) for name in some} for some in chosen]


CASES = [(kind, mix) for kind in KINDS for mix in mixes(kind)]


@pytest.mark.parametrize(("kind", "axes"), CASES, ids=lambda case: str(case).replace(" ", ""))
def test_vmap_of_every_kind_of_mix(kind, axes):
    given, in_axes = mapped(kind, axes)
    got = compiled(jax.vmap(by_name(kind), in_axes=(in_axes,)))(given)
    assert_close(got, loop(by_name(kind), given, in_axes))


@both
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nhd", [False, True])
def test_vmap_of_stores_moves_nothing_beside_the_pages(kind, axis, nhd):
    axes = {"k_pages": axis, "v_pages": axis, "page_indices": 0}
    given, in_axes = mapped(kind, axes, optional=False, nhd=nhd)
    function = by_name(kind, kv_layout="NHD" if nhd else "HND", local_window_size=4)
    over = jax.vmap(function, in_axes=(in_axes,))
    assert_close(compiled(over)(given), loop(function, given, in_axes))
    jaxpr = jax.make_jaxpr(over)(given).jaxpr
    (equation,) = calls(jaxpr)
    made_by = {out: e for e in jaxpr.eqns for out in e.outvars}
    for store in equation.invars[1:3]:
        assert made_by[store].primitive.name == "reshape"
        assert made_by[store].invars[0] in jaxpr.invars


@both
@pytest.mark.parametrize("name", ["page_indices", "page_indptr", "last_page_len", "query"])
def test_vmap_leaves_a_store_that_is_not_mapped_alone(kind, name):
    given, in_axes = mapped(kind, {name: 0})
    order = list(given)
    jaxpr = jax.make_jaxpr(jax.vmap(by_name(kind), in_axes=(in_axes,)))(given).jaxpr
    (equation,) = calls(jaxpr)
    # The leaves of a dict are sorted by name.
    invars = dict(zip(sorted(order), jaxpr.invars, strict=True))
    assert equation.invars[1:3] == [invars["k_pages"], invars["v_pages"]]


def calls(jaxpr):
    """The equations of our primitives."""
    ours = {p for pair in primitive.PRIMITIVES.values() for p in pair}
    return [e for e in jaxpr.eqns if e.primitive in ours]


@both
def test_vmap_of_one_store_and_not_the_other_copies_neither(kind):
    given, in_axes = mapped(kind, {"k_pages": 0})
    text = str(jax.make_jaxpr(jax.vmap(by_name(kind), in_axes=(in_axes,)))(given))
    whole = f"f32[{odd.P},{odd.HKV},{odd.PAGE},{odd.D}]"
    assert "scan[" in text  # one call after the other
    assert f"f32[{EXAMPLES},{odd.P}" in text  # the one that is mapped
    assert f"f32[{EXAMPLES * odd.P}" not in text
    assert whole in text


@both
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("names", [("query",), ("page_indices", "page_indptr"), ("k_pages",)])
def test_vmap_of_no_or_one_example(kind, size, names):
    given = odd_operands(kind)
    axes = {name: 0 if name in names else None for name in given}
    given |= {name: np.stack([given[name]] * 2)[:size] for name in names}
    out, lse = compiled(jax.vmap(by_name(kind), in_axes=(axes,)))(given)
    rows = given["query"].shape[-3]
    assert (out.shape, lse.shape) == ((size, rows, odd.HQ, odd.D), (size, rows, odd.HQ))
    if size:
        assert_close((out, lse), loop(by_name(kind), given, axes, size))


@both
def test_nested_vmap(kind):
    """Queries of many users, of many tables over one store."""
    given, in_axes = mapped(kind, {"page_indices": 0, "page_indptr": 0})
    inner_axes = {name: 0 if name == "query" else None for name in given}
    queries = np.stack([given["query"], -given["query"]])

    def function(given):
        return jax.vmap(by_name(kind), in_axes=(inner_axes,))(given)

    got = compiled(jax.vmap(function, in_axes=(in_axes,)))(given | {"query": queries})
    for index, query in enumerate(queries):
        want = loop(by_name(kind), given | {"query": query}, in_axes)
        assert_close([array[:, index] for array in got], want)


@both
def test_vmap_under_jit_lowers_to_one_call(kind):
    given, in_axes = mapped(kind, {"k_pages": 0, "v_pages": 0, "page_indices": 0})
    function = jax.jit(jax.vmap(by_name(kind), in_axes=(in_axes,)))
    text = function.trace(given).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"custom_call @jax_baracuda_{kind}") == 1


@both
def test_jit_checkpoint_and_cond(kind):
    function, given = by_name(kind), odd_operands(kind)
    want = compiled(function)(given)
    assert_close(jax.jit(jax.checkpoint(function))(given), want)
    other = odd_operands(kind, 1, optional=False)
    either = jax.jit(lambda p, a, b: jax.lax.cond(p, lambda: function(a), lambda: function(b)))
    assert_close(either(True, given, other), want)
    assert_close(either(False, given, other), function(other))


@both
def test_numpy_lists_and_wide_integers(kind):
    function, given = by_name(kind), odd_operands(kind)
    want = function(given)
    integers = [*shapes.TABLE, "qo_indptr"]
    kinds = {name: array for name, array in given.items() if name in integers}
    for convert in (np.int64, np.int16):
        assert_close(function(given | {n: a.astype(convert) for n, a in kinds.items()}), want)
    assert_close(function(given | {n: a.tolist() for n, a in kinds.items()}), want)
    out, lse = function(given | {"query": jnp.full(given["query"].shape, 1.0)})
    assert not out.weak_type
    assert not lse.weak_type
    with jax.enable_x64(True):  # narrowed, they would wrap
        wide = {"page_indptr": given["page_indptr"] + np.array([0, 0, 0, 0, 2**40])}
        clamped = {"page_indptr": np.append(given["page_indptr"][:-1], odd.N)}
        assert_close(function(given | wide), function(given | clamped))


# ---- loops


def append(store, row, page, at):
    """One row [Hkv, D] into a page."""
    return store.at[page, :, at].set(row)


@pytest.mark.parametrize("kind", KINDS)
def test_a_while_loop_whose_table_grows(kind):
    """Pages are taken from a free list as the request grows; what is not yet written is NaN."""
    rng = np.random.default_rng(3)
    steps = 8
    free = rng.permutation(odd.P).astype(np.int32)
    rows = rng.normal(size=(steps, odd.HKV, odd.D)).astype(np.float32)
    query = rng.normal(size=(1, odd.HQ, odd.D)).astype(np.float32)
    options = {"qo_indptr": np.array([0, 1])} if kind == "paged_prefill" else {}

    def step(state):
        length, k_pages, v_pages, table, query = state
        nth = length // odd.PAGE
        table = jnp.where(length % odd.PAGE == 0, table.at[nth].set(jnp.asarray(free)[nth]), table)
        at = table[nth], length % odd.PAGE
        row = jnp.asarray(rows)[length]
        k_pages, v_pages = append(k_pages, row, *at), append(v_pages, 2 * row, *at)
        out, _ = odd_call(kind)(
            query=query,
            k_pages=k_pages,
            v_pages=v_pages,
            page_indices=table,
            page_indptr=jnp.stack([0, nth + 1]),
            last_page_len=(length % odd.PAGE + 1)[None],
            **options,
        )
        return length + 1, k_pages, v_pages, table, out

    store = jnp.full((odd.P, odd.HKV, odd.PAGE, odd.D), jnp.nan)
    start = (jnp.int32(0), store, store, jnp.full(4, 2**31 - 1, jnp.int32), jnp.asarray(query))
    run = jax.jit(lambda s: jax.lax.while_loop(lambda s: s[0] < steps, step, s))
    want = query
    for length in range(1, steps + 1):
        key = rows[:length].swapaxes(0, 1)[None]
        want = jax_baracuda.flash_decode(want, key, 2 * key)
    assert_close((run(start)[-1],), (want,))


@both
def test_a_scan_over_steps_with_traced_tables(kind):
    many = [odd_operands(kind, seed) for seed in range(3)]
    names = [name for name in many[0] if name not in ("query", "k_pages", "v_pages")]
    tables = {name: np.stack([given[name] for given in many]) for name in names}
    fixed = {name: many[0][name] for name in ("query", "k_pages", "v_pages")}

    def step(_, table):
        return None, by_name(kind)(fixed | table)

    got = jax.jit(lambda t: jax.lax.scan(step, None, t)[1])(tables)
    want = [by_name(kind)(fixed | {n: given[n] for n in names}) for given in many]
    assert_close(got, [np.stack(parts) for parts in zip(*want, strict=True)])


def layers_of(kind, query, stores, rest):
    """A model's layers in a scan that carries the stacked stores [L, P, ...] whole."""
    layers, pages = stores[0].shape[:2]

    def layer(carry, index):
        query, stores = carry
        flat = [store.reshape(layers * pages, *store.shape[2:]) for store in stores]
        table = rest | {"page_indices": jnp.clip(rest["page_indices"], 0, pages - 1)}
        table["page_indices"] += index * pages
        out, _ = odd_call(kind)(query=query, k_pages=flat[0], v_pages=flat[1], **table)
        return (query + out, stores), None

    (query, stores), _ = jax.lax.scan(layer, (query, stores), jnp.arange(layers))
    return query, stores


@both
def test_a_scan_over_layers_carries_the_stores(kind):
    layers = 3
    many = [odd_operands(kind, seed) for seed in range(layers)]
    stores = tuple(np.stack([given[name] for given in many]) for name in shapes.STORES)
    query = many[0]["query"]
    rest = {n: a for n, a in many[0].items() if n not in ("query", *shapes.STORES)}
    step = jax.jit(functools.partial(layers_of, kind))
    got, _ = step(query, stores, rest)
    want = query
    for key, value in zip(*stores, strict=True):
        want = want + odd_call(kind)(query=want, k_pages=key, v_pages=value, **rest)[0]
    assert_close((got,), (want,), atol=1e-5)

    text = step.trace(query, stores, rest).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"custom_call @jax_baracuda_{kind}") == 1
    # Nothing but reshapes makes a store between the loop's carry and the kernel.
    size = f"{odd.HKV}x{odd.PAGE}x{odd.D}xf32>"
    makers = {
        line.split("= ")[1].split()[0].strip('"')
        for line in text.splitlines()
        if line.rstrip().endswith(size) and "= " in line
    }
    assert makers <= {"stablehlo.reshape", "func.call", "call"}, makers


# ---- derivatives


@both
@pytest.mark.parametrize("name", ["query", "v_pages", "sinks"])
@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_differentiation_names_the_differentiable_function(kind, name, transform):
    given = odd_operands(kind)
    with pytest.raises(NotImplementedError, match=f"{kind} with implementation='reference'"):
        transform(lambda x: by_name(kind)(given | {name: x})[0].sum())(given[name])


@both
def test_the_reference_is_differentiable_past_nan(kind):
    given = odd_operands(kind, seed=1)
    floats = {name: given[name] for name in ("query", "k_pages", "v_pages", "sinks")}
    call = by_name(kind, implementation="reference", logits_soft_cap=5.0)

    def loss(floats):
        out, lse = call(given | floats)
        return (out**2).sum() + jnp.where(lse == -jnp.inf, 0, lse).sum()

    gradient = jax.jit(jax.grad(loss))
    want = gradient(floats)
    unused = np.ones((odd.P, odd.PAGE), bool)
    for request in range(odd.B):
        first, end = np.clip(given["page_indptr"][request : request + 2], 0, odd.N)
        ids = np.clip(given["page_indices"][first:end], 0, odd.P - 1)
        unused[ids[:-1]] = False
        if len(ids):
            unused[ids[-1], : max(given["last_page_len"][request], 0)] = False
    assert unused.any()
    poison = unused[:, None, :, None]
    got = gradient(floats | {n: np.where(poison, np.nan, given[n]) for n in shapes.STORES})
    for name in floats:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
        assert np.isfinite(got[name]).all()
    assert (np.where(poison, got["k_pages"], 0) == 0).all()
    rng = np.random.default_rng(0)
    for name in floats:
        direction = rng.normal(size=floats[name].shape).astype(np.float32)
        at = [loss(floats | {name: floats[name] + h * direction}) for h in (1e-2, -1e-2)]
        slope = (got[name] * direction).sum()
        np.testing.assert_allclose((at[0] - at[1]) / 2e-2, slope, rtol=2e-2, atol=2e-2)


@both
def test_vmap_on_an_explicit_mesh(kind, eight_devices):
    mesh = jax.make_mesh((2,), ("y",), axis_types=(AxisType.Explicit,), devices=eight_devices[:2])
    given, in_axes = mapped(kind, {"page_indices": 0, "query": 0})
    specs = {"query": P(None, None, "y"), "k_pages": P(None, "y"), "v_pages": P(None, "y")}
    placed = {
        name: jax.device_put(array, NamedSharding(mesh, specs.get(name, P())))
        for name, array in given.items()
    }
    got = jax.jit(jax.vmap(by_name(kind), in_axes=(in_axes,)))(placed)
    assert got[0].sharding.spec == P(None, None, "y", None)
    assert_close(got, loop(by_name(kind), given, in_axes))
