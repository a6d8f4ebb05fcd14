"""flash_attention and its gradients under jax's transformations give what a Python loop gives."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import flash_attention, flash_attention_varlen
from jax_baracuda._src.attention import primitive

B, S, K, HQ, HKV, D, DV, N = 2, 5, 6, 4, 2, 4, 3, 3
SHAPES = {
    "query": (B, S, HQ, D),
    "key": (B, K, HKV, D),
    "value": (B, K, HKV, DV),
    "bias": (1, HQ, 1, K),
    "sinks": (HQ,),
    "alibi_slopes": (HQ,),
    "query_seq_lengths": (B,),
    "key_value_seq_lengths": (B,),
    "query_segment_ids": (B, S),
    "key_value_segment_ids": (B, K),
    "dropout_seed": (2,),
}
NAMES = list(SHAPES)
CHOSEN = ["query", "key", "value", "bias", "sinks"]  # the differentiable ones


def attend(*arrays, **options):
    given = dict(zip(NAMES, arrays, strict=False))
    if "dropout_seed" in given:
        options["dropout_rate"] = 0.3
    return flash_attention(**given, return_lse=True, is_causal=True, **options)


def random(name, shape):
    rng = np.random.default_rng(list(name.encode()))
    if name.endswith("lengths"):
        return rng.integers(0, 7, shape).astype(np.int32)
    if name.endswith("ids"):
        return rng.integers(0, 2, shape).astype(np.int32)
    if name == "dropout_seed":
        return rng.integers(0, 2**32, shape, np.uint32)
    return rng.normal(size=shape).astype(np.float32)


def operands(axes, shapes=SHAPES, size=N):
    """Every operand; those with an axis have a mapped one of ``size`` there."""
    arrays = []
    for (name, shape), axis in zip(shapes.items(), axes, strict=True):
        full = shape if axis is None else (*shape[:axis], size, *shape[axis:])
        arrays.append(random(name, full))
    return arrays


def with_gradients(function, count=5):
    """(out, lse, gradients of the first ``count`` arguments) for fixed, uneven cotangents."""

    def run(*args):
        (out, lse), pull = jax.vjp(lambda *chosen: function(*chosen, *args[count:]), *args[:count])
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        empty = lse == -jnp.inf
        ones = jnp.where(empty, 0, jnp.sin(lse))
        return (out, jnp.where(empty, -1e3, lse), *pull((weights, ones)))

    return run


attend_with_gradients = jax.jit(with_gradients(attend))


def loop(function, args, axes, size=N):
    """What vmap computes, by a Python loop."""
    results = [
        function(*(a if x is None else np.take(a, i, x) for a, x in zip(args, axes, strict=True)))
        for i in range(size)
    ]
    return [np.stack(parts) for parts in zip(*results, strict=True)]


def assert_close(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


def mixes():
    """Which operands are mapped: each alone, all but each, all, pairs of large ones, and others."""
    count = len(NAMES)
    chosen = {tuple(i == j for j in range(count)) for i in range(count)}
    chosen |= {tuple(not mapped for mapped in mix) for mix in chosen}
    chosen |= {
        (*large, *[False] * (count - 4)) for large in itertools.product([False, True], repeat=4)
    }
    rng = np.random.default_rng(0)
    chosen |= {tuple(bool(bit) for bit in rng.integers(0, 2, count)) for _ in range(8)}
    return sorted({*chosen, (True,) * count} - {(False,) * count})


MIXES = mixes()


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "".join("-m"[mapped] for mapped in mix))
def test_vmap_of_every_mix_with_gradients(mix):
    # The mapped axes are at various places, the same in every run.
    places = np.random.default_rng(MIXES.index(mix)).integers(0, 12, len(mix))
    axes = [
        int(place) % (len(shape) + 1) if mapped else None
        for mapped, place, shape in zip(mix, places, SHAPES.values(), strict=True)
    ]
    args = operands(axes)
    # Without jit: the mixes share what is compiled of the primitives.
    got = jax.vmap(with_gradients(attend), in_axes=axes)(*args)
    assert_close(got, loop(attend_with_gradients, args, axes))


@pytest.mark.parametrize("bias", [(B, HQ, S, K), (1, 1, S, K), (B, 1, 1, K), (1, 1, 1, K)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize("mapped", ["query", "bias", "both"])
def test_vmap_of_every_bias(bias, dtype, mapped):
    shapes = {name: SHAPES[name] for name in NAMES[:3]} | {"bias": bias}
    axes = [0 if mapped != "bias" else None, None, None, 1 if mapped != "query" else None]
    args = operands(axes, shapes)
    args[3] = (args[3] > 0) if dtype == "bool" else jnp.asarray(args[3], dtype)
    args[3] = np.asarray(args[3])
    run = jax.jit(with_gradients(attend, 3 if dtype == "bool" else 4))
    got, want = jax.vmap(run, in_axes=axes)(*args), loop(run, args, axes)
    if dtype == "bfloat16":  # a sum over sequences is rounded once on either way
        np.testing.assert_allclose(*(np.asarray(r[5], np.float32) for r in (got, want)), rtol=0.01)
        got, want = got[:5], want[:5]
    assert_close(got, want)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("mapped", [["query"], ["bias"], NAMES])
def test_vmap_of_no_or_one_element(size, mapped):
    axes = [0 if name in mapped else None for name in NAMES]
    args = operands(axes, size=size)
    run = attend_with_gradients
    got = jax.vmap(run, in_axes=axes)(*args)
    assert [a.shape[1:] for a in got[2:]] == [SHAPES[name] for name in CHOSEN]
    assert got[0].shape == (size, B, S, HQ, DV)
    if size:
        assert_close(got, loop(run, args, axes, size))


def test_nested_vmap():
    axes = [0, None, 0, 0, None, None, None, None, 0, None, None]
    more = [None, 1, 0, 1, None, None, 0, None, None, None, 0]
    nested = []
    for name, shape, inner, outer in zip(NAMES, SHAPES.values(), axes, more, strict=True):
        full = list(shape)
        if inner is not None:
            full.insert(inner, N)
        if outer is not None:
            full.insert(outer, 2)
        nested.append(random(name, full))
    run = attend_with_gradients
    got = jax.vmap(jax.vmap(run, in_axes=axes), in_axes=more)(*nested)
    assert_close(got, loop(lambda *a: loop(run, a, axes), nested, more, 2))


PACKED = {
    "query": (9, HQ, D),
    "key": (11, HKV, D),
    "value": (11, HKV, DV),
    "bias": (1, HQ, 1, 8),
    "sinks": (HQ,),
    "cu_seqlens_q": (3,),
    "cu_seqlens_k": (3,),
    "query_segment_ids": (9,),
    "key_value_segment_ids": (11,),
    "key_value_seq_lengths": (2,),
    "alibi_slopes": (2, HQ),
    "dropout_seed": (2,),
}


def attend_packed(*arrays):
    given = dict(zip(PACKED, arrays, strict=True))
    return flash_attention_varlen(
        **given, max_seqlen_q=9, max_seqlen_k=8, is_causal=True, dropout_rate=0.2, return_lse=True
    )


packed_with_gradients = jax.jit(with_gradients(attend_packed))


@pytest.mark.parametrize(
    "mapped",
    [
        ["query"],
        ["value"],
        ["bias"],
        ["cu_seqlens_q"],
        ["cu_seqlens_q", "cu_seqlens_k"],
        ["alibi_slopes", "sinks"],
        ["key_value_seq_lengths", "dropout_seed"],
        list(PACKED),
    ],
    ids=lambda names: "-".join(names) if len(names) < 5 else "all",
)
def test_vmap_of_packed_sequences(mapped):
    axes = [0 if name in mapped else None for name in PACKED]
    args = operands(axes, PACKED)
    for name, ends in (("cu_seqlens_q", (9, 7, 9)), ("cu_seqlens_k", (8, 11, 10))):
        bounds = np.array([[0, end // 2, end] for end in ends], np.int32)
        args[list(PACKED).index(name)] = bounds if name in mapped else bounds[0]
    got = jax.vmap(with_gradients(attend_packed), in_axes=axes)(*args)
    assert_close(got, loop(packed_with_gradients, args, axes))


def calls(function, *args):
    """How often each pass is bound in a function's jaxpr, inner ones included."""
    text = str(jax.make_jaxpr(function)(*args))
    return {
        kind: text.count(f" {name}[") + text.count(f" {name}_local[")
        for kind, name in primitive.NAMES.items()
    }


def test_one_call_serves_a_vmap():
    axes = [0, None, None]
    args = operands(axes, {name: SHAPES[name] for name in NAMES[:3]})
    run = jax.vmap(with_gradients(attend, 3), in_axes=axes)
    assert calls(run, *args) == {
        "forward": 1,
        "backward": 1,
        "row_bias_backward": 0,
        "bias_grad": 0,
    }


LAYERS = 3


def layers(x, weights, wrap=lambda layer: layer):
    """Layers of attention whose weights are stacked: [layers, ...]."""

    def layer(x, weight):
        query, key, value = (jnp.einsum("bshd,de->bshe", x, w) for w in weight)
        return x + jnp.tanh(flash_attention(query, key[:, :, :2], value[:, :, :2])), None

    return jax.lax.scan(wrap(layer), x, weights)[0]


def layer_operands():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(B, S, HQ, D)).astype(np.float32)
    return x, rng.normal(size=(LAYERS, 3, D, D)).astype(np.float32)


def loss(x, weights, wrap=lambda layer: layer):
    return (layers(x, weights, wrap) ** 2).sum()


def test_scan_over_layers():
    x, weights = layer_operands()
    want = functools.reduce(lambda x, weight: layers(x, weight[None]), weights, x)
    np.testing.assert_allclose(layers(x, weights), want, rtol=1e-5, atol=1e-5)
    step = jax.grad(loss, argnums=(0, 1))
    plain = jax.grad(
        lambda x, w: (functools.reduce(lambda x, w: layers(x, w[None]), w, x) ** 2).sum(), (0, 1)
    )
    assert_scaled(jax.jit(step)(x, weights), plain(x, weights))
    text = jax.jit(step).trace(x, weights).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @jax_baracuda_flash_attention(") == 1
    assert text.count("custom_call @jax_baracuda_flash_attention_backward(") == 1


def assert_scaled(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())


SAVE_BOTH = jax.checkpoint_policies.save_only_these_names("context", "lse")


@pytest.mark.parametrize(
    ("policy", "forward"),
    [
        (SAVE_BOTH, 1),
        (jax.checkpoint_policies.save_only_these_names("context"), 2),
        (jax.checkpoint_policies.nothing_saveable, 2),
        (jax.checkpoint_policies.everything_saveable, 1),
        (None, 2),
    ],
    ids=["both", "context", "nothing", "everything", "default"],
)
def test_checkpoint_policies_choose_whether_the_forward_kernel_runs_twice(policy, forward):
    x, weights = layer_operands()
    wrap = functools.partial(jax.checkpoint, policy=policy)
    step = jax.grad(functools.partial(loss, wrap=wrap), argnums=(0, 1))
    text = jax.jit(step).trace(x, weights).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @jax_baracuda_flash_attention(") == forward
    assert text.count("custom_call @jax_baracuda_flash_attention_backward(") == 1
    assert calls(step, x, weights)["forward"] == forward
    assert_scaled(step(x, weights), jax.grad(loss, (0, 1))(x, weights))


@pytest.mark.gpu
@pytest.mark.parametrize("policy", [None, SAVE_BOTH], ids=["no checkpoint", "both"])
def test_xla_runs_the_forward_kernel_once_a_layer(policy):
    """What a scan stacks for the backward pass is copied: no second call writes it there."""

    def layer(x, weight):
        query, key, value = (jnp.einsum("bshd,de->bshe", x, w) for w in weight)
        return x + flash_attention(query, key[:, :, :2], value[:, :, :2], is_causal=True), None

    def loss(x, weights):
        body = layer if policy is None else jax.checkpoint(layer, policy=policy)
        return (jax.lax.scan(body, x, weights)[0].astype(jnp.float32) ** 2).sum()

    x = jnp.ones((2, 512, 8, 128), jnp.bfloat16)
    weights = jnp.ones((LAYERS, 3, 128, 128), jnp.bfloat16)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, weights).compile()
    targets = re.findall(r'custom_call_target="jax_baracuda_(\w+)"', compiled.as_text())
    assert sorted(targets) == ["flash_attention", "flash_attention_backward"]


def test_a_policy_keeps_context_and_lse_and_no_workspace():
    x, weights = layer_operands()
    wrap = functools.partial(jax.checkpoint, policy=SAVE_BOTH)
    _, pull = jax.vjp(lambda x, w: layers(x, w, wrap), x, weights)
    kept = sorted(a.shape[1:] for a in jax.tree.leaves(pull) if a.shape[:1] == (LAYERS,))
    # Stacked over the layers: weights, inputs, context and lse.
    assert kept == sorted([(3, D, D), (B, S, HQ, D), (B, S, HQ, D), (B, HQ, S)])


def test_vmap_of_a_checkpointed_scan():
    x, weights = layer_operands()
    xs = np.stack([x, -x])
    wrap = functools.partial(jax.checkpoint, policy=SAVE_BOTH)
    step = jax.grad(functools.partial(loss, wrap=wrap), argnums=(0, 1))
    want = loop(step, (xs, weights), (0, None), 2)
    assert_scaled(jax.vmap(step, in_axes=(0, None))(xs, weights), want)


# Meshes of eight CPU devices: 2 for the batch, 2 for the heads, 2 for none.
SPECS = {
    "query": P("x", None, "y"),
    "key": P("x", None, "y"),
    "value": P("x", None, "y"),
    "bias": P(None, "y"),
    "sinks": P("y"),
    "alibi_slopes": P("y"),
    "query_seq_lengths": P("x"),
    "key_value_seq_lengths": P("x"),
    "query_segment_ids": P("x"),
    "key_value_segment_ids": P("x"),
}
RESULTS = P("x", None, "y"), P("x", "y")


def mesh_of(devices, kind=AxisType.Auto):
    axes = ("x", "y", "z")
    return jax.make_mesh((2, 2, 2), axes, axis_types=(kind,) * 3, devices=devices)


def mesh_operands():
    arrays = operands([None] * len(NAMES))[: len(SPECS)]
    # The rows that see no key are the same in every test: log-sum-exps enter the loss.
    arrays[NAMES.index("key_value_seq_lengths")] = np.array([6, 5], np.int32)
    return arrays


def mesh_loss(function):
    def run(*args):
        out, lse = function(*args)
        return (out**2).sum() + jnp.where(lse == -jnp.inf, 0, jnp.sin(lse)).sum()

    return run


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(eight_devices, kind, check_vma):
    mesh = mesh_of(eight_devices, kind)
    seen = []

    def local(*args):
        out, lse = attend(*args)
        seen.append([jax.typeof(a).manual_axis_type.varying for a in (out, lse)])
        assert out.shape == (B // 2, S, HQ // 2, DV)
        return out, lse

    function = jax.shard_map(
        local, mesh=mesh, in_specs=tuple(SPECS.values()), out_specs=RESULTS, check_vma=check_vma
    )
    args = mesh_operands()
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(args, SPECS.values(), strict=True)
    ]
    got, want = jax.jit(function)(*placed), attend(*args)
    assert_close(got, want)
    varying = frozenset({"x", "y"}) if check_vma else frozenset()
    assert seen[0] == [varying, varying]
    step, plain = (jax.jit(jax.grad(mesh_loss(f), range(5))) for f in (function, attend))
    assert_close(step(*placed), plain(*args))
    text = step.trace(*placed).lower(lowering_platforms=("cuda",)).as_text()
    for kind in ("forward", "row_bias_backward"):
        assert text.count(f"custom_call @{primitive.TARGETS[kind]}(") == 1
    assert "CustomSPMDPartitioning" not in text


@pytest.mark.parametrize("argument", CHOSEN)
def test_shard_map_adds_up_the_gradient_of_what_is_shared(eight_devices, argument):
    """The gradient is taken inside, of a loss on each device, where types say what is shared."""
    mesh = mesh_of(eight_devices)
    specs = [P() if name == argument else P("x") for name in ("query", "key", "value")]
    specs += [P(), P()]
    args = mesh_operands()[:5]
    if argument in ("query", "key", "value"):
        index = NAMES.index(argument)
        args[index] = args[index][:1]
    at = CHOSEN.index(argument)

    def local(*args):
        def total(*args):
            return jax.lax.psum(mesh_loss(attend)(*args), "x")

        return jax.grad(total, at)(*args)

    def whole(*args):
        index = NAMES.index(argument)
        shared = list(args)
        if index < 3:
            shared[index] = jnp.concatenate([args[index]] * 2)
        return mesh_loss(attend)(*shared)

    function = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=P())
    assert_close((jax.jit(function)(*args),), (jax.grad(whole, at)(*args),))


def test_shard_map_over_a_part_of_the_mesh(eight_devices):
    mesh = mesh_of(eight_devices)
    only = {name: P("x") if "x" in spec else P() for name, spec in SPECS.items()}
    function = jax.jit(
        jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=tuple(only.values()),
            out_specs=(P("x"),) * 2,
            axis_names={"x"},
        )
    )
    args = mesh_operands()
    assert_close(function(*args), attend(*args))
    with pytest.raises(NotImplementedError, match=r"\['y', 'z'\] are left to jit.*every axis"):
        function.trace(*args).lower(lowering_platforms=("cuda",))


def test_lengths_of_other_integer_types():
    args = operands([None] * len(NAMES))[:8]
    want = attend(*args)
    with jax.enable_x64(True):
        args[6] = args[6].astype(np.int64) + np.where(args[6] >= S, 2**32, 0)
        args[7] = args[7].astype(np.uint64) + np.where(args[7] >= K, 2**40, 0).astype(np.uint64)
        assert_close(attend(*args), want)
