"""Bad input: an error at trace time that names the argument, what was given, what is supported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import flash_attention, flash_attention_varlen
from jax_baracuda._src import registry

B, S, K, HQ, HKV, D, DV = 2, 6, 9, 4, 2, 8, 5
T, TK = 12, 15


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def call(**changes):
    arguments = dict(query=zeros(B, S, HQ, D), key=zeros(B, K, HKV, D), value=zeros(B, K, HKV, DV))
    return flash_attention(**arguments | changes)


def call_packed(**changes):
    arguments = dict(
        query=zeros(T, HQ, D),
        key=zeros(TK, HKV, D),
        value=zeros(TK, HKV, DV),
        cu_seqlens_q=jnp.array([0, 5, T]),
        cu_seqlens_k=jnp.array([0, 9, TK]),
        max_seqlen_q=7,
        max_seqlen_k=9,
    )
    return flash_attention_varlen(**arguments | changes)


def keys(*shape, dtype=jnp.float32):
    return dict(key=zeros(*shape, dtype=dtype), value=zeros(*shape, dtype=dtype))


def ints(*shape):
    return zeros(*shape, dtype=jnp.int32)


def test_the_calls_that_the_cases_change_are_good():
    assert call().shape == (B, S, HQ, DV)
    assert call_packed().shape == (T, HQ, DV)


# What both functions check, the same way.
OPTIONS = [
    (dict(sinks=zeros(HKV)), ["sinks", "(2,)", "[Hq]", "(4,)"]),
    (dict(sinks=zeros(B, HQ)), ["sinks", "(2, 4)", "[Hq]"]),
    (dict(sinks=ints(HQ)), ["sinks", "int32", "floating-point"]),
    (dict(alibi_slopes=zeros(1, HQ)), ["alibi_slopes", "(1, 4)", "[B, Hq]", "(2, 4)"]),
    (dict(alibi_slopes=zeros(HQ, dtype=bool)), ["alibi_slopes", "bool", "floating-point"]),
    (dict(bias=zeros(HQ, 1, 1)), ["bias", "rank 3", "[B or 1, Hq or 1"]),
    (dict(bias=zeros(3, 1, 1, K)), ["bias", "(3, 1, 1, 9)", "(2, 4, "]),
    (dict(bias=zeros(1, HKV, 1, K)), ["bias", "(1, 2, 1, 9)", "(2, 4, "]),
    (dict(bias=zeros(1, 1, 2, K)), ["bias", "(1, 1, 2, 9)", "(2, 4, "]),
    (dict(bias=zeros(1, 1, 1, 1)), ["bias", "(1, 1, 1, 1)", "(2, 4, "]),
    (dict(bias=ints(1, 1, 1, K)), ["bias", "int32", "floating-point dtype or bool"]),
    (dict(query_seq_lengths=zeros(B)), ["query_seq_lengths", "float32", "integer"]),
    (dict(query_seq_lengths=ints(3)), ["query_seq_lengths", "(3,)", "[B] = (2,)"]),
    (dict(key_value_seq_lengths=7), ["key_value_seq_lengths", "()", "[B] = (2,)"]),
    (dict(key_value_seq_lengths=zeros(B, dtype=bool)), ["key_value_seq_lengths", "bool"]),
    (dict(scale="big"), ["scale", "'big'", "Python number"]),
    (dict(scale=float("nan")), ["scale", "nan", "finite"]),
    (dict(scale=True), ["scale", "True"]),
    (dict(is_causal=1), ["is_causal", "1", "bool"]),
    (dict(is_causal=None), ["is_causal", "None", "bool"]),
    (dict(deterministic="yes"), ["deterministic", "'yes'", "bool"]),
    (dict(local_window_size=-1), ["local_window_size", "-1", ">= 0"]),
    (dict(local_window_size=(1,)), ["local_window_size", "(1,)", "(left, right)"]),
    (dict(local_window_size=(4, -1)), ["local_window_size", "(4, -1)", ">= 0"]),
    (dict(local_window_size=2.0), ["local_window_size", "2.0", "int"]),
    (dict(local_window_size=True), ["local_window_size", "True", "int"]),
    (dict(sink_tokens=-1), ["sink_tokens", "-1", ">= 0"]),
    (dict(sink_tokens=None), ["sink_tokens", "None", "int"]),
    (dict(logits_soft_cap=0.0), ["logits_soft_cap", "0.0", "> 0"]),
    (dict(logits_soft_cap=1e-60), ["logits_soft_cap", "1e-60", "> 0"]),
    (dict(logits_soft_cap=float("inf")), ["logits_soft_cap", "inf", "finite"]),
    (dict(dropout_rate=1.0), ["dropout_rate", "1.0", "[0, 1)"]),
    (dict(dropout_rate=1 - 1e-12), ["dropout_rate", "[0, 1)"]),  # 1 in float32
    (dict(dropout_rate=-0.1), ["dropout_rate", "-0.1", "[0, 1)"]),
    (dict(dropout_rate=0.1), ["dropout_seed", "None", "dropout_rate is 0.1", "uint32 [2]"]),
    (dict(dropout_rate=0.1, dropout_seed=7), ["dropout_seed", "()", "int32", "uint32 [2]"]),
    (dict(dropout_rate=0.1, dropout_seed=ints(2)), ["dropout_seed", "int32", "PRNG key"]),
    (dict(dropout_seed=zeros(3, dtype=jnp.uint32)), ["dropout_seed", "(3,)", "uint32 [2]"]),
    (dict(dropout_seed="seed"), ["dropout_seed", "str", "array"]),
    (dict(implementation="triton"), ["implementation", "'triton'", "'cuda'", "'reference'"]),
]
DENSE = [
    (dict(query=zeros(B, S, D)), ["query", "(2, 6, 8)", "[B, S, Hq, D]"]),
    (dict(key=zeros(B, K, D)), ["key", "(2, 9, 8)", "[B, K, Hkv, D]"]),
    (dict(value=zeros(B, K, HKV)), ["value", "(2, 9, 2)", "[B, K, Hkv, Dv]"]),
    (dict(value=zeros(B, K + 1, HKV, D)), ["value", "(2, 10, 2, 8)", "key", "(2, 9, 2, 8)"]),
    (keys(B + 1, K, HKV, D), ["key", "batch size 3", "query has 2"]),
    (keys(B, K, HKV, D + 8), ["key", "head dimension 16", "query has 8"]),
    (keys(B, K, 3, D), ["query has 4 heads", "key has 3", "multiple"]),
    (keys(B, K, 0, D), ["query has 4 heads", "key has 0"]),
    (dict(key=zeros(B, K, HKV, D, dtype=jnp.bfloat16)), ["key", "bfloat16", "query", "float32"]),
    (dict(value=zeros(B, K, HKV, DV, dtype=jnp.float16)), ["value", "float16", "float32"]),
    (dict(query=None), ["query", "NoneType", "array"]),
    (dict(key="cache"), ["key", "str", "array"]),
    (dict(bias="none"), ["bias", "str", "array"]),
    (dict(query_segment_ids=ints(B, S)), ["key_value_segment_ids is None", "together"]),
    (dict(key_value_segment_ids=ints(B, K)), ["query_segment_ids is None", "together"]),
    (
        dict(query_segment_ids=ints(B, K), key_value_segment_ids=ints(B, K)),
        ["query_segment_ids", "(2, 9)", "[B, S] = (2, 6)"],
    ),
    (
        dict(query_segment_ids=ints(B, S), key_value_segment_ids=zeros(B, K)),
        ["key_value_segment_ids", "float32", "integer"],
    ),
]
PACKED = [
    (dict(query=zeros(1, T, HQ, D)), ["query", "(1, 12, 4, 8)", "[T, Hq, D]"]),
    (dict(key=zeros(1, TK, HKV, D)), ["key", "(1, 15, 2, 8)", "[Tk, Hkv, D]"]),
    (dict(value=zeros(T, HKV, D)), ["value", "(12, 2, 8)", "key", "(15, 2, 8)"]),
    (keys(TK, 3, D), ["query has 4 heads", "key has 3", "multiple"]),
    (dict(cu_seqlens_q=None), ["cu_seqlens_q", "NoneType", "array"]),
    (dict(cu_seqlens_q=ints(1)), ["cu_seqlens_q", "(1,)", "[B + 1]"]),
    (dict(cu_seqlens_q=ints(1, 3)), ["cu_seqlens_q", "(1, 3)", "[B + 1]"]),
    (dict(cu_seqlens_q=zeros(3)), ["cu_seqlens_q", "float32", "integer"]),
    (dict(cu_seqlens_k=ints(4)), ["cu_seqlens_k", "(4,)", "[B + 1] = (3,)"]),
    (dict(max_seqlen_q=-1), ["max_seqlen_q", "-1", ">= 0"]),
    (dict(max_seqlen_k=2.5), ["max_seqlen_k", "2.5", "int"]),
    (dict(query_segment_ids=ints(T)), ["key_value_segment_ids is None", "together"]),
    (
        dict(query_segment_ids=ints(1, T), key_value_segment_ids=ints(1, TK)),
        ["query_segment_ids", "(1, 12)", "[T] = (12,)"],
    ),
]
CASES = [
    *((call, *case) for case in OPTIONS + DENSE),
    *((call_packed, *case) for case in OPTIONS + PACKED),
]


@pytest.mark.parametrize(("function", "changes", "words"), CASES)
def test_value_error_names_argument_given_and_supported(function, changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        function(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["int32", "float8_e4m3fn", "complex64"])
def test_other_dtypes_are_not_implemented(name):
    dtype = jnp.dtype(name)
    operands = dict(query=zeros(B, S, HQ, D, dtype=dtype)) | keys(B, K, HKV, D, dtype=dtype)
    with pytest.raises(NotImplementedError, match=f"query has dtype {name}.*bfloat16"):
        call(**operands)


def test_float64_is_not_implemented():
    with jax.enable_x64(True):
        operands = dict(query=zeros(B, S, HQ, D, dtype=jnp.float64))
        with pytest.raises(NotImplementedError, match=r"query has dtype float64.*float32"):
            call(**operands)


@pytest.mark.parametrize("dim", [0, 257])
@pytest.mark.parametrize("implementation", [None, "cuda"])
def test_other_head_dimensions_are_for_the_reference(dim, implementation):
    long = dict(query=zeros(B, S, HQ, dim), key=zeros(B, K, HKV, dim))
    with pytest.raises(
        NotImplementedError, match=f"query has head dimension {dim}; .* 1 to 256.*'reference'"
    ):
        call(**long, implementation=implementation)
    assert call(**long, implementation="reference").shape == (B, S, HQ, DV)
    with pytest.raises(NotImplementedError, match=f"value has head dimension {dim}; "):
        call(value=zeros(B, K, HKV, dim), implementation=implementation)


def test_errors_come_when_tracing():
    with pytest.raises(ValueError, match="sink_tokens is -1"):
        jax.eval_shape(lambda q: call(query=q, sink_tokens=-1), zeros(B, S, HQ, D))


@pytest.mark.parametrize(
    "option", ["scale", "logits_soft_cap", "sink_tokens", "dropout_rate", "is_causal"]
)
def test_traced_options_are_refused_by_name(option):
    with pytest.raises(ValueError, match=f"{option} is "):
        jax.jit(lambda x: call(**{option: x}))(1)


def test_traced_longest_sequences_are_refused_by_name():
    with pytest.raises(ValueError, match="max_seqlen_q is "):
        jax.jit(lambda x: call_packed(max_seqlen_q=x))(7)


SLOPES = np.linspace(0.1, 0.5, HQ, dtype=np.float32)


@pytest.mark.parametrize("function", [call, call_packed])
def test_alibi_slopes_have_no_derivative_but_in_the_reference(function):
    def loss(slopes, implementation=None):
        return function(alibi_slopes=slopes, implementation=implementation).sum()

    with pytest.raises(NotImplementedError, match=r"alibi_slopes .*stop_gradient.*'reference'"):
        jax.jit(jax.grad(loss))(SLOPES)
    assert jax.grad(functools.partial(loss, implementation="reference"))(SLOPES).shape == (HQ,)
    # As constants they are no obstacle, wherever the derivative is taken.
    jax.grad(lambda slopes: loss(jax.lax.stop_gradient(slopes)))(SLOPES)
    query = zeros(B, S, HQ, D)
    wrapped = jax.checkpoint(jax.jit(lambda q, s: call(query=q, alibi_slopes=s)))

    def layers(query, slopes):
        def layer(query, slopes):
            return query.at[..., :DV].add(wrapped(query, slopes)), None

        return jax.lax.scan(layer, query, slopes)[0].sum()

    assert jax.jit(jax.grad(layers))(query, np.stack([SLOPES, SLOPES])).shape == query.shape


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_second_derivatives_name_the_function_that_has_them(transform, jit):
    def loss(query, implementation=None):
        return (call(query=query, implementation=implementation) ** 2).sum()

    query = zeros(B, S, HQ, D)
    with pytest.raises(NotImplementedError, match=r"no second.*implementation='reference'"):
        transform(lambda q: jit(jax.grad(loss))(q).sum())(query)
    reference = functools.partial(loss, implementation="reference")
    assert transform(lambda q: jax.grad(reference)(q).sum())(query).shape == query.shape


def test_forward_mode_is_for_the_reference():
    query = zeros(B, S, HQ, D)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: call(query=q), (query,), (query,))
    jax.jvp(lambda q: call(query=q, implementation="reference"), (query,), (query,))


def test_insisting_on_cuda_raises_elsewhere():
    operands = zeros(B, S, HQ, D), zeros(B, K, HKV, D), zeros(B, K, HKV, DV)

    def gradient(*operands):
        loss = functools.partial(flash_attention, implementation="cuda")
        return jax.grad(lambda *a: loss(*a).sum())(*operands)

    for function in (functools.partial(flash_attention, implementation="cuda"), gradient):
        insist = jax.jit(function).trace(*operands)
        with pytest.raises(NotImplementedError, match=r"implementation is 'cuda'.*platform"):
            insist.lower(lowering_platforms=("cpu",))
        assert (
            "jax_baracuda_flash_attention" in insist.lower(lowering_platforms=("cuda",)).as_text()
        )


@pytest.mark.parametrize("missing", [registry.FLASH_ATTENTION, registry.FLASH_ATTENTION_BACKWARD])
def test_a_missing_kernel_is_an_error_with_its_fix_where_there_is_a_gpu(monkeypatch, missing):
    found = frozenset(registry.TARGETS) - {missing}
    extension = registry.Extension(found, {}, "the extension is of last year")
    monkeypatch.setattr(registry, "register", lambda: extension)
    operands = zeros(B, S, HQ, D), zeros(B, K, HKV, D), zeros(B, K, HKV, DV)

    def lower(implementation):
        def loss(*operands):
            return flash_attention(*operands, implementation=implementation).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*operands)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    monkeypatch.setattr(registry, "has_cuda_device", lambda: True)
    with pytest.raises(RuntimeError) as error:
        lower(None)
    for word in (missing, "the extension is of last year", "pip install", "reference"):
        assert word in str(error.value)
    assert "custom_call" not in lower("reference")
    monkeypatch.setattr(registry, "has_cuda_device", lambda: False)
    assert missing in lower(None)
