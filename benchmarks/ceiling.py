"""Ceilings: a kernel that reads a cell's bytes and does next to nothing, and a copy of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
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
    """How fast a kernel can read the bytes of a cell when it does nothing else, or copy them."""

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
        """``cell`` has the bytes of a call, the sets to rotate and the calls of a graph."""
        return self.copy(cell, seconds) if impl == "device_copy" else self.read(cell, seconds)

    def filled(self, size: int) -> Any:
        """So many bytes of random memory."""
        memory = self.cupy.cuda.alloc(size)
        fill = next(iter(self.modules.values())).get_function("fill")
        fill((8 * self.multiprocessors,), (512,), (np.uint64(memory.ptr), np.uint64(size // 16)))
        return memory

    def read(self, cell: Any, seconds: float) -> dict[str, Any]:
        """The best configuration of the read-only kernel."""
        memory = self.filled(cell.bytes * cell.sets)
        sink = self.cupy.cuda.alloc(16)
        count = cell.bytes // 16

        def launcher(threads: int, loads: int, blocks: int) -> Callable[[int], None]:
            read = self.modules[loads].get_function("read")
            grid = min(blocks * self.multiprocessors, -(-count // (threads * loads)))

            def launch(index: int) -> None:
                address = np.uint64(memory.ptr + index % cell.sets * cell.bytes)
                read((grid,), (threads,), (address, np.uint64(count), np.uint64(sink.ptr)))

            return launch

        share = seconds / len(self.CONFIGS)
        results = [self.time(launcher(*config), cell.calls, share) for config in self.CONFIGS]
        return min(results, key=lambda result: result["ms"])

    def copy(self, cell: Any, seconds: float) -> dict[str, Any]:
        """The driver's copy of half of the bytes to the other half: that moves all of them."""
        runtime = self.cupy.cuda.runtime
        memory = self.filled(cell.bytes * cell.sets)
        half = cell.bytes // 2

        def launch(index: int) -> None:
            source = memory.ptr + index % cell.sets * cell.bytes
            stream = self.cupy.cuda.get_current_stream().ptr
            runtime.memcpyAsync(source + half, source, half, runtime.memcpyDeviceToDevice, stream)

        return self.time(launch, cell.calls, seconds)

    def time(
        self, launch: Callable[[int], None], calls: int, seconds: float, samples: int = 5
    ) -> dict[str, Any]:
        """Captures ``launch(0)`` to ``launch(calls - 1)`` in one graph and times its replays."""
        cupy = self.cupy
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            launch(0)  # the module is loaded outside of the capture
            stream.synchronize()
            stream.begin_capture()
            for index in range(calls):
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
            times = [run(replays) / (replays * calls) for _ in range(samples)]
        return {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}

    def release(self) -> None:
        self.cupy.get_default_memory_pool().free_all_blocks()
