"""jax_baracuda.nnx against Flax's own attention in the same layers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_baracuda.nnx import dot_product_attention

PRIMITIVE = "jax_baracuda_flash_attention"
VOCABULARY, LENGTH, WIDTH, HEADS = 17, 24, 32, 4


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def runs_kernel(function, *args):
    return PRIMITIVE in str(jax.make_jaxpr(function)(*args))


class Model(nnx.Module):
    """A transformer of one block that predicts the next token."""

    def __init__(self, attention_fn, dropout_rate=0.0):
        rngs = nnx.Rngs(0, dropout=1)
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS,
            WIDTH,
            decode=False,
            deterministic=False,
            dropout_rate=dropout_rate,
            broadcast_dropout=False,
            attention_fn=attention_fn,
            rngs=rngs,
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x), is_causal=True)
        x = x + self.down(jax.nn.relu(self.up(self.norm(x))))
        return self.embed.attend(x)


def losses(attention_fn, steps=25, **options):
    """The loss curve of learning to count with a stride that the first tokens tell."""
    model = Model(attention_fn, **options)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    rng = np.random.default_rng(0)

    @nnx.jit
    def step(model, optimizer, tokens):
        def loss(model):
            logits = model(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    curve = []
    for _ in range(steps):
        start, stride = rng.integers(0, VOCABULARY, 8), rng.integers(1, 4, 8)
        tokens = (start[:, None] + stride[:, None] * np.arange(LENGTH + 1)) % VOCABULARY
        curve.append(float(step(model, optimizer, tokens)))
    return np.array(curve)


def test_training_follows_the_same_loss_curve():
    stock, ours = losses(nnx.dot_product_attention), losses(dot_product_attention)
    assert stock[-1] < 0.7 * stock[0]
    np.testing.assert_allclose(ours, stock, rtol=2e-3)


def test_training_with_dropout_learns_too():
    ours, without = losses(dot_product_attention, dropout_rate=0.2), losses(dot_product_attention)
    assert ours[-1] < 0.8 * ours[0]
    assert np.abs(ours - without).max() > 1e-3


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("masking", ["none", "causal", "mask", "float mask", "both"])
def test_the_layer(kv_heads, dtype, masking):
    x = normal(2, 10, WIDTH)
    mask = np.tril(np.ones((2, 1, 10, 10), bool), 3) if masking in ("mask", "both") else None
    if masking == "float mask":
        mask = nnx.make_causal_mask(np.ones((2, 10)))
    call = dict(mask=mask, is_causal=masking in ("causal", "both"))

    def run(attention_fn):
        layer = nnx.MultiHeadAttention(
            HEADS,
            WIDTH,
            num_kv_heads=kv_heads,
            dtype=dtype,
            decode=False,
            attention_fn=attention_fn,
            rngs=nnx.Rngs(0),
        )
        return layer(x, **call)

    ours, stock = run(dot_product_attention), run(nnx.dot_product_attention)
    assert ours.dtype == stock.dtype
    tolerance = 2e-5 if dtype is None else 3e-2
    np.testing.assert_allclose(np.float32(ours), np.float32(stock), rtol=tolerance, atol=tolerance)
    assert runs_kernel(lambda: run(dot_product_attention))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("masked", "biased"), [(True, False), (False, True), (True, True)])
def test_batch_dimensions_with_bias_and_mask(batch, masked, biased):
    query, key, value = (normal(*batch, n, 4, 8, seed=i) for i, n in enumerate((5, 7, 7)))
    bias = normal(*batch, 1, 5, 7) if biased else None
    mask = np.tril(np.ones((*(1 for _ in batch), 4, 5, 7), bool), 2) if masked else None

    def run(function, mask):
        def loss(*args):
            return (function(*args, bias, mask) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)

    # Flax flattens a mask with the rest, so the reference needs all of its batch entries.
    whole = None if mask is None else np.broadcast_to(mask, (*batch, 4, 5, 7))
    ours, gradients = run(dot_product_attention, mask)
    stock, want = run(nnx.dot_product_attention, whole)
    np.testing.assert_allclose(ours, stock, rtol=1e-5)
    for a, b in zip(gradients, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_values_of_another_head_dimension():
    query, key, value = normal(2, 5, 4, 8), normal(2, 7, 4, 8), normal(2, 7, 4, 12)
    ours = dot_product_attention(query, key, value)
    # By hand: without dropout, Flax's function calls jax.nn's, which wants equal shapes.
    weights = jax.nn.softmax(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8))
    want = np.einsum("bhqk,bkhd->bqhd", weights, value)
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)


def test_the_cache_of_decode_mode():
    x = normal(2, 6, WIDTH)

    def decode(attention_fn):
        layer = nnx.MultiHeadAttention(
            HEADS, WIDTH, num_kv_heads=2, decode=True, attention_fn=attention_fn, rngs=nnx.Rngs(0)
        )
        layer.init_cache(x.shape)
        tokens = [layer(x[:, i : i + 1]) for i in range(x.shape[1])]
        layer.eval()
        return layer, jnp.concatenate(tokens, axis=1)

    layer, ours = decode(dot_product_attention)
    _, stock = decode(nnx.dot_product_attention)
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)
    whole = layer(x, is_causal=True, decode=False)
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-5)


def dropout(seed=0, broadcast=False, rate=0.4, batch=2, **options):
    """The attention weights after dropout: queries of zeros, values of the identity matrix."""
    length, heads = 64, 2
    query = jnp.zeros((batch, length, heads, 8))
    value = jnp.broadcast_to(jnp.eye(length)[:, None], (batch, length, heads, length))
    out = dot_product_attention(
        query,
        query,
        value,
        dropout_rng=None if seed is None else jax.random.key(seed),
        dropout_rate=rate,
        broadcast_dropout=broadcast,
        **options,
    )
    return np.array(out).swapaxes(1, 2)  # [batch, head, row, column]


def test_dropout_drops_with_its_rate_and_scales():
    weights = dropout()
    kept = weights != 0
    np.testing.assert_allclose(weights[kept], 1 / 64 / 0.6, rtol=1e-5)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / kept.size)
    assert not (dropout(deterministic=True) == 0).any()
    np.testing.assert_array_equal(dropout(), weights)
    assert (dropout(seed=1) != weights).mean() > 0.3


def test_broadcast_dropout_is_one_pattern_for_all():
    alone, shared = dropout() != 0, dropout(broadcast=True) != 0
    for kept, same in ((alone, False), (shared, True)):
        assert (kept[0, 0] == kept[0, 1]).all() == same
        assert (kept[0, 0] == kept[1, 1]).all() == same
    assert abs(shared[0, 0].mean() - 0.6) < 4 * np.sqrt(0.24 / shared[0, 0].size)


def test_dropout_keys_of_any_kind():
    x = normal(2, 16, 2, 8)
    keys = [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")]
    outs = [
        dot_product_attention(x, x, x, dropout_rng=key, dropout_rate=0.5, broadcast_dropout=False)
        for key in keys
    ]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert (outs[0] != outs[2]).any()


def test_the_gradient_of_dropout_is_of_the_same_pattern():
    x = normal(2, 8, 2, 8)

    def loss(x, **options):
        return (dropped(x, **options) ** 2).sum()

    def dropped(x, **options):
        return dot_product_attention(
            x,
            x,
            x,
            dropout_rng=jax.random.key(3),
            dropout_rate=0.5,
            broadcast_dropout=True,
            **options,
        )

    step = 1e-2 * normal(*x.shape, seed=4)
    slope = (loss(x + step) - loss(x - step)) / 2
    np.testing.assert_allclose((jax.grad(loss)(x) * step).sum(), slope, rtol=2e-2)
    plain = jax.grad(functools.partial(loss, implementation="reference"))(x)
    np.testing.assert_allclose(jax.grad(loss)(x), plain, rtol=1e-4, atol=1e-5)


def test_sown_weights_are_those_of_flax():
    x = normal(2, 10, WIDTH)

    def run(attention_fn):
        layer = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, attention_fn=attention_fn, rngs=nnx.Rngs(0)
        )
        out = layer(x, sow_weights=True)
        return out, nnx.pop(layer, nnx.Intermediate)["attention_weights"][0]

    (ours, weights), (stock, want) = run(dot_product_attention), run(nnx.dot_product_attention)
    assert weights.shape == (2, HEADS, 10, 10)
    np.testing.assert_array_equal(weights, want)
    np.testing.assert_array_equal(ours, stock)
    insist = functools.partial(dot_product_attention, implementation="cuda")
    with pytest.raises(NotImplementedError, match="module is given"):
        run(insist)


def test_what_goes_to_flax():
    x = normal(2, 3, 2, 264)
    assert not runs_kernel(dot_product_attention, x, x, x)
    np.testing.assert_array_equal(
        dot_product_attention(x, x, x), nnx.dot_product_attention(x, x, x)
    )
    with pytest.raises(NotImplementedError, match="head dimension 264"):
        dot_product_attention(x, x, x, implementation="cuda")


def test_it_takes_what_flax_takes():
    stock = inspect.signature(nnx.dot_product_attention).parameters
    ours = inspect.signature(dot_product_attention).parameters
    assert list(ours)[: len(stock)] == list(stock)
    assert all(ours[name].default == stock[name].default for name in stock)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(seed=None), "dropout_rng is None"),
        (dict(rate=1.0), "dropout_rate"),
        (dict(rate=-0.1), "dropout_rate"),
        (dict(implementation="fast"), "implementation is 'fast'"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        dropout(**options)


def test_batches_that_differ_are_refused():
    with pytest.raises(ValueError, match="key has batch dimensions"):
        dot_product_attention(normal(2, 3, 2, 8), normal(3, 3, 2, 8), normal(3, 3, 2, 8))
