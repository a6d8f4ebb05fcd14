"""jax_baracuda.linen against Flax's own attention in the same layers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jax_baracuda.linen import dot_product_attention

PRIMITIVE = "jax_baracuda_flash_attention"
VOCABULARY, LENGTH, WIDTH, HEADS = 17, 24, 32, 4


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def runs_kernel(function, *args):
    return PRIMITIVE in str(jax.make_jaxpr(function)(*args))


class Model(linen.Module):
    """A transformer of one block that predicts the next token."""

    attention_fn: object
    dropout_rate: float = 0.0

    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(VOCABULARY, WIDTH)
        x = embed(tokens)
        x = x + linen.MultiHeadDotProductAttention(
            HEADS,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=False,
            deterministic=False,
            attention_fn=self.attention_fn,
        )(linen.LayerNorm()(x), mask=linen.make_causal_mask(tokens))
        x = x + linen.Dense(WIDTH)(jax.nn.relu(linen.Dense(64)(linen.LayerNorm()(x))))
        return embed.attend(x)


def losses(attention_fn, steps=25, **options):
    """The loss curve of learning to count with a stride that the first tokens tell."""
    model = Model(attention_fn, **options)
    keys = dict(params=jax.random.key(0), dropout=jax.random.key(1))
    params = model.init(keys, np.zeros((1, 4), int))["params"]
    optimizer = optax.adam(1e-2)
    rng = np.random.default_rng(0)

    @jax.jit
    def step(params, state, tokens, key):
        def loss(params):
            logits = model.apply({"params": params}, tokens[:, :-1], rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return value, optax.apply_updates(params, updates), state

    state, curve = optimizer.init(params), []
    for index in range(steps):
        start, stride = rng.integers(0, VOCABULARY, 8), rng.integers(1, 4, 8)
        tokens = (start[:, None] + stride[:, None] * np.arange(LENGTH + 1)) % VOCABULARY
        value, params, state = step(params, state, tokens, jax.random.key(index))
        curve.append(float(value))
    return np.array(curve)


def test_training_follows_the_same_loss_curve():
    stock, ours = losses(linen.dot_product_attention), losses(dot_product_attention)
    assert stock[-1] < 0.7 * stock[0]
    np.testing.assert_allclose(ours, stock, rtol=2e-3)


def test_training_with_dropout_learns_too():
    ours, without = losses(dot_product_attention, dropout_rate=0.2), losses(dot_product_attention)
    assert ours[-1] < 0.8 * ours[0]
    assert np.abs(ours - without).max() > 1e-3


def apply(attention_fn, x, *, call=None, mutable=False, **options):
    layer = linen.MultiHeadDotProductAttention(HEADS, attention_fn=attention_fn, **options)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, mutable=mutable, **(call or {}))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_the_layer(dtype, masked, batch):
    x = normal(*batch, 10, WIDTH)
    mask = linen.make_causal_mask(np.ones((*batch, 10))) if masked else None  # numbers

    def run(attention_fn):
        return apply(attention_fn, x, dtype=dtype, call=dict(mask=mask))

    ours, stock = run(dot_product_attention), run(linen.dot_product_attention)
    assert ours.dtype == stock.dtype
    tolerance = 2e-5 if dtype is None else 3e-2
    np.testing.assert_allclose(np.float32(ours), np.float32(stock), rtol=tolerance, atol=tolerance)
    assert runs_kernel(lambda: run(dot_product_attention))


def test_a_bound_causal_rule_needs_no_mask():
    x = normal(2, 10, WIDTH)
    ours = apply(functools.partial(dot_product_attention, is_causal=True), x)
    mask = linen.make_causal_mask(np.ones((2, 10)))
    stock = apply(linen.dot_product_attention, x, call=dict(mask=mask))
    np.testing.assert_allclose(ours, stock, rtol=2e-5, atol=2e-5)


def test_bias_and_values_of_another_head_dimension():
    query, key, value = normal(2, 5, 4, 8), normal(2, 7, 4, 8), normal(2, 7, 4, 12)
    bias = normal(1, 4, 5, 7)

    def run(function):
        return jax.value_and_grad(lambda *args: (function(*args) ** 2).sum(), (0, 1, 2, 3))(
            query, key, value, bias
        )

    ours, gradients = run(dot_product_attention)
    stock, want = run(linen.dot_product_attention)
    np.testing.assert_allclose(ours, stock, rtol=1e-5)
    for a, b in zip(gradients, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_cache_of_decode_mode():
    x = normal(2, 6, WIDTH)

    def decode(attention_fn):
        layer = linen.MultiHeadDotProductAttention(HEADS, decode=True, attention_fn=attention_fn)
        variables = layer.init(jax.random.key(0), x)
        params, cache = variables["params"], variables["cache"]
        tokens = []
        for index in range(x.shape[1]):
            token, state = layer.apply(
                {"params": params, "cache": cache}, x[:, index : index + 1], mutable=["cache"]
            )
            cache = state["cache"]
            tokens.append(token)
        return np.concatenate(tokens, axis=1)

    ours, stock = decode(dot_product_attention), decode(linen.dot_product_attention)
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)
    causal = functools.partial(dot_product_attention, is_causal=True)
    np.testing.assert_allclose(ours, apply(causal, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_in_the_layer(broadcast):
    """Equal sequences have equal outputs if, and only if, they drop the same weights."""
    x = np.repeat(normal(1, 12, WIDTH), 2, axis=0)
    options = dict(dropout_rate=0.5, broadcast_dropout=broadcast)

    def run(seed, deterministic=False):
        call = dict(deterministic=deterministic, dropout_rng=jax.random.key(seed))
        layer = linen.MultiHeadDotProductAttention(
            HEADS, attention_fn=dot_product_attention, **options
        )
        variables = layer.init(jax.random.key(0), x, deterministic=True)
        return np.array(layer.apply(variables, x, **call))

    out = run(0)
    assert np.allclose(out[0], out[1], atol=1e-5) == broadcast
    np.testing.assert_array_equal(out, run(0))
    assert not np.allclose(out, run(1), atol=1e-3)
    plain = apply(linen.dot_product_attention, x)
    np.testing.assert_allclose(run(0, deterministic=True), plain, rtol=2e-5, atol=2e-5)
    assert not np.allclose(out, plain, atol=1e-3)


def test_sown_weights_are_those_of_flax():
    x = normal(2, 10, WIDTH)

    def run(attention_fn):
        call = dict(sow_weights=True)
        out, state = apply(attention_fn, x, call=call, mutable=["intermediates"])
        return out, state["intermediates"]["attention_weights"][0]

    (ours, weights), (stock, want) = run(dot_product_attention), run(linen.dot_product_attention)
    assert weights.shape == (2, HEADS, 10, 10)
    np.testing.assert_array_equal(weights, want)
    np.testing.assert_array_equal(ours, stock)
    small, module = normal(2, 3, 2, 8), linen.Dense(1)
    with pytest.raises(NotImplementedError, match="module is given"):
        dot_product_attention(small, small, small, module=module, implementation="cuda")


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_goes_to_flax(is_causal):
    x = normal(2, 3, 2, 264)
    mask = np.tril(np.ones((3, 3), bool)) if is_causal else None
    want = linen.dot_product_attention(x, x, x, mask=mask)
    got = dot_product_attention(x, x, x, is_causal=is_causal)
    np.testing.assert_array_equal(got, want)
    assert not runs_kernel(dot_product_attention, x, x, x)
    small = x[..., :8]
    einsums = dict(qk_attn_weights_einsum=jnp.einsum, attn_weights_value_einsum=jnp.einsum)
    assert runs_kernel(dot_product_attention, small, small, small)
    assert not runs_kernel(functools.partial(dot_product_attention, **einsums), small, small, small)
    general = functools.partial(dot_product_attention, einsum_dot_general=jax.lax.dot_general)
    assert not runs_kernel(general, small, small, small)
    for options in (dict(einsums), dict(einsum_dot_general=jax.lax.dot_general)):
        with pytest.raises(NotImplementedError, match="is given"):
            dot_product_attention(small, small, small, implementation="cuda", **options)


def test_it_takes_what_flax_takes():
    stock = inspect.signature(linen.dot_product_attention).parameters
    ours = inspect.signature(dot_product_attention).parameters
    assert list(ours)[: len(stock)] == list(stock)
    assert all(ours[name].default == stock[name].default for name in stock)
