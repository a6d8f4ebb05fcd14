"""The read-only ceiling: a kernel that reads a cell's bytes and does next to nothing with them."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

READ_KERNEL = r"""
extern "C" __global__ void fill(uint4* data, unsigned long long count) {
  // Any bits will do: random ones, because memory and buses draw less power on zeros.
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += step) {
    unsigned x = (unsigned)i * 2654435761u + (unsigned)(i >> 32);
    x ^= x >> 15; x *= 2246822519u; x ^= x >> 13;
    data[i] = make_uint4(x, x * 3266489917u, x ^ 0x9e3779b9u, x * 668265263u);
  }
}

__device__ uint4 load(const uint4* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}

extern "C" __global__ void read(const uint4* data, unsigned long long count, unsigned* sink) {
  unsigned bits = 0;
  unsigned long long tile = (unsigned long long)blockDim.x * LOADS;
  for (unsigned long long base = blockIdx.x * tile; base < count; base += gridDim.x * tile) {
    uint4 x[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      unsigned long long at = base + i * (unsigned long long)blockDim.x + threadIdx.x;
      x[i] = at < count ? load(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < LOADS; ++i) bits ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
  }
  if (bits == 0x5eed5eedu) *sink = bits;  // next to never, but the compiler cannot know
}
"""


class CeilingEngine:
    """How fast a kernel can read the bytes of a cell when it does nothing else with them."""

    # (threads, 16-byte loads in flight a thread, blocks a multiprocessor): the best one counts.
    CONFIGS = ((256, 4, 8), (512, 4, 4), (256, 8, 4), (512, 8, 2), (256, 8, 8), (128, 16, 8))

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        loads = {config[1] for config in self.CONFIGS}
        self.modules = {
            n: cupy.RawModule(code=READ_KERNEL, options=(f"-DLOADS={n}",)) for n in loads
        }
        self.multiprocessors = cupy.cuda.Device().attributes["MultiProcessorCount"]

    def about(self) -> dict[str, Any]:
        name = self.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        return {"gpu": name, "versions": {"cupy": self.cupy.__version__}}

    def prepare(self, impls: list[str], cell: Any) -> None:
        del impls, cell

    def measure(self, impl: str, cell: Any, seconds: float) -> dict[str, Any]:
        del impl
        cupy = self.cupy
        memory = cupy.cuda.alloc(cell.bytes * cell.sets)
        sink = cupy.cuda.alloc(16)
        count = cell.bytes // 16
        blocks = 8 * self.multiprocessors
        fill = next(iter(self.modules.values())).get_function("fill")
        fill((blocks,), (512,), (np.uint64(memory.ptr), np.uint64(count * cell.sets)))
        share = seconds / len(self.CONFIGS)
        results = [
            self.time(config, memory.ptr, count, cell, sink.ptr, share) for config in self.CONFIGS
        ]
        return min(results, key=lambda result: result["ms"])

    def time(
        self,
        config: Any,
        base: int,
        count: int,
        cell: Any,
        sink: int,
        seconds: float,
        samples: int = 5,
    ) -> dict[str, Any]:
        cupy = self.cupy
        threads, loads, blocks = config
        read = self.modules[loads].get_function("read")
        grid = min(blocks * self.multiprocessors, -(-count // (threads * loads)))

        def launch(index: int) -> None:
            address = np.uint64(base + index % cell.sets * cell.bytes)
            read((grid,), (threads,), (address, np.uint64(count), np.uint64(sink)))

        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            launch(0)  # the module is loaded outside of the capture
            stream.synchronize()
            stream.begin_capture()
            for index in range(cell.calls):
                launch(index)
            graph = stream.end_capture()
            start, end = cupy.cuda.Event(), cupy.cuda.Event()

            def run(replays: int) -> float:
                start.record(stream)
                for _ in range(replays):
                    graph.launch(stream)
                end.record(stream)
                end.synchronize()
                return float(cupy.cuda.get_elapsed_time(start, end))

            run(2)
            once = min(run(1) for _ in range(3))
            replays = max(1, round(seconds * 1e3 / samples / once))
            times = [run(replays) / (replays * cell.calls) for _ in range(samples)]
        return {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}

    def release(self) -> None:
        self.cupy.get_default_memory_pool().free_all_blocks()
