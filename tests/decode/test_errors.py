"""Bad input: an error at trace time that names the argument, what was given, what is supported."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import flash_decode
from jax_baracuda._src import registry

B, HQ, HKV, K, D = 2, 4, 2, 16, 8


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def call(**changes):
    arguments = dict(query=zeros(B, HQ, D), key=zeros(B, HKV, K, D), value=zeros(B, HKV, K, D))
    return flash_decode(**arguments | changes)


def cache(*shape, dtype=jnp.float32):
    return dict(key=zeros(*shape, dtype=dtype), value=zeros(*shape, dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(query=zeros(B, D)), ["query", "(2, 8)", "[B, Hq, D]"]),
        (dict(key=zeros(B, K, D)), ["key", "(2, 16, 8)", "[B, Hkv, K, D]"]),
        (dict(value=zeros(B, HKV, K)), ["value", "(2, 2, 16)", "[B, Hkv, K, D]"]),
        (dict(value=zeros(B, HKV, K + 1, D)), ["value", "(2, 2, 17, 8)", "key", "(2, 2, 16, 8)"]),
        (cache(B + 1, HKV, K, D), ["key", "batch size 3", "query has 2"]),
        (cache(B, HKV, K, D + 8), ["key", "head dimension 16", "query has 8"]),
        (cache(B, 3, K, D), ["query has 4 heads", "key has 3", "multiple"]),
        (cache(B, 0, K, D), ["query has 4 heads", "key has 0"]),
        (cache(B, K, HKV, D), ["query has 4 heads", "key has 16", "[B, Hkv, K, D]"]),
        (dict(kv_layout="NHD"), ["query has 4 heads", "key has 16", "[B, K, Hkv, D]"]),
        (dict(kv_layout="BHKD"), ["kv_layout", "'BHKD'", "'HND'", "'NHD'"]),
        (
            dict(key=zeros(B, HKV, K, D, dtype=jnp.bfloat16)),
            ["key", "bfloat16", "query", "float32"],
        ),
        (dict(value=zeros(B, HKV, K, D, dtype=jnp.float16)), ["value", "float16", "float32"]),
        (dict(query=None), ["query", "NoneType", "array"]),
        (dict(key="cache"), ["key", "str", "array"]),
        (dict(kv_lengths=zeros(B)), ["kv_lengths", "float32", "integer"]),
        (dict(kv_lengths=zeros(B, dtype=bool)), ["kv_lengths", "bool", "integer"]),
        (dict(kv_lengths=zeros(B + 1, dtype=jnp.int32)), ["kv_lengths", "(3,)", "[B] = (2,)"]),
        (dict(kv_lengths=7), ["kv_lengths", "()", "[B] = (2,)"]),
        (dict(sinks=zeros(HKV)), ["sinks", "(2,)", "[Hq]", "(4,)"]),
        (dict(sinks=zeros(B, HQ)), ["sinks", "(2, 4)", "[Hq]"]),
        (dict(sinks=zeros(HQ, dtype=jnp.int32)), ["sinks", "int32", "floating-point"]),
        (dict(alibi_slopes=zeros(1, HQ)), ["alibi_slopes", "(1, 4)", "[B, Hq]", "(2, 4)"]),
        (dict(alibi_slopes=zeros(HQ, dtype=bool)), ["alibi_slopes", "bool", "floating-point"]),
        (dict(scale="big"), ["scale", "'big'", "Python number"]),
        (dict(scale=float("nan")), ["scale", "nan", "finite"]),
        (dict(scale=True), ["scale", "True"]),
        (dict(local_window_size=-1), ["local_window_size", "-1", ">= 0"]),
        (dict(local_window_size=(1,)), ["local_window_size", "(1,)", "(left, right)"]),
        (dict(local_window_size=(4, -1)), ["local_window_size", "(4, -1)", ">= 0"]),
        (dict(local_window_size=(None, 0)), ["local_window_size", "(None, 0)", "int"]),
        (dict(local_window_size=2.0), ["local_window_size", "2.0", "int"]),
        (dict(local_window_size=True), ["local_window_size", "True", "int"]),
        (dict(sink_tokens=-1), ["sink_tokens", "-1", ">= 0"]),
        (dict(sink_tokens=None), ["sink_tokens", "None", "int"]),
        (dict(logits_soft_cap=0.0), ["logits_soft_cap", "0.0", "> 0"]),
        (dict(logits_soft_cap=-30.0), ["logits_soft_cap", "-30.0", "> 0"]),
        (dict(logits_soft_cap=1e-60), ["logits_soft_cap", "1e-60", "> 0"]),
        (dict(logits_soft_cap=float("inf")), ["logits_soft_cap", "inf", "finite"]),
        (dict(num_splits=0), ["num_splits", "0", "1 to 1024"]),
        (dict(num_splits=1025), ["num_splits", "1025", "1 to 1024"]),
        (dict(num_splits=2.0), ["num_splits", "2.0", "ints"]),
        (dict(implementation="triton"), ["implementation", "'triton'", "'cuda'", "'reference'"]),
    ],
)
def test_value_error_names_argument_given_and_supported(changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        call(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["int32", "float8_e4m3fn", "complex64"])
def test_other_dtypes_are_not_implemented(name):
    dtype = jnp.dtype(name)
    operands = dict(query=zeros(B, HQ, D, dtype=dtype)) | cache(B, HKV, K, D, dtype=dtype)
    with pytest.raises(NotImplementedError, match=f"query has dtype {name}.*bfloat16"):
        call(**operands)


@pytest.mark.parametrize("head_dim", [0, 257])
def test_other_head_dimensions_are_not_implemented(head_dim):
    operands = dict(query=zeros(B, HQ, head_dim)) | cache(B, HKV, K, head_dim)
    with pytest.raises(NotImplementedError, match=rf"head dimension {head_dim}; .* 1 to 256"):
        call(**operands)


def test_errors_come_when_tracing():
    with pytest.raises(ValueError, match="num_splits is 0"):
        jax.eval_shape(lambda q: call(query=q, num_splits=0), zeros(B, HQ, D))


@pytest.mark.parametrize("option", ["scale", "logits_soft_cap", "num_splits", "sink_tokens"])
def test_traced_options_are_refused_by_name(option):
    with pytest.raises(ValueError, match=f"{option} is "):
        jax.jit(lambda x: call(**{option: x}))(2)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("argument", ["query", "value", "sinks"])
def test_differentiation_names_the_differentiable_function(transform, argument):
    arguments = dict(query=zeros(B, HQ, D), value=zeros(B, HKV, K, D), sinks=zeros(HQ))
    with pytest.raises(NotImplementedError, match="implementation='reference'"):
        transform(lambda x: call(**{argument: x}).sum())(arguments[argument])


def test_constants_of_a_differentiated_function_are_no_obstacle():
    gradient = jax.grad(lambda x: (x * jax.lax.stop_gradient(call()).sum()) ** 2)
    assert gradient(3.0) == 0


def test_insisting_on_cuda_raises_elsewhere():
    operands = zeros(B, HQ, D), zeros(B, HKV, K, D), zeros(B, HKV, K, D)
    insist = jax.jit(lambda *a: flash_decode(*a, implementation="cuda"))
    with pytest.raises(NotImplementedError, match=r"implementation is 'cuda'.*another platform"):
        insist.trace(*operands).lower(lowering_platforms=("cpu",))
    text = insist.trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert "jax_baracuda_flash_decode" in text


OPERANDS = (np.zeros((B, HQ, D), np.float32), *[np.zeros((B, HKV, K, D), np.float32)] * 2)


def lower_for_cuda(implementation):
    function = jax.jit(lambda *a: flash_decode(*a, implementation=implementation))
    return function.trace(*OPERANDS).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("implementation", [None, "cuda"])
def test_a_missing_kernel_is_an_error_with_its_fix_where_there_is_a_gpu(
    monkeypatch, implementation
):
    extension = registry.Extension(frozenset(), {}, "the extension is of last year")
    monkeypatch.setattr(registry, "register", lambda: extension)
    monkeypatch.setattr(registry, "has_cuda_device", lambda: True)
    with pytest.raises(RuntimeError) as error:
        lower_for_cuda(implementation)
    for word in ("the extension is of last year", "pip install", "JAX_BARACUDA_CUDA_ARCHS"):
        assert word in str(error.value)
    assert "custom_call" not in lower_for_cuda("reference")


def test_a_missing_kernel_is_no_error_where_there_is_no_gpu(monkeypatch):
    extension = registry.Extension(frozenset(), {}, "not installed")
    monkeypatch.setattr(registry, "register", lambda: extension)
    monkeypatch.setattr(registry, "has_cuda_device", lambda: False)
    assert "jax_baracuda_flash_decode" in lower_for_cuda(None)


class Module:
    """Stands for the compiled extension."""

    def __init__(self, version, targets):
        self.version, self.targets = version, targets

    def build_info(self):
        return {"version": self.version, "cuda_archs": "80;90a"}

    def registrations(self):
        return {target: {} for target in self.targets}


@pytest.mark.parametrize(
    ("extension", "problem"),
    [
        (ModuleNotFoundError("gone"), "was not installed"),
        (ImportError("undefined symbol: cudaMalloc"), "undefined symbol: cudaMalloc"),
        (Module("0.0.1", [registry.FLASH_DECODE]), "version 0.0.1"),
        (Module(None, ["jax_baracuda_other"]), f"has no {registry.FLASH_DECODE}"),
        (Module(None, []), f"has no {registry.FLASH_DECODE}"),
    ],
)
def test_the_registry_records_what_is_wrong_and_never_raises(monkeypatch, extension, problem):
    import jax_baracuda

    def import_module(name):
        assert name == "jax_baracuda._ffi"
        if isinstance(extension, Exception):
            raise extension
        extension.version = extension.version or jax_baracuda.__version__
        return extension

    monkeypatch.setattr(registry.importlib, "import_module", import_module)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *args, **kwargs: None)
    found = registry.register.__wrapped__()
    assert re.search(re.escape(problem), found.problem)
    assert registry.FLASH_DECODE not in found.targets


def test_the_registry_registers_a_good_extension(monkeypatch):
    import jax_baracuda

    calls = []
    extension = Module(jax_baracuda.__version__, registry.TARGETS)
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: extension)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *a, **kw: calls.append((a, kw)))
    found = registry.register.__wrapped__()
    assert found == registry.Extension(frozenset(registry.TARGETS), extension.build_info(), None)
    assert calls == [
        ((target, {}), {"platform": "CUDA", "api_version": 1}) for target in registry.TARGETS
    ]
