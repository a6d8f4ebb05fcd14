"""jax_baracuda.linen.Int4Dense against flax.linen.Dense on the same, rounded matrix."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jax_baracuda.linen import Int4Dense, quantize_params
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4


def normal(*shape, seed=0, dtype=np.float32):
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(numbers, dtype)


def dense_params(*shape, **options):
    return {"kernel": normal(*shape) / 8, "bias": normal(shape[-1])}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_variables_of_a_dense_layer(use_bias, group_size, dtype):
    params, x = dense_params(96, 40), normal(2, 3, 96)
    if not use_bias:
        del params["bias"]
    variables = quantize_params(params, group_size=group_size, dtype=dtype)
    weight = variables["int4"]["kernel"]
    layer = Int4Dense(40, use_bias=use_bias, dtype=dtype)
    out = jax.jit(layer.apply)(variables, x)
    same = {"params": params | {"kernel": weight.dequantize()}}
    want = linen.Dense(40, use_bias=use_bias, dtype=dtype).apply(same, x)
    assert out.dtype == want.dtype == (jnp.float32 if dtype is None else dtype)
    assert weight.dtype == out.dtype
    tolerance = 1e-5 if dtype is None else 3e-2
    np.testing.assert_allclose(np.float32(out), np.float32(want), rtol=tolerance, atol=tolerance)


def test_init_makes_a_layer_of_its_own():
    layer = Int4Dense(64, param_dtype=jnp.bfloat16, symmetric=True)
    variables = layer.init(jax.random.key(0), normal(2, 128, dtype=jnp.bfloat16))
    weight = variables["int4"]["kernel"]
    assert isinstance(weight, Int4Weight)
    assert weight.dtype == variables["params"]["bias"].dtype == jnp.bfloat16
    assert (weight.zeros == 8).all()
    assert np.std(weight.dequantize()) == pytest.approx(128**-0.5, rel=0.1)
    assert layer.apply(variables, normal(2, 128, dtype=jnp.bfloat16)).shape == (2, 64)


def test_a_weight_of_a_checkpoint():
    raw = int4.make_raw_weight("gptq_act_order", 128, 64, 64)
    variables = {"int4": {"kernel": raw.convert()}}
    x = normal(5, 128, dtype=jnp.float16)
    out = Int4Dense(64, use_bias=False).apply(variables, x)
    assert int4.relative_error(out, np.asarray(x, np.float64) @ int4.read(raw)) < 5e-4


class Model(linen.Module):
    """Layers that Flax names, one with a name, one in a module, one that is not dense."""

    dense: type

    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(self.dense(64)(x))
        x = jnp.tanh(Block(self.dense)(x))
        x = linen.LayerNorm()(self.dense(64)(x))
        return self.dense(8, name="head")(x)


class Block(linen.Module):
    dense: type

    @linen.compact
    def __call__(self, x):
        return self.dense(64, use_bias=False)(x)


def test_the_variables_of_a_model():
    x = normal(4, 64)
    params = Model(linen.Dense).init(jax.random.key(0), x)["params"]
    variables = quantize_params(params, group_size=32)
    assert set(variables["int4"]) == {"Int4Dense_0", "Int4Dense_1", "Block_0", "head"}
    assert set(variables["int4"]["Block_0"]) == {"Int4Dense_0"}
    model = Model(Int4Dense)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
        lambda a: a.shape, shapes["params"]
    )
    want = np.asarray(Model(linen.Dense).apply({"params": params}, x), np.float64)
    assert 0 < int4.relative_error(model.apply(variables, x), want) < 0.3


def test_some_layers_of_a_model():
    params = Model(linen.Dense).init(jax.random.key(0), normal(4, 64))["params"]
    variables = quantize_params(params, where=lambda path, kernel: path == ("head",))
    assert set(variables["int4"]) == {"head"}
    assert set(variables["params"]) == set(params)
    assert "kernel" not in variables["params"]["head"]


def test_a_scan_over_layers():
    class Layer(linen.Module):
        dense: type

        @linen.compact
        def __call__(self, x, _):
            return jnp.tanh(self.dense(64, name="up")(x)), None

    def model(dense):
        return linen.scan(
            Layer, variable_axes={"params": 0, "int4": 0}, split_rngs={"params": True}, length=3
        )(dense)

    x = normal(2, 64)
    params = model(linen.Dense).init(jax.random.key(0), x, None)["params"]
    variables = quantize_params(params, where=lambda path, kernel: True, group_size=32)
    weights = variables["int4"]["up"]["kernel"]
    assert weights.packed.shape == (3, 1, 1, 2048)
    out, _ = jax.jit(model(Int4Dense).apply)(variables, x, None)
    kernels = {"up": params["up"] | {"kernel": jax.vmap(lambda w: w.dequantize())(weights)}}
    want, _ = model(linen.Dense).apply({"params": kernels}, x, None)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_bytes():
    variables = quantize_params({"a": dense_params(64, 32), "b": dense_params(64, 32)})
    data = flax.serialization.to_bytes(variables)
    again = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, variables), data)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lora_over_frozen_weights_learns():
    class Tuned(linen.Module):
        @linen.compact
        def __call__(self, x):
            low = linen.Dense(4, use_bias=False)(x)
            out = linen.Dense(64, use_bias=False, kernel_init=linen.initializers.zeros)(low)
            x = jnp.tanh(Int4Dense(64, group_size=32)(x) + out)
            return Int4Dense(64, group_size=32)(x)

    model, x = Tuned(), normal(32, 64)
    variables = model.init(jax.random.key(0), x)
    frozen, params = {"int4": variables["int4"]}, variables["params"]
    target = jnp.tanh(x @ normal(64, 64, seed=1) / 8)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            return ((model.apply({"params": params, **frozen}, x) - target) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
