"""Gradients, vmap, scan, donation and saving of int4_matmul and its weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from safetensors.numpy import load_file, save_file

from jax_baracuda import int4_matmul
from jax_baracuda.testing import int4


def activations(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def weight_of(format="awq_gemm", ic=136, oc=72, group=64, seed=0):
    return int4.make_raw_weight(format, ic, oc, group, seed=seed).convert()


def stack(*weights):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)


def plain(x, weight, bias=None):
    out = jnp.dot(x.astype(jnp.float32), weight.dequantize())
    return (out if bias is None else out + bias.astype(jnp.float32)).astype(x.dtype)


def same(got, want, tolerance=2e-3):
    got, want = (np.asarray(a).astype(np.float64) for a in (got, want))
    assert got.shape == want.shape
    scale = max(np.abs(want).max(initial=0), 1e-30)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("format", ["awq_gemm", "gptq_act_order"])
def test_the_gradient_of_x_and_bias(format, dtype):
    weight, x = weight_of(format), activations(2, 3, 136, dtype=dtype)
    bias, dy = activations(72, dtype=dtype), activations(2, 3, 72, dtype=dtype)

    def run(product, x, bias):
        out, pull = jax.vjp(product, x, bias)
        return out, *pull(dy)

    ours = run(lambda x, b: int4_matmul(x, weight, bias=b), x, bias)
    want = run(lambda x, b: plain(x, weight, b), x, bias)
    assert ours[1].dtype == ours[2].dtype == x.dtype
    for a, b in zip(ours, want, strict=True):
        same(a, b, tolerance=8e-3 if dtype == "bfloat16" else 1e-3)


def test_higher_orders_and_both_modes():
    weight, x = weight_of(), activations(2, 136) / 8

    def function(x):  # not linear, in 16 bits through the primitive
        return jnp.sin(int4_matmul(x.astype(jnp.float16), weight).astype(jnp.float32)).sum()

    def want(x):
        return jnp.sin(plain(x.astype(jnp.float16), weight).astype(jnp.float32)).sum()

    same(jax.jvp(function, (x,), (x,))[1], jax.jvp(want, (x,), (x,))[1], 1e-2)
    direction = activations(2, 136, seed=1)
    hessian = [jax.jvp(jax.grad(f), (x,), (direction,))[1] for f in (function, want)]
    same(*hessian, 2e-2)
    check_grads(
        lambda x: int4_matmul(x, weight), (x,), order=2, modes=["fwd", "rev"], atol=5e-2, rtol=5e-2
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_weight_is_frozen(dtype):
    weight, x = weight_of(), activations(2, 136, dtype=dtype)
    gradient = jax.grad(lambda w: int4_matmul(x, w).astype(jnp.float32).sum(), allow_int=True)(
        weight
    )
    assert gradient.packed.dtype == gradient.zeros.dtype == jax.dtypes.float0
    assert (gradient.scales == 0).all()
    assert gradient.scales.shape == weight.scales.shape


def test_remat_jit_and_scan_of_gradients():
    weights, x = stack(*(weight_of(ic=72, seed=seed) for seed in range(3))), activations(4, 72)

    def loss(product, x):
        def layer(x, weight):
            return jnp.tanh(product(x.astype(jnp.float16), weight).astype(jnp.float32)), None

        return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].sum()

    ours, want = (jax.jit(jax.grad(functools.partial(loss, f)))(x) for f in (int4_matmul, plain))
    same(ours, want, 1e-2)


def test_a_scan_over_layers():
    layers = [weight_of(format, 128, 128, seed=3) for format in ("awq_gemm", "gptq_v1", "packed")]
    x = activations(2, 5, 128, dtype="float16")

    @jax.jit
    def run(x, weights):
        return jax.lax.scan(lambda x, w: (int4_matmul(x, w), None), x, weights)[0]

    want = x
    for weight in layers:
        want = int4_matmul(want, weight)
    same(run(x, stack(*layers)), want)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("x_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("mapped", ["nothing", "bias", "weight", "both"])
def test_vmap(x_axis, mapped, biased):
    count = 3
    x = activations(
        *([2, 136] if x_axis is None else [[3, 2, 136], [2, 3, 136], [2, 136, 3]][x_axis])
    )
    x = x.astype(jnp.float16)
    w_axis = 0 if mapped in ("weight", "both") else None
    b_axis = 1 if biased and mapped in ("bias", "both") else None
    if x_axis is w_axis is b_axis is None:
        pytest.skip("nothing is mapped")
    weights = [weight_of(seed=seed) for seed in range(count)]
    weight = weights[0] if w_axis is None else stack(*weights)
    bias = None
    if biased:
        bias = activations(72, count) if b_axis is not None else activations(72)

    def call(x, weight, bias):
        return int4_matmul(x, weight, bias=bias)

    got = jax.jit(jax.vmap(call, in_axes=(x_axis, w_axis, b_axis)))(x, weight, bias)

    def pick(array, axis, index):
        return array if axis is None else jnp.take(array, index, axis)

    for index in range(count):
        want = call(
            pick(x, x_axis, index),
            weight if w_axis is None else weights[index],
            bias if bias is None else pick(bias, b_axis, index),
        )
        same(got[index], want)


def test_vmap_of_a_gradient_and_vmap_twice():
    weight, x = weight_of(), activations(2, 3, 4, 136, dtype="float16")
    got = jax.vmap(jax.vmap(lambda x: int4_matmul(x, weight)))(x)
    same(got, int4_matmul(x, weight))

    def slope(x):
        return jax.grad(lambda x: int4_matmul(x, weight).astype(jnp.float32).sum())(x)

    same(jax.vmap(slope)(x), slope(x))


def test_mapped_rows_are_one_call():
    weight, x = weight_of(), activations(5, 2, 136, dtype="float16")
    jaxpr = str(jax.make_jaxpr(jax.vmap(lambda x: int4_matmul(x, weight)))(x))
    assert jaxpr.count("jax_baracuda_int4_matmul[") == 1
    assert "scan" not in jaxpr


def test_weights_are_donated_and_updated():
    weight = weight_of()
    step = jax.jit(lambda w: dataclasses.replace(w, scales=w.scales * 2), donate_argnums=0)
    before = np.asarray(weight.dequantize())
    copy = jax.tree.map(jnp.copy, weight)
    doubled = step(copy)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy))
    np.testing.assert_array_equal(doubled.dequantize(), 2 * before)


def test_weights_are_saved_and_loaded(tmp_path):
    weight = weight_of("gptq_act_order")
    leaves, tree = jax.tree.flatten(weight)
    save_file({str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}, tmp_path / "w")
    loaded = load_file(tmp_path / "w")
    again = jax.tree.unflatten(tree, [jnp.asarray(loaded[str(i)]) for i in range(len(leaves))])
    np.testing.assert_array_equal(again.dequantize(), weight.dequantize())


def test_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {"layers": stack(weight_of(), weight_of(seed=1)), "head": weight_of("gptq_act_order")}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "weights", tree)
        checkpointer.wait_until_finished()
        loaded = checkpointer.restore(
            tmp_path / "weights", jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        )
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(a, b)
