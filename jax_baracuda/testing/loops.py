"""Jitted decode loops whose lengths grow on the device: what CUDA graphs must capture."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# How far a loop goes into CUDA graphs, by the XLA flags of the process.
GRAPH_FLAGS = {
    "none": "--xla_gpu_enable_command_buffer=",
    "default": "",
    "body": "--xla_gpu_graph_min_graph_size=1",
    "loop": "--xla_gpu_graph_min_graph_size=1 --xla_gpu_enable_command_buffer="
    "FUSION,CUBLAS,CUSTOM_CALL,WHILE,CONDITIONAL,DYNAMIC_SLICE_FUSION",
}

Cache = tuple[jax.Array, jax.Array]
State = tuple[jax.Array, jax.Array, tuple[Cache, ...]]


def loop_inputs(
    *,
    batch: int,
    kv_heads: int,
    query_heads: int,
    head_dim: int,
    capacity: int,
    layers: int,
    lengths: Sequence[int],
    dtype: Any = jnp.bfloat16,
) -> State:
    """A query, the lengths and one (key, value) cache [B, Hkv, K, D] a layer."""
    keys = jax.random.split(jax.random.key(0), 2 * layers + 1)
    shape = (batch, kv_heads, capacity, head_dim)
    halves = [jax.random.normal(key, shape, dtype) for key in keys[:-1]]
    caches = tuple(zip(halves[::2], halves[1::2], strict=True))
    query = jax.random.normal(keys[-1], (batch, query_heads, head_dim), dtype)
    return query, jnp.asarray(lengths, jnp.int32), caches


def decode_step(state: State, attend: Callable[..., jax.Array]) -> State:
    """One token: every layer appends a row to its cache and attends to all rows so far."""
    query, lengths, caches = state
    kept = []
    for key, value in caches:
        rows = query[:, : key.shape[1]]  # stands in for the projections of a model
        key, value = _append(key, rows, lengths), _append(value, rows, lengths)
        # Neither grows nor dies out nor settles, and a rounding difference fades: half of what
        # attention gives, and a wave that moves on with the length.
        wave = jnp.cos(lengths[:, None, None] * 0.7 + jnp.arange(query.shape[-1]))
        query = (attend(query, key, value, lengths + 1) / 2 + wave).astype(query.dtype)
        kept.append((key, value))
    return query, lengths + 1, tuple(kept)


def _append(cache: jax.Array, rows: jax.Array, lengths: jax.Array) -> jax.Array:
    for request in range(cache.shape[0]):
        row = rows[request][None, :, None]
        cache = jax.lax.dynamic_update_slice(cache, row, (request, 0, lengths[request], 0))
    return cache


# The step's number, the queries seen so far [steps, B, Hq, D], the state, whose query comes first.
Loop = tuple[jax.Array, jax.Array, Any]
Step = Callable[..., Any]


def _start(state: Any, steps: int) -> Loop:
    return jnp.int32(0), jnp.zeros((steps, *state[0].shape), state[0].dtype), state


def _advance(loop: Loop, attend: Callable[..., jax.Array], step: Step) -> Loop:
    index, seen, state = loop
    state = step(state, attend)
    return index + 1, seen.at[index].set(state[0]), state


def decode_while(
    attend: Callable[..., jax.Array], steps: int, step: Step = decode_step
) -> Callable[[Any], jax.Array]:
    """A jitted ``while_loop`` of steps; returns the queries after each, [steps, B, Hq, D]."""

    def decode_while(state: Any) -> jax.Array:
        return jax.lax.while_loop(
            lambda loop: loop[0] < steps,
            lambda loop: _advance(loop, attend, step),
            _start(state, steps),
        )[1]

    return jax.jit(decode_while)


def decode_scan(
    attend: Callable[..., jax.Array], steps: int, step: Step = decode_step
) -> Callable[[Any], jax.Array]:
    """The same with ``scan``.

    The queries are carried, not stacked by the scan: XLA (jax 0.11.2) keeps a loop whose outputs
    are stacked out of a CUDA graph, though not its body.
    """

    def decode_scan(state: Any) -> jax.Array:
        def body(loop: Loop, _: None) -> tuple[Loop, None]:
            return _advance(loop, attend, step), None

        return jax.lax.scan(body, _start(state, steps), None, length=steps)[0][1]

    return jax.jit(decode_scan)


LOOPS = {"while": decode_while, "scan": decode_scan}


def run_loops(
    attend: Callable[..., jax.Array], state: Any, steps: int, out: str, **step: Any
) -> None:
    """Runs both loops and saves every step's query, as bits. XLA_FLAGS is the caller's."""
    results: dict[str, Any] = {}
    for name, make in LOOPS.items():
        results[name] = np.asarray(make(attend, steps, **step)(state)).view(np.uint16)
    np.savez(out, **results)


def start_process(
    script: str, folder: pathlib.Path, flags: str, *arguments: str
) -> subprocess.Popen[str]:
    """``script OUT arguments``, which ends in ``run_loops``, under these XLA flags.

    XLA dumps what it compiles to the folder, where also the results go.
    """
    xla_flags = f"{flags} --xla_dump_to={folder} --xla_dump_hlo_as_text"
    environment = os.environ | {"XLA_FLAGS": xla_flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        [sys.executable, script, str(folder / "queries.npz"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish_process(process: subprocess.Popen[str], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The results of ``start_process``, by loop."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return dict(np.load(folder / "queries.npz"))


def check_captured(script: str, folder: pathlib.Path, *arguments: str) -> Any:
    """Every kernel of ours sits in a command buffer, and gives the bits that it gives outside.

    The body of a loop is captured, and with WHILE enabled the loop itself.

    Args:
      script: as for ``start_process``.
      folder: an empty one.
      *arguments: of the script.

    Returns:
      The results by loop.
    """
    folders = {mode: folder / mode for mode in ("none", "body", "loop")}
    processes = {}
    for mode, own in folders.items():
        own.mkdir()
        processes[mode] = start_process(script, own, GRAPH_FLAGS[mode], *arguments)
    results = {mode: finish_process(processes[mode], own) for mode, own in folders.items()}
    for name in LOOPS:
        plain = thunks(folders["none"], f"jit_decode_{name}")
        assert not any(kind == "kCommandBuffer" for kind, _ in plain), plain
        assert any(kind == "kCustomCall" for kind, _ in plain), plain
        for captured in ("body", "loop"):
            inside = thunks(folders[captured], f"jit_decode_{name}")
            assert any(kind == "kCommandBuffer" for kind, _ in inside), (captured, inside)
            assert ("kCustomCall", False) not in inside, (captured, inside)
            if captured == "loop":
                assert ("kWhile", False) not in inside, inside
            np.testing.assert_array_equal(results[captured][name], results["none"][name], captured)
    return results["none"]


def thunks(folder: pathlib.Path, module: str) -> list[tuple[str, bool]]:
    """What XLA runs for a module, from its dump (``--xla_dump_to --xla_dump_hlo_as_text``).

    Args:
      folder: the dump.
      module: part of the module's name, such as "jit_decode_while".

    Returns:
      (kind, inside a command buffer) of every thunk, e.g. ("kCustomCall", True).
    """
    # The sequence after the passes is dumped only if a pass, such as the capture, changed it.
    files = sorted(folder.glob(f"*{module}*thunk_sequence_after_thunk_passes*.txt"))
    files = files or sorted(folder.glob(f"*{module}*thunk_sequence*.txt"))
    if not files:
        raise FileNotFoundError(f"no thunk sequence of {module} in {folder}")
    return parse_thunks(files[-1].read_text())


def parse_thunks(text: str) -> list[tuple[str, bool]]:
    """``thunks`` of a dump's text: lines "<indent><index>: <kind> ...", children indented."""
    found: list[tuple[str, bool]] = []
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"(\s*)\d+:\s+(k\w+)", line)
        if match:
            indent, kind = len(match[1]), match[2]
            while parents and parents[-1][0] >= indent:
                parents.pop()
            found.append((kind, any(parent == "kCommandBuffer" for _, parent in parents)))
            parents.append((indent, kind))
    return found


def written_arrays(hlo: str, shape: str) -> list[str]:
    """The instructions of a compiled module that write an array of this shape to memory.

    Args:
      hlo: ``compiled.as_text()``.
      shape: such as "bf16[2,4,320,128]".
    """
    fused = set(re.findall(r"calls=%?([\w.-]+)", hlo))
    found, inside_fusion = [], False
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            inside_fusion = header[1] in fused
        written = re.match(rf"\s+(?:ROOT )?%?[\w.-]+ = {re.escape(shape)}\S* ([\w-]+)\(", line)
        free = ("parameter", "get-tuple-element", "bitcast")
        if written and not inside_fusion and written[1] not in free:
            found.append(line.strip())
    return found
