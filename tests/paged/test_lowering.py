"""What the paged ops lower to, with no GPU and, in a process of its own, with no extension."""

import functools
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jax_baracuda import paged_decode, paged_prefill
from jax_baracuda._src.decode import shapes as decode_shapes
from jax_baracuda._src.paged import shapes
from jax_baracuda._src.paged.primitive import PRIMITIVES
from jax_baracuda.testing.paged_odd import KINDS

B, T, HQ, HKV, D, P, PAGE, N = 3, 7, 8, 4, 16, 40, 8, 12
both = pytest.mark.parametrize("kind", KINDS)


def aval(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def avals(kind, *, nhd=False, dtype="float32", requests=B, rows=T, pages=P, entries=N):
    """The positional arguments."""
    store = aval(*((pages, PAGE, HKV, D) if nhd else (pages, HKV, PAGE, D)), dtype=dtype)
    table = [aval(size, dtype="int32") for size in (entries, requests + 1, requests)]
    if kind == "paged_decode":
        return aval(requests, HQ, D, dtype=dtype), store, store, *table
    bounds = aval(requests + 1, dtype="int32")
    return aval(rows, HQ, D, dtype=dtype), bounds, store, store, *table


def call(kind, **options):
    if kind == "paged_prefill":
        return functools.partial(paged_prefill, **{"max_seqlen_q": 5} | options)
    return functools.partial(paged_decode, **options)


def lower(function, *args, platforms=("cuda",)):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def custom_calls(kind, text):
    return re.findall(rf".*custom_call @jax_baracuda_{kind}\(.*", text)


def attributes(kind, custom_call):
    return {
        name: re.search(rf"[{{ ]{name} = ([^,}}]+)", custom_call)[1]
        for name in shapes.OPTIONS[kind]
    }


STORE = "tensor<40x4x8x16xf32>"
TABLE = "tensor<12xi32>, tensor<4xi32>, tensor<3xi32>, tensor<0xf32>, tensor<0xf32>"


def test_paged_decode_gets_its_operands_whole_and_its_workspace():
    (found,) = custom_calls("paged_decode", lower(paged_decode, *avals("paged_decode")))
    contiguous = decode_shapes.DecodeShape(B, HQ, HKV, N * PAGE, D, "float32")
    workspace = decode_shapes.workspace_bytes(contiguous, 0)
    assert found.endswith(
        f"(tensor<3x8x16xf32>, {STORE}, {STORE}, {TABLE}) -> "
        f"(tensor<3x8x16xf32>, tensor<3x8xf32>, tensor<{workspace}xui8>)"
    )
    assert "(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, " in found  # nothing in between
    assert "dense<[3, 2, 1, 0]> : tensor<4xindex>" in found  # major to minor
    assert attributes("paged_decode", found) == {
        "nhd": "false",
        "scale": "2.500000e-01 : f32",
        "window_left": "-1 : i64",
        "sink_tokens": "0 : i64",
        "logits_soft_cap": "0.000000e+00 : f32",
        "num_splits": "0 : i64",
    }
    assert "mhlo.backend_config = {" in found  # so the typed FFI API


def test_paged_prefill_gets_its_operands_whole_and_its_workspace():
    kind = "paged_prefill"
    (found,) = custom_calls(kind, lower(call(kind), *avals(kind)))
    assert found.endswith(
        f"(tensor<7x8x16xf32>, tensor<4xi32>, {STORE}, {STORE}, {TABLE}) -> "
        f"(tensor<7x8x16xf32>, tensor<7x8xf32>, tensor<{shapes.PREFILL_WORKSPACE_BYTES}xui8>)"
    )
    assert "(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, " in found
    assert "portable = false" in found  # a matter of comparisons, not of options
    assert attributes(kind, found) == {
        "nhd": "false",
        "scale": "2.500000e-01 : f32",
        "causal": "true",
        "window_left": "-1 : i64",
        "window_right": "-1 : i64",
        "sink_tokens": "0 : i64",
        "logits_soft_cap": "0.000000e+00 : f32",
        "max_seqlen_q": "5 : i64",
    }


@both
def test_every_option_reaches_the_kernel(kind):
    options = dict(
        kv_layout="NHD",
        scale=0.5,
        local_window_size=(31, 2),
        sink_tokens=4,
        logits_soft_cap=30.0,
    )
    expected = {
        "nhd": "true",
        "scale": "5.000000e-01 : f32",
        "window_left": "31 : i64",
        "sink_tokens": "4 : i64",
        "logits_soft_cap": "3.000000e+01 : f32",
    }
    if kind == "paged_decode":
        options |= {"num_splits": 3}
        expected |= {"num_splits": "3 : i64"}
    else:
        options |= {"is_causal": False, "max_seqlen_q": 6}
        expected |= {"causal": "false", "window_right": "2 : i64", "max_seqlen_q": "6 : i64"}

    def function(arrays, sinks, slopes):
        return call(kind, **options)(*arrays, sinks=sinks, alibi_slopes=slopes)

    arrays = avals(kind, nhd=True, dtype="bfloat16")
    (found,) = custom_calls(
        kind, lower(function, arrays, aval(HQ, dtype="float16"), aval(B, HQ, dtype="float32"))
    )
    assert attributes(kind, found) == expected
    assert "tensor<1x8xf32>, tensor<3x8xf32>) -> " in found
    assert "tensor<40x8x4x16xbf16>, tensor<40x8x4x16xbf16>, " in found
    if kind == "paged_decode":
        assert f"tensor<{B * HKV * 3 * 4 * 2 * (D + 2)}xui8>" in found


@both
def test_other_platforms_and_the_reference_are_plain_operations(kind):
    text = lower(call(kind), *avals(kind), platforms=("cpu",))
    assert "custom_call" not in text
    assert "dot_general" in text
    assert custom_calls(kind, lower(call(kind), *avals(kind), platforms=("cpu", "cuda")))
    assert not custom_calls(kind, lower(call(kind, implementation="reference"), *avals(kind)))


def test_no_extension_and_no_gpu_are_needed():
    program = """
        import functools, sys
        sys.modules["jax_baracuda._ffi"] = None  # what an install without kernels has
        import jax
        import jax.numpy as jnp
        import jax_baracuda as jb

        query, store = jnp.ones((1, 2, 8)), jnp.ones((3, 1, 4, 8))
        table = jnp.array([2]), jnp.array([0, 1]), jnp.array([3])
        prefill = functools.partial(jb.paged_prefill, max_seqlen_q=1)
        for function, args in (
            (jb.paged_decode, (query, store, store, *table)),
            (prefill, (query, jnp.array([0, 1]), store, store, *table)),
        ):
            assert jnp.allclose(function(*args)[0], 1)
            call = jax.jit(function).trace(*args)
            assert "@jax_baracuda_paged_" in call.lower(lowering_platforms=("cuda",)).as_text()
    """
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def random_operands(kind, **sizes):
    rng = np.random.default_rng(0)
    given = avals(kind, **sizes)
    arrays = [rng.normal(size=aval.shape).astype(aval.dtype) for aval in given]
    arrays[-3] = rng.integers(0, given[-4].shape[0] or 1, given[-3].shape).astype(np.int32)
    requests = given[-1].shape[0]
    arrays[-2] = np.linspace(0, given[-3].shape[0], requests + 1).astype(np.int32)
    arrays[-1] = rng.integers(1, PAGE + 1, requests).astype(np.int32)
    if kind == "paged_prefill":
        arrays[1] = np.linspace(0, given[0].shape[0], requests + 1).astype(np.int32)
    return arrays


@both
def test_export_for_cuda_names_the_kernel(kind):
    function, target = jax.jit(call(kind)), f"jax_baracuda_{kind}"
    with pytest.raises(ValueError, match=target):  # jax asks for a promise that we do not give
        export.export(function, platforms=["cuda"])(*avals(kind))
    unchecked = [export.DisabledSafetyCheck.custom_call(target)]
    exported = export.export(function, platforms=["cuda"], disabled_checks=unchecked)(*avals(kind))
    assert exported.platforms == ("cuda",)
    assert custom_calls(kind, exported.mlir_module())


@both
@pytest.mark.parametrize("names", ["requests", "pages", "entries", "requests, pages, entries"])
def test_export_with_symbolic_sizes(kind, names):
    symbols = dict(zip(names.split(", "), export.symbolic_shape(names), strict=True))
    symbolic = avals(kind, **symbols)
    function = jax.jit(call(kind))
    exported = export.export(function, platforms=["cpu"])(*symbolic)
    real = {name: {"requests": 4, "pages": 9, "entries": 10}[name] for name in symbols}
    operands = random_operands(kind, **real)
    got = jax.jit(exported.call)(*jax.device_put(operands, jax.devices("cpu")[0]))
    for ours, theirs in zip(got, call(kind)(*operands), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    unchecked = [export.DisabledSafetyCheck.custom_call(f"jax_baracuda_{kind}")]
    on_cuda = export.export(function, platforms=["cuda"], disabled_checks=unchecked)(*symbolic)
    assert custom_calls(kind, on_cuda.mlir_module())


@both
def test_one_equation_takes_the_operands_as_they_are(kind):
    jaxpr = jax.make_jaxpr(call(kind))(*avals(kind)).jaxpr
    (equation,) = (e for e in jaxpr.eqns if e.primitive is PRIMITIVES[kind][0])
    assert set(jaxpr.invars) <= set(equation.invars)
    rows = B if kind == "paged_decode" else T
    assert [out.aval.shape for out in equation.outvars] == [(rows, HQ, D), (rows, HQ)]


@both
@pytest.mark.parametrize(
    "sizes",
    [
        {"requests": 0},
        {"pages": 0},
        {"entries": 0},
        {"requests": 0, "pages": 0, "entries": 0},
        {"rows": 0},
        {"rows": 0, "requests": 0},
    ],
)
def test_empty_operands(kind, sizes):
    given = random_operands(kind, **sizes)
    out, lse = call(kind)(*given, sinks=np.ones(HQ))
    assert (out.shape, lse.shape) == (given[0].shape, given[0].shape[:2])
    if kind == "paged_prefill" or sizes.keys() - {"rows"}:
        assert (out == 0).all()
        assert (lse == -jnp.inf).all()
    assert custom_calls(kind, lower(call(kind), *given))
