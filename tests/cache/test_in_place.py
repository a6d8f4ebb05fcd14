"""Stores are written where they are: on a GPU nothing of their size is copied."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import loops

LAYERS, PAGES, HEADS, PAGE, DIM, BATCH = 4, 24, 8, 16, 128, 3
STORE = (PAGES, HEADS, PAGE, DIM)
# A reader for the test below: what a decode step does with one layer.
RoundTrip = tuple[jax.Array, jax.Array]


def tables() -> dict[str, np.ndarray]:
    """Three requests, one of them padding, with eight pages each."""
    indices = np.random.default_rng(0).permutation(PAGES).astype(np.int32)
    return dict(
        batch_indices=np.array([0, 1, -1], np.int32),
        page_indices=indices,
        page_indptr=np.array([0, 8, 16, 24], np.int32),
    )


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def one_append(k_pages, v_pages, key, positions, implementation=None):
    append = functools.partial(jax_baracuda.paged_append, rope={}, implementation=implementation)
    return append(k_pages, v_pages, key, key, positions=positions, **tables())


def one_cache_append(k_cache, v_cache, key, positions, implementation=None):
    append = functools.partial(jax_baracuda.kv_cache_append, rope={}, implementation=implementation)
    return append(k_cache, v_cache, key[:, :, None], key[:, :, None], positions)


def while_loop(k_pages, v_pages, key, positions, implementation=None):
    """Twenty tokens, one after another."""

    def step(index, stores):
        return one_append(*stores, key, positions + index, implementation)

    return jax.lax.fori_loop(0, 20, step, (k_pages, v_pages))


def scan_over_layers(k_pages, v_pages, key, positions, implementation=None, *, flat=False):
    """One token through stacked layers: append, then read the layer that was written.

    ``flat``: stores are [L * P, ...], and the page ids of a layer begin at layer * P.
    """
    table = tables()

    def layer(carry, index):
        *stores, query = carry
        own = table | {"page_indices": table["page_indices"] + index * PAGES * flat}
        k_pages, v_pages, query = jax_baracuda.paged_append(
            *stores,
            key,
            key,
            positions=positions,
            query=query,
            rope={},
            layer=None if flat else index,
            implementation=implementation,
            **own,
        )
        if flat:
            # The cache of a layer as flash_decode takes it: a slice of what is carried.
            rows = jax.lax.dynamic_slice_in_dim(k_pages, index * PAGES, BATCH)
            out = jax_baracuda.flash_decode(query, rows, rows, implementation=implementation)
        else:
            # A store that is only read may be seen as one of more pages.
            seen = k_pages.reshape(LAYERS * PAGES, *k_pages.shape[2:])
            own["page_indices"] = table["page_indices"] + index * PAGES
            out, _ = jax_baracuda.paged_decode(
                query,
                seen,
                seen,
                own["page_indices"],
                own["page_indptr"],
                np.array([6, 1, 8], np.int32),
                implementation=implementation,
            )
        return (k_pages, v_pages, (query + out).astype(query.dtype)), None

    carry = k_pages, v_pages, normal(9, BATCH, 4 * HEADS, DIM)
    return jax.lax.scan(layer, carry, jnp.arange(LAYERS))[0]


PROGRAMS = {
    "call": (one_append, STORE),
    "cache": (one_cache_append, (BATCH, HEADS, 40, DIM)),
    "while": (while_loop, STORE),
    "layers": (scan_over_layers, (LAYERS, *STORE)),
    "flat layers": (functools.partial(scan_over_layers, flat=True), (LAYERS * PAGES, *STORE[1:])),
}


def operands(shape):
    return normal(1, *shape), normal(2, *shape), normal(3, BATCH, HEADS, DIM), np.array([5, 0, 7])


@pytest.mark.gpu
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_of_the_size_of_a_layer_is_copied(name):
    program, shape = PROGRAMS[name]
    run = jax.jit(functools.partial(program, implementation="cuda"), donate_argnums=(0, 1))
    k_store, v_store, *rest = operands(shape)
    compiled = run.lower(k_store, v_store, *rest).compile()
    size = np.prod(shape if len(shape) == 4 else shape[1:]) // (
        LAYERS if name == "flat layers" else 1
    )
    assert made(compiled.as_text(), int(size)) == []
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * size
    where = k_store.unsafe_buffer_pointer(), v_store.unsafe_buffer_pointer()
    got = compiled(k_store, v_store, *rest)
    assert (got[0].unsafe_buffer_pointer(), got[1].unsafe_buffer_pointer()) == where

    want = jax.jit(functools.partial(program, implementation="reference"))(*operands(shape))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=2e-2, atol=2e-2
        )


@pytest.mark.gpu
def test_a_store_that_is_not_donated_stays_as_it_was():
    k_pages, v_pages, *rest = operands(STORE)
    before = np.asarray(k_pages), np.asarray(v_pages)
    got = jax.jit(functools.partial(one_append, implementation="cuda"))(k_pages, v_pages, *rest)
    for store, old, new in zip((k_pages, v_pages), before, got, strict=True):
        np.testing.assert_array_equal(np.asarray(store), old)
        assert (np.asarray(new) != old).any()


def made(hlo: str, size: int) -> list[str]:
    """The instructions of a compiled module that write an array of this many elements, or more."""
    fused = set(re.findall(r"calls=%?([\w.-]+)", hlo))
    free = ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "custom-call")
    found, inside_fusion = [], False
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            inside_fusion = header[1] in fused
        written = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = \w+\[([\d,]*)\]\S* ([\w-]+)\(", line)
        if not written or inside_fusion or written[2] in free:
            continue
        if np.prod([int(n) for n in written[1].split(",") if n], dtype=int) >= size:
            found.append(line.strip())
    return found


def test_copies_are_found():
    hlo = (
        "%wrapped (p: bf16[5,4,8]) -> bf16[4,2] {\n"
        "  %slice.1 = bf16[4,8]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,4,8}\n"
        "}\n\n"
        "ENTRY %main (k: bf16[5,4,8]) -> bf16[4,2] {\n"
        "  %k = bf16[5,4,8]{2,1,0} parameter(0)\n"
        "  %copy.3 = bf16[5,4,8]{2,1,0} copy(%k)\n"
        "  %copy.4 = bf16[2,2]{1,0} copy(%j)\n"
        "  %call = (bf16[5,4,8]{2,1,0}, f32[0]{0}) custom-call(%copy.3, %copy.4)\n"
        "  ROOT %out = bf16[4,2]{1,0} fusion(%copy.3), kind=kCustom, calls=%wrapped\n"
        "}\n"
    )
    assert made(hlo, 4 * 8) == ["%copy.3 = bf16[5,4,8]{2,1,0} copy(%k)"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_run_anywhere(name):
    program, shape = PROGRAMS[name]
    k_store, *_ = jax.jit(program)(*operands(shape))
    old = np.asarray(operands(shape)[0])
    rows = int((np.asarray(k_store) != old).any(-1).sum())
    tokens = {"while": 2 * 20, "cache": BATCH}.get(name, 2)
    assert rows == tokens * HEADS * (LAYERS if "layers" in name else 1)


# ---- CUDA graphs


def run_loops(out: str, implementation: str) -> None:
    """Runs the loops and saves what is in the stores. XLA_FLAGS is the caller's."""
    results = {}
    for name in ("while", "layers"):
        program, shape = PROGRAMS[name]

        def graph_loop(*args, program=program):
            return program(*args, implementation=implementation)

        run = jax.jit(graph_loop, donate_argnums=(0, 1))
        results[name] = np.asarray(run(*operands(shape))[0]).view(np.uint16)
    np.savez(out, **results)


@pytest.mark.gpu
@pytest.mark.long
def test_loops_of_appends_are_captured(tmp_path):
    """Every kernel sits in a command buffer, and the stores are the same bit for bit."""
    folders = {mode: tmp_path / mode for mode in ("none", "body", "loop")}
    processes = {}
    for mode, folder in folders.items():
        folder.mkdir()
        flags = f"{loops.GRAPH_FLAGS[mode]} --xla_dump_to={folder} --xla_dump_hlo_as_text"
        processes[mode] = subprocess.Popen(
            [sys.executable, __file__, str(folder / "stores.npz"), "cuda"],
            env=os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    results = {}
    for mode, process in processes.items():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        results[mode] = dict(np.load(folders[mode] / "stores.npz"))
    for captured in ("body", "loop"):
        thunks = loops.thunks(folders[captured], "jit_graph_loop")
        assert any(kind == "kCommandBuffer" for kind, _ in thunks), thunks
        assert not any(kind == "kCustomCall" and not inside for kind, inside in thunks), thunks
        for name, want in results["none"].items():
            np.testing.assert_array_equal(results[captured][name], want)


if __name__ == "__main__":
    run_loops(sys.argv[1], sys.argv[2])
