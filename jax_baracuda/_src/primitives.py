"""Primitives that are a kernel on CUDA and plain jnp elsewhere: what those of several ops share.

Nothing here asks a device anything, so a program can be lowered for CUDA where there is none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_baracuda._src import compat, registry, sharding

Results = tuple[jax.Array, ...]
Call = Callable[..., Results]


@dataclasses.dataclass(frozen=True)
class Op:
    """An op for inference: a function of arrays with static options and a tuple of results.

    Attributes:
      name: the public function.
      target: its FFI target, which also names the primitive.
      static: names of the options; the primitive has one more, ``insist`` (on CUDA).
      abstract_eval: avals and options -> avals of the results.
      kernel: the CUDA kernel on the arrays of one device.
      reference: the same in plain jnp.
      partitioned: puts the sharding rule around either of them.
      batch: the batching rule, given the primitive first.
    """

    name: str
    target: str
    static: tuple[str, ...]
    abstract_eval: Callable[..., Any]
    kernel: Call
    reference: Call
    partitioned: Callable[[Any], Any]
    batch: Callable[..., Any]


def define_pair(op: Op) -> tuple[Primitive, Primitive]:
    """One primitive for jit, where the sharding rule needs the devices, and one for shard_map.

    In shard_map nothing needs devices, and a program can be lowered for an AbstractMesh.
    """
    kernel = run_once(op.kernel)
    primitive = _define(op, op.target, op.partitioned(kernel))
    compat.require_devices_during_lowering(primitive)
    return primitive, _define(op, f"{op.target}_local", kernel)


def choose(pair: tuple[Primitive, Primitive]) -> Primitive:
    """The primitive of a pair that the surrounding context needs."""
    return pair[sharding.in_shard_map()]


def state_avals(operands: Sequence[Any], specs: Sequence[Any]) -> list[Any]:
    """Those of an output like the query, the first operand, and of its log-sum-exp [., Hq]."""
    query = operands[0]
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in operands))
    like = ((query.shape, query.dtype), (query.shape[:2], np.dtype(np.float32)))
    return [
        compat.output_aval(query, shape, dtype, spec, varying)
        for (shape, dtype), spec in zip(like, specs, strict=True)
    ]


def state_types(query: jax.Array) -> list[jax.ShapeDtypeStruct]:
    """The same results as an FFI call declares them."""
    return [
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        jax.ShapeDtypeStruct(query.shape[:2], np.float32),
    ]


def attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, plain Python numbers, as an FFI target takes them."""
    types: dict[type, Any] = {bool: bool, float: np.float32, int: np.int64}
    return {name: types[type(value)](value) for name, value in options.items()}


def run_once(kernel: Call) -> Call:
    """The kernel with a barrier behind it, which keeps XLA from running it twice.

    A scan over layers may keep a result of each layer, for its backward pass or for its caller. XLA
    makes one fusion of the call and of the write among those kept, and then one more call for
    whatever else reads the result.
    """

    @functools.wraps(kernel)
    def call(*operands: jax.Array, **options: Any) -> Results:
        return tuple(jax.lax.optimization_barrier(kernel(*operands, **options)))

    return call


def run_compiled(primitive: Primitive, static: Sequence[str]) -> None:
    """Outside of jit the primitive is compiled by itself: also where jax.disable_jit is on."""
    compiled = jax.jit(primitive.bind, static_argnames=static)

    def run(*operands: jax.Array, **params: Any) -> Any:
        with jax.disable_jit(False):
            return compiled(*operands, **params)

    primitive.def_impl(run)


def _define(op: Op, name: str, on_cuda: Call) -> Primitive:
    """A primitive that lowers to ``on_cuda`` for CUDA and to the reference elsewhere."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    run_compiled(primitive, (*op.static, "insist"))
    primitive.def_abstract_eval(op.abstract_eval)

    def cuda_lowering(*operands: jax.Array, insist: bool, **options: Any) -> Results:
        del insist
        registry.require(op.target)
        return on_cuda(*operands, **options)

    default = functools.partial(_default_lowering, op)
    for lowering, platform in ((cuda_lowering, "cuda"), (default, None)):
        rule = mlir.lower_fun(lowering, multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    ad.primitive_jvps[primitive] = functools.partial(_refuse_to_differentiate, op.name)
    batching.primitive_batchers[primitive] = functools.partial(op.batch, primitive)
    return primitive


def _default_lowering(op: Op, *operands: jax.Array, insist: bool, **options: Any) -> Results:
    if insist:
        raise NotImplementedError(
            f"{op.name}: implementation is 'cuda' and this program is compiled for another "
            "platform; supported there are None and 'reference'."
        )
    return op.reference(*operands, **options)


def _refuse_to_differentiate(name: str, primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise NotImplementedError(
        f"{name} is for inference and has no derivative. Supported is {name} with "
        "implementation='reference', which is plain jax.numpy."
    )
