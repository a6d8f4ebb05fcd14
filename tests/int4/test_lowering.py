"""What int4_matmul lowers to, with no GPU, and what explain says of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_baracuda
from jax_baracuda import int4_matmul
from jax_baracuda._src import registry
from jax_baracuda._src.int4 import shapes
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4

TARGET = "jax_baracuda_int4_matmul"
UNCHECKED = [export.DisabledSafetyCheck.custom_call(TARGET)]


def weight_of(ic=512, oc=192, group=128, dtype="float16"):
    w = jnp.zeros((ic, oc), dtype)
    return jax.eval_shape(lambda w: Int4Weight.quantize(w, group_size=group), w)


def aval(*shape, dtype="float16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def lower(function, *args, platforms=("cuda",)):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def custom_calls(text):
    return re.findall(rf".*custom_call @{TARGET}.*", text)


def test_the_kernel_gets_its_operands_whole_and_its_workspace():
    (call,) = custom_calls(lower(int4_matmul, aval(3, 512), weight_of()))
    workspace = shapes.workspace_bytes(3, 3, 8)
    assert workspace == 8 * 4 * 3 * 192
    assert call.endswith(
        "(tensor<3x512xf16>, tensor<3x8x2048xui8>, tensor<4x192xf16>, tensor<4x192xui8>, "
        f"tensor<0xf16>) -> (tensor<3x192xf16>, tensor<{workspace}xui8>)"
    )
    assert ", %arg1, %arg2, %arg3, " in call  # nothing between the arguments and the kernel
    assert "{group_size = 128 : i64}" in call


@pytest.mark.parametrize(
    ("ic", "oc", "group", "k", "groups", "size"),
    [
        (200, 72, 64, 200, 4, 64),
        (197, 72, 32, 200, 8, 32),  # 8 columns of x, but not 64
        (960, 64, 96, 960, 30, 32),
        (712, 136, -1, 712, 1, 768),
    ],
)
def test_odd_channels(ic, oc, group, k, groups, size):
    bias = aval(oc)
    text = lower(
        lambda x, w, b: int4_matmul(x, w, bias=b), aval(5, ic), weight_of(ic, oc, group), bias
    )
    (call,) = custom_calls(text)
    wide = -(-oc // 64) * 64
    assert f"(tensor<5x{k}xf16>, tensor<{wide // 64}x{-(-ic // 64)}x2048xui8>" in call
    assert f"tensor<{groups}x{wide}xf16>, tensor<{groups}x{wide}xui8>, tensor<{oc}xf16>)" in call
    assert f"-> (tensor<5x{oc}xf16>" in call
    assert f"{{group_size = {size} : i64}}" in call


def test_other_platforms_and_float32_get_plain_operations():
    weight = weight_of()
    text = lower(int4_matmul, aval(3, 512), weight, platforms=("cpu",))
    assert "custom_call" not in text
    assert "dot_general" in text
    assert custom_calls(lower(int4_matmul, aval(3, 512), weight, platforms=("cpu", "cuda")))
    assert "custom_call" not in lower(int4_matmul, aval(3, 512, dtype="float32"), weight)


def test_the_gradient_runs_without_the_kernel_going_forward_twice():
    def loss(x, w):
        return int4_matmul(x, w).astype(jnp.float32).sum()

    text = lower(jax.grad(loss), aval(3, 512), weight_of())
    assert not custom_calls(text)  # linear: the output is not needed
    assert "dot_general" in text


def test_a_scan_over_layers_only_slices_the_weights():
    weight = weight_of(512, 512)
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((3, *a.shape), a.dtype), weight)

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (int4_matmul(x, w), None), x, weights)[0]

    text = lower(layers, aval(4, 512), stacked)
    assert len(custom_calls(text)) == 1
    # Whatever makes an array as large as a layer's image, or the stack of them.
    makers = re.findall(r"= (?:\"?)([\w.]+).*tensor<(?:\d+x)?8x8x2048xui8>$", text, re.MULTILINE)
    assert set(makers) <= {"func.call", "stablehlo.dynamic_slice", "stablehlo.reshape"}


def test_export_for_cuda_names_the_kernel():
    exported = export.export(jax.jit(int4_matmul), platforms=["cuda"], disabled_checks=UNCHECKED)
    assert custom_calls(exported(aval(3, 512), weight_of()).mlir_module())


def test_export_with_symbolic_rows():
    raw = int4.make_raw_weight("awq_gemm", 128, 64, 64)
    weight = raw.convert()
    (rows,) = export.symbolic_shape("rows")
    x = aval(rows, 2, 128)
    function = jax.jit(lambda x: int4_matmul(x, weight))
    given = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 128)), jnp.float16)
    out = export.export(function, platforms=["cpu"])(x).call(
        jax.device_put(given, jax.devices("cpu")[0])
    )
    np.testing.assert_allclose(out, int4_matmul(given, weight), rtol=2e-3, atol=2e-3)
    on_cuda = export.export(function, platforms=["cuda"], disabled_checks=UNCHECKED)(x)
    (call,) = custom_calls(on_cuda.mlir_module())
    assert f"tensor<{shapes.STREAM_WORKSPACE}xui8>" in call


@pytest.mark.parametrize(
    ("rows", "arch", "name"),
    [(1, "90a", "small"), (16, None, "small"), (17, "90a", "wgmma"), (999, "80", "small")],
)
def test_the_kernel_by_its_rows(rows, arch, name):
    assert shapes.kernel_name(rows, arch) == f"int4_{name}"


@pytest.mark.parametrize(
    ("rows", "strips", "tiles", "bytes_"),
    [
        (1, 64, 64, 8 * 4 * 4096),
        (16, 448, 128, 8 * 4 * 16 * 448 * 64 // 8 * 2),  # 2 parts: 2**20 // (16 * 28672)
        (64, 448, 128, 0),
        (128, 64, 224, 4 * 4 * 128 * 4096),
        (129, 64, 64, 33 << 20),
        (0, 64, 64, 0),
        (1, 64, 1, 0),
    ],
)
def test_workspace(rows, strips, tiles, bytes_):
    assert shapes.workspace_bytes(rows, strips, tiles) == bytes_
    assert bytes_ <= shapes.STREAM_WORKSPACE


def test_the_missing_kernel_is_named(monkeypatch):
    monkeypatch.setattr(registry, "has_cuda_device", lambda: True)
    monkeypatch.setattr(
        registry, "register", lambda: registry.Extension(frozenset(), {}, "it was not built")
    )
    with pytest.raises(RuntimeError, match=f"{TARGET}, the CUDA kernel, is missing: it was not"):
        lower(int4_matmul, aval(3, 512), weight_of(256 * 2, 128))


def test_explain():
    weight = weight_of()
    info = jax_baracuda.explain("int4_matmul", aval(1, 1, 512), weight, implementation="cuda")
    assert (info.op, info.implementation, info.dtype) == ("int4_matmul", "cuda", "float16")
    assert info.name == "int4_small"
    assert info.workspace_bytes == shapes.workspace_bytes(1, 3, 8)
    assert info.deterministic
    info = jax_baracuda.explain("int4_matmul", aval(4, 512, dtype="float32"), weight)
    assert info.name == "reference"
    raw = int4.make_raw_weight("packed", 256, 64, 64).arrays
    info = jax_baracuda.explain("int4_awq_matmul", aval(500, 256), *raw.values(), group_size=64)
    assert info.op == "int4_awq_matmul"
    with pytest.raises(ValueError, match="x has shape"):
        jax_baracuda.explain("int4_matmul", aval(4, 100), weight)
