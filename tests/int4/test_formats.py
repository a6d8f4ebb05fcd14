"""Int4Weight from every checkpoint format, bit for bit, against numpy on the published formulas."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4


def exactly(weight, raw):
    """The weight is that of the words, in every bit."""
    matrix = np.asarray(weight.dequantize())
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.astype(np.float64), int4.read(raw))
    assert weight.shape == (raw.in_features, raw.out_features)


@pytest.mark.parametrize("format", int4.FORMATS)
@pytest.mark.parametrize(
    ("ic", "oc", "group", "dtype"),
    [
        (256, 128, 128, "bfloat16"),
        (256, 64, 32, "float16"),
        (192, 72, 64, "float16"),
        (480, 200, 96, "float16"),
        (264, 8, -1, "float16"),
    ],
)
def test_every_format(format, ic, oc, group, dtype):
    raw = int4.make_raw_weight(format, ic, oc, group, dtype=dtype)
    weight = raw.convert()
    assert str(weight.dtype) == dtype
    assert (weight.order is not None) == ("act_order" in format and group != -1)
    exactly(weight, raw)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    format=st.sampled_from(int4.FORMATS),
    words=st.tuples(st.integers(1, 40), st.integers(1, 20)),
    group=st.sampled_from([32, 64, 96, 128, 160, 192, -1]),
    seed=st.integers(0, 99),
)
def test_shapes(format, words, group, seed):
    raw = int4.make_raw_weight(format, 8 * words[0], 8 * words[1], group, seed=seed)
    exactly(raw.convert(), raw)


@pytest.mark.parametrize("format", int4.FORMATS)
def test_the_image_is_that_of_the_formula(format):
    raw = int4.make_raw_weight(format, 200, 136, 64)
    weight = raw.convert()
    assert weight.packed.shape == (3, 4, 2048)
    q = int4.read_image(np.asarray(weight.packed)).astype(np.float64)
    assert (q[200:] == 0).all()
    assert (q[:, 136:] == 0).all()
    group = np.arange(256) // 64
    zeros, scales = (np.asarray(a).astype(np.float64)[group] for a in (weight.zeros, weight.scales))
    assert (scales[:, 136:] == 0).all()
    order = np.arange(200) if weight.order is None else np.asarray(weight.order)
    matrix = ((q - zeros) * scales)[:200, :136]
    np.testing.assert_array_equal(matrix, int4.read(raw)[order])


@pytest.mark.parametrize("stored", [0, 7, 15])
def test_zero_points_of_gptq_do_not_wrap(stored):
    raw = int4.make_raw_weight("gptq_v1", 128, 64)
    word = np.uint32(0x11111111 * stored).astype(np.int32)
    raw.arrays["qzeros"][:] = word
    weight = raw.convert()
    assert (weight.zeros == stored + 1).all()
    exactly(weight, raw)
    raw = dataclasses.replace(raw, format="gptq_v2")
    assert (raw.convert().zeros == stored).all()
    exactly(raw.convert(), raw)


def test_symmetric_compressed_tensors_are_between_minus_8_and_7():
    raw = int4.make_raw_weight("compressed_symmetric", 128, 64)
    assert (raw.convert().zeros == 8).all()
    steps = int4.read(raw) / raw.arrays["weight_scale"].astype(np.float64).T
    assert set(np.round(steps).reshape(-1)) == set(range(-8, 8))


def test_input_channels_that_are_no_whole_words():
    raw = int4.make_raw_weight("compressed_asymmetric", 200, 24, 64)
    weight = Int4Weight.from_compressed_tensors(
        **{name: jnp.asarray(a) for name, a in raw.arrays.items()}, group_size=64, in_features=197
    )
    assert weight.shape == (197, 24)
    np.testing.assert_array_equal(weight.dequantize(), int4.read(raw)[:197])
    with pytest.raises(ValueError, match="in_features is 190"):
        Int4Weight.from_compressed_tensors(
            raw.arrays["weight_packed"], raw.arrays["weight_scale"], group_size=64, in_features=190
        )


def test_output_channels_that_are_no_whole_words():
    raw = int4.make_raw_weight("compressed_asymmetric", 64, 24, 64)
    arrays = {name: a[:21] if name != "weight_zero_point" else a for name, a in raw.arrays.items()}
    weight = Int4Weight.from_compressed_tensors(**arrays, group_size=64)
    np.testing.assert_array_equal(weight.dequantize(), int4.read(raw)[:, :21])


def test_groups_in_order_need_no_order():
    raw = int4.make_raw_weight("gptq_v1", 256, 64, 64)
    raw.arrays["g_idx"] = np.arange(256) // 64
    assert raw.convert().order is None
    exactly(raw.convert(), raw)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("ic", "oc", "group"), [(256, 64, 64), (200, 50, 128), (77, 3, -1)])
def test_quantize_rounds_to_the_nearest_level(ic, oc, group, dtype, symmetric):
    rng = np.random.default_rng(ic)
    w = jnp.asarray(rng.normal(size=(ic, oc)), dtype)
    weight = Int4Weight.quantize(w, group_size=group, symmetric=symmetric)
    assert weight.shape == (ic, oc)
    assert weight.dtype == w.dtype
    rows = np.arange(ic) // (ic if group == -1 else group)
    step = np.asarray(weight.scales, np.float64)[rows][:, :oc]
    error = np.abs(np.asarray(weight.dequantize(), np.float64) - np.asarray(w, np.float64))
    # Half a step, and at the ends what rounding the scale and the zero point costs.
    assert (error <= step * (0.5 if symmetric else 1.0) + 16 * step * jnp.finfo(dtype).eps).all()
    assert np.mean(error <= step * 0.5 + 1e-6) > 0.95


@pytest.mark.parametrize("symmetric", [False, True])
def test_quantize_keeps_what_16_levels_can_hold(symmetric):
    rng = np.random.default_rng(0)
    steps = rng.integers(-7, 8, (128, 64))
    steps[0], steps[1] = -7, 8 if not symmetric else 7
    w = jnp.asarray(steps * 0.25, jnp.float16)
    weight = Int4Weight.quantize(w, group_size=128, symmetric=symmetric)
    np.testing.assert_array_equal(weight.dequantize(jnp.float16), w)


@pytest.mark.parametrize("value", [0.0, 1e-8, 3.0, -3.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantize_constants(value, symmetric):
    """A scale must be finite and not 0, whatever the group: 1e-8 / 15 is 0 in float16."""
    w = jnp.full((64, 64), value, jnp.float16)
    weight = Int4Weight.quantize(w, group_size=64, symmetric=symmetric)
    assert np.isfinite(weight.scales).all()
    np.testing.assert_allclose(weight.dequantize(), np.asarray(w, np.float32), rtol=2e-3)


def test_a_weight_is_a_pytree():
    weight = int4.make_raw_weight("gptq_act_order", 256, 64, 64).convert()
    leaves, tree = jax.tree.flatten(weight)
    assert [leaf.dtype.name for leaf in leaves] == ["uint8", "float16", "uint8", "int32"]
    again = jax.tree.unflatten(tree, leaves)
    np.testing.assert_array_equal(again.dequantize(), weight.dequantize())
    assert jax.tree.map(lambda leaf: None, weight).packed is None  # any leaf will do
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weight)]
    assert paths == [".packed", ".scales", ".zeros", ".order"]
    assert weight.astype(jnp.bfloat16).dtype == jnp.bfloat16
    avals = jax.eval_shape(lambda w: w, weight)
    assert avals.shape == (256, 64)
    assert jax.jit(lambda w: w.dequantize())(weight).shape == (256, 64)


def test_repacking_under_jit_and_vmap():
    raws = [int4.make_raw_weight("awq_gemm", 128, 64, 64, seed=seed) for seed in range(3)]
    stacked = {name: np.stack([raw.arrays[name] for raw in raws]) for name in raws[0].arrays}

    @jax.jit
    @jax.vmap
    def convert(arrays):
        return Int4Weight.from_awq_gemm(**arrays, group_size=64)

    weights = convert(stacked)
    assert weights.packed.shape == (3, 1, 2, 2048)
    assert weights.shape == (128, 64)
    matrices = jax.vmap(Int4Weight.dequantize)(weights)
    np.testing.assert_array_equal(matrices, [int4.read(raw) for raw in raws])
    with pytest.raises(ValueError, match=r"packed has shape \(3, 1, 2, 2048\)"):
        weights.dequantize()


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (0, 0)])
def test_empty_weights(shape):
    weight = Int4Weight.quantize(jnp.zeros(shape, jnp.float16), group_size=-1)
    assert weight.shape == shape
    assert weight.dequantize().shape == shape


def error_of(format="awq_gemm", constructor="from_awq_gemm", group=128, drop=(), **changes):
    raw = int4.make_raw_weight(format, 256, 64, 128)
    arrays = {name: a for name, a in (raw.arrays | changes).items() if name not in drop}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
        getattr(Int4Weight, constructor)(**arrays, group_size=group)
    return str(caught.value)


def test_errors_name_the_argument():
    f16 = np.float16
    assert "qweight has shape (256, 8) and dtype float16" in error_of(
        qweight=np.ones((256, 8), f16)
    )
    assert "qzeros has shape (3, 8); it must be (2, 8)" in error_of(
        qzeros=np.ones((3, 8), np.int32)
    )
    assert "scales has shape (2, 63)" in error_of(scales=np.ones((2, 63), f16))
    assert "scales has dtype int32" in error_of(scales=np.ones((2, 64), np.int32))
    for group in (16, 48, 0, -2, 64.5, True):
        assert f"group_size is {group!r}" in error_of(group=group)
    gptq = ("gptq_act_order", "from_gptq")
    assert "g_idx has shape (255,)" in error_of(*gptq, g_idx=np.zeros(255, np.int32))
    assert "g_idx names groups of [256]" in error_of(*gptq, g_idx=np.zeros(256, np.int32))
    assert "g_idx names groups" in error_of(*gptq, g_idx=np.full(256, -1))
    ours = ("compressed_asymmetric", "from_compressed_tensors")
    wrong = np.ones((9, 2), np.int32)
    assert "weight_zero_point has shape (9, 2); it must be (8, 2)" in error_of(
        *ours, weight_zero_point=wrong
    )
    gemv = ("awq_gemv", "from_awq_gemv")
    assert "scales has shape (64, 1)" in error_of(*gemv, scales=np.ones((64, 1), f16))
    with pytest.raises(ValueError, match="zero_offset is 2"):
        Int4Weight.from_gptq(wrong, wrong, wrong, zero_offset=2)
    with pytest.raises(ValueError, match=r"w has shape \(3,\)"):
        Int4Weight.quantize(jnp.ones(3))
    with pytest.raises(ValueError, match="dtype int32"):
        Int4Weight.quantize(jnp.ones((3, 3), jnp.int32))
