"""The engines of the paged benchmark: on jax a bench a kind of cell, and peers on torch."""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Any

import peers
from ceiling import CeilingEngine
from paged_cells import (
    AppendCell,
    DecodeCell,
    Job,
    LayersCell,
    PagedCell,
    PrefillCell,
    PrefixCell,
    RopeCell,
)
from workers import Engine


class JaxEngine(peers.JaxEngine):
    """Ours, Pallas, and XLA: compiles the jobs of a cell side by side, then measures each."""

    def __init__(self) -> None:
        from jax_baracuda.testing import timing

        # Nothing here is a matrix product of XLA's; tuning the checks takes minutes.
        timing.add_xla_flags("--xla_gpu_autotune_level=0", timing.IN_ORDER_FLAG)
        super().__init__()
        import paged_reads
        import paged_writes

        self.benches: dict[type[PagedCell], Any] = {
            DecodeCell: paged_reads.Decode(),
            PrefillCell: paged_reads.Prefill(),
            PrefixCell: paged_reads.Prefix(),
            AppendCell: paged_writes.Append(),
            RopeCell: paged_writes.Rope(),
            LayersCell: paged_writes.Layers(),
        }

    def prepare(self, jobs: list[Job], cell: PagedCell) -> None:
        """Compiles; what fails shows when it is measured."""
        self.release()
        self.programs = {}

        def build(job: Job) -> None:
            try:
                self.programs[job, cell] = self.benches[type(cell)].compile(job, cell)
            except Exception as error:
                self.programs[job, cell] = error

        with concurrent.futures.ThreadPoolExecutor(len(jobs), initializer=peers.be_nice) as pool:
            list(pool.map(build, jobs))

    def measure(self, job: Job, cell: PagedCell, seconds: float) -> dict[str, Any]:
        bench = self.benches[type(cell)]
        programs = self.programs.get((job, cell))  # kept: it may be measured again
        if isinstance(programs, Exception):
            raise programs
        if programs is None:  # the worker that had prepared it is no more
            programs = self.programs[job, cell] = bench.compile(job, cell)
        if self.held != cell:
            self.release()
            self.data = self.jax.block_until_ready(bench.inputs(job, cell))
            self.held = cell
        return bench.measure(job, cell, programs, self.data, seconds)


class JaxLoopEngine(JaxEngine):
    """The same in a process whose XLA may put whole loops into a CUDA graph."""

    def __init__(self) -> None:
        from jax_baracuda.testing import loops, timing

        timing.add_xla_flags(*loops.GRAPH_FLAGS["loop"].split())
        super().__init__()


class TorchEngine(peers.TorchEngine):
    """cuDNN on contiguous caches, and FlashInfer on pages, of the same bytes."""

    def inputs(self, cell: Any) -> Any:
        """Queries and stores [P, Hkv, 16, D]: sets of stores of a decode, one of a prefill."""
        if self.held != cell:
            self.release()
            torch = self.torch
            torch.manual_seed(0)
            normal = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
            decode = isinstance(cell, DecodeCell)
            shape = cell.store_shape(cell.rows, 16)
            stores = [
                (normal(shape), normal(shape).add_(1)) for _ in range(cell.sets if decode else 1)
            ]
            rows = cell.batch if decode else cell.tokens
            queries = [
                normal((rows, cell.query_heads, cell.head_dim))
                for _ in range(1 if decode else cell.calls)
            ]
            self.data = queries, stores
            self.held = cell
        return self.data

    def measure(self, job: Job, cell: Any, seconds: float) -> dict[str, Any]:
        queries, stores = self.inputs(cell)
        if job.impl == "torch_cudnn":
            shape = cell.cache_shape("HND")
            calls = [
                functools.partial(self.cudnn, queries[0], k.view(shape), v.view(shape))
                for k, v in stores
            ]
        elif isinstance(cell, DecodeCell):
            calls = self.flashinfer_decode(queries[0], stores, cell.table(job.page_size))
        else:
            calls = self.flashinfer_prefill(queries, stores[0], cell, job.page_size)
        rounds = max(1, cell.calls // len(calls))
        return self.time(calls * rounds, seconds)

    def flashinfer_prefill(
        self, queries: Any, store: Any, cell: PrefillCell, page_size: int
    ) -> list[Any]:
        """A call a query, all on one store and table."""
        import flashinfer

        torch = self.torch
        bounds = torch.tensor([0, *cell.queries]).cumsum(0).to(torch.int32)
        indices, indptr, last = (torch.from_numpy(array) for array in cell.table(page_size))
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            torch.empty(256 << 20, dtype=torch.uint8, device="cuda"), "HND"
        )
        wrapper.plan(
            bounds,
            indptr,
            indices.cuda(),
            last,
            cell.query_heads,
            cell.kv_heads,
            cell.head_dim,
            page_size,
            causal=True,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )
        return [functools.partial(wrapper.run, query, store) for query in queries]


class Ceilings(CeilingEngine):
    """Reads and copies of as many bytes."""

    def measure(self, job: Job, cell: Any, seconds: float) -> dict[str, Any]:
        return super().measure(job.impl, cell, seconds)


ENGINES: dict[str, type[Engine]] = {
    "ceiling": Ceilings,
    "torch": TorchEngine,
    "jax": JaxEngine,
    "jax_loop": JaxLoopEngine,
}
