"""Bad input: an error at trace time that names the argument, what was given, what is supported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import apply_rope, kv_cache_append, paged_append
from jax_baracuda._src import registry

P, HKV, PAGE, D, T, B, HQ, K = 6, 2, 4, 8, 5, 3, 4, 16


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def ints(*shape):
    return jnp.zeros(shape, jnp.int32)


def paged(**changes):
    arguments = dict(
        k_pages=zeros(P, HKV, PAGE, D),
        v_pages=zeros(P, HKV, PAGE, D),
        key=zeros(T, HKV, D),
        value=zeros(T, HKV, D),
        batch_indices=ints(T),
        positions=ints(T),
        page_indices=ints(7),
        page_indptr=ints(B + 1),
    )
    return paged_append(**arguments | changes)


def cached(**changes):
    arguments = dict(
        k_cache=zeros(B, HKV, K, D),
        v_cache=zeros(B, HKV, K, D),
        key=zeros(B, HKV, T, D),
        value=zeros(B, HKV, T, D),
        lengths=ints(B),
    )
    return kv_cache_append(**arguments | changes)


def rope(**changes):
    return apply_rope(**dict(x=zeros(B, T, HQ, D), positions=ints(B, T)) | changes)


SHARED = [
    (dict(key=None), ["key", "NoneType", "array"]),
    (dict(kv_layout="BHKD"), ["kv_layout", "'BHKD'", "'HND'", "'NHD'"]),
    (dict(rope={"base": 10000.0}), ["rope", "base", "theta, interleaved, scaling, rotary_dim"]),
    (dict(rope=10000.0), ["rope", "10000.0", "mapping"]),
    (dict(rope={"theta": 0.5}), ["theta", "0.5", "> 1"]),
    (dict(rope={"rotary_dim": 16}), ["rotary_dim", "16", "8"]),
    (dict(implementation="triton"), ["implementation", "'triton'", "'cuda'", "'reference'"]),
]


@pytest.mark.parametrize(
    ("call", "changes", "words"),
    [(call, *case) for call in (paged, cached) for case in SHARED]
    + [
        (paged, changes, words)
        for changes, words in [
            (dict(k_pages=zeros(P, PAGE, D)), ["k_pages", "[P, Hkv, page_size, D]", "not given"]),
            (dict(v_pages=zeros(P, PAGE)), ["v_pages", "(6, 4)"]),
            (dict(k_pages=zeros(2, P, HKV, PAGE, D)), ["k_pages", "layer not given"]),
            (dict(layer=0), ["k_pages", "[L, P, Hkv, page_size, D]", "layer given"]),
            (dict(layer=ints(1)), ["layer", "(1,)", "scalar"]),
            (dict(layer=1.0), ["layer", "float32", "integer"]),
            (dict(v_pages=zeros(P, HKV, PAGE + 1, D)), ["v_pages", "(6, 2, 5, 8)", "k_pages"]),
            (
                dict(k_pages=zeros(P, HKV, 0, D), v_pages=zeros(P, HKV, 0, D)),
                ["k_pages", "page_size", ">= 1"],
            ),
            (dict(v_pages=zeros(P, HKV, PAGE, 0)), ["v_pages", "D must be >= 1"]),
            (
                dict(v_pages=zeros(P, HKV, PAGE, D, dtype=jnp.bfloat16)),
                ["v_pages", "bfloat16", "k_pages", "float32"],
            ),
            (
                dict(key=zeros(T, HKV, D, dtype=jnp.bfloat16)),
                ["key", "bfloat16", "float32", "astype"],
            ),
            (
                dict(query=zeros(T, HQ, D, dtype=jnp.float16), rope={}),
                ["query", "float16", "float32"],
            ),
            (dict(key=zeros(HKV, D)), ["key", "(2, 8)", "[T, Hkv, D]"]),
            (dict(key=zeros(T, HQ, D)), ["key", "(5, 4, 8)", "(5, 2, 8)"]),
            (dict(value=zeros(T + 1, HKV, D)), ["value", "(6, 2, 8)", "(5, 2, 8)"]),
            (dict(value=zeros(T, HKV, D + 1)), ["value", "(5, 2, 9)", "[T, Hkv, Dv]"]),
            (dict(query=zeros(T, HQ, D)), ["query", "rope is None"]),
            (dict(query=zeros(T, D), rope={}), ["query", "(5, 8)", "[T, Hq, D]"]),
            (dict(query=zeros(T + 1, HQ, D), rope={}), ["query", "(6, 4, 8)", "(5, 4, 8)"]),
            (dict(kv_layout="NHD"), ["key", "(5, 2, 8)", "(5, 4, 8)"]),
            (dict(batch_indices=ints(T + 1)), ["batch_indices", "(6,)", "[T] = (5,)"]),
            (dict(batch_indices=zeros(T)), ["batch_indices", "float32", "integer"]),
            (dict(positions=ints()), ["positions", "()", "[T] = (5,)"]),
            (dict(page_indices=ints(2, 3)), ["page_indices", "(2, 3)", "[N]"]),
            (dict(page_indices=zeros(7)), ["page_indices", "float32", "integer"]),
            (dict(page_indptr=ints()), ["page_indptr", "()", "[B + 1]"]),
            (dict(page_indptr=ints(0)), ["page_indptr", "(0,)", "at least [1]"]),
        ]
    ]
    + [
        (cached, changes, words)
        for changes, words in [
            (dict(k_cache=zeros(B, HKV, K)), ["k_cache", "(3, 2, 16)", "[B, Hkv, Kmax, D]"]),
            (dict(layer=0), ["k_cache", "[L, B, Hkv, Kmax, D]", "layer given"]),
            (dict(v_cache=zeros(B, HKV, K + 1, D)), ["v_cache", "(3, 2, 17, 8)"]),
            (dict(key=zeros(B, T, D)), ["key", "(3, 5, 8)", "[B, Hkv, T, D]"]),
            (dict(key=zeros(B, T, HKV, D)), ["key", "(3, 5, 2, 8)", "(3, 2, 2, 8)"]),
            (dict(value=zeros(B, HKV, T + 1, D)), ["value", "(3, 2, 6, 8)", "(3, 2, 5, 8)"]),
            (dict(value=zeros(B, HKV, T, D, dtype=jnp.float16)), ["value", "float16", "float32"]),
            (dict(query=zeros(B, HQ, T + 1, D), rope={}), ["query", "[B, Hq, T, D]"]),
            (dict(lengths=ints(B + 1)), ["lengths", "(4,)", "[B] = (3,)"]),
            (dict(lengths=3), ["lengths", "()", "[B] = (3,)"]),
            (dict(lengths=zeros(B)), ["lengths", "float32", "integer"]),
        ]
    ]
    + [
        (rope, changes, words)
        for changes, words in [
            (dict(x=zeros(D)), ["x", "(8,)", "[..., H, D]"]),
            (dict(x="x"), ["x", "str", "array"]),
            (dict(positions=zeros(B, T)), ["positions", "float32", "integer"]),
            (dict(positions=ints(T, B)), ["positions", "(5, 3)", "(3, 5)"]),
            (dict(positions=ints(1, B, T)), ["positions", "(1, 3, 5)", "(3, 5)"]),
            (dict(x=zeros(B, T, HQ, 7)), ["rotary_dim is None", "7", "odd"]),
            (dict(theta=-1), ["theta", "-1"]),
            (dict(implementation="cpu"), ["implementation", "'cpu'"]),
        ]
    ],
)
def test_value_error_names_argument_given_and_supported(call, changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        call(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["int32", "float8_e4m3fn", "complex64"])
def test_other_dtypes_are_not_implemented(name):
    dtype = jnp.dtype(name)
    with pytest.raises(NotImplementedError, match=f"x has dtype {name}.*bfloat16"):
        rope(x=zeros(B, T, HQ, D, dtype=dtype))
    with pytest.raises(NotImplementedError, match=f"k_pages has dtype {name}.*bfloat16"):
        paged(k_pages=zeros(P, HKV, PAGE, D, dtype=dtype))
    with pytest.raises(NotImplementedError, match=f"k_cache has dtype {name}.*bfloat16"):
        cached(k_cache=zeros(B, HKV, K, D, dtype=dtype))


def test_errors_come_when_tracing():
    with pytest.raises(ValueError, match="theta is 0"):
        jax.eval_shape(lambda x: rope(x=x, theta=0), zeros(B, T, HQ, D))
    with pytest.raises(ValueError, match="theta is "):
        jax.jit(lambda theta: rope(theta=theta))(2.0)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("argument", ["k_pages", "key", "value"])
def test_appends_refuse_to_be_differentiated(transform, argument):
    def loss(array):
        return sum(store.sum() for store in paged(**{argument: array}))

    at = zeros(P, HKV, PAGE, D) if argument == "k_pages" else zeros(T, HKV, D)
    with pytest.raises(NotImplementedError, match=r"paged_append.*implementation='reference'"):
        transform(loss)(at)
    with pytest.raises(NotImplementedError, match=r"kv_cache_append.*implementation='reference'"):
        transform(lambda key: cached(key=key)[0].sum())(zeros(B, HKV, T, D))


def test_the_reference_appends_are_differentiable():
    table = dict(page_indices=jnp.arange(7) % P, page_indptr=jnp.array([0, 2, 2, 7]))

    def loss(key):
        stores = paged(key=key, positions=jnp.arange(T), **table, implementation="reference")
        return (stores[0] ** 2).sum()

    key = jax.random.normal(jax.random.key(0), (T, HKV, D))
    np.testing.assert_allclose(jax.grad(loss)(key), 2 * key, rtol=1e-6)


CALLS = {"paged_append": paged, "kv_cache_append": cached, "apply_rope": rope}


@pytest.mark.parametrize("name", CALLS)
def test_insisting_on_cuda_raises_elsewhere(name):
    insist = jax.jit(lambda: CALLS[name](implementation="cuda"))
    with pytest.raises(NotImplementedError, match=f"{name}.*'cuda'.*another platform"):
        insist.trace().lower(lowering_platforms=("cpu",))
    target = registry.ROPE if name == "apply_rope" else registry.APPEND
    assert target in insist.trace().lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_kernel_is_an_error_with_its_fix_where_there_is_a_gpu(monkeypatch, name):
    extension = registry.Extension(frozenset(), {}, "the extension is of last year")
    monkeypatch.setattr(registry, "register", lambda: extension)
    monkeypatch.setattr(registry, "has_cuda_device", lambda: True)

    def lower(implementation):
        call = jax.jit(lambda: CALLS[name](implementation=implementation))
        return call.trace().lower(lowering_platforms=("cuda",)).as_text()

    with pytest.raises(RuntimeError, match=r"of last year.*pip install"):
        lower(None)
    assert "custom_call" not in lower("reference")
