"""dot_product_attention against the function of jax.nn that it stands in for."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import dot_product_attention, explain

B, T, S, N, K, H = 2, 6, 8, 4, 2, 16
PRIMITIVE = "jax_baracuda_flash_attention"
MASK = np.random.default_rng(1).random((B, N, T, S)) < 0.6
MASK[..., 0] = True  # every query sees a key


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def theirs(*args, **options):
    with jax.default_matmul_precision("highest"):
        return jax.nn.dot_product_attention(*args, **options)


def qkv(t=T, s=S, n=N, k=K, batch=(B,)):
    return [
        normal(*batch, *shape, seed=i) for i, shape in enumerate([(t, n, H), (s, k, H), (s, k, H)])
    ]


def results(function, arrays, bias, **options):
    """out, residual, and the gradients of query, key, value and a floating bias."""
    floating = bias is not None and jnp.issubdtype(bias.dtype, jnp.floating)
    inputs = [*arrays, bias] if floating else arrays

    def call(*inputs):
        return function(
            *inputs[:3], inputs[3] if floating else bias, return_residual=True, **options
        )

    (out, residual), vjp = jax.vjp(call, *inputs)
    cotangent = normal(*out.shape, seed=9).astype(out.dtype)
    gradients = vjp((cotangent, jnp.ones_like(residual)))
    assert [g.shape for g in gradients] == [array.shape for array in inputs]
    return out, residual, *gradients


def check_same(ours, theirs, tolerance):
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.float32(a), np.float32(b)
        if index == 1:  # of padded query rows: -inf here, a large negative number there
            a, b = np.where(b < -1e30, 0, a), np.where(b < -1e30, 0, b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


LENGTHS = dict(
    query_seq_lengths=np.array([4, 6], np.int32), key_value_seq_lengths=np.array([8, 3], np.int32)
)


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        pytest.param(qkv(k=4), {}, id="MHA"),
        pytest.param(qkv(), {}, id="GQA"),
        pytest.param(qkv(k=1), {}, id="MQA"),
        pytest.param(qkv(batch=()), dict(is_causal=True), id="without a batch"),
        pytest.param([qkv(batch=(1,))[0], *qkv(batch=())[1:]], {}, id="a batch of one and none"),
        pytest.param(qkv(), dict(scale=0.3), id="scale"),
        pytest.param(qkv(), dict(scale=np.float32(0.3)), id="numpy scale"),
        pytest.param(qkv(), dict(is_causal=True), id="causal, more keys"),
        pytest.param(qkv(t=9, s=5), dict(is_causal=True), id="causal, more queries"),
        pytest.param(qkv(), dict(local_window_size=2), id="window"),
        pytest.param(qkv(), dict(local_window_size=(3, 1)), id="two-sided window"),
        pytest.param(qkv(), dict(local_window_size=(0, 0)), id="empty window"),
        pytest.param(qkv(), dict(local_window_size=(2, 5), is_causal=True), id="causal window"),
        pytest.param(qkv(), LENGTHS, id="lengths"),
        pytest.param(qkv(), dict(key_value_seq_lengths=np.array([1, 20], np.int32)), id="long"),
        pytest.param(qkv(), dict(query_seq_lengths=np.array([0, 7], np.int32)), id="no queries"),
        pytest.param(qkv(), dict(LENGTHS, is_causal=True, local_window_size=(6, 0)), id="mix"),
    ],
)
def test_options(arrays, options):
    got = results(dot_product_attention, arrays, None, **options)
    check_same(got, results(theirs, arrays, None, **options), 2e-5)


BIASES = [
    normal(B, N, T, S),
    normal(1, N, T, S),
    normal(B, 1, 1, S),
    normal(1, 1, T, S),
    normal(N, T, S),
    normal(1, N, T, 1),
    normal(1, N, 1, S, dtype=jnp.bfloat16),
    np.arange(T * S, dtype=np.int32).reshape(1, 1, T, S) % 3,
    MASK[:1],
]
MASKS = [
    MASK,
    MASK[:1],
    MASK[:, :1],
    MASK[:, :, :1],
    MASK[:, :1, :1],
    MASK[:1, :1, :1],
    MASK[0],
    MASK[:, :, :, :1],
]


@pytest.mark.parametrize(
    ("bias", "mask"),
    [
        *((bias, mask) for bias in BIASES for mask in (None, MASK[:1], MASK[:, :1, :1])),
        *((bias, mask) for bias in (None, BIASES[1]) for mask in MASKS),
    ],
    ids=lambda array: "none" if array is None else f"{array.dtype}{array.shape}",
)
def test_bias_and_mask(bias, mask):
    """A bias of booleans is a number that is added, as in jax.nn: it is no mask."""
    options = dict(mask=mask, is_causal=bias is not None and bias.ndim == 3)
    got = results(dot_product_attention, qkv(), bias, **options)
    low = bias is not None and bias.dtype == jnp.bfloat16
    check_same(got, results(theirs, qkv(), bias, **options), 2e-2 if low else 2e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("mapped", [False, True])
def test_16_bits_and_groups_as_in_jax_own_tests(dtype, group, mapped):
    """Against jax.nn without groups, in value and in gradient."""
    length, heads = 64, 4
    shapes = [(2, length, heads, 32), *[(2, length, heads // group, 32)] * 2]
    query, key, value = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes))
    function = functools.partial(dot_product_attention, implementation=None)
    if mapped:
        function = jax.vmap(function, in_axes=(0, 0, 0, None, None))
    out, vjp = jax.vjp(function, query, key, value, None, None)
    wide = [jnp.repeat(array, group, axis=2) for array in (key, value)]
    want, want_vjp = jax.vjp(theirs, query, *wide, None, None)
    cotangent = normal(*want.shape, seed=5).astype(dtype)
    d_query, d_key, d_value, *rest = vjp(cotangent)
    want_query, *want_wide = want_vjp(cotangent)[:3]
    assert rest == [None, None]
    want_key, want_value = (
        a.reshape(2, length, heads // group, group, 32).sum(3) for a in want_wide
    )
    for ours, other in (
        (out, want),
        (d_query, want_query),
        (d_key, want_key),
        (d_value, want_value),
    ):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.float32(ours), np.float32(other), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "modes",
    [
        {"bias"},
        {"causal"},
        {"padding"},
        {"custom"},
        {"causal", "padding"},
        {"custom", "padding"},
        {"bias", "causal"},
        {"causal", "sliding_window"},
        {"bias", "custom", "padding"},
    ],
    ids=lambda modes: "-".join(sorted(modes)),
)
def test_masks_of_jax_own_tests(modes):
    """bfloat16; mask and lengths are arguments of the differentiated function."""
    length = 64
    arrays = [normal(2, length, 4, 32, seed=i).astype(jnp.bfloat16) for i in range(3)]
    bias = normal(1, 4, length, length).astype(jnp.bfloat16) if "bias" in modes else None
    mask = np.tril(np.ones((1, 1, length, length), bool)) if "custom" in modes else None
    padding = "padding" in modes
    q_lengths = np.array([length // 2, length // 4], np.int32) if padding else None
    kv_lengths = np.array([length // 4, length // 2], np.int32) if padding else None
    options = dict(
        is_causal="causal" in modes,
        local_window_size=(3, 2) if "sliding_window" in modes else None,
    )

    def run(function):
        def call(query, key, value, bias, mask, q_lengths, kv_lengths):
            return function(
                query,
                key,
                value,
                bias,
                mask,
                query_seq_lengths=q_lengths,
                key_value_seq_lengths=kv_lengths,
                **options,
            )

        out, vjp = jax.vjp(call, *arrays, bias, mask, q_lengths, kv_lengths)
        gradients = vjp(normal(*out.shape, seed=5).astype(out.dtype))
        return [out, *(g for g in gradients[:4] if g is not None)]

    for ours, other in zip(run(dot_product_attention), run(theirs), strict=True):
        np.testing.assert_allclose(np.float32(ours), np.float32(other), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("batch", [1, 4])
def test_bias_gradient_as_in_jax_own_tests(batch):
    """With a 3-D mask of ones, under jit; the value also under vmap of a 3-D call."""
    x = normal(batch, 32, 4, 16)
    bias = normal(batch, 4, 32, 32)
    mask = np.ones((1, 1, 32), bool)

    def gradients(function):
        def call(x, bias):
            return function(x, x, x, bias, mask)

        return jax.jit(lambda x, bias: jax.vjp(call, x, bias)[1](x))(x, bias)

    for ours, other in zip(gradients(dot_product_attention), gradients(theirs), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(lambda x, bias: dot_product_attention(x, x, x, bias, mask))(x, bias)
    np.testing.assert_allclose(mapped, theirs(x, x, x, bias, mask), rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_no_key():
    """Zeros here, the mean of the values in jax.nn: the documented difference."""
    arrays = qkv()
    mask = np.ones((B, 1, T, S), bool)
    mask[1, 0, 2] = False
    out, residual, *gradients = results(dot_product_attention, arrays, None, mask=mask)
    other, *_ = results(theirs, arrays, None, mask=mask)
    assert not out[1, 2].any()
    mean = np.repeat(arrays[2][1].mean(0), N // K, axis=0)
    np.testing.assert_allclose(other[1, 2], mean, rtol=1e-5, atol=1e-5)
    assert (residual[1, 2] == -np.inf).all()
    assert np.isfinite(np.delete(residual, 2, axis=1)).all()
    assert not gradients[0][1, 2].any()
    visible = mask[:, 0, :, 0]
    np.testing.assert_allclose(out[visible], other[visible], rtol=1e-5, atol=1e-5)
    # Its cotangent does not reach the values either.
    grow = jnp.zeros((B, T, N, H)).at[1, 2].set(1)
    d_value = jax.vjp(lambda v: dot_product_attention(*arrays[:2], v, mask=mask), arrays[2])[1](
        grow
    )
    assert not d_value[0].any()


def test_padding_may_hold_anything():
    query, key, value = qkv()
    lengths = dict(key_value_seq_lengths=np.array([5, 5], np.int32))
    want = dot_product_attention(query, key, value, **lengths)
    key[:, 5:], value[:, 5:] = np.nan, np.inf
    np.testing.assert_array_equal(dot_product_attention(query, key, value, **lengths), want)


def test_the_signature_is_that_of_jax_nn():
    ours, other = map(inspect.signature, (dot_product_attention, jax.nn.dot_product_attention))
    assert list(ours.parameters) == list(other.parameters)
    for name, parameter in other.parameters.items():
        assert ours.parameters[name].default == parameter.default
        assert ours.parameters[name].kind == parameter.kind


def jaxpr_of(*args, **options):
    return str(jax.make_jaxpr(functools.partial(dot_product_attention, **options))(*args))


def test_a_mask_of_keys_stays_apart_from_the_bias():
    text = jaxpr_of(*qkv(), normal(1, N, T, S), MASK[:, :1, :1])
    assert PRIMITIVE in text
    assert f"[{B},{N},{T},{S}]" not in text
    assert f"[{B},{N},{T},{S}]" in jaxpr_of(*qkv(), normal(1, N, T, S), MASK[:, :1])


@pytest.mark.parametrize(
    ("arrays", "options", "note"),
    [
        pytest.param([normal(1, 3, 2, 264)] * 3, {}, "head dimension 264", id="head dimension"),
        pytest.param([normal(1, 0, 2, 16)] * 3, {}, "must have elements", id="no rows"),
        pytest.param(qkv(), dict(local_window_size=(-1, 3)), "local_window_size", id="window"),
        pytest.param(qkv(), dict(implementation="xla"), "implementation is 'xla'", id="xla"),
    ],
)
def test_what_goes_to_jax_nn(arrays, options, note):
    assert PRIMITIVE not in jaxpr_of(*arrays, **options)
    assert "jax.nn" in dot_product_attention.__doc__
    info = explain("dot_product_attention", *arrays, **options)
    assert (info.implementation, info.name) == ("xla", "jax.nn.dot_product_attention")
    assert note in info.note
    if arrays[0].size:
        got = dot_product_attention(*arrays, **options)
        want = jax.nn.dot_product_attention(*arrays, **options)
        np.testing.assert_array_equal(np.float32(got), np.float32(want))
    if options.get("implementation") is None:
        with pytest.raises(NotImplementedError, match=note):
            dot_product_attention(*arrays, **options | dict(implementation="cuda"))


def test_a_traced_scale_goes_to_jax_nn():
    def scaled(scale):
        return dot_product_attention(*qkv(), scale=scale)

    assert PRIMITIVE not in str(jax.make_jaxpr(scaled)(0.3))
    np.testing.assert_allclose(jax.jit(scaled)(0.3), scaled(0.3), rtol=1e-5, atol=1e-5)


def test_float64_goes_to_jax_nn():
    with jax.enable_x64(True):
        arrays = [array.astype(np.float64) for array in qkv()]
        got = dot_product_attention(*arrays)
        assert got.dtype == np.float64
        assert "float64" in explain("dot_product_attention", *arrays).note
        np.testing.assert_array_equal(got, jax.nn.dot_product_attention(*arrays))


def test_cudnn_is_passed_on(monkeypatch):
    def fake(*args, implementation, **options):
        return implementation

    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    assert dot_product_attention(*qkv(), implementation="cudnn") == "cudnn"


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_explain_of_what_the_kernels_take(implementation):
    arrays = [jax.ShapeDtypeStruct((T, 4, H), jnp.bfloat16)] * 3
    info = explain("dot_product_attention", *arrays, is_causal=True, implementation=implementation)
    assert info.op == "dot_product_attention"
    if implementation or jax.default_backend() == "cpu":
        assert info.implementation == "reference"
    cuda = explain("dot_product_attention", *arrays, implementation="cuda")
    assert cuda.implementation == "cuda"
    assert cuda.op == "dot_product_attention"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(value=normal(B, S, K, 8)), "value has shape"),
        (dict(key=normal(B, S, 3, H), value=normal(B, S, 3, H)), "multiple"),
        (dict(key=normal(B, S, K, 8), value=normal(B, S, K, 8)), "head dimension"),
        (dict(key=normal(3, S, K, H), value=normal(3, S, K, H)), "batch"),
        (dict(query=normal(B, T, N, H).astype(jnp.bfloat16)), "query has dtype"),
        (dict(query=normal(1, B, T, N, H)), "query has shape"),
        (dict(bias=normal(B, 2, T, S)), "bias has shape"),
        (dict(bias=normal(1, B, N, T, S)), "bias has shape"),
        (dict(mask=MASK[..., :3]), "mask has shape"),
        (dict(mask=MASK.astype(np.float32)), "mask has dtype"),
        (dict(query_seq_lengths=np.ones(B, np.int16)), "query_seq_lengths"),
        (dict(key_value_seq_lengths=np.ones(3, np.int32)), "key_value_seq_lengths"),
        (dict(implementation="fast"), "implementation is 'fast'"),
    ],
)
def test_errors(change, match):
    arguments = dict(zip(("query", "key", "value"), qkv(), strict=True)) | change
    with pytest.raises(ValueError, match=match):
        dot_product_attention(**arguments)
    with pytest.raises((ValueError, TypeError, AssertionError)):  # jax.nn refuses them too
        jax.nn.dot_product_attention(**arguments)
