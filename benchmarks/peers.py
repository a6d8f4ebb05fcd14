"""The engines of the decode benchmark: ours and its peers, on jax and on torch.

Every engine times the same thing: calls one after another in one CUDA graph (or one compiled
program), over sets of caches that together are far larger than the L2 cache. No framework is
imported before its engine is made.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import os
import statistics
from typing import Any, ClassVar

import numpy as np
import turns
from ceiling import CeilingEngine
from cells import Cell
from workers import Engine


class JaxEngine:
    """Ours, jax.nn through cuDNN and through XLA, and Pallas' decode kernel."""

    LAYOUTS: ClassVar = {"jax_baracuda": "HND", "pallas": "HND", "jax_cudnn": "NHD", "xla": "NHD"}

    def __init__(self) -> None:
        from jax_baracuda.testing import timing

        # One graph a program; a part of the card for jax, which keeps what it once took.
        timing.add_xla_flags(timing.COMMAND_BUFFER_FLAG)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.70")
        import jax

        self.jax, self.timing = jax, timing
        self.held: tuple[Any, Any] | None = None
        self.data: Any = None
        self.programs: dict[tuple[str, Cell], Any] = {}

    def about(self) -> dict[str, Any]:
        import jaxlib

        import jax_baracuda

        versions = {
            "jax_baracuda": jax_baracuda.__version__,
            "jax": self.jax.__version__,
            "jaxlib": jaxlib.__version__,
        }
        return {"gpu": self.jax.devices()[0].device_kind, "versions": versions}

    def op(self, impl: str) -> Any:
        """A function (query [B, Hq, D], key, value) -> [B, Hq, D]; caches in the impl's layout."""
        jax = self.jax
        if impl == "jax_baracuda":
            import jax_baracuda

            return lambda q, k, v: jax_baracuda.flash_decode(q, k, v)
        if impl in ("jax_cudnn", "xla"):
            attention = functools.partial(
                jax.nn.dot_product_attention, implementation=impl.removeprefix("jax_")
            )
            return lambda q, k, v: attention(q[:, None], k, v)[:, 0]
        if impl == "pallas":
            from jax.experimental.pallas.ops.gpu import decode_attention

            # It takes [B, K, Hkv, D] and transposes inside: from HND caches the two cancel.
            swap = functools.partial(jax.numpy.swapaxes, axis1=1, axis2=2)
            return lambda q, k, v: decode_attention.gqa(q, swap(k), swap(v)).astype(q.dtype)
        raise ValueError(f"unknown implementation {impl!r}")

    def calls(self, impl: str, cell: Cell) -> int:
        """Calls of a program; what is slow, in every call and to compile, makes few."""
        return min(cell.calls, 16) if impl in ("pallas", "xla") else cell.calls

    def prepare(self, impls: list[str], cell: Cell) -> None:
        """Compiles what a cell needs side by side; an error shows when it is used."""
        self.release()
        # For XLA's own products its compiler times kernels on the GPU: not while others measure.
        chains = [impl for impl in impls if impl != "xla" or not turns.shared()]
        builds: dict[str, Any] = {impl: functools.partial(self.chain, impl) for impl in chains}
        builds |= {layout: functools.partial(self.draw, layout) for layout in ("HND", "NHD")}
        if "jax_baracuda" in impls:
            builds["check"] = self.check
        self.programs = {}

        def build(name: str) -> None:
            self.programs[name, cell] = builds[name](cell)

        with concurrent.futures.ThreadPoolExecutor(len(builds), initializer=be_nice) as pool:
            futures = [pool.submit(build, name) for name in builds]
            concurrent.futures.wait(futures)  # what failed here fails again, alone, in measure

    def program(self, name: str, make: Any, cell: Cell) -> Any:
        """What ``prepare`` made, or failed to."""
        return self.programs.get((name, cell)) or make(cell)

    def chain(self, impl: str, cell: Cell) -> Any:
        """The calls of an implementation, compiled."""
        query, cache = self.operands(cell, self.LAYOUTS[impl])
        sets = ((cache, cache),) * cell.sets
        return self.timing.compile_chain(self.op(impl), query, sets, self.calls(impl, cell))

    def operands(self, cell: Cell, layout: str) -> tuple[Any, Any]:
        """A query and a cache to compile for."""
        shapes = (cell.batch, cell.query_heads, cell.head_dim), cell.cache_shape(layout)
        query, cache = (self.jax.ShapeDtypeStruct(s, self.jax.numpy.bfloat16) for s in shapes)
        return query, cache

    def measure(self, impl: str, cell: Cell, seconds: float) -> dict[str, Any]:
        query, caches = self.inputs(cell, self.LAYOUTS[impl])
        result: dict[str, Any] = {}
        if impl == "jax_baracuda":
            error = self.program("check", self.check, cell)(query, *caches[0])
            result["error_vs_float32"] = oracle_of().require(error)
        timing = self.timing.time_chained(
            self.op(impl),
            query,
            caches,
            calls=self.calls(impl, cell),
            seconds=seconds,
            compiled=self.program(impl, functools.partial(self.chain, impl), cell),
        )
        return result | {"ms": timing.ms, "fastest": timing.fastest, "slowest": timing.slowest}

    def inputs(self, cell: Cell, layout: str) -> Any:
        """A query and the sets of caches; those of the last cell and layout are kept."""
        if self.held != (cell, layout):
            self.release()
            jax = self.jax
            make = self.program(layout, functools.partial(self.draw, layout), cell)
            keys = jax.random.split(jax.random.key(0), (cell.sets, 2))
            # The values' mean of 1 keeps a chain of outputs, each the next query, near size 1.
            means = np.float32(0), np.float32(1)
            caches = [
                (make(keys[i, 0], means[0]), make(keys[i, 1], means[1])) for i in range(cell.sets)
            ]
            query = jax.random.normal(
                jax.random.key(1),
                (cell.batch, cell.query_heads, cell.head_dim),
                jax.numpy.bfloat16,
            )
            self.data = jax.block_until_ready((query, caches))
            self.held = (cell, layout)
        return self.data

    def draw(self, layout: str, cell: Cell) -> Any:
        """What makes a cache of a key and a mean, compiled."""
        jax = self.jax
        fill = jax.jit(functools.partial(_random_cache, jax, cell.cache_shape(layout)))
        key = jax.eval_shape(lambda: jax.random.key(0))
        return fill.lower(key, jax.ShapeDtypeStruct((), np.float32)).compile()

    def check(self, cell: Cell) -> Any:
        """The relative error of the last request against float32, compiled."""
        op = self.op("jax_baracuda")

        def error(query: Any, key: Any, value: Any) -> Any:
            expected = oracle_of().attend(query[-1:], key[-1], value[-1])
            return oracle_of().relative_error(op(query, key, value)[-1], expected)

        query, cache = self.operands(cell, self.LAYOUTS["jax_baracuda"])
        return self.jax.jit(error).lower(query, cache, cache).compile()

    def release(self) -> None:
        self.held = self.data = None


def be_nice() -> None:
    """Leaves a processor to the thread that measures: this one, of a pool, compiles."""
    os.nice(10)


def oracle_of() -> Any:
    """The module, which imports jax."""
    import oracle

    return oracle


def _random_cache(jax: Any, shape: tuple[int, ...], key: Any, mean: Any) -> Any:
    """Normal numbers, a request at a time: no temporary larger than one request's cache."""

    def fill(request: int, cache: Any) -> Any:
        rows = jax.random.normal(jax.random.fold_in(key, request), shape[1:], cache.dtype) + mean
        return cache.at[request].set(rows.astype(cache.dtype))

    return jax.lax.fori_loop(0, shape[0], fill, jax.numpy.zeros(shape, jax.numpy.bfloat16))


class TorchEngine:
    """cuDNN through torch, and FlashInfer's paged decode; CUDA graphs over rotated caches."""

    def __init__(self) -> None:
        import torch
        import torch.nn.attention

        self.torch = torch
        self.held: Cell | None = None
        self.data: Any = None

    def about(self) -> dict[str, Any]:
        torch = self.torch
        versions = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }
        if importlib.util.find_spec("flashinfer"):
            import flashinfer

            versions["flashinfer"] = flashinfer.__version__
        return {"gpu": torch.cuda.get_device_name(), "versions": versions}

    def prepare(self, impls: list[str], cell: Cell) -> None:
        del impls, cell
        self.release()

    def inputs(self, cell: Cell) -> Any:
        if self.held != cell:
            self.release()
            torch = self.torch
            torch.manual_seed(0)
            normal = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
            shape = cell.cache_shape("HND")
            caches = [(normal(shape), normal(shape).add_(1)) for _ in range(cell.sets)]
            self.data = normal((cell.batch, cell.query_heads, cell.head_dim)), caches
            self.held = cell
        return self.data

    def measure(self, impl: str, cell: Cell, seconds: float) -> dict[str, Any]:
        query, caches = self.inputs(cell)
        if impl == "torch_cudnn":
            calls = [functools.partial(self.cudnn, query, k, v) for k, v in caches]
        elif impl == "flashinfer":
            calls = self.flashinfer(query, caches, cell)
        else:
            raise ValueError(f"unknown implementation {impl!r}")
        return self.time(calls * (cell.calls // cell.sets), seconds)

    def cudnn(self, query: Any, key: Any, value: Any) -> Any:
        attention = self.torch.nn.attention
        with attention.sdpa_kernel([attention.SDPBackend.CUDNN_ATTENTION]):
            return self.torch.nn.functional.scaled_dot_product_attention(
                query[:, :, None], key, value, enable_gqa=query.shape[1] != key.shape[1]
            )

    def flashinfer(self, query: Any, caches: Any, cell: Cell) -> list[Any]:
        """Contiguous caches seen as pages of 16 rows, [B * K / 16 pages, Hkv, 16, D]."""
        page = 16
        pages = cell.capacity // page
        count = cell.batch * pages
        table = (
            np.arange(count, dtype=np.int32),
            np.arange(0, count + 1, pages, dtype=np.int32),
            np.full(cell.batch, page, np.int32),
        )
        # The bytes of a cache in the order of a paged store: which row they are does not matter.
        shape = (count, cell.kv_heads, page, cell.head_dim)
        stores = [(k.view(shape), v.view(shape)) for k, v in caches]
        return self.flashinfer_decode(query, stores, table)

    def flashinfer_decode(self, query: Any, stores: Any, table: Any) -> list[Any]:
        """A call a store, [pages, Hkv, page_size, D], all with one page table."""
        import flashinfer

        torch = self.torch
        _, kv_heads, page, head_dim = stores[0][0].shape
        indices, indptr, last = (torch.from_numpy(array).cuda() for array in table)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(256 << 20, dtype=torch.uint8, device="cuda"),
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=query.shape[1] > kv_heads,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=last,
        )
        wrapper.plan(
            indptr.cpu(),
            indices,
            last.cpu(),
            query.shape[1],
            kv_heads,
            head_dim,
            page,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )
        return [functools.partial(wrapper.run, query, store) for store in stores]

    def time(self, calls: list[Any], seconds: float, samples: int = 9) -> dict[str, Any]:
        """Captures the calls in one graph and times its replays with events."""
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # plans and workspaces are made outside of the capture
            for _ in range(2):
                calls[0]()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def run(count: int) -> float:
            graph.replay()  # the GPU is at work when the clock starts
            start.record()
            for _ in range(count):
                graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        run(2)
        once = min(run(1) for _ in range(3))
        count = max(1, round(seconds * 1e3 / samples / once))
        times = [run(count) / (count * len(calls)) for _ in range(samples)]
        return {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}

    def release(self) -> None:
        self.held = self.data = None
        self.torch.cuda.empty_cache()


ENGINES: dict[str, type[Engine]] = {
    "jax": JaxEngine,
    "torch": TorchEngine,
    "ceiling": CeilingEngine,
}
# Which engine an implementation runs in, in the order in which a cell is measured.
IMPLS = {
    "read_ceiling": "ceiling",
    "torch_cudnn": "torch",
    "flashinfer": "torch",
    "jax_baracuda": "jax",
    "pallas": "jax",
    "jax_cudnn": "jax",
    "xla": "jax",
}
