"""The engines of the int4 benchmark: cuBLAS on the dense weight, and four-bit weights on jax.

Every engine times one graph of calls that run one after another, each on a weight of its
own; the weights together are far larger than the L2 cache.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
from typing import Any

import numpy as np
import oracle
import peers
import turns
from workers import Engine

from jax_baracuda.testing import timing

_CUBLAS = "--xla_gpu_enable_triton_gemm=false"
MOST_WEIGHTS, TOTAL_BYTES, MOST_ROWS = 48, 1 << 30, 4096
MOST_OUTPUT_BYTES = 16 << 30
CHECKED_CHANNELS = 2048


@dataclasses.dataclass(frozen=True)
class Int4Cell:
    """One product: x [M, IC] with a weight [IC, OC]."""

    rows: int
    in_features: int
    out_features: int
    dtype: str = "float16"
    group_size: int = 128

    @property
    def name(self) -> str:
        """As in --cells: M x IC x OC."""
        return f"{self.rows}x{self.in_features}x{self.out_features}"

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.in_features * self.out_features

    def weight_bytes(self, impl: str) -> int:
        """What a call reads of its weight."""
        numbers = self.in_features * self.out_features
        if impl == "cublas":
            return 2 * numbers
        table = numbers // self.group_size
        return numbers // 2 + 2 * table + (table if impl == "jax_baracuda" else 0)

    def bytes(self, impl: str) -> int:
        """What a call moves: the weight, x and the result."""
        return self.weight_bytes(impl) + 2 * self.rows * (self.in_features + self.out_features)

    def weights(self, impl: str) -> int:
        """How many weights to rotate: a gigabyte, or 48, if the outputs fit."""
        wanted = min(MOST_WEIGHTS, math.ceil(TOTAL_BYTES / self.weight_bytes(impl)))
        fitting = MOST_OUTPUT_BYTES // max(1, 2 * self.rows * self.out_features)
        return max(1, min(wanted, fitting))

    def rounds(self, impl: str) -> int:
        """How often a program of ours goes over small weights: the host takes 0.3 ms for one, whose
        operands are many, and the GPU 5 us for a call."""
        if impl != "jax_baracuda" or self.rows > 64:
            return 1
        return max(1, min(4, round(1.5e9 / (self.weights(impl) * self.weight_bytes(impl)))))


class ProductEngine:
    """What the engines share: weights, programs and times."""

    def __init__(self, *flags: str) -> None:
        timing.add_xla_flags(timing.COMMAND_BUFFER_FLAG, timing.IN_ORDER_FLAG, *flags)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        fraction = "0.15" if turns.shared() else "0.45"
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
        import jax

        self.jax = jax
        self.layer: Any = None  # whose weights are held, by implementation
        self.held: dict[str, list[Any]] = {}
        self.exact: np.ndarray | None = None
        self.programs: dict[tuple[str, Int4Cell], Any] = {}

    def about(self) -> dict[str, Any]:
        """Versions and the GPU's name."""
        import jaxlib

        import jax_baracuda

        versions = {
            "jax_baracuda": jax_baracuda.__version__,
            "jax": self.jax.__version__,
            "jaxlib": jaxlib.__version__,
        }
        return {"gpu": self.jax.devices()[0].device_kind, "versions": versions}

    def prepare(self, impls: list[str], cell: Int4Cell) -> None:
        """Makes the weights, and compiles what XLA's compiler runs nothing on the GPU for: it tries
        kernels of others there, which must have it for themselves."""
        for impl in impls:
            self.weights(impl, cell)
        self.programs = {
            (impl, cell): self.compile(impl, cell) for impl in impls if impl == "jax_baracuda"
        }

    def compile(self, impl: str, cell: Int4Cell) -> Any:
        """A product with each of the weights, in the place of the results before."""
        jax, op = self.jax, OPS[impl]
        weights = self.weights(impl, cell)
        x = jax.ShapeDtypeStruct((cell.rows, cell.in_features), cell.dtype)
        results = [jax.ShapeDtypeStruct((cell.rows, cell.out_features), cell.dtype)] * len(weights)

        def products(before: Any, x: Any, weights: Any) -> Any:
            del before
            for _ in range(cell.rounds(impl) - 1):  # XLA leaves out what nothing looks at
                seen = [op(x, weight)[0, 0] for weight in weights]
                x = x + 0 * jax.numpy.stack(seen).sum()
            return [op(x, weight) for weight in weights]

        program = jax.jit(products, donate_argnums=0, keep_unused=True)
        return program.lower(results, x, weights).compile()

    def measure(self, impl: str, cell: Int4Cell, seconds: float) -> dict[str, Any]:
        """Times the calls; ours are checked first."""
        weights = self.weights(impl, cell)
        host = _activations(cell.in_features, cell.dtype, cell.rows)
        x = self.jax.device_put(host)
        result: dict[str, Any] = {"weights": len(weights)}
        compiled = self.programs.get((impl, cell)) or self.compile(impl, cell)
        shape = (cell.rows, cell.out_features)
        results = [self.jax.numpy.empty(shape, cell.dtype) for _ in weights]
        results = compiled(results, x, weights)
        if impl == "jax_baracuda":
            result["error_vs_float32"] = self.check(host, weights[0], results[0])
        calls = cell.rounds(impl) * len(weights)
        timed = timing.time_carried(compiled, results, (x, weights), calls=calls, seconds=seconds)
        return result | {"ms": timed.ms, "fastest": timed.fastest, "slowest": timed.slowest}

    def check(self, x: np.ndarray, weight: Any, out: Any) -> float:
        """The error of the last rows and of channels of all tiles, against float32 on the exact
        weight, which is kept."""
        step = max(1, out.shape[1] // CHECKED_CHANNELS) | 1  # odd: each place of a tile comes
        if self.exact is None:
            exact = self.jax.jit(lambda weight: weight.dequantize()[:, ::step])(weight)
            self.exact = np.asarray(exact, np.float32)
        want = x[-4:].astype(np.float32) @ self.exact
        got = np.asarray(out[-4:])[:, ::step].astype(np.float32)
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        return oracle.require(error, bound=5e-3)

    def weights(self, impl: str, cell: Int4Cell) -> list[Any]:
        """The weights of a layer; those of the last one are kept for other numbers of rows."""
        layer = dataclasses.replace(cell, rows=0)
        if self.layer != layer:
            self.release()
            self.layer = layer
        count = cell.weights(impl)
        held = self.held.setdefault(impl, [])
        if len(held) < count:
            make = self.jax.jit(functools.partial(MAKERS[impl], layer))
            keys = self.jax.random.split(self.jax.random.key(0), count)
            held[:] = self.jax.block_until_ready([make(key) for key in keys])
        return held[:count]

    def release(self) -> None:
        """Frees the weights."""
        self.layer, self.exact = None, None
        self.held.clear()
        self.programs.clear()


@functools.lru_cache(maxsize=1)
def _drawn(in_features: int, dtype: str) -> np.ndarray:
    import jax.numpy as jnp

    draws = np.random.default_rng(1).standard_normal((MOST_ROWS, in_features), np.float32)
    return draws.astype(jnp.dtype(dtype))


def _activations(in_features: int, dtype: str, rows: int) -> np.ndarray:
    """Drawn on the host: XLA would compile something for every number of rows."""
    return np.resize(_drawn(in_features, dtype), (rows, in_features))


def _dense(cell: Int4Cell, key: Any) -> Any:
    import jax

    shape = (cell.in_features, cell.out_features)
    return (jax.random.normal(key, shape) * cell.in_features**-0.5).astype(cell.dtype)


def _ours(cell: Int4Cell, key: Any) -> Any:
    from jax_baracuda.quant import Int4Weight

    return Int4Weight.quantize(_dense(cell, key), group_size=cell.group_size)


def _xla(cell: Int4Cell, key: Any) -> Any:
    """jnp.int4 [groups, group size, OC] and scales: symmetric, which is the least work for XLA."""
    import jax
    import jax.numpy as jnp

    groups = cell.in_features // cell.group_size
    bits = jax.random.randint(key, (groups, cell.group_size, cell.out_features), -8, 8, jnp.int8)
    scales = jnp.full((groups, 1, cell.out_features), cell.in_features**-0.5 / 5, cell.dtype)
    return bits.astype(jnp.int4), scales


def _multiply_dense(x: Any, weight: Any) -> Any:
    import jax.numpy as jnp

    return jnp.dot(x, weight)


def _multiply_ours(x: Any, weight: Any) -> Any:
    import jax_baracuda

    return jax_baracuda.int4_matmul(x, weight)


def _multiply_xla(x: Any, weight: Any) -> Any:
    import jax.numpy as jnp

    bits, scales = weight
    matrix = (bits.astype(x.dtype) * scales).reshape(-1, bits.shape[2])
    return jnp.dot(x, matrix)


OPS = {"cublas": _multiply_dense, "xla_int4": _multiply_xla, "jax_baracuda": _multiply_ours}
MAKERS = {"cublas": _dense, "xla_int4": _xla, "jax_baracuda": _ours}


class TorchEngine(peers.TorchEngine):
    """cuBLAS on dense weights through torch: the faster of the two ways that a weight may lie.

    In XLA's graphs a product with a small weight takes cuBLAS twice as long.
    """

    def prepare(self, impls: list[str], cell: Int4Cell) -> None:
        """Makes the weights."""
        del impls
        self.weights(cell)

    def weights(self, cell: Int4Cell) -> list[Any]:
        """Those of the last layer are kept for other numbers of rows."""
        layer = dataclasses.replace(cell, rows=0)
        if self.held != layer:
            self.release()
            self.held = layer
            self.data = [
                self.normal(cell, cell.out_features, cell.in_features) * cell.in_features**-0.5
                for _ in range(cell.weights("cublas"))
            ]
        return self.data[: cell.weights("cublas")]

    def normal(self, cell: Int4Cell, *shape: int) -> Any:
        """Normal numbers of the cell's dtype."""
        return self.torch.randn(shape, device="cuda", dtype=getattr(self.torch, cell.dtype))

    def measure(self, impl: str, cell: Int4Cell, seconds: float) -> dict[str, Any]:
        """Times the calls, one behind the other in a graph."""
        del impl
        weights = self.weights(cell)
        x, results = self.normal(cell, cell.rows, cell.in_features), []
        outs = [self.normal(cell, cell.rows, cell.out_features) for _ in weights]
        for matrices in (
            [weight.t() for weight in weights],
            [weight.view(cell.in_features, cell.out_features) for weight in weights],
        ):
            calls = [
                functools.partial(self.torch.mm, x, matrix, out=out)
                for matrix, out in zip(matrices, outs, strict=True)
            ]
            results.append(self.time(calls, seconds / 2))
        return min(results, key=lambda numbers: numbers["ms"]) | {"weights": len(weights)}


def cublas_engine() -> Engine:
    """Dense products are left to cuBLAS, and not to XLA's own kernels."""
    return TorchEngine() if importlib.util.find_spec("torch") else ProductEngine(_CUBLAS)


def int4_engine() -> Engine:
    """XLA fuses the conversion of int4 as it likes."""
    return ProductEngine()


ENGINES = {"cublas": cublas_engine, "int4": int4_engine}
# Which engine an implementation runs in, in the order in which a cell is measured.
IMPLS = {"cublas": "cublas", "jax_baracuda": "int4", "xla_int4": "int4"}
