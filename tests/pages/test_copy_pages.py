"""copy_pages: which pages it copies, and that it copies nothing else."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda.paged import copy_pages

PAGES = 6


def stores(*lead, dtype=jnp.float32, rest=(2, 4, 8)):
    shape = (*lead, PAGES, *rest)
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for _ in range(2)]


def expected(store, src, dst):
    new = store.copy()
    for a, b in zip(src, dst, strict=True):
        if 0 <= a < PAGES and 0 <= b < PAGES:
            new[..., b, :, :, :] = store[..., a, :, :, :]
    return new


def check(arrays, src, dst, got):
    for ours, store in zip(got, arrays, strict=True):
        want = expected(store, src, dst)
        assert ours.dtype == store.dtype
        np.testing.assert_array_equal(np.asarray(ours, np.float32), want.astype(np.float32))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_pages_of_every_layer_are_copied(lead, dtype):
    arrays = stores(*lead, dtype=jnp.dtype(dtype))
    src, dst = np.array([4, -1, 0, 2, 9, 1], np.int32), np.array([5, -1, 3, -1, 2, 6], np.int32)
    check(arrays, src, dst, copy_pages(*map(jnp.asarray, arrays), src, dst))


def test_layers_end_to_end():
    arrays = stores(3)
    src, dst = np.array([4, -1, 0, 6], np.int32), np.array([5, -1, 3, 1], np.int32)
    flat = [jnp.asarray(array.reshape(3 * PAGES, *array.shape[2:])) for array in arrays]
    got = copy_pages(*flat, src, dst, layers=3)
    check(arrays, src, dst, [array.reshape(3, PAGES, *array.shape[1:]) for array in got])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_sources_are_read_before_anything_is_written(dtype):
    arrays = stores()
    src, dst = np.array([0, 1, 2], dtype), np.array([1, 2, 0], dtype)
    check(arrays, src, dst, copy_pages(*map(jnp.asarray, arrays), src, dst))


def test_keys_and_values_may_differ():
    key, value = stores()[0], stores(rest=(2, 4, 3), dtype=jnp.bfloat16)[1]
    got = copy_pages(jnp.asarray(key), jnp.asarray(value), np.array([1]), np.array([0]))
    check((key, value), [1], [0], got)


@pytest.mark.parametrize("shape", [(0, 2, 4, 8), (6, 2, 4, 0), (0, 6, 2, 4, 8)])
def test_empty_stores_and_no_copies(shape):
    empty = jnp.zeros(shape)
    out = copy_pages(empty, empty + 0, np.array([0]), np.array([1]))
    assert [array.shape for array in out] == [shape, shape]
    arrays = stores()
    got = copy_pages(*map(jnp.asarray, arrays), np.zeros(0, np.int32), np.zeros(0, np.int32))
    check(arrays, [], [], got)


def test_the_stores_are_donated_and_not_copied():
    arrays = [jnp.asarray(np.tile(store, (1, 40, 1, 1, 1))) for store in stores(5)]
    ids = jnp.array([1, -1], jnp.int32)
    compiled = copy_pages.lower(*arrays, ids, ids + 1).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * arrays[0].nbytes
    # Beside the rows in transit there is no room for a store.
    assert compiled.memory_analysis().temp_size_in_bytes < arrays[0].nbytes
    copy_pages(*arrays, ids, ids + 1)
    assert all(array.is_deleted() for array in arrays)


@pytest.mark.gpu
@pytest.mark.parametrize("lead", [(), (5,)])
def test_nothing_but_pages_is_copied_on_a_gpu(lead):
    store = jnp.zeros((*lead, 400, 8, 16, 128), jnp.bfloat16)
    ids = jnp.array([1, -1, 7], jnp.int32)
    compiled = copy_pages.lower(store, store, ids, ids + 1).compile()
    pages = 3 * store.nbytes // 400
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * pages + 2**16
    whole = re.escape("bf16[" + ",".join(map(str, store.shape)))
    flat = re.escape(f"bf16[{store.size // (8 * 16 * 128)},8,16,128]")
    assert not re.search(rf" = (?:{whole}|{flat})\S* (?:copy|transpose)\(", compiled.as_text())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_stores_that_are_sharded_over_heads_stay_so(eight_devices, kind, lead):
    mesh = jax.make_mesh((8,), ("h",), axis_types=(kind,), devices=eight_devices)
    sharding = NamedSharding(mesh, P(*[None] * len(lead), None, "h"))
    arrays = stores(*lead, rest=(8, 4, 8))
    placed = [jax.device_put(array, sharding) for array in arrays]
    src, dst = np.array([4, -1, 0], np.int32), np.array([5, -1, 3], np.int32)
    text = copy_pages.lower(*placed, src, dst).compile().as_text()
    assert not re.search("all-|collective-", text)
    got = copy_pages(*placed, src, dst)
    assert all(array.sharding.is_equivalent_to(sharding, array.ndim) for array in got)
    check(arrays, src, dst, got)


def test_in_a_step_and_in_shard_map(eight_devices):
    arrays = stores(rest=(8, 4, 8))
    src, dst = np.array([4, -1], np.int32), np.array([5, -1], np.int32)

    @jax.jit
    def step(k_pages, v_pages, src, dst):
        k_pages, v_pages = copy_pages(k_pages, v_pages, src, dst)
        return 2 * k_pages, 2 * v_pages

    got = step(*arrays, src, dst)
    check(arrays, src, dst, [np.asarray(array) / 2 for array in got])
    mesh = jax.make_mesh((8,), ("h",), axis_types=(AxisType.Auto,), devices=eight_devices)
    specs = P(None, "h"), P(None, "h"), P(), P()
    mapped = jax.shard_map(copy_pages, mesh=mesh, in_specs=specs, out_specs=P(None, "h"))
    check(arrays, src, dst, jax.jit(mapped)(*arrays, src, dst))


def test_vmap_over_layers():
    arrays = stores(3)
    src, dst = np.array([4, -1], np.int32), np.array([5, -1], np.int32)
    mapped = jax.vmap(copy_pages, in_axes=(0, 0, None, None))
    check(arrays, src, dst, mapped(*map(jnp.asarray, arrays), src, dst))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(k_pages=jnp.zeros((6, 4, 8))), ["k_pages", "(6, 4, 8)", "[..., P, Hkv, page, D]"]),
        (dict(v_pages=jnp.zeros(6)), ["v_pages", "(6,)"]),
        (dict(src=jnp.zeros((1, 1), jnp.int32)), ["src", "(1, 1)", "[N]"]),
        (dict(dst=jnp.zeros(2, jnp.int32)), ["dst", "(2,)", "(1,)"]),
        (dict(src=jnp.zeros(1)), ["src", "float32", "integer"]),
        (dict(layers=4), ["layers is 4", "6 pages"]),
        (dict(layers=0), ["layers is 0"]),
        (dict(dst=jnp.zeros(1, bool)), ["dst", "bool", "integer"]),
    ],
)
def test_errors_name_argument_given_and_supported(changes, words):
    arguments = dict(
        k_pages=jnp.zeros((6, 2, 4, 8)),
        v_pages=jnp.zeros((6, 2, 4, 8)),
        src=jnp.zeros(1, jnp.int32),
        dst=jnp.zeros(1, jnp.int32),
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        copy_pages(**arguments | changes)
    for word in words:
        assert word in str(error.value)
