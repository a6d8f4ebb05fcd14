"""paged_prefill over page sizes, head dims and layouts beside flash_attention_varlen.

On a GPU: python scratch/sweep_pages.py (about a minute). --dry: tiny calls of the reference, on any
machine.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jax_baracuda
from jax_baracuda._src.paged import primitive, shapes

DRY = "--dry" in sys.argv
HEADS, KV_HEADS = (4, 2) if DRY else (32, 8)


def timed(function, *operands):
    call = jax.jit(function)
    jax.block_until_ready(call(*operands))
    calls = 1 if DRY else 20
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready([call(*operands) for _ in range(calls)])
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e3


def table(keys, page_size):
    counts = -(-np.asarray(keys) // page_size)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = np.random.default_rng(0).permutation(int(bounds[-1])).astype(np.int32)
    last = (np.asarray(keys) - (counts - 1) * page_size).astype(np.int32)
    return ids, bounds, last


def offsets(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def paged(query, rows, keys, page_size, dim, nhd=False, portable=False):
    ids, bounds, last = table(keys, page_size)
    middle = (page_size, KV_HEADS) if nhd else (KV_HEADS, page_size)
    store = jax.random.normal(jax.random.key(1), (len(ids), *middle, dim), query.dtype)
    layout = "NHD" if nhd else "HND"
    static = shapes.check_prefill_options(dim, max_seqlen_q=max(rows), kv_layout=layout)
    run = functools.partial(primitive.prefill_kernel, portable=portable, **static)
    if DRY:
        run = functools.partial(primitive.OPS["paged_prefill"].reference, **static)
    none = jnp.zeros((0,), jnp.float32)
    return timed(run, query, store, store + 1, offsets(rows), ids, bounds, last, none, none)


def contiguous(query, rows, keys, dim):
    packed = jax.random.normal(jax.random.key(1), (sum(keys), KV_HEADS, dim), query.dtype)
    call = functools.partial(
        jax_baracuda.flash_attention_varlen,
        max_seqlen_q=max(rows),
        max_seqlen_k=max(keys),
        is_causal=True,
    )
    return timed(call, query, packed, packed + 1, offsets(rows), offsets(keys))


def table_of(title, rows, keys, dims, pages):
    print(title)
    seen = sum(n * k - n * (n - 1) // 2 for n, k in zip(rows, keys, strict=True))
    for dim in dims:
        query = jax.random.normal(jax.random.key(0), (sum(rows), HEADS, dim), jnp.bfloat16)
        flops = 4 * dim * HEADS * seen
        cells = {"varlen": contiguous(query, rows, keys, dim)}
        for page in pages:
            cells[f"HND {page}"] = paged(query, rows, keys, page, dim)
        cells["NHD 16"] = paged(query, rows, keys, 16, dim, nhd=True)
        cells["portable 16"] = paged(query, rows, keys, 16, dim, portable=True)
        for name, ms in cells.items():
            share = cells["varlen"] / ms
            print(
                f"  D {dim:3} {name:12} {ms:8.3f} ms {flops / ms / 1e9:6.0f} TFLOP/s {share:5.2f}x"
            )


def main():
    scale = 16 if DRY else 1
    pages = (16, 32, 48, 64, 128, 256)
    chunks, history = (512 // scale,) * 8, 4096 // scale
    keys = tuple(history + n for n in chunks)
    table_of("8 chunks of 512 behind 4096", chunks, keys, (128, 64, 256), pages)
    drawn = np.exp(np.linspace(np.log(512), np.log(8192), 56)).astype(int) // scale
    mixed = (*chunks, *[1] * 56), (*keys, *map(int, drawn))
    table_of("the same beside 56 decodes of 512 to 8192 keys", *mixed, (128,), (16, 64))
    first = (*[1] * 56, *chunks), (*map(int, drawn[::-1]), *keys)
    table_of("decodes first, the longest ahead", *first, (128,), (16, 64))
    table_of("prompts: 4 of 2048", (2048 // scale,) * 4, (2048 // scale,) * 4, (128, 64), (16, 64))


main()
