"""The engines of the attention benchmark: ours and its peers, on jax and on torch.

Every engine times the same thing on the same layout, [B, S, H, D] in bf16: calls one after another,
queued ahead of the GPU. The backward pass alone starts from what the forward pass saved. No
framework is imported before its engine is made.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import importlib.util
import math
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import be_nice
from workers import Engine

PASSES = ("fwd", "bwd", "fwdbwd")
SAMPLES = 5
# Of the call itself, before it is timed: after a pause the GPU is faster than its power limit
# allows for long, and not every implementation follows a pause.
WARM_SECONDS = 0.05
# Numbers in the largest query, and of how many queries and cotangents a program may take one each.
_NUMBERS, _VARIANTS = 16384 * 4096, 8
# Sequences that have as many rows and as many visible pairs as four of 4096.
UNEVEN = (2100, 6600, 787, 3600, 1400, 1897)
SOFT_CAP = 20.0


@dataclasses.dataclass(frozen=True)
class AttentionCell:
    """One point of the grid: bf16, as many queries as keys."""

    length: int
    head_dim: int
    causal: bool
    query_heads: int
    kv_heads: int
    batch: int
    window: int = 0  # how many keys a query sees, its own included; 0: no window
    variant: str = ""  # what the call has besides: one of VARIANTS, measured on ours alone

    @property
    def name(self) -> str:
        """As in --cells."""
        mask = f"window{self.window}" if self.window else "causal" if self.causal else "full"
        heads = f"-{self.query_heads}x{self.kv_heads}" if self.query_heads > self.kv_heads else ""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.length}-{self.head_dim}-{mask}{heads}{variant}"

    @property
    def passes(self) -> tuple[str, ...]:
        """Those that the variant is of."""
        return PASSES[1:] if self.variant == "deterministic" else PASSES

    @property
    def checked(self) -> bool:
        """Whether results are compared with float32's: not those of dropped weights."""
        return self.variant != "dropout"

    @property
    def alone(self) -> bool:
        """Whether only ours is measured."""
        return bool(self.window or self.variant)

    def flops(self, passes: str) -> float:
        """4 S S D H B, half of it under a causal mask; the backward pass takes 2.5 times that."""
        pairs = self.length**2 / (2 if self.causal else 1)
        if self.window:
            pairs = self.window * self.length - self.window * (self.window - 1) / 2
        forward = 4 * pairs * self.head_dim * self.query_heads * self.batch
        return forward * {"fwd": 1, "bwd": 2.5, "fwdbwd": 3.5}[passes]

    def calls(self, passes: str) -> int:
        """Calls a program: about two milliseconds of them, at most the variants there are."""
        return int(min(_VARIANTS, max(1, 2e-3 * 400e12 / self.flops(passes))))

    @property
    def q_shape(self) -> tuple[int, int, int, int]:
        """[B, S, Hq, D]."""
        return self.batch, self.length, self.query_heads, self.head_dim

    @property
    def kv_shape(self) -> tuple[int, int, int, int]:
        """[B, S, Hkv, D]."""
        return self.batch, self.length, self.kv_heads, self.head_dim


def grid_cell(length: int, head_dim: int, causal: bool, **fields: Any) -> AttentionCell:
    """A cell with B * S = 16384 and H * D = 2048."""
    heads = 2048 // head_dim
    return AttentionCell(length, head_dim, causal, heads, heads, 16384 // length, **fields)


def _row_bias(cell: AttentionCell) -> np.ndarray:
    """[1, H, 1, K], in waves."""
    heads, keys = np.arange(cell.query_heads)[:, None], np.arange(cell.length)
    return np.sin(keys + heads).astype(np.float32)[None, :, None]


def _full_bias(cell: AttentionCell) -> np.ndarray:
    """[1, 1, S, K] in the inputs' 16 bits, in waves: a bias of its own for every query and key."""
    import ml_dtypes

    places = np.arange(cell.length)
    waves = np.sin(places + 3 * places[:, None], dtype=np.float32)
    return waves.astype(ml_dtypes.bfloat16)[None, None]


def _slopes(cell: AttentionCell) -> np.ndarray:
    return np.exp2(-np.arange(1, cell.query_heads + 1) / 2).astype(np.float32)


# Name -> further arguments of a call.
VARIANTS: dict[str, Callable[[AttentionCell], dict[str, Any]]] = {
    "deterministic": lambda cell: {"deterministic": True},
    "soft-cap": lambda cell: {"logits_soft_cap": SOFT_CAP},
    "alibi": lambda cell: {"alibi_slopes": _slopes(cell)},
    "bias": lambda cell: {"bias": _row_bias(cell)},
    "bias-full": lambda cell: {"bias": _full_bias(cell)},
    "dropout": lambda cell: {"dropout_rate": 0.1, "dropout_seed": np.array([3, 5], np.uint32)},
    "uneven": lambda cell: {},
    "portable": lambda cell: {},
}


class JaxEngine:
    """Ours, jax.nn through cuDNN, FlashAttention-2's code in JAX, and tokamax."""

    def __init__(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.70")
        from jax_baracuda.testing import timing

        timing.add_xla_flags(timing.COMMAND_BUFFER_FLAG, timing.IN_ORDER_FLAG)
        import jax

        self.jax, self.timing = jax, timing
        self.programs: dict[tuple[str, str, AttentionCell], Any] = {}
        self.drawn: list[Any] = []
        self.data: Any = None  # the inputs of the cell

    def about(self) -> dict[str, Any]:
        import jaxlib

        import jax_baracuda

        versions = {
            "jax_baracuda": jax_baracuda.__version__,
            "jax": self.jax.__version__,
            "jaxlib": jaxlib.__version__,
        }
        for name in ("flash_attn_jax", "tokamax"):
            if importlib.util.find_spec(name):
                versions[name] = importlib.metadata.version(name.replace("_", "-"))
        return {"gpu": self.jax.devices()[0].device_kind, "versions": versions}

    def op(self, impl: str, cell: AttentionCell) -> Callable[[Any, Any, Any], Any]:
        """A function (query, key, value) -> out."""
        if impl == "jax_baracuda":
            return {"uneven": _packed, "portable": _portable}.get(cell.variant, _ours)(cell)
        if cell.alone:
            raise ValueError("windows and variants are measured on ours alone")
        if impl == "jax_cudnn":
            return functools.partial(
                self.jax.nn.dot_product_attention, is_causal=cell.causal, implementation="cudnn"
            )
        if impl == "flash_attn_jax":
            import flash_attn_jax

            return functools.partial(flash_attn_jax.flash_mha, is_causal=cell.causal)
        if impl == "tokamax":
            import tokamax

            return functools.partial(tokamax.dot_product_attention, is_causal=cell.causal)
        raise ValueError(f"unknown implementation {impl!r}")

    def prepare(self, jobs: list[tuple[str, str]], cell: AttentionCell) -> None:
        """Compiles the programs of (implementation, pass) side by side; errors show in measure.

        And all that a cell needs besides: what compiles later does so while others wait.
        """
        self.release()
        self.draw()
        builds: list[tuple[str, str]] = [*jobs, ("inputs", "")]
        if cell.checked and ("jax_baracuda", "fwdbwd") in jobs:
            builds.append(("oracle", ""))

        def build(job: tuple[str, str]) -> None:
            try:
                self.programs[*job, cell] = self.compile(*job, cell)
            except Exception as error:
                self.programs[*job, cell] = error

        with concurrent.futures.ThreadPoolExecutor(len(builds), initializer=be_nice) as pool:
            list(pool.map(build, builds))

    def program(self, impl: str, passes: str, cell: AttentionCell) -> Any:
        """What ``prepare`` made, or the error; compiled now if a worker before this one made it."""
        key = (impl, passes, cell)
        if key not in self.programs:
            self.programs[key] = self.compile(*key)
        if isinstance(self.programs[key], Exception):
            raise self.programs[key]
        return self.programs[key]

    def compile(self, impl: str, passes: str, cell: AttentionCell) -> Any:
        """A program of ``cell.calls`` calls, and for the backward pass one of the residuals."""
        if impl in ("inputs", "oracle"):
            return getattr(self, impl)(cell)
        jax = self.jax
        op = self.op(impl, cell)
        bfloat16 = jax.numpy.bfloat16
        query = jax.ShapeDtypeStruct(cell.q_shape, bfloat16)
        key = jax.ShapeDtypeStruct(cell.kv_shape, bfloat16)
        many = (query,) * cell.calls(passes)
        if passes == "fwd":
            return (compiled(jax, op, many, key, key),)
        if passes == "fwdbwd":

            def both(q: Any, k: Any, v: Any, dout: Any) -> Any:
                out, pull = jax.vjp(op, q, k, v)
                return out, *pull(dout)

            return (compiled(jax, both, many, key, key, query),)
        tree: Any = None

        def residuals(q: Any, k: Any, v: Any) -> Any:
            nonlocal tree
            _, pull = jax.vjp(op, q, k, v)
            leaves, tree = jax.tree.flatten(pull)
            return leaves

        save = jax.jit(residuals).lower(query, key, key)
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in save.out_info]

        def backward(dout: Any, *leaves: Any) -> Any:
            return jax.tree.unflatten(tree, leaves)(dout)

        return compiled(jax, backward, many, *leaves), save.compile()

    def measure(
        self, impl: str, passes: str, cell: AttentionCell, seconds: float
    ) -> dict[str, Any]:
        programs = self.program(impl, passes, cell)
        calls = cell.calls(passes)
        if self.data is None:
            self.data = self.jax.block_until_ready(self.program("inputs", "", cell)(self.draw()))
        queries, key, value, douts = self.data
        queries, douts = queries[:calls], douts[:calls]
        result: dict[str, Any] = {}
        if passes == "fwd":
            operands: tuple[Any, ...] = (queries, key, value)
        elif passes == "bwd":
            operands = (douts, *programs[1](queries[0], key, value))
        else:
            operands = (queries, key, value, douts[0])
        program, time = programs[0], self.timing.time_carried
        if impl == "jax_baracuda" and passes == "fwdbwd" and cell.checked:
            got = program(empty(self.jax, program), *operands)
            result["error_vs_float32"] = self.check(cell, got, operands)
            del got
        for length, samples in ((WARM_SECONDS, 1), (seconds, SAMPLES)):
            before = empty(self.jax, program)
            timing = time(program, before, operands, calls=calls, seconds=length, samples=samples)
        return result | {"ms": timing.ms, "fastest": timing.fastest, "slowest": timing.slowest}

    def draw(self) -> list[Any]:
        """The numbers that all cells cut their inputs from."""
        if not self.drawn:
            jax = self.jax
            normal = jax.jit(lambda key: jax.random.normal(key, (_NUMBERS,), jax.numpy.bfloat16))
            self.drawn = [normal(jax.random.key(index)) for index in range(2 + 2 * _VARIANTS)]
        return self.drawn

    def inputs(self, cell: AttentionCell) -> Any:
        """What cuts queries, a key, a value and cotangents from those numbers, compiled."""
        jax = self.jax
        calls = max(cell.calls(passes) for passes in PASSES)

        def cut(drawn: Any) -> Any:
            def rows(index: int, shape: tuple[int, ...]) -> Any:
                return drawn[index][: math.prod(shape)].reshape(shape)

            queries = tuple(rows(2 + i, cell.q_shape) for i in range(calls))
            douts = tuple(rows(2 + _VARIANTS + i, cell.q_shape) for i in range(calls))
            return queries, rows(0, cell.kv_shape), rows(1, cell.kv_shape), douts

        numbers = jax.ShapeDtypeStruct((_NUMBERS,), jax.numpy.bfloat16)
        return jax.jit(cut).lower([numbers] * (2 + 2 * _VARIANTS)).compile()

    def oracle(self, cell: AttentionCell) -> Any:
        """The relative errors of output and query gradient, of the last queries of the last head.

        A compiled function of a query, the key, the value, the cotangent and the two results. In
        float32, by sums of products without a matrix product, for which XLA would try kernels on
        the GPU that the other worker is measuring on.
        """
        jax, jnp = self.jax, self.jax.numpy
        rows = min(128, UNEVEN[-1] if cell.variant == "uneven" else cell.length)

        def exact(q: Any, k: Any, v: Any, dout: Any) -> Any:
            distance = jnp.arange(cell.length - rows, cell.length)[:, None] - jnp.arange(
                cell.length
            )
            seen = (distance >= 0) | (not cell.causal)
            if cell.window:
                seen &= distance < cell.window
            if cell.variant == "uneven":  # the last sequence of several in the last rows
                seen &= jnp.arange(cell.length) >= cell.length - UNEVEN[-1]

            def attend(q: Any) -> Any:
                scores = jnp.sum(q[:, None] * k[None], axis=-1) * q.shape[-1] ** -0.5
                if cell.variant == "soft-cap":
                    scores = SOFT_CAP * jnp.tanh(scores / SOFT_CAP)
                if cell.variant == "alibi":
                    scores -= float(_slopes(cell)[-1]) * jnp.abs(distance)
                if cell.variant == "bias":
                    scores += _row_bias(cell)[0, -1]
                if cell.variant == "bias-full":
                    scores += _full_bias(cell)[0, 0, -rows:].astype(np.float32)
                weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
                return jnp.sum(weights[:, :, None] * v[None], axis=1)

            out, pull = jax.vjp(attend, q)
            return out, pull(dout)[0]

        def head(array: Any, rows: int) -> Any:
            return array[-1, -rows:, -1].astype(jnp.float32)

        def errors(q: Any, k: Any, v: Any, dout: Any, *got: Any) -> Any:
            keys = (head(array, cell.length) for array in (k, v))
            expected = exact(head(q, rows), *keys, head(dout, rows))
            return [
                jnp.linalg.norm(head(mine, rows) - want) / jnp.linalg.norm(want)
                for mine, want in zip(got, expected, strict=True)
            ]

        query, key = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (cell.q_shape, cell.kv_shape)
        )
        return jax.jit(errors).lower(query, key, key, query, query, query).compile()

    def check(self, cell: AttentionCell, results: Any, operands: Any) -> float:
        """How far the first call's results are from the exact ones; a wrong kernel has no time."""
        queries, key, value, dout = operands
        got = results[0][:2]  # of the first query: the output and its gradient
        found = self.program("oracle", "", cell)(queries[0], key, value, dout, *got)
        errors = [float(error) for error in found]
        if not max(errors) < 2e-2:
            raise RuntimeError(f"wrong result: relative errors of out and dquery {errors}")
        return max(errors)

    def release(self) -> None:
        self.programs.clear()
        self.data = None


def _ours(cell: AttentionCell) -> Callable[..., Any]:
    import jax_baracuda

    return functools.partial(
        jax_baracuda.flash_attention,
        is_causal=cell.causal,
        local_window_size=(cell.window - 1, 0) if cell.window else None,
        **(VARIANTS[cell.variant](cell) if cell.variant else {}),
    )


def _packed(cell: AttentionCell) -> Callable[..., Any]:
    """The same rows as sequences of other lengths, one behind the other."""
    import jax_baracuda

    assert sum(UNEVEN) == cell.batch * cell.length
    bounds = np.cumsum((0, *UNEVEN)).astype(np.int32)

    def op(query: Any, key: Any, value: Any) -> Any:
        rows = [x.reshape(-1, *x.shape[2:]) for x in (query, key, value)]
        longest = max(UNEVEN)
        out = jax_baracuda.flash_attention_varlen(
            *rows,
            bounds,
            bounds,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            is_causal=cell.causal,
        )
        return out.reshape(query.shape)

    return op


def _portable(cell: AttentionCell) -> Callable[..., Any]:
    """The kernels that every GPU has, on one that has its own."""
    import jax
    import jax.numpy as jnp

    from jax_baracuda._src.attention import primitive, shapes

    options = shapes.check_options(cell.head_dim, is_causal=cell.causal)

    def call(kind: Any, **operands: Any) -> Any:
        missing = jnp.zeros((0,), jnp.float32)
        arrays = [operands.get(name, missing) for name in shapes.OPERANDS[kind]]
        return primitive.kernel_call(kind, *arrays, portable=True, **options)

    @jax.custom_vjp
    def attend(query: Any, key: Any, value: Any) -> Any:
        return forward(query, key, value)[0]

    def forward(query: Any, key: Any, value: Any) -> tuple[Any, dict[str, Any]]:
        operands = {"query": query, "key": key, "value": value}
        out, lse = call("forward", **operands)
        return out, operands | {"out": out, "lse": lse}

    def backward(saved: dict[str, Any], dout: Any) -> tuple[Any, ...]:
        return tuple(call("backward", dout=dout, **saved)[:3])

    attend.defvjp(forward, backward)
    return attend


def compiled(jax: Any, op: Any, variants: Any, *rest: Any) -> Any:
    """A compiled program of one call for each of the variants of the first operand.

    Its own first operand is the results of the run before, whose place it takes. ``empty`` makes
    the first ones.
    """

    def calls(variants: Any, *rest: Any) -> Any:
        return [op(variant, *rest) for variant in variants]

    def program(before: Any, variants: Any, *rest: Any) -> Any:
        del before
        return calls(variants, *rest)

    before = jax.eval_shape(calls, variants, *rest)
    in_place = jax.jit(program, donate_argnums=0, keep_unused=True)
    return in_place.lower(before, variants, *rest).compile()


def empty(jax: Any, program: Any) -> Any:
    """What a ``compiled`` program takes for the results of a run before the first."""
    return jax.tree.map(lambda like: jax.numpy.zeros(like.shape, like.dtype), program.out_info)


class TorchEngine:
    """torch's scaled_dot_product_attention through cuDNN and through FlashAttention-2's code."""

    BACKENDS = {"torch_cudnn": "CUDNN_ATTENTION", "torch_flash": "FLASH_ATTENTION"}  # noqa: RUF012

    def __init__(self) -> None:
        import torch
        import torch.nn.attention

        self.torch = torch
        self.held: AttentionCell | None = None
        self.data: Any = None

    def about(self) -> dict[str, Any]:
        torch = self.torch
        versions = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }
        return {"gpu": torch.cuda.get_device_name(), "versions": versions}

    def prepare(self, jobs: list[tuple[str, str]], cell: AttentionCell) -> None:
        del jobs, cell

    def inputs(self, cell: AttentionCell) -> Any:
        """Query, key, value and the output's cotangent, [B, H, S, D] views of [B, S, H, D]."""
        if self.held != cell:
            self.release()
            torch = self.torch
            torch.manual_seed(0)
            shapes = (cell.q_shape, cell.kv_shape, cell.kv_shape, cell.q_shape)
            normal = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
            q, k, v, dout = (normal(shape).transpose(1, 2) for shape in shapes)
            self.data = (*(x.requires_grad_() for x in (q, k, v)), dout)
            self.held = cell
        return self.data

    def measure(
        self, impl: str, passes: str, cell: AttentionCell, seconds: float
    ) -> dict[str, Any]:
        torch = self.torch
        if cell.alone:
            raise ValueError("windows and variants are measured on ours alone")
        query, key, value, dout = self.inputs(cell)
        backend = getattr(torch.nn.attention.SDPBackend, self.BACKENDS[impl])

        def forward() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=cell.causal,
                enable_gqa=cell.query_heads != cell.kv_heads,
            )

        def backward(out: Any, retain: bool) -> Any:
            return torch.autograd.grad(out, (query, key, value), dout, retain_graph=retain)

        with torch.nn.attention.sdpa_kernel([backend]):
            if passes == "fwd":
                with torch.no_grad():
                    return self.time(forward, seconds)
            if passes == "fwdbwd":
                return self.time(lambda: backward(forward(), False), seconds)
            out = forward()
            return self.time(lambda: backward(out, True), seconds)

    def time(self, call: Callable[[], Any], seconds: float) -> dict[str, Any]:
        """The median of some samples, each the events around a queue of calls."""
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def run(count: int) -> float:
            torch.cuda.synchronize()
            call()  # the GPU is at work when the clock starts
            start.record()
            for _ in range(count):
                call()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        run(2)
        once = min(run(1), run(2) / 2)
        run(max(1, round(WARM_SECONDS * 1e3 / once)))
        count = max(1, round(seconds * 1e3 / SAMPLES / once))
        times = [run(count) / count for _ in range(SAMPLES)]
        return {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}

    def release(self) -> None:
        self.held = self.data = None
        self.torch.cuda.empty_cache()


ENGINES: dict[str, type[Engine]] = {"torch": TorchEngine, "jax": JaxEngine}
# Which engine an implementation runs in, in the order in which a cell is measured.
IMPLS = {
    "torch_cudnn": "torch",
    "torch_flash": "torch",
    "jax_baracuda": "jax",
    "jax_cudnn": "jax",
    "flash_attn_jax": "jax",
    "tokamax": "jax",
}
OPTIONAL = ("flash_attn_jax", "tokamax")
