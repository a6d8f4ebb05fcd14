"""What the ops lower to, with no GPU: the custom call, its operands, the memory that it shares."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jax_baracuda import apply_rope, kv_cache_append, paged_append
from jax_baracuda._src import registry
from jax_baracuda.testing.cache import run_append
from jax_baracuda.testing.cache_cases import APPEND_CASES, AppendCase, make_append_inputs

PAGED = AppendCase("lowering-pages", page_size=4, query_heads=3, rope={}, dtype="float32")
CACHED = AppendCase("lowering-cache", query_heads=3, rope={}, dtype="float32", new=(2, 2, 2))
BOTH = pytest.mark.parametrize("case", [PAGED, CACHED], ids=lambda case: case.function)


def function_of(case, **options):
    """The public function of a dictionary of its operands."""
    call = {"paged_append": paged_append, "kv_cache_append": kv_cache_append}[case.function]
    options = dict(kv_layout=case.kv_layout, rope=case.rope) | options
    return lambda arrays: call(**arrays, **options)


def operands_of(case):
    return make_append_inputs(case).arrays


def lower(function, *args, platforms=("cuda",), **options):
    return jax.jit(function, **options).trace(*args).lower(lowering_platforms=platforms).as_text()


def custom_calls(text, target=registry.APPEND):
    return re.findall(rf".*custom_call @{target}.*", text)


def attribute(call, name):
    return re.search(rf"{name} = ([^,}}]+)", call)[1]


def arguments(call):
    """The operands of a custom call by their names in the text."""
    return re.search(r"custom_call @\w+\(([^)]*)\)", call)[1].split(", ")


ALIASES = (
    "output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [0], "
    "operand_index = 0, operand_tuple_indices = []>, #stablehlo.output_operand_alias<"
    "output_tuple_indices = [1], operand_index = 1, operand_tuple_indices = []>]"
)


@BOTH
def test_the_call_writes_its_stores_in_place(case):
    (call,) = custom_calls(lower(function_of(case), operands_of(case)))
    assert ALIASES in call
    given = {
        name: attribute(call, name)
        for name in ("paged", "nhd", "interleaved", "mhlo.backend_config")
    }
    assert given == {
        "paged": str(case is PAGED).lower(),
        "nhd": "false",
        "interleaved": "false",
        "mhlo.backend_config": "{attention_factor = 1.000000e+00 : f32",  # so the typed FFI API
    }
    store = "x".join(map(str, case.store_shape(64)))
    results = call.split("->")[1]
    assert results.count(f"tensor<{store}xf32>") == 2


def test_every_option_reaches_the_kernel():
    rope = {
        "interleaved": True,
        "rotary_dim": 16,
        "scaling": {
            "type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.5,
        },
    }
    case = AppendCase("options", page_size=4, kv_layout="NHD", rope=rope, layers=2, query_heads=1)
    (call,) = custom_calls(lower(function_of(case), operands_of(case)))
    names = ("paged", "nhd", "interleaved", "attention_factor")
    assert [attribute(call, name) for name in names] == [
        "true",
        "true",
        "true",
        "1.500000e+00 : f32",
    ]
    assert "tensor<8xf32>" in call  # the frequencies of 16 columns
    assert "tensor<1xi32>" in call  # the layer
    (plain,) = custom_calls(lower(function_of(case, rope=None), operands_of(PLAIN)))
    assert "attention_factor = 1.000000e+00" in plain
    assert plain.count("tensor<0xf32>") == 3  # no query and no frequencies, no rotated query


PLAIN = AppendCase("options", page_size=4, kv_layout="NHD", layers=2)


def stack(array, layers=3):
    return np.stack([array] * layers)


def steps_of(case, layers):
    """A loop that carries stacked stores and writes one layer a turn."""
    names = ("k_pages", "v_pages") if case is PAGED else ("k_cache", "v_cache")
    call = {"paged_append": paged_append, "kv_cache_append": kv_cache_append}[case.function]

    def steps(arrays):
        rest = {name: array for name, array in arrays.items() if name not in names}

        def layer(stores, index):
            *stores, query = call(*stores, **rest, rope=case.rope, layer=index)
            return tuple(stores), query

        return jax.lax.scan(layer, tuple(arrays[name] for name in names), jnp.arange(layers))

    arrays = operands_of(case)
    return steps, arrays | {name: stack(arrays[name], layers) for name in names}


@BOTH
def test_nothing_stands_between_an_argument_and_the_call(case):
    """XLA copies a whole store where a reshape comes between: it must come in as it is."""
    text = lower(function_of(case), operands_of(case))
    (call,) = custom_calls(text)
    names = sorted(operands_of(case))
    where = names.index("k_pages" if case is PAGED else "k_cache")
    values = names.index("v_pages" if case is PAGED else "v_cache")
    assert arguments(call)[:2] == [f"%arg{where}", f"%arg{values}"]
    # And goes out as it is, but for the barrier.
    result = re.match(r"\s*(%\d+):3 = stablehlo.custom_call", call)[1]
    (passed,) = re.findall(
        rf"(%\d+):3 = stablehlo.optimization_barrier {result}#0, {result}#1, {result}#2 :", text
    )
    assert f"return {passed}#0, {passed}#1, {passed}#2" in text


@BOTH
def test_nothing_stands_between_a_loop_and_the_call(case):
    text = lower(*steps_of(case, 3))
    (call,) = custom_calls(text)
    assert all(re.match("%(iterArg|arg)", name) for name in arguments(call)[:2]), call
    shape = "x".join(map(str, (3, *case.store_shape(64))))
    made = re.findall(rf"(stablehlo\.\w+)[^\n]*-> tensor<{shape}xf32>", text)
    assert made == []


@BOTH
def test_a_loop_computes_every_layer(case):
    steps, arrays = steps_of(case, 3)
    (k_store, v_store), queries = jax.jit(steps)(arrays)
    want = function_of(case)(operands_of(case))
    for layer in range(3):
        got = k_store[layer], v_store[layer], queries[layer]
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@BOTH
def test_donated_stores_share_their_memory(case):
    arrays = operands_of(case)
    names = ("k_pages", "v_pages") if case is PAGED else ("k_cache", "v_cache")
    stores = {name: jax.device_put(arrays.pop(name)) for name in names}

    def step(stores, rest):
        return function_of(case)(stores | rest)

    text = lower(step, stores, arrays, donate_argnums=0)
    assert text.count("tf.aliasing_output") == 2
    results = jax.jit(step, donate_argnums=0)(stores, arrays)
    assert all(store.is_deleted() for store in stores.values())
    assert [result.shape for result in results[:2]] == [store.shape for store in stores.values()]


def test_rope_is_one_call():
    x = jax.ShapeDtypeStruct((2, 5, 3, 16), "bfloat16")
    function = functools.partial(apply_rope, interleaved=True, rotary_dim=8)
    text = lower(function, x, np.zeros((5,), np.int32))
    (call,) = custom_calls(text, registry.ROPE)
    assert arguments(call)[0] == "%arg0"
    assert call.endswith(
        "(tensor<2x5x3x16xbf16>, tensor<2x5xi32>, tensor<4xf32>) -> tensor<2x5x3x16xbf16>"
    )
    assert attribute(call, "interleaved") == "true"
    gradient = lower(jax.grad(lambda x, p: function(x, p).astype(float).sum()), x, np.arange(5))
    assert len(custom_calls(gradient, registry.ROPE)) == 1


def test_other_platforms_get_plain_operations():
    for call, args in ((function_of(PAGED), (operands_of(PAGED),)), (apply_rope, ROPE_ARGS)):
        text = lower(call, *args, platforms=("cpu",))
        assert "custom_call" not in text
    assert "scatter" in lower(function_of(PAGED), operands_of(PAGED), platforms=("cpu",))


ROPE_ARGS = np.ones((3, 2, 8), np.float32), np.arange(3)


@BOTH
def test_export_for_cuda_and_for_cpu(case):
    function, arrays = jax.jit(function_of(case)), operands_of(case)
    with pytest.raises(ValueError, match=registry.APPEND):  # jax asks for a promise
        export.export(function, platforms=["cuda"])(arrays)
    unchecked = [export.DisabledSafetyCheck.custom_call(registry.APPEND)]
    exported = export.export(function, platforms=["cuda"], disabled_checks=unchecked)(arrays)
    assert custom_calls(exported.mlir_module())
    exported = export.export(function, platforms=["cpu"])(arrays)
    cpu = jax.devices("cpu")[0]
    got = jax.jit(exported.call)(jax.device_put(arrays, cpu))
    for ours, theirs in zip(got, function(arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_export_with_symbolic_sizes():
    pages, tokens, entries = export.symbolic_shape("pages, tokens, entries")
    arrays = operands_of(PAGED)
    sizes = {"key": tokens, "value": tokens, "query": tokens, "batch_indices": tokens}
    sizes |= {"positions": tokens, "k_pages": pages, "v_pages": pages, "page_indices": entries}
    symbolic = {
        name: jax.ShapeDtypeStruct((sizes.get(name, len(a)), *a.shape[1:]), a.dtype)
        for name, a in arrays.items()
    }
    exported = export.export(jax.jit(function_of(PAGED)), platforms=["cpu"])(symbolic)
    got = jax.jit(exported.call)(jax.device_put(arrays, jax.devices("cpu")[0]))
    for ours, theirs in zip(got, function_of(PAGED)(arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    unchecked = [export.DisabledSafetyCheck.custom_call(registry.APPEND)]
    on_cuda = export.export(
        jax.jit(function_of(PAGED)), platforms=["cuda"], disabled_checks=unchecked
    )
    assert custom_calls(on_cuda(symbolic).mlir_module())


@pytest.mark.parametrize(
    "case",
    [case for case in APPEND_CASES if case.name.startswith(("no-", "cache-without"))],
    ids=lambda case: case.name,
)
def test_empty_arrays_lower(case):
    assert custom_calls(lower(function_of(case), operands_of(case)))
    results = run_append(case, make_append_inputs(case))
    stores = list(operands_of(case).values())[:2]
    for result, store in zip(results, stores, strict=False):
        np.testing.assert_array_equal(result.astype(np.float32), store.astype(np.float32))
