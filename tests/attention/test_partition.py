"""The sharding rule of the CUDA lowering, with the references in the places of the kernels.

What XLA does with the rule does not depend on what runs inside it, so eight CPU devices tell.
"""

import contextlib
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

from jax_baracuda import dot_product_attention, flash_attention, flash_attention_varlen
from jax_baracuda._src import compat
from jax_baracuda._src.attention import partition, primitive
from jax_baracuda._src.attention.batching import batch

B, S, K, D, DV = 4, 8, 16, 8, 12
R = P()
TARGETS = [f"jax_baracuda_flash_attention{end}" for end in ("", "_backward", "_bias_grad")]
BOTH, HEADS, BATCH = P("x", None, "y"), P(None, None, "y"), P("x")


@functools.cache
def stand_in(kind):
    """The primitive of a pass, but with its CUDA lowering everywhere and the reference inside."""
    call = partition.partitioned(kind, primitive._REFERENCES[kind])

    def lowering(*operands, insist, **options):
        return call(*operands, **options)

    probe = Primitive(f"stand_in_{kind}")
    probe.multiple_results = True
    probe.def_abstract_eval(functools.partial(primitive._abstract_eval, kind))
    mlir.register_lowering(probe, mlir.lower_fun(lowering, multiple_results=True))
    batching.primitive_batchers[probe] = functools.partial(batch, probe, kind)
    compat.require_devices_during_lowering(probe)
    return probe


@pytest.fixture(autouse=True)
def partitioned_references(monkeypatch):
    for kind, (_, local) in list(primitive._PRIMITIVES.items()):
        monkeypatch.setitem(primitive._PRIMITIVES, kind, (stand_in(kind), local))


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def qkv(q_heads=8, kv_heads=4):
    return [normal(B, S, q_heads, D), normal(B, K, kv_heads, D), normal(B, K, kv_heads, DV)]


def mesh_of(devices, *kinds):
    return jax.make_mesh(
        (2, 4), ("x", "y"), axis_types=kinds or (AxisType.Auto,) * 2, devices=devices
    )


def put(mesh, arrays, specs):
    return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]


def communication(compiled):
    """What is communicated: a list of (operation, number of elements)."""
    found = []
    pattern = r"= (\S.*?) (all-\w+|collective-\w+|reduce-scatter)[-\w]*\("
    for match in re.finditer(pattern, compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
            found.append((match[2], int(np.prod([int(d) for d in shape.split(",") if d]))))
    return found


def names(communicated):
    return {name for name, _ in communicated}


def forward(query, key, value, **options):
    return flash_attention(query, key, value, return_lse=True, **options)


def with_gradients(query, key, value, *more, attention=forward, names=(), **options):
    """out, lse, and the gradients of query, key, value and of the floating options in ``more``."""
    given = dict(zip(names, more, strict=True))
    floating = [name for name in names if jnp.issubdtype(given[name].dtype, jnp.floating)]
    floating = [name for name in floating if name != "alibi_slopes"]

    def call(query, key, value, *values):
        return attention(
            query, key, value, **given | dict(zip(floating, values, strict=True)), **options
        )

    results, vjp = jax.vjp(call, query, key, value, *(given[name] for name in floating))
    # Cotangents are made of the results, so that they are sharded as those are.
    return *results, *vjp(jax.tree.map(jnp.cos, results))


def run(function, mesh, arrays, specs):
    arrays = put(mesh, arrays, specs)
    compiled = jax.jit(function).lower(*arrays).compile()
    return compiled(*arrays), communication(compiled)


def check(got, want, tolerance=1e-4):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def plain(function, *arrays, **options):
    """The results of the reference on one device."""
    return jax.jit(functools.partial(function, implementation="reference", **options))(*arrays)


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize(
    ("heads", "specs", "result"),
    [
        pytest.param((8, 4), [BATCH] * 3, BATCH, id="batch"),
        pytest.param((8, 4), [HEADS] * 3, HEADS, id="heads"),
        pytest.param((8, 4), [BOTH] * 3, BOTH, id="both"),
        pytest.param((4, 4), [BOTH] * 3, BOTH, id="no groups"),
        pytest.param((8, 8), [P(None, None, ("x", "y"))] * 3, P(None, None, ("x", "y")), id="8"),
        pytest.param((8, 8), [P("y", None, "x")] * 3, P("y", None, "x"), id="other axes"),
        pytest.param((8, 4), [R] * 3, R, id="replicated"),
    ],
)
def test_nothing_is_communicated(eight_devices, heads, specs, result, with_context):
    mesh, arrays = mesh_of(eight_devices), qkv(*heads)
    function = functools.partial(with_gradients, is_causal=True)
    with jax.set_mesh(mesh) if with_context else contextlib.nullcontext():
        got, communicated = run(function, mesh, arrays, specs)
    assert communicated == []
    sharding = NamedSharding(mesh, result)
    assert all(got[i].sharding.is_equivalent_to(sharding, 4) for i in (0, 2, 3, 4))
    check(got, plain(with_gradients, *arrays, is_causal=True))


@pytest.mark.parametrize(
    ("heads", "specs"),
    [
        pytest.param((8, 1), [BOTH, BATCH, BATCH], id="MQA"),
        pytest.param(
            (8, 2),
            [P(None, None, ("x", "y")), P(None, None, "x"), P(None, None, "x")],
            id="groups over one axis, their heads over the other",
        ),
    ],
)
def test_gradients_of_keys_are_summed_over_the_heads_that_read_them(eight_devices, heads, specs):
    mesh, arrays = mesh_of(eight_devices), qkv(*heads)
    got, communicated = run(forward, mesh, arrays, specs)
    assert communicated == []
    check(got, plain(forward, *arrays))
    got, communicated = run(with_gradients, mesh, arrays, specs)
    assert names(communicated) == {"all-reduce"}
    assert max(size for _, size in communicated) <= arrays[2].size
    check(got, plain(with_gradients, *arrays))


EVERY_OPTION = {
    "bias": (normal(B, 8, S, K, seed=1), P("x", "y")),
    "alibi_slopes": (np.abs(normal(B, 8, seed=2)), P("x", "y")),
    "query_seq_lengths": (np.array([8, 5, 0, 7], np.int32), P("x")),
    "key_value_seq_lengths": (np.array([16, 9, 3, 0], np.int32), P("x")),
    "query_segment_ids": (np.repeat([[0, 1]], [5, 3], axis=1).repeat(B, 0), P("x")),
    "key_value_segment_ids": (np.repeat([[0, 1]], [7, 9], axis=1).repeat(B, 0), P("x")),
}
MORE = dict(
    local_window_size=9,
    sink_tokens=1,
    logits_soft_cap=3.0,
    dropout_rate=0.3,
    dropout_seed=np.array([7, 9], np.uint32),
)


def test_every_option_stays_where_it_is(eight_devices):
    """Dropout drops what it drops on one device: its coordinates are those of the whole."""
    mesh = mesh_of(eight_devices)
    options, option_specs = zip(*EVERY_OPTION.values(), strict=True)
    arrays = [*qkv(), *options]
    function = functools.partial(with_gradients, names=tuple(EVERY_OPTION), **MORE)
    got, communicated = run(function, mesh, arrays, [BOTH] * 3 + list(option_specs))
    assert communicated == []
    check(got, plain(with_gradients, *arrays, names=tuple(EVERY_OPTION), **MORE))


@pytest.mark.parametrize(
    ("shape", "spec", "summed"),
    [
        ((1, 8, 1, K), P(None, "y"), True),
        ((1, 1, S, K), R, True),
        ((B, 1, S, K), P("x"), True),
        ((1, 8, S, K), R, True),  # where it is not sharded, neither is its gradient
        ((B, 8, 1, K), P("x", "y"), False),
    ],
)
def test_a_gradient_of_a_broadcast_bias_is_summed(eight_devices, shape, spec, summed):
    mesh, bias = mesh_of(eight_devices), normal(*shape, seed=3)
    arrays = [*qkv(), bias]
    function = functools.partial(with_gradients, names=("bias",))
    got, communicated = run(function, mesh, arrays, [*[BOTH] * 3, spec])
    assert names(communicated) <= {"all-reduce", "all-gather"}
    assert bool(communicated) == summed
    # Nothing but the bias or its gradient moves.
    assert all(size <= bias.size for _, size in communicated)
    if spec != R:
        assert "all-gather" not in names(communicated)
    check(got, plain(with_gradients, *arrays, names=("bias",)))


def test_a_gradient_of_sinks_is_summed_over_the_batch(eight_devices):
    mesh, sinks = mesh_of(eight_devices), normal(8, seed=3)
    function = functools.partial(with_gradients, names=("sinks",))
    got, communicated = run(function, mesh, [*qkv(), sinks], [*[BOTH] * 3, P("y")])
    assert names(communicated) == {"all-reduce"}
    assert max(size for _, size in communicated) <= sinks.size
    check(got, plain(with_gradients, *qkv(), sinks, names=("sinks",)))


@pytest.mark.parametrize(
    "specs",
    [
        pytest.param([P("x", "y"), R, R], id="query rows"),
        pytest.param([P("x"), P("x", "y"), P("x", "y")], id="keys"),
        pytest.param([P("x", None, None, "y")] * 3, id="head dimension"),
        pytest.param([BOTH, P("y", None, "x"), P("y", None, "x")], id="crossed"),
        pytest.param([P("y"), P("x"), P("x", None, "y")], id="muddled"),
        pytest.param([P(None, ("x", "y")), P(None, ("x", "y")), R], id="all rows"),
    ],
)
def test_what_cannot_stay_sharded_is_gathered_and_right(eight_devices, specs):
    got, communicated = run(with_gradients, mesh_of(eight_devices), qkv(), specs)
    assert communicated
    check(got, plain(with_gradients, *qkv()))


@pytest.mark.parametrize("heads", [(8, 2), (8, 4), (8, 8), (8, 1), (16, 2), (6, 3)])
@pytest.mark.parametrize("axes", ["y", ("y", "x")])
def test_operands_made_under_jit_take_what_sharding_they_can(eight_devices, heads, axes):
    """Shardy may shard them over parts of mesh axes, which have no names."""
    mesh = mesh_of(eight_devices)
    q_heads, kv_heads = heads
    query, row = normal(B, S, 16, D), normal(K, kv_heads, D)

    def function(query, row, **options):
        key = jnp.sin(jnp.broadcast_to(row, (B, *row.shape)))
        return with_gradients(query[:, :, :q_heads], key, 2 * key, **options)

    got, _ = run(function, mesh, [query, row], [P(None, None, axes), R])
    check(got, plain(function, query, row))


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
    mesh = mesh_of(eight_devices, *kinds)
    bias, sinks = normal(1, 8, 1, K, seed=3), normal(8, seed=4)
    arrays, specs = [*qkv(), bias, sinks], [BOTH, BOTH, BOTH, P(None, "y"), P("y")]
    function = functools.partial(with_gradients, names=("bias", "sinks"), is_causal=True)
    with jax.set_mesh(mesh) if with_context else contextlib.nullcontext():
        got, communicated = run(function, mesh, arrays, specs)
    assert names(communicated) == {"all-reduce"}
    assert max(size for _, size in communicated) <= bias.size
    for array, spec in zip(got, [BOTH, P("x", "y"), *specs], strict=True):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)
    check(got, plain(with_gradients, *arrays, names=("bias", "sinks"), is_causal=True))


@pytest.mark.parametrize(
    ("specs", "match"),
    [
        ([P("x", "y"), BATCH, BATCH], "query is sharded over .* along its query rows"),
        ([BATCH, P("x", "y"), BATCH], "key is sharded over .* along its keys"),
        ([BATCH, BATCH, P("x", None, None, "y")], "value is sharded over .* its head dimension"),
        ([BATCH, P("y"), P("y")], "must agree"),
        ([HEADS, P(None, None, "x"), P(None, None, "x")], "must go together"),
    ],
)
def test_explicit_types_that_do_not_fit_are_refused(eight_devices, specs, match):
    mesh = mesh_of(eight_devices, AxisType.Explicit, AxisType.Explicit)
    arrays = put(mesh, qkv(), specs)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=match):
        jax.jit(forward)(*arrays)


def test_an_explicit_mesh_with_keys_that_all_heads_read(eight_devices):
    mesh = mesh_of(eight_devices, AxisType.Explicit, AxisType.Explicit)
    arrays = qkv(8, 1)
    got, communicated = run(with_gradients, mesh, arrays, [BOTH, BATCH, BATCH])
    assert names(communicated) == {"all-reduce"}
    assert [array.sharding.spec for array in got[:2]] == [
        P("x", None, "y", None),
        P("x", "y", None),
    ]
    check(got, plain(with_gradients, *arrays))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("bias_spec", [P(None, "y"), P("x", "y")])
def test_shard_map(eight_devices, check_vma, bias_spec):
    """The gradient of a bias that all devices have is summed over them, if it is asked for here."""
    mesh = mesh_of(eight_devices)
    bias = normal(B if bias_spec[0] else 1, 8, 1, K, seed=3)
    specs = [BOTH, BOTH, BOTH, bias_spec]
    mapped = jax.shard_map(
        lambda *args: flash_attention(*args[:3], bias=args[3], is_causal=True),
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=BOTH,
        check_vma=check_vma,
    )

    def gradients(attention, *args):
        out, vjp = jax.vjp(attention, *args)
        return out, *vjp(jnp.cos(out))

    arrays = [*qkv(), bias]
    got, communicated = run(functools.partial(gradients, mapped), mesh, arrays, specs)
    assert names(communicated) == (set() if bias_spec[0] else {"all-reduce"})
    want = functools.partial(forward, is_causal=True, implementation="reference")
    check(got, gradients(lambda *args: want(*args[:3], bias=args[3])[0], *arrays))


def test_shard_map_over_a_part_of_the_mesh_is_refused(eight_devices):
    mesh = mesh_of(eight_devices)
    function = jax.shard_map(
        flash_attention, mesh=mesh, in_specs=P("x"), out_specs=P("x"), axis_names={"x"}
    )
    arrays = put(mesh, qkv(), [BATCH] * 3)
    with pytest.raises(NotImplementedError, match="left to jit"):
        jax.jit(function)(*arrays)


def test_packed_sequences_spread_their_heads(eight_devices):
    mesh = mesh_of(eight_devices)
    arrays = [normal(20, 8, D), normal(30, 4, D), normal(30, 4, DV)]
    bounds = dict(
        cu_seqlens_q=np.array([0, 7, 7, 18], np.int32),
        cu_seqlens_k=np.array([1, 11, 15, 30], np.int32),
        max_seqlen_q=11,
        max_seqlen_k=15,
    )
    attention = functools.partial(flash_attention_varlen, return_lse=True, **bounds)
    bias = normal(3, 8, 11, 15, seed=3)
    specs = [P(None, "y")] * 4
    function = functools.partial(with_gradients, attention=attention, names=("bias",))
    got, communicated = run(function, mesh, [*arrays, bias], specs)
    assert communicated == []
    check(got, plain(with_gradients, *arrays, bias, attention=attention, names=("bias",)))


def test_packs_under_vmap_spread_their_batch(eight_devices):
    mesh = mesh_of(eight_devices)
    arrays = [normal(4, 20, 8, D), normal(4, 20, 4, D), normal(4, 20, 4, DV)]
    bounds = np.sort(np.random.default_rng(0).integers(0, 21, (4, 4))).astype(np.int32)
    lengths = np.array([[3, 20, 5]] * 4, np.int32)

    def one(query, key, value, bounds, lengths, **options):
        def attention(query, key, value, **options):
            return flash_attention_varlen(
                query,
                key,
                value,
                bounds,
                bounds,
                max_seqlen_q=20,
                max_seqlen_k=20,
                key_value_seq_lengths=lengths,
                return_lse=True,
                **options,
            )

        return with_gradients(query, key, value, attention=attention, **options)

    def function(*args, **options):
        return jax.vmap(functools.partial(one, **options))(*args)

    specs = [P("x", None, "y")] * 3 + [BATCH] * 2
    got, communicated = run(function, mesh, [*arrays, bounds, lengths], specs)
    assert communicated == []
    check(got, plain(function, *arrays, bounds, lengths))


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_over_a_sharded_axis(eight_devices, shared):
    """The mapped axis goes in front of the batch, which it may spread; shared keys get a sum."""
    mesh, (query, key, value) = mesh_of(eight_devices), qkv()
    queries, keys, values = (np.stack([a, -a]) for a in (query, key, value))
    arrays = [queries, key, value] if shared else [queries, keys, values]

    def function(*args, **options):
        in_axes = (0, None, None) if shared else 0
        return jax.vmap(functools.partial(with_gradients, **options), in_axes)(*args)

    specs = [P("x", *HEADS), *[HEADS if shared else P("x", *HEADS)] * 2]
    got, communicated = run(function, mesh, arrays, specs)
    assert communicated == []
    check(got, plain(function, *arrays))


def test_dot_product_attention_and_its_masks(eight_devices):
    mesh, (query, key, _) = mesh_of(eight_devices), qkv()
    value = normal(*key.shape, seed=5)
    mask = np.random.default_rng(0).random((B, 1, 1, K)) < 0.7
    bias = normal(B, 8, S, K, seed=3)

    def attention(query, key, value, **options):
        return dot_product_attention(
            query, key, value, is_causal=True, return_residual=True, **options
        )

    arrays = [query, key, value, bias, mask]
    names = dict(names=("bias", "mask"), attention=attention)
    function = functools.partial(with_gradients, **names)
    got, communicated = run(function, mesh, arrays, [BOTH, BOTH, BOTH, P("x", "y"), BATCH])
    assert communicated == []
    check(got, plain(with_gradients, *arrays, **names))


def test_a_training_step_communicates_no_activations(eight_devices):
    """Layers in a scan with remat: batch over x, heads over y, parameters over y."""
    mesh = mesh_of(eight_devices)
    width, layers = 16, 2
    x = normal(B, S, width)
    into, back = normal(layers, 3, width, 8, D) / 4, normal(layers, 8, D, width) / 4

    def loss(parameters, x, **options):
        def layer(x, parameters):
            into, back = parameters
            query, key, value = jnp.einsum("bsw,cwhd->cbshd", x, into)
            out = flash_attention(query, key, value, is_causal=True, **options)
            return x + jnp.einsum("bshd,hdw->bsw", out, back), None

        return (jax.lax.scan(jax.checkpoint(layer), x, parameters)[0] ** 2).mean()

    def step(into, back, x, **options):
        return jax.grad(functools.partial(loss, **options))((into, back), x)

    specs = [P(None, None, None, "y"), P(None, "y"), BATCH]
    got, communicated = run(step, mesh, [into, back, x], specs)
    assert names(communicated) == {"all-reduce"}
    check(got, plain(step, into, back, x))


def lowered(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def gradient_with_bias(*args):
    return with_gradients(*args, names=("bias",))


def test_one_device_and_shard_map_lower_to_the_plain_calls(eight_devices, monkeypatch):
    monkeypatch.undo()  # the real primitives, lowered for CUDA
    arrays = [*qkv(), normal(B, 8, S, K)]
    specs = [BATCH] * 4
    text = lowered(gradient_with_bias, *arrays)
    assert all(f"@{target}(" in text for target in TARGETS)
    assert "CustomSPMDPartitioning" not in text
    mesh = mesh_of(eight_devices)
    sharded = put(mesh, arrays, specs)
    assert lowered(gradient_with_bias, *sharded).count("@CustomSPMDPartitioning(") == 3
    mapped = jax.shard_map(
        gradient_with_bias, mesh=mesh, in_specs=tuple(specs), out_specs=(BATCH,) * 6
    )
    text = lowered(mapped, *sharded)
    assert all(f"@{target}(" in text for target in TARGETS)
    assert "CustomSPMDPartitioning" not in text


def test_shard_map_over_an_abstract_mesh_exports_for_cuda(monkeypatch):
    monkeypatch.undo()
    mesh = AbstractMesh((2, 4), ("x", "y"))
    arrays, specs = [*qkv(), normal(B, 8, S, K)], (BOTH, BOTH, BOTH, P("x", "y"))
    avals = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]
    function = jax.shard_map(
        gradient_with_bias, mesh=mesh, in_specs=specs, out_specs=(BOTH, P("x", "y"), *specs)
    )
    exported = export.export(
        jax.jit(function),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(target) for target in TARGETS],
    )(*avals)
    assert exported.nr_devices == 8
    assert all(f"@{target}(" in exported.mlir_module() for target in TARGETS)


def test_empty_batches_have_nothing_to_shard(eight_devices):
    mesh = mesh_of(eight_devices)
    arrays = [np.zeros((0, S, 8, D), np.float32), *[np.zeros((0, K, 4, D), np.float32)] * 2]
    got, communicated = run(with_gradients, mesh, arrays, [HEADS] * 3)
    assert communicated == []
    assert [array.shape for array in got[2:]] == [array.shape for array in arrays]
