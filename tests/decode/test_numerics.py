"""flash_decode against the float64 oracle: on this machine's CPU, and through the CUDA kernel."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import (
    DECODE_CASES,
    DecodeCase,
    check_decode,
    decode_oracle,
    make_inputs,
    reference_decode,
    run_decode,
)
from jax_baracuda.testing.calls import count_differences
from jax_baracuda.testing.cases import decode_cases

every_case = pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.name)


def rounded(case: DecodeCase, oracle) -> tuple[np.ndarray, np.ndarray]:
    """The best that the dtypes of a result can hold: the yardstick of float32 arithmetic."""
    return oracle.out.astype(case.numpy_dtype), oracle.lse.astype(np.float32)


def check(case: DecodeCase, inputs, out, lse, **yardstick) -> None:
    for report in check_decode(case, inputs, out, lse, **yardstick):
        report.check()


# ---- the reference, which is what runs without a GPU


@every_case
def test_reference_lowering(case):
    """Float32 arithmetic inside: the exact result, rounded, but for float32's own error."""
    inputs = make_inputs(case)
    oracle = decode_oracle(case, inputs)
    out, lse = run_decode(case, inputs, implementation="reference")
    assert out.dtype == case.numpy_dtype
    assert lse.dtype == np.float32
    check(case, inputs, out, lse, oracle=oracle, reference=rounded(case, oracle))


@pytest.mark.parametrize("case", DECODE_CASES[:12:4], ids=lambda case: case.name)
def test_same_precision_reference(case):
    """The yardstick of the GPU tests is itself near the oracle: a few roundings of the dtype."""
    inputs = make_inputs(case)
    oracle = decode_oracle(case, inputs)
    out, lse = reference_decode(case, inputs)
    eps = float(jnp.finfo(case.dtype).eps)
    assert np.abs(out.astype(np.float64) - oracle.out).max() < 4 * eps * np.abs(oracle.out).max()
    assert np.abs(lse - oracle.lse).max() < 1e-4


def test_float64_reference_is_an_oracle():
    """Under enable_x64 the jnp reference agrees with the numpy oracle to float64's precision."""
    case = next(case for case in DECODE_CASES if case.name == "everything-float32-HND")
    inputs = make_inputs(case)
    oracle = decode_oracle(case, inputs)
    with jax.enable_x64(True):
        wide = {
            name: array if array is None or array.dtype.kind != "f" else array.astype(np.float64)
            for name, array in inputs.arrays().items()
        }
        out, lse = reference_decode(
            dataclasses.replace(case, dtype="float64"), dataclasses.replace(inputs, **wide)
        )
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, oracle.out, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, oracle.lse, rtol=1e-12)


# ---- the CUDA kernel


@pytest.mark.gpu
@every_case
def test_cuda(case):
    """Value, log-sum-exp and poison: what is masked holds NaN and infinity in every case."""
    inputs = make_inputs(case)
    out, lse = run_decode(case, inputs, implementation="cuda")
    assert out.dtype == case.numpy_dtype
    assert lse.dtype == np.float32
    check(case, inputs, out, lse)


@pytest.mark.gpu
@pytest.mark.long
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=decode_cases())
def test_cuda_random_cases(case):
    inputs = make_inputs(case)
    check(case, inputs, *run_decode(case, inputs, implementation="cuda"))


@pytest.mark.gpu
def test_cuda_only_output():
    """Without return_lse the output is the same, bit for bit."""
    case = DECODE_CASES[0]
    inputs = make_inputs(case)
    out, _ = run_decode(case, inputs, implementation="cuda")
    alone = jax_baracuda.flash_decode(**inputs.arrays(), **case.options(), implementation="cuda")
    np.testing.assert_array_equal(bits(np.asarray(alone)), bits(out))


def bits(array: np.ndarray) -> np.ndarray:
    """The bit patterns, so that comparing is exact and -0 differs from 0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "splits"), [("bfloat16", 1), ("bfloat16", 6), ("float32", 6)])
def test_cuda_batch_invariance(dtype, splits):
    """With num_splits a request gives the same bits alone, in a batch, beside other requests."""
    batch = 12
    lengths = tuple(int(n) for n in np.linspace(0, 900, batch))
    case = DecodeCase(
        "invariance",
        batch=batch,
        capacity=900,
        head_dim=128,
        dtype=dtype,
        lengths=lengths,
        num_splits=splits,
        sinks=True,
        alibi_slopes="head",
    )
    inputs = make_inputs(case)
    out, lse = run_decode(case, inputs, implementation="cuda")

    for request in (0, 5, batch - 1):  # alone
        row = slice(request, request + 1)
        one = dataclasses.replace(case, batch=1, lengths=lengths[row])
        arrays = dataclasses.replace(
            inputs,
            query=inputs.query[row],
            key=inputs.key[row],
            value=inputs.value[row],
            kv_lengths=inputs.kv_lengths[row],
        )
        one_out, one_lse = run_decode(one, arrays, implementation="cuda")
        np.testing.assert_array_equal(bits(one_out), bits(out[row]))
        np.testing.assert_array_equal(bits(one_lse), bits(lse[row]))

    others = make_inputs(dataclasses.replace(case, lengths=(900,) * batch), seed=1)  # neighbours
    for name in ("query", "key", "value", "kv_lengths"):
        getattr(others, name)[4] = getattr(inputs, name)[4]
    others = dataclasses.replace(others, sinks=inputs.sinks)
    mixed_out, mixed_lse = run_decode(case, others, implementation="cuda")
    np.testing.assert_array_equal(bits(mixed_out[4]), bits(out[4]))
    np.testing.assert_array_equal(bits(mixed_lse[4]), bits(lse[4]))
    assert (bits(mixed_out[5]) != bits(out[5])).any()  # the neighbours did differ


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        DecodeCase("repeat-long", batch=1, capacity=4097, head_dim=128, kv_heads=8),
        DecodeCase(
            "repeat-ragged",
            batch=16,
            capacity=700,
            head_dim=128,
            dtype="float16",
            lengths=tuple(range(0, 688, 43)),
            sinks=True,
        ),
        DecodeCase("repeat-float32", batch=3, capacity=1500, dtype="float32", num_splits=11),
    ],
    ids=lambda case: case.name,
)
def test_cuda_repeats_bitwise(case):
    """1000 calls, one result: no race and no atomics in the sums."""
    inputs = jax.device_put(make_inputs(case).arrays())
    call = functools.partial(
        jax_baracuda.flash_decode, **case.options(), return_lse=True, implementation="cuda"
    )
    step = jax.jit(lambda operands: call(**operands))
    assert count_differences(step, inputs, 1000) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("mapped", ["everything", "query", "cache", "lengths"])
def test_cuda_vmap(mapped):
    """vmap over any mix of operands is right, and with num_splits equal to the calls one by one.

    Queries that share a cache become more heads of one call, which may be cut up in another way:
    there the bits may differ.
    """
    case = DecodeCase("vmap", batch=2, capacity=200, head_dim=128, lengths=(200, 57), num_splits=3)
    many = [make_inputs(case, seed) for seed in range(3)]
    if mapped == "lengths":
        names = {"kv_lengths"}
        many = [
            dataclasses.replace(many[0], kv_lengths=np.asarray((57 - i, 11 * i), np.int32))
            for i in range(3)
        ]
    else:
        names = {
            "everything": {"query", "key", "value"},
            "query": {"query"},
            "cache": {"key", "value"},
        }[mapped]
    call = functools.partial(
        jax_baracuda.flash_decode, **case.options(), return_lse=True, implementation="cuda"
    )

    def operands(index):
        picked = {
            n: getattr(many[index if n in names else 0], n)
            for n in ("query", "key", "value", "kv_lengths")
        }
        return {n: jnp.asarray(a) for n, a in picked.items()}

    stacked = operands(0) | {n: jnp.stack([operands(i)[n] for i in range(3)]) for n in names}
    axes = {n: 0 if n in names else None for n in stacked}
    out, lse = jax.jit(jax.vmap(lambda o: call(**o), in_axes=(axes,)))(stacked)
    one = jax.jit(lambda o: call(**o))
    for index in range(3):
        got = np.asarray(out[index]), np.asarray(lse[index])
        picked = {name: np.asarray(array) for name, array in operands(index).items()}
        judged = dataclasses.replace(case, lengths=tuple(picked["kv_lengths"].tolist()))
        check(judged, dataclasses.replace(many[0], **picked), *got)
        if mapped != "query":
            for result, expected in zip(got, one(operands(index)), strict=True):
                np.testing.assert_array_equal(bits(result), bits(np.asarray(expected)))


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize("kv_layout", ["HND", "NHD"])
def test_cuda_offsets_past_2_31(kv_layout):
    """Caches of more than 2^31 elements: the window lies at their very end."""
    batch, kv_heads, capacity, head_dim, tail = 2, 8, 1_100_000, 128, 40
    small = DecodeCase(
        "far", batch=batch, kv_heads=kv_heads, capacity=tail, head_dim=head_dim, kv_layout=kv_layout
    )
    inputs = make_inputs(small)
    axis = 1 if kv_layout == "NHD" else 2
    shape = list(small.cache_shape)
    shape[axis] = capacity
    assert np.prod(shape, dtype=np.int64) > 2**31

    @jax.jit
    def embed(rows):
        cache = jnp.full(shape, jnp.nan, rows.dtype)
        return jax.lax.dynamic_update_slice_in_dim(cache, rows, capacity - tail, axis)

    out, lse = jax.jit(
        functools.partial(
            jax_baracuda.flash_decode,
            kv_layout=kv_layout,
            local_window_size=(tail - 1, 0),
            return_lse=True,
            implementation="cuda",
        )
    )(inputs.query, embed(inputs.key), embed(inputs.value), np.full(batch, capacity, np.int32))
    check(small, inputs, np.asarray(out), np.asarray(lse))


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
def test_cuda_reads_every_row_of_a_long_cache():
    """A million rows of one request: with equal keys the log-sum-exp counts them all."""
    capacity = 1_100_000
    query = jnp.ones((1, 8, 128), jnp.bfloat16)
    key = jnp.zeros((1, 8, capacity, 128), jnp.bfloat16)
    value = jnp.ones((1, 8, capacity, 128), jnp.bfloat16)
    out, lse = jax_baracuda.flash_decode(query, key, value, return_lse=True, implementation="cuda")
    np.testing.assert_allclose(np.asarray(lse), np.log(capacity), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, rtol=2**-8)


@pytest.mark.gpu
@pytest.mark.parametrize("axis", ["batch", "heads"])
def test_cuda_sharded(axis):
    """Batch and heads split over the GPUs: the result of one GPU, bit for bit with num_splits."""
    devices = jax.devices("cuda")
    if len(devices) < 2:
        pytest.skip(f"needs 2 GPUs, there is {len(devices)}")
    devices = devices[: 4 if len(devices) >= 4 else 2]
    case = DecodeCase(
        "sharded",
        batch=8,
        kv_heads=8,
        capacity=500,
        head_dim=128,
        num_splits=4,
        lengths=(500, 0, 499, 3, 128, 64, 65, 250),
        sinks=True,
    )
    inputs = make_inputs(case)
    expected = run_decode(case, inputs, implementation="cuda")

    mesh = jax.sharding.Mesh(np.asarray(devices), ("x",))
    on_batch, on_heads = ("x", None) if axis == "batch" else (None, "x")
    specs = {
        "query": (on_batch, on_heads),
        "key": (on_batch, on_heads),
        "value": (on_batch, on_heads),
        "kv_lengths": (on_batch,),
        "sinks": (on_heads,),
    }
    placed = {
        name: jax.device_put(
            getattr(inputs, name),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)),
        )
        for name, spec in specs.items()
    }
    call = functools.partial(
        jax_baracuda.flash_decode, **case.options(), return_lse=True, implementation="cuda"
    )
    compiled = jax.jit(lambda operands: call(**operands)).lower(placed).compile()
    assert "all-gather" not in compiled.as_text()
    for got, want in zip(compiled(placed), expected, strict=True):
        assert len(got.sharding.device_set) == len(devices)
        np.testing.assert_array_equal(bits(np.asarray(got)), bits(want))
