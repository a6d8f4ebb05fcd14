"""jax_baracuda.linen.Int4Dense against flax.linen.Dense on the same, rounded matrix."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jax_baracuda.linen import Int4Dense, quantize_model, quantize_params
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


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"symmetric": True, "dtype": jnp.bfloat16}])
def test_from_dense(use_bias, options):
    dense, x = linen.Dense(40, use_bias=use_bias, name="up"), normal(3, 96)
    params = dense.init(jax.random.key(0), x)["params"]
    layer, variables = Int4Dense.from_dense(dense, params, group_size=32, **options)
    assert (layer.features, layer.use_bias, layer.name) == (40, use_bias, "up")
    weight = variables["int4"]["kernel"]
    assert layer.dtype == options.get("dtype")
    assert weight.dtype == options.get("dtype", jnp.float32)
    assert bool((weight.zeros[:3, :40] == 8).all()) is ("symmetric" in options)
    same = {"params": params | {"kernel": weight.dequantize()}}
    out, want = jax.jit(layer.apply)(variables, x), dense.apply(same, x)
    tolerance = 3e-2 if options else 1e-5
    np.testing.assert_allclose(np.float32(out), want, rtol=tolerance, atol=tolerance)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.structure({"params": {}} | shapes) == jax.tree.structure(variables)


def test_a_model_whose_layers_are_swapped():
    """It computes what the model with Int4Dense in its source does."""
    x = normal(4, 64)
    dense = Model(linen.Dense)
    params = dense.init(jax.random.key(0), x)["params"]
    model, variables = quantize_model(dense, params, group_size=32)
    assert set(variables["int4"]) == {"Dense_0", "Dense_1", "Block_0", "head"}
    want = Model(Int4Dense).apply(quantize_params(params, group_size=32), x)
    np.testing.assert_array_equal(model.apply(variables, x), want)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), want, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda x: model.apply(variables, x).sum())(x)
    assert (slope != 0).any()
    narrow, variables = quantize_model(dense, params, group_size=32, dtype=jnp.bfloat16)
    assert variables["int4"]["head"]["kernel"].dtype == jnp.bfloat16
    assert narrow.apply(variables, x).dtype == jnp.bfloat16
    # Outside, the model is what it was.
    assert int4.relative_error(dense.apply({"params": params}, x), np.asarray(want)) > 0


class Chain(linen.Module):
    """Layers of ``setup``, a method beside ``__call__``, another collection, other kernels."""

    def setup(self):
        self.body = linen.Sequential([linen.Dense(64), jnp.tanh, linen.Dense(64)])
        self.general = linen.DenseGeneral((4, 16))
        self.calls = self.variable("calls", "count", lambda: jnp.int32(0))

    def __call__(self, x):
        self.calls.value += 1
        return self.general(self.encode(x))

    def encode(self, x):
        return linen.remat(lambda m, x: m.body(x))(self, x)


def test_other_ways_to_call_a_layer():
    x = normal(4, 64)
    chain = Chain()
    first = chain.init(jax.random.key(0), x)
    model, variables = quantize_model(chain, first["params"], group_size=64)
    assert set(variables["int4"]) == {"body"}
    weights = variables["int4"]["body"]
    kernels = {
        name: layer | {"kernel": weights[name]["kernel"].dequantize()}
        for name, layer in first["params"]["body"].items()
    }
    same = {"params": first["params"] | {"body": kernels}, "calls": first["calls"]}
    variables["calls"] = first["calls"]
    out, changed = model.apply(variables, x, mutable=["calls"])
    np.testing.assert_allclose(out, chain.apply(same, x, mutable=["calls"])[0], atol=1e-5)
    assert changed["calls"]["count"] == first["calls"]["count"] + 1
    out = model.apply(variables, x, method="encode")
    np.testing.assert_allclose(out, chain.apply(same, x, method="encode"), atol=1e-5)


def test_layers_that_cannot_be_swapped_are_named():
    general, x = linen.DenseGeneral(32), normal(2, 64)
    wrapped = linen.Sequential([general])
    params = wrapped.init(jax.random.key(0), x)["params"]
    model, variables = quantize_model(wrapped, params)
    with pytest.raises(NotImplementedError, match=r"layers_0 is a DenseGeneral.*where="):
        model.apply(variables, x)
    model, variables = quantize_model(wrapped, params, where=lambda path, kernel: False)
    np.testing.assert_array_equal(model.apply(variables, x), wrapped.apply({"params": params}, x))


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
    swapped, variables = quantize_model(
        linen.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(
            linen.Dense
        ),
        params,
        where=lambda path, kernel: True,
        group_size=32,
    )
    out, _ = swapped.apply(variables, x, None)
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
