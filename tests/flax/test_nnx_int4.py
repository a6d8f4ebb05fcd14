"""jax_baracuda.nnx.Int4Linear against flax.nnx.Linear on the same, rounded matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_baracuda.nnx import Int4Linear, Int4Param, quantize_model
from jax_baracuda.testing import int4


def normal(*shape, seed=0, dtype=np.float32):
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(numbers, dtype)


def dense(*sizes, seed=0, **options):
    return nnx.Linear(*sizes, rngs=nnx.Rngs(seed), bias_init=nnx.initializers.normal(), **options)


def rounded(linear, **options):
    """The nnx.Linear that an Int4Linear stands for."""
    same = dense(linear.in_features, linear.out_features, use_bias=linear.bias is not None)
    same.kernel[...] = Int4Linear.from_linear(linear, **options).weight.dequantize()
    if linear.bias is not None:
        same.bias[...] = linear.bias[...]
    return same


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_from_linear(use_bias, group_size, dtype):
    linear = dense(96, 40, use_bias=use_bias, dtype=dtype)
    layer = Int4Linear.from_linear(linear, group_size=group_size)
    x = normal(2, 3, 96)
    out, want = layer(x), rounded(linear, group_size=group_size)(x)
    assert out.dtype == (jnp.float32 if dtype is None else dtype)
    assert layer.scales.dtype == out.dtype
    tolerance = 1e-5 if dtype is None else 3e-2
    np.testing.assert_allclose(np.float32(out), want, rtol=tolerance, atol=tolerance)
    error = int4.relative_error(out, np.asarray(linear(x), np.float64))
    assert error < 0.2  # of four bits


def test_symmetric_layers():
    layer = Int4Linear.from_linear(dense(128, 64, param_dtype=jnp.bfloat16), symmetric=True)
    assert layer(normal(2, 128, dtype=jnp.bfloat16)).shape == (2, 64)
    assert (layer.zeros[...] == 8).all()
    assert layer.scales.dtype == layer.bias.dtype == jnp.bfloat16


def test_abstract_layers():
    """As for restoring a checkpoint into a model that was never filled."""
    abstract = nnx.eval_shape(lambda: quantize_model(Model()))
    assert abstract.first.packed.shape == (1, 1, 2048)
    assert isinstance(abstract.first.weight.packed, jax.ShapeDtypeStruct)


def test_from_a_checkpoint_with_act_order():
    raw = int4.make_raw_weight("gptq_act_order", 128, 64, 64)
    layer = Int4Linear(raw.convert(), normal(64, dtype=jnp.float16))
    x = normal(5, 128, dtype=jnp.float16)
    want = np.asarray(x, np.float64) @ int4.read(raw) + np.asarray(normal(64), np.float64)
    assert int4.relative_error(nnx.jit(lambda m, x: m(x))(layer, x), want) < 1e-3


def test_jit_split_merge_and_pure_state():
    layer = Int4Linear.from_linear(dense(64, 64), group_size=64)
    x = normal(3, 64)
    want = layer(x)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(layer, x), want, rtol=1e-6)
    graph, frozen, rest = nnx.split(layer, Int4Param, ...)
    assert set(frozen) == {"packed", "scales", "zeros"}
    assert set(rest) == {"bias"}
    np.testing.assert_array_equal(nnx.merge(graph, frozen, rest)(x), want)
    assert set(nnx.state(layer, nnx.Param)) == {"bias"}
    cloned = nnx.clone(layer)
    cloned.scales[...] = 2 * cloned.scales[...]
    assert (cloned(x) != layer(x)).any()


class Model(nnx.Module):
    """Every way to hold a layer."""

    def __init__(self, width=64):
        rngs = nnx.Rngs(0)

        def layer():
            return nnx.Linear(width, width, rngs=rngs)

        self.first = layer()
        self.blocks = nnx.List([layer(), nnx.Dict(inner=layer())])
        self.chain = nnx.Sequential(layer(), nnx.tanh, layer())
        self.shared = self.first
        self.pair = nnx.data((layer(), {"deep": layer()}))
        self.head = layer()
        self.other = nnx.LinearGeneral(width, width, rngs=rngs)

    def __call__(self, x):
        x = self.shared(jnp.tanh(self.first(x)))
        x = self.blocks[1]["inner"](jnp.tanh(self.blocks[0](x)))
        x = self.pair[1]["deep"](self.pair[0](self.chain(x)))
        return self.other(self.head(x))


def layers_of(model, kind):
    return [path for path, module in nnx.iter_modules(model) if type(module) is kind]


def test_quantize_model_swaps_every_layer():
    model, x = Model(), normal(4, 64)
    want = model(x)
    before = layers_of(model, nnx.Linear)
    assert quantize_model(model, group_size=32) is model
    assert layers_of(model, nnx.Linear) == []
    assert layers_of(model, Int4Linear) == before
    assert len(before) == 8
    assert model.shared is model.first
    out = nnx.jit(lambda m, x: m(x))(model, x)
    assert 0 < int4.relative_error(out, np.asarray(want, np.float64)) < 0.4


def test_quantize_model_swaps_some_layers():
    model = quantize_model(
        Model(), where=lambda path, layer: "head" not in path, dtype=jnp.bfloat16, group_size=64
    )
    assert layers_of(model, nnx.Linear) == [("head",)]
    assert model.first.scales.dtype == jnp.bfloat16
    assert model.first(normal(2, 64)).dtype == jnp.bfloat16
    assert type(quantize_model(dense(64, 64), group_size=64)) is Int4Linear


def test_stacked_layers_in_a_scan():
    @nnx.vmap(in_axes=0)
    def make(rngs):
        return nnx.Linear(64, 64, rngs=rngs)

    stacked = make(nnx.Rngs(0).split(3))
    layers = Int4Linear.from_linear(stacked, group_size=32)
    assert layers.packed.shape == (3, 1, 1, 2048)

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return jnp.tanh(layer(x))

    x = normal(2, 64)
    want = x
    for matrix, bias in zip(
        jax.vmap(lambda w: w.dequantize())(layers.weight), layers.bias[...], strict=True
    ):
        want = jnp.tanh(want @ matrix + bias)
    np.testing.assert_allclose(run(x, layers), want, rtol=1e-5, atol=1e-5)


def test_lora_over_frozen_weights_learns():
    """The gradient goes through the frozen layers to the LoRA matrices below them."""
    rngs = nnx.Rngs(0)

    class Tuned(nnx.Module):
        def __init__(self):
            below, above = (dense(64, 64, seed=i) for i in range(2))
            self.below = nnx.LoRA(
                64, 4, 64, base_module=Int4Linear.from_linear(below, group_size=32), rngs=rngs
            )
            self.above = Int4Linear.from_linear(above, group_size=32)

        def __call__(self, x):
            return self.above(jnp.tanh(self.below(x)))

    model, x = Tuned(), normal(32, 64)
    frozen = jax.tree.map(jnp.copy, nnx.state(model, Int4Param))
    target = jnp.tanh(x @ normal(64, 64, seed=1) / 8)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return ((model(x) - target) ** 2).mean()

        value, gradient = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    after = nnx.state(model, Int4Param)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), frozen, after))
