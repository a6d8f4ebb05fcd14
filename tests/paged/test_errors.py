"""Bad input: an error at trace time that names the argument, what was given, what is supported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import paged_decode, paged_prefill
from jax_baracuda._src import registry
from jax_baracuda.testing.paged_odd import KINDS, odd_call

B, T, HQ, HKV, D, P, PAGE, N = 2, 5, 4, 2, 8, 6, 4, 7
both = pytest.mark.parametrize("kind", KINDS)


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def integers(*shape):
    return zeros(*shape, dtype=jnp.int32)


def arguments(kind):
    given = dict(
        query=zeros(B if kind == "paged_decode" else T, HQ, D),
        k_pages=zeros(P, HKV, PAGE, D),
        v_pages=zeros(P, HKV, PAGE, D),
        page_indices=integers(N),
        page_indptr=integers(B + 1),
        last_page_len=integers(B),
    )
    if kind == "paged_prefill":
        given |= dict(qo_indptr=integers(B + 1), max_seqlen_q=3)
    return given


def call(kind, **changes):
    function = paged_decode if kind == "paged_decode" else paged_prefill
    return function(**arguments(kind) | changes)


def stores(*shape, dtype=jnp.float32):
    return dict(k_pages=zeros(*shape, dtype=dtype), v_pages=zeros(*shape, dtype=dtype))


OF_BOTH = [
    (dict(query=zeros(B, D)), ["query", "(2, 8)", "Hq, D]"]),
    (dict(k_pages=zeros(P, PAGE, D)), ["k_pages", "(6, 4, 8)", "[P, Hkv, page_size, D]"]),
    (dict(v_pages=zeros(P, HKV)), ["v_pages", "(6, 2)", "[P, Hkv, page_size, D]"]),
    (dict(v_pages=zeros(P + 1, HKV, PAGE, D)), ["v_pages", "(7, 2, 4, 8)", "k_pages"]),
    (stores(P, HKV, PAGE, 16), ["k_pages", "head dimension 16", "query has 8"]),
    (stores(P, 3, PAGE, D), ["query has 4 heads", "k_pages has 3", "multiple"]),
    (stores(P, 0, PAGE, D), ["query has 4 heads", "k_pages has 0"]),
    (stores(P, HKV, 0, D), ["k_pages", "(6, 2, 0, 8)", "pages of 0 rows"]),
    (
        dict(kv_layout="NHD") | stores(P, HKV, 3, D),
        ["query has 4 heads", "k_pages has 3", "[P, page_size, Hkv, D]"],
    ),
    (dict(kv_layout="PHSD"), ["kv_layout", "'PHSD'", "'HND'", "'NHD'"]),
    (dict(k_pages=zeros(P, HKV, PAGE, D, dtype=jnp.bfloat16)), ["k_pages", "bfloat16", "float32"]),
    (dict(v_pages=zeros(P, HKV, PAGE, D, dtype=jnp.float16)), ["v_pages", "float16", "float32"]),
    (dict(query=None), ["query", "NoneType", "array"]),
    (dict(page_indices="all"), ["page_indices", "str", "array"]),
    (dict(page_indices=zeros(N)), ["page_indices", "float32", "integer"]),
    (dict(page_indices=integers(N, 1)), ["page_indices", "(7, 1)", "[N]"]),
    (dict(page_indices=3), ["page_indices", "()", "[N]"]),
    (dict(page_indptr=integers(B)), ["page_indptr", "(2,)", "[B + 1] = (3,)"]),
    (dict(page_indptr=zeros(B + 1)), ["page_indptr", "float32", "integer"]),
    (dict(last_page_len=zeros(B, dtype=bool)), ["last_page_len", "bool", "integer"]),
    (dict(last_page_len=integers(B, 1)), ["last_page_len", "(2, 1)", "[B]"]),
    (dict(sinks=zeros(HKV)), ["sinks", "(2,)", "[Hq]", "(4,)"]),
    (dict(sinks=integers(HQ)), ["sinks", "int32", "floating-point"]),
    (dict(alibi_slopes=zeros(B + 1, HQ)), ["alibi_slopes", "(3, 4)", "[B, Hq]", "(2, 4)"]),
    (dict(scale="big"), ["scale", "'big'", "Python number"]),
    (dict(local_window_size=-1), ["local_window_size", "-1", ">= 0"]),
    (dict(local_window_size=(1,)), ["local_window_size", "(1,)", "(left, right)"]),
    (dict(sink_tokens=-1), ["sink_tokens", "-1", ">= 0"]),
    (dict(logits_soft_cap=0.0), ["logits_soft_cap", "0.0", "> 0"]),
    (dict(implementation="triton"), ["implementation", "'triton'", "'cuda'", "'reference'"]),
]
OF_DECODE = [
    (dict(last_page_len=integers(B + 1)), ["last_page_len", "(3,)", "[B] = (2,)"]),
    (dict(num_splits=0), ["num_splits", "0", "1 to 1024"]),
    (dict(num_splits=1025), ["num_splits", "1025", "1 to 1024"]),
    (dict(local_window_size=(None, 0)), ["local_window_size", "(None, 0)", "int"]),
]
OF_PREFILL = [
    (dict(qo_indptr=integers(B + 2)), ["qo_indptr", "(4,)", "[B + 1] = (3,)"]),
    (dict(qo_indptr=zeros(B + 1)), ["qo_indptr", "float32", "integer"]),
    (dict(qo_indptr=None), ["qo_indptr", "NoneType", "array"]),
    (dict(max_seqlen_q=-1), ["max_seqlen_q", "-1", ">= 0"]),
    (dict(max_seqlen_q=None), ["max_seqlen_q", "None", "int"]),
    (dict(is_causal=1), ["is_causal", "1", "bool"]),
]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        *[("paged_decode", *case) for case in OF_BOTH + OF_DECODE],
        *[("paged_prefill", *case) for case in OF_BOTH + OF_PREFILL],
    ],
)
def test_value_error_names_argument_given_and_supported(kind, changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        call(kind, **changes)
    for word in words:
        assert word in str(error.value)


@both
@pytest.mark.parametrize("name", ["int32", "float8_e4m3fn"])
def test_other_dtypes_are_not_implemented(kind, name):
    dtype = jnp.dtype(name)
    query = arguments(kind)["query"].astype(dtype)
    with pytest.raises(NotImplementedError, match=f"query has dtype {name}.*bfloat16"):
        call(kind, query=query, **stores(P, HKV, PAGE, D, dtype=dtype))


@both
@pytest.mark.parametrize("head_dim", [0, 257])
def test_other_head_dimensions_are_not_implemented(kind, head_dim):
    query = zeros(*arguments(kind)["query"].shape[:2], head_dim)
    with pytest.raises(NotImplementedError, match=rf"head dimension {head_dim}; .* 1 to 256"):
        call(kind, query=query, **stores(P, HKV, PAGE, head_dim))


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"page_indices": ((2**28,), "int32")}, "page_indices has .* entries.*2\\*\\*30 rows"),
        (
            dict.fromkeys(("k_pages", "v_pages"), ((2**27, HKV, 2**5, D), "float32")),
            "k_pages has shape .*2\\*\\*32 rows",
        ),
    ],
)
def test_what_the_kernels_cannot_count_is_not_implemented(kind, changes, words):
    given = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in arguments(kind).items()
        if name != "max_seqlen_q"
    }
    given |= {name: jax.ShapeDtypeStruct(*like) for name, like in changes.items()}
    with pytest.raises(NotImplementedError, match=words):
        jax.eval_shape(odd_call(kind), **given)


@both
@pytest.mark.parametrize("option", ["scale", "logits_soft_cap", "sink_tokens"])
def test_traced_options_are_refused_by_name(kind, option):
    with pytest.raises(ValueError, match=f"{option} is "):
        jax.jit(lambda x: call(kind, **{option: x}))(2)


@both
def test_insisting_on_cuda_raises_elsewhere(kind):
    given = arguments(kind)
    given.pop("max_seqlen_q", None)
    insist = jax.jit(functools.partial(odd_call(kind), implementation="cuda"))
    with pytest.raises(NotImplementedError, match=f"{kind}: implementation is 'cuda'.*platform"):
        insist.trace(**given).lower(lowering_platforms=("cpu",))
    text = insist.trace(**given).lower(lowering_platforms=("cuda",)).as_text()
    assert f"jax_baracuda_{kind}" in text


@both
@pytest.mark.parametrize("implementation", [None, "cuda"])
def test_a_missing_kernel_is_an_error_with_its_fix_where_there_is_a_gpu(
    kind, monkeypatch, implementation
):
    extension = registry.Extension(frozenset(), {}, "the extension is of last year")
    monkeypatch.setattr(registry, "register", lambda: extension)
    monkeypatch.setattr(registry, "has_cuda_device", lambda: True)
    given = {n: np.asarray(a) for n, a in arguments(kind).items() if n != "max_seqlen_q"}

    def lower(implementation):
        function = jax.jit(functools.partial(odd_call(kind), implementation=implementation))
        return function.trace(**given).lower(lowering_platforms=("cuda",)).as_text()

    with pytest.raises(RuntimeError) as error:
        lower(implementation)
    for word in (f"jax_baracuda_{kind}", "the extension is of last year", "pip install"):
        assert word in str(error.value)
    assert "custom_call @jax" not in lower("reference")
