"""What flash_decode lowers to, with no GPU and, in a process of its own, with no extension."""

import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jax_baracuda import flash_decode
from jax_baracuda._src.decode import shapes
from jax_baracuda._src.decode.primitive import flash_decode_p

TARGET = "jax_baracuda_flash_decode"
UNCHECKED = [export.DisabledSafetyCheck.custom_call(TARGET)]
B, HQ, HKV, K, D = 2, 8, 4, 640, 16


def avals(*, nhd=False, dtype="float32", batch=B, capacity=K):
    cache = (batch, capacity, HKV, D) if nhd else (batch, HKV, capacity, D)
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in ((batch, HQ, D), cache, cache))


def lower(function, *args, platforms=("cuda",)):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def custom_calls(text):
    return re.findall(rf".*custom_call @{TARGET}.*", text)


def attribute(call, name):
    return re.search(rf"{name} = ([^,}}]+)", call)[1]


def test_the_kernel_gets_its_operands_whole_and_its_workspace():
    (call,) = custom_calls(lower(flash_decode, *avals()))
    cache = "tensor<2x4x640x16xf32>"
    workspace = shapes.workspace_bytes(shapes.DecodeShape(B, HQ, HKV, K, D, "float32"), 0)
    assert call.endswith(
        f"(tensor<2x8x16xf32>, {cache}, {cache}, tensor<0xi32>, tensor<0xf32>, tensor<0xf32>) -> "
        f"(tensor<2x8x16xf32>, tensor<2x8xf32>, tensor<{workspace}xui8>)"
    )
    assert "(%arg0, %arg1, %arg2, " in call  # nothing between the arguments and the kernel
    assert "dense<[3, 2, 1, 0]> : tensor<4xindex>" in call  # major to minor
    given = {
        name: attribute(call, name)
        for name in (*shapes.DecodeOptions.__annotations__, "mhlo.backend_config")
    }
    assert given == {
        "nhd": "false",
        "scale": "2.500000e-01 : f32",
        "window_left": "-1 : i64",
        "sink_tokens": "0 : i64",
        "logits_soft_cap": "0.000000e+00 : f32",
        "num_splits": "0 : i64",
        "mhlo.backend_config": "{logits_soft_cap = 0.000000e+00 : f32",  # so the typed FFI API
    }


def test_every_option_reaches_the_kernel():
    def function(query, key, value, lengths, sinks, slopes):
        return flash_decode(
            query,
            key,
            value,
            lengths,
            kv_layout="NHD",
            scale=0.5,
            local_window_size=(31, 0),
            sink_tokens=4,
            sinks=sinks,
            alibi_slopes=slopes,
            logits_soft_cap=30.0,
            num_splits=3,
            return_lse=True,
        )

    operands = (
        *avals(nhd=True, dtype="bfloat16"),
        *(
            jax.ShapeDtypeStruct(*like)
            for like in (((B,), "int32"), ((HQ,), "float16"), ((B, HQ), "float32"))
        ),
    )
    (call,) = custom_calls(lower(function, *operands))
    assert {name: attribute(call, name) for name in shapes.DecodeOptions.__annotations__} == {
        "nhd": "true",
        "scale": "5.000000e-01 : f32",
        "window_left": "31 : i64",
        "sink_tokens": "4 : i64",
        "logits_soft_cap": "3.000000e+01 : f32",
        "num_splits": "3 : i64",
    }
    cache = "tensor<2x640x4x16xbf16>"
    workspace = B * HKV * 3 * 4 * 2 * (D + 2)
    assert call.endswith(
        f"(tensor<2x8x16xbf16>, {cache}, {cache}, tensor<2xi32>, tensor<1x8xf32>, tensor<2x8xf32>)"
        f" -> (tensor<2x8x16xbf16>, tensor<2x8xf32>, tensor<{workspace}xui8>)"
    )


def test_other_platforms_get_plain_operations():
    text = lower(flash_decode, *avals(), platforms=("cpu",))
    assert "custom_call" not in text
    assert "dot_general" in text
    assert custom_calls(lower(flash_decode, *avals(), platforms=("cpu", "cuda")))


def test_the_reference_is_plain_operations_on_cuda_too():
    def function(*operands):
        return flash_decode(*operands, implementation="reference")

    assert "custom_call" not in lower(function, *avals())


def test_no_extension_and_no_gpu_are_needed():
    program = f"""
        import sys
        sys.modules["jax_baracuda._ffi"] = None  # what an install without kernels has
        import jax
        import jax.numpy as jnp
        import jax_baracuda
        from jax_baracuda._src import registry

        assert not registry.register().targets
        query, cache = jnp.ones((1, 2, 8)), jnp.ones((1, 1, 4, 8))
        assert (jax_baracuda.flash_decode(query, cache, cache) == 1).all()
        call = jax.jit(jax_baracuda.flash_decode).trace(query, cache, cache)
        assert "@{TARGET}" in call.lower(lowering_platforms=("cuda",)).as_text()
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


def random_operands(batch=B, capacity=K):
    rng = np.random.default_rng(0)
    return tuple(
        rng.normal(size=aval.shape).astype(aval.dtype)
        for aval in avals(batch=batch, capacity=capacity)
    )


def test_export_for_cpu_runs():
    exported = export.export(jax.jit(flash_decode), platforms=["cpu"])(*avals())
    operands = random_operands()
    cpu = jax.devices("cpu")[0]
    out = jax.jit(exported.call)(*jax.device_put(operands, cpu))
    want = flash_decode(*operands, implementation="reference")
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_export_for_cuda_names_the_kernel():
    function = jax.jit(flash_decode)
    with pytest.raises(ValueError, match=TARGET):  # jax asks for a promise that we do not give
        export.export(function, platforms=["cuda"])(*avals())
    exported = export.export(function, platforms=["cuda"], disabled_checks=UNCHECKED)(*avals())
    assert exported.platforms == ("cuda",)
    assert custom_calls(exported.mlir_module())


@pytest.mark.parametrize("num_splits", [None, 4])
@pytest.mark.parametrize("names", ["batch", "rows", "batch, rows"])
def test_export_with_symbolic_sizes(names, num_splits):
    sizes = dict(zip(names.split(", "), export.symbolic_shape(names), strict=True))
    symbolic = avals(batch=sizes.get("batch", B), capacity=sizes.get("rows", K))

    def function(*operands):
        return flash_decode(*operands, num_splits=num_splits)

    exported = export.export(jax.jit(function), platforms=["cpu"])(*symbolic)
    operands = random_operands(
        batch=3 if "batch" in sizes else B, capacity=70 if "rows" in sizes else K
    )
    cpu = jax.devices("cpu")[0]
    out = jax.jit(exported.call)(*jax.device_put(operands, cpu))
    np.testing.assert_allclose(out, flash_decode(*operands, implementation="reference"), atol=1e-6)

    on_cuda = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=UNCHECKED)
    assert custom_calls(on_cuda(*symbolic).mlir_module())


def test_one_equation_takes_the_caches_as_they_are():
    jaxpr = jax.make_jaxpr(flash_decode)(*avals()).jaxpr
    (equation,) = (e for e in jaxpr.eqns if e.primitive is flash_decode_p)
    assert equation.invars[:3] == jaxpr.invars
    assert [out.aval.shape for out in equation.outvars] == [(B, HQ, D), (B, HQ)]


def decode_layers(query, keys, values, lengths):
    """One token through stacked layers: [layers, ...] caches in a scan."""

    def layer(query, cache):
        return query + flash_decode(query, *cache, lengths), None

    return jax.lax.scan(layer, query, (keys, values))[0]


def test_a_scan_over_layers_only_slices_the_caches():
    layers = 3
    query, cache, _ = avals()
    stack = jax.ShapeDtypeStruct((layers, *cache.shape), cache.dtype)
    text = lower(decode_layers, query, stack, stack, jax.ShapeDtypeStruct((B,), "int32"))
    assert len(custom_calls(text)) == 1
    # Whatever makes an array as large as a layer's cache, or the stack of them.
    makers = re.findall(r"= (?:\"?)([\w.]+).*tensor<(?:\d+x)?2x4x640x16xf32>$", text, re.MULTILINE)
    assert set(makers) == {"func.call", "stablehlo.dynamic_slice", "stablehlo.reshape"}


def test_a_scan_over_layers_computes_the_layers():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(B, HQ, D)).astype(np.float32)
    keys, values = rng.normal(size=(2, 3, B, HKV, 24, D)).astype(np.float32)
    lengths = np.array([24, 5], np.int32)
    want = query
    for key, value in zip(keys, values, strict=True):
        want = want + flash_decode(want, key, value, lengths)
    got = jax.jit(decode_layers)(query, keys, values, lengths)
    np.testing.assert_allclose(got, want, atol=1e-5)


def decode_step(query, key, value, new_key, new_value, length):
    """Appends one row to the caches and attends to them."""
    key = jax.lax.dynamic_update_slice_in_dim(key, new_key, length, axis=2)
    value = jax.lax.dynamic_update_slice_in_dim(value, new_value, length, axis=2)
    lengths = jnp.full((query.shape[0],), length + 1, jnp.int32)
    return flash_decode(query, key, value, lengths), key, value


def test_donated_caches_are_updated_in_place():
    rng = np.random.default_rng(2)
    query, key, value = random_operands(capacity=9)
    row = rng.normal(size=(B, HKV, 1, D)).astype(np.float32)
    want = decode_step(query, key, value, row, row, 4)
    step = jax.jit(decode_step, donate_argnums=(1, 2))
    text = step.trace(query, key, value, row, row, 4).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("tf.aliasing_output") == 2
    donated = jax.device_put(key), jax.device_put(value)
    got = step(query, *donated, row, row, 4)
    assert all(array.is_deleted() for array in donated)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("batch", "capacity"), [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_and_caches(batch, capacity):
    operands = random_operands(batch=batch, capacity=capacity)
    lengths = np.zeros((batch,), np.int32)
    for args in (operands, (*operands, lengths)):
        out, lse = flash_decode(*args, return_lse=True)
        assert (out.shape, lse.shape) == ((batch, HQ, D), (batch, HQ))
        assert (out == 0).all()
        assert (lse == -jnp.inf).all()
    assert custom_calls(lower(flash_decode, *operands))
