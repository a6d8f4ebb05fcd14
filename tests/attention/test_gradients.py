"""Values and gradients against the float64 oracle, option by option, and what surrounds them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import flash_attention, flash_attention_varlen
from jax_baracuda._src.attention import primitive
from jax_baracuda.testing.attention import attention_function
from jax_baracuda.testing.attention_cases import AttentionCase, make_attention_inputs
from jax_baracuda.testing.attention_oracle import attention_oracle

SMALL = AttentionCase(
    "small",
    query_length=19,
    key_length=23,
    head_dim=8,
    value_dim=5,
    dtype="float32",
    lse_cotangent=True,
)
PACKED = dataclasses.replace(
    SMALL,
    query_length=26,
    key_length=31,
    cu_seqlens_q=(0, 9, 9, 20, 24),
    cu_seqlens_k=(2, 9, 13, 13, 31),
    batch=4,
)
EVERYTHING = dict(
    scale=0.4,
    is_causal=True,
    local_window_size=(9, 2),
    sink_tokens=2,
    sinks=True,
    alibi_slopes="batch",
    logits_soft_cap=3.0,
    bias="bhq",
    bias_hides=True,
    segments="packed",
    dropout_rate=0.3,
)
OPTIONS = {
    "none": {},
    "scale": dict(scale=-0.7),
    "causal": dict(is_causal=True),
    "causal-more-queries": dict(is_causal=True, query_length=29),
    "window": dict(local_window_size=(5, 3)),
    "window-left": dict(local_window_size=(5, None)),
    "window-right": dict(local_window_size=(None, 0)),
    "window-causal": dict(local_window_size=4, is_causal=True),
    "sink-tokens": dict(local_window_size=(3, 0), sink_tokens=4),
    "sink-tokens-causal": dict(local_window_size=3, sink_tokens=6, is_causal=True),
    "sinks": dict(sinks=True),
    "sinks-empty-rows": dict(sinks=True, is_causal=True, query_length=29),
    "alibi-head": dict(alibi_slopes="head"),
    "alibi-batch": dict(alibi_slopes="batch", is_causal=True),
    "soft-cap": dict(logits_soft_cap=1.5, query_factor=2.0),
    "bias": dict(bias="bhq"),
    "bias-one-row": dict(bias="h"),
    "bias-one-head": dict(bias="q"),
    "bias-shared": dict(bias=""),
    "bias-infinite": dict(bias="bhq", bias_hides=True),
    "bias-float16": dict(bias="hq", bias_dtype="float16"),
    "mask": dict(bias="bq", bias_dtype="bool"),
    "mask-of-keys": dict(bias="b", bias_dtype="bool"),
    "segments": dict(segments="packed"),
    "segments-shuffled": dict(segments="shuffled", is_causal=True),
    "segments-padded": dict(segments="padded"),
    "dropout": dict(dropout_rate=0.4),
    "many-heads": dict(kv_heads=3, group=1),
    "one-key-head": dict(kv_heads=1, group=5),
    "top-left": dict(is_causal=True, top_left=True, query_length=29),
    "large-logits": dict(query_factor=5.0, key_factor=3.0),
    "everything": EVERYTHING,
}
LENGTHS = {
    "lengths": dict(query_lengths=(19, 4), kv_lengths=(7, 23)),
    "lengths-none": dict(query_lengths=(0, 19), kv_lengths=(23, 0), sinks=True),
    "lengths-causal": dict(query_lengths=(11, 25), kv_lengths=(-3, 9), is_causal=True),
    "everything-lengths": EVERYTHING | dict(query_lengths=(19, 15), kv_lengths=(14, 22)),
}
PACKED_LENGTHS = {
    "packed-lengths": dict(query_lengths=(5, 3, 30, 0), kv_lengths=(30, 1, 0, 11)),
    "packed-short-maximum": dict(max_seqlens=(2, 3)),
    "packed-wild-bounds": dict(cu_seqlens_q=(-5, 9, 4, 90, 7), cu_seqlens_k=(3, 0, 40, 2, 31)),
    "packed-everything-lengths": EVERYTHING
    | dict(query_lengths=(5, 3, 30, 2), kv_lengths=(30, 1, 9, 11)),
}
CASES = [
    *(dataclasses.replace(SMALL, name=name, **o) for name, o in (OPTIONS | LENGTHS).items()),
    *(
        dataclasses.replace(PACKED, name=f"packed-{name}", **options)
        for name, options in OPTIONS.items()
        if "query_length" not in options and name != "top-left"
    ),
    *(
        dataclasses.replace(PACKED, name=name, **options)
        for name, options in PACKED_LENGTHS.items()
    ),
]
DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")


def value_and_gradients(case, inputs, implementation=None):
    """The results by the oracle's names."""
    operands = inputs.arrays()
    names = [
        name for name in DIFFERENTIABLE if name in operands and operands[name].dtype != np.bool_
    ]
    function = attention_function(case, implementation=implementation)

    @jax.jit
    def run(chosen, rest, cotangents):
        (out, lse), pull = jax.vjp(lambda chosen: function(**chosen, **rest), chosen)
        return out, lse, pull(cotangents)[0]

    rest = {name: array for name, array in operands.items() if name not in names}
    out, lse, gradients = run(
        {name: operands[name] for name in names}, rest, (inputs.dout, inputs.dlse)
    )
    return {"out": out, "lse": lse} | {f"d{name}": g for name, g in gradients.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_value_and_gradients_of_every_option(case):
    inputs = make_attention_inputs(case)
    want = attention_oracle(case, inputs, gradients=True).results
    got = value_and_gradients(case, inputs)
    assert got.keys() == want.keys()
    for name, array in got.items():
        given = inputs.arrays().get(name.removeprefix("d"))
        if given is not None:
            assert (array.shape, array.dtype) == (given.shape, given.dtype)
        coarse = array.dtype == np.float16
        np.testing.assert_allclose(
            np.asarray(array, np.float64),
            want[name],
            rtol=2e-3 if coarse else 2e-4,
            atol=2e-3 if coarse else 5e-5,
            err_msg=name,
        )


@pytest.mark.parametrize("case", [SMALL, PACKED], ids=["dense", "packed"])
def test_the_plain_reference_has_the_same_gradients(case):
    case = dataclasses.replace(case, **EVERYTHING)
    inputs = make_attention_inputs(case)
    ours, theirs = (value_and_gradients(case, inputs, i) for i in (None, "reference"))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=2e-5, err_msg=name)


def operands(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (2, 9, 4, 8), (2, 11, 2, 8), (2, 11, 2, 6)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def test_finite_differences_agree():
    def loss(query, key, value, bias, sinks):
        out, lse = flash_attention(
            query,
            key,
            value,
            bias=bias,
            sinks=sinks,
            is_causal=True,
            logits_soft_cap=2.0,
            dropout_rate=0.2,
            dropout_seed=jax.random.key(1),
            return_lse=True,
        )
        return (out**2).sum() + jnp.sin(lse).sum()

    rng = np.random.default_rng(1)
    args = (*operands(), *(rng.normal(size=s).astype(np.float32) for s in ((1, 4, 1, 11), (4,))))
    gradients = jax.grad(loss, argnums=range(5))(*args)
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=args[index].shape).astype(np.float32)

        def moved(step, index=index, direction=direction):
            arrays = list(args)
            arrays[index] = arrays[index] + step * direction
            return float(loss(*arrays))

        slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
        np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=1e-2, atol=1e-2)


def test_cotangents_have_the_types_of_their_arguments():
    query, key, value = operands()
    more = dict(
        bias=jnp.zeros((2, 1, 9, 11), jnp.bfloat16),
        sinks=jnp.zeros((4,), jnp.float16),
        query_seq_lengths=jnp.array([9, 3]),
        query_segment_ids=jnp.zeros((2, 9), jnp.int32),
        key_value_segment_ids=jnp.zeros((2, 11), jnp.int32),
        dropout_seed=jnp.array([1, 2], jnp.uint32),
    )

    def loss(arrays, mask=None):
        arrays = dict(arrays, bias=arrays["bias"] if mask is None else mask)
        return flash_attention(dropout_rate=0.1, **arrays).astype(jnp.float32).sum()

    arrays = dict(query=query, key=key, value=value, **more)
    arrays = {
        n: a.astype(jnp.bfloat16) if n in ("query", "key", "value") else a
        for n, a in arrays.items()
    }
    gradients = jax.grad(loss, allow_int=True)(arrays)
    for name, array in arrays.items():
        integer = jnp.issubdtype(array.dtype, jnp.integer)
        wanted = jax.dtypes.float0 if integer else array.dtype
        assert (gradients[name].shape, gradients[name].dtype) == (array.shape, wanted), name
    mask = jnp.ones((1, 1, 1, 11), bool)
    gradient = jax.grad(loss, argnums=1, allow_int=True)(arrays, mask)
    assert gradient.dtype == jax.dtypes.float0
    key_gradient = jax.grad(
        lambda key: flash_attention(
            query, *operands()[1:], dropout_rate=0.1, dropout_seed=key
        ).sum(),
        allow_int=True,
    )(jax.random.key(0))
    assert key_gradient.dtype == jax.dtypes.float0


def test_the_gradient_of_the_lse_alone():
    query, key, value = operands()

    def lse(query, key, value, implementation=None):
        return flash_attention(query, key, value, return_lse=True, implementation=implementation)[
            1
        ].sum()

    got = jax.grad(lse, (0, 1, 2))(query, key, value)
    want = jax.grad(lambda *args: lse(*args, "reference"), (0, 1, 2))(query, key, value)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (got[2] == 0).all()


@pytest.mark.parametrize("varlen", [False, True])
def test_rows_that_see_nothing_and_padding_of_nan_have_no_part(varlen):
    """Poison in what lengths hide changes nothing, and its gradients are zeros."""
    rows, keys, heads = 7, 9, 2
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=(2, n, heads, 4)).astype(np.float32) for n in (rows, keys, keys)]
    cotangents = (
        rng.normal(size=(2, rows, heads, 4)).astype(np.float32),
        np.ones((2, heads, rows), np.float32),
    )
    lengths = np.array([[4, 7], [5, 0]])  # the second sequence has no keys
    hidden = [
        np.arange(a.shape[1]) >= n[:, None] for a, n in zip(arrays, lengths[[0, 1, 1]], strict=True)
    ]
    hidden[0][1] = True  # rows without keys

    def gradients(arrays, dout, dlse):
        def function(query, key, value, sinks):
            options = dict(
                query_seq_lengths=lengths[0],
                key_value_seq_lengths=lengths[1],
                sinks=sinks,
                return_lse=True,
            )
            if not varlen:
                return flash_attention(query, key, value, **options)
            out, lse = flash_attention_varlen(
                *(a.reshape(-1, heads, 4) for a in (query, key, value)),
                np.array([0, rows, 2 * rows]),
                np.array([0, keys, 2 * keys]),
                max_seqlen_q=rows,
                max_seqlen_k=keys,
                **options,
            )
            return out.reshape(query.shape), lse.reshape(heads, 2, rows).swapaxes(0, 1)

        (out, lse), pull = jax.vjp(function, *arrays, np.ones(heads, np.float32))
        return out, lse, pull((dout, dlse))

    out, lse, want = gradients(arrays, *cotangents)
    poisoned = [
        np.where(h[:, :, None, None], np.nan, a) for h, a in zip(hidden, arrays, strict=True)
    ]
    dout = np.where(hidden[0][:, :, None, None], np.inf, cotangents[0])
    out_too, lse_too, got = gradients(poisoned, dout, cotangents[1])
    np.testing.assert_array_equal(out, out_too)
    np.testing.assert_array_equal(lse, lse_too)
    assert (np.asarray(out)[hidden[0]] == 0).all()
    assert (np.swapaxes(lse, 1, 2)[hidden[0]] == -np.inf).all()
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    for ours, rows_hidden in zip(got[:3], hidden, strict=True):
        assert (np.asarray(ours)[rows_hidden] == 0).all()


def test_gradients_that_nobody_wants_are_not_computed():
    """Not even without jit, which would remove them as dead code."""
    bound = []

    def record(kind, *args, **params):
        bound.append(kind)
        return bind(kind, *args, **params)

    bind = primitive.bind
    query, key, value = operands()
    bias = np.zeros((1, 1, 9, 11), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primitive, "bind", record)
        jax.grad(lambda q: flash_attention(q, key, value, bias=bias).sum())(query)
        assert bound == ["forward", "backward"]
        bound.clear()
        jax.grad(lambda b: flash_attention(query, key, value, bias=b).sum())(bias)
        assert bound == ["forward", "backward", "bias_grad"]
        bound.clear()
        jax.grad(lambda b: flash_attention(query, key, value, bias=b).sum())(bias[:, :, :1])
        assert bound == ["forward", "row_bias_backward"]


def test_dropout_is_a_function_of_seed_and_place():
    query, key, value = operands()

    def run(seed, query=query, key=key, value=value):
        return flash_attention(query, key, value, dropout_rate=0.5, dropout_seed=seed)

    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    assert (first == again).all()
    assert not np.allclose(first, other)
    # A shorter sequence sees the same: what is dropped does not depend on S and K.
    rows = run(jax.random.key(0), query=query[:, :5])
    np.testing.assert_allclose(rows, first[:, :5], rtol=1e-5, atol=1e-6)
    assert not np.allclose(*run(jax.random.key(0), *(a[[0, 0]] for a in (query, key, value))))
    ones = flash_attention(
        np.zeros((4, 64, 8, 8), np.float32),
        np.zeros((4, 64, 8, 8), np.float32),
        np.ones((4, 64, 8, 8), np.float32),
        dropout_rate=0.5,
        dropout_seed=np.array([3, 4], np.uint32),
    )
    assert abs(ones.mean() - 1) < 0.01  # the kept are scaled up
