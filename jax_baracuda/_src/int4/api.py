"""int4_matmul and int4_awq_matmul, the public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert, validation
from jax_baracuda._src.int4 import partition, shapes
from jax_baracuda._src.int4.primitive import int4_matmul_call, reference_call
from jax_baracuda._src.int4.weight import Int4Weight

Implementation = Literal["cuda", "reference"] | None


def int4_matmul(
    x: ArrayLike,
    weight: Int4Weight,
    *,
    bias: ArrayLike | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    r"""The product of activations with a weight of four-bit numbers, ``x @ weight + bias``.

    .. math:: out_{m,o} = \sum_i x_{m,i} (q_{i,o} - z_{G,o}) s_{G,o} + bias_o

    where G is the group of input channel i. The weight is read as it is stored, half a byte a
    number; sums are in float32. The result is deterministic.

    Args:
      x: [..., IC], float16, bfloat16 or float32; any leading dimensions, which may be 0. The
        kernels take the first two; float32 runs on the dequantised weight, in plain jax.numpy.
      weight: a ``jax_baracuda.quant.Int4Weight`` of shape (IC, OC). Its scales are used in the
        dtype of ``x``: keep them in it (``weight.astype``), or every call converts them. With an
        ``order`` (GPTQ's act-order), the columns of ``x`` are gathered first.
      bias: [OC] floats, added in float32; or None.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy, on the exact
        weight in float32.

    Returns:
      [..., OC] in the dtype of ``x``. NaN and infinities in a row of ``x`` stay in that row.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for another dtype; for float32 with
        ``implementation="cuda"``; when compiled for another platform with it; on a GPU, in
        ``shard_map`` over a part of the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel.

    Transformations: differentiable in ``x`` and ``bias``, in both modes. The weight is frozen: its
    nibbles are integers, and the gradient of its scales is 0. The gradient of ``x`` is
    ``dy @ weight.T`` on the weight dequantised to the dtype of ``x``. ``vmap`` of ``x`` gives more
    rows; ``vmap`` of weights is a loop over them. Stacked weights ``scan`` as they are.

    Under ``jit``, the rows of ``x`` may be sharded, the output channels (each device makes its
    columns) and the input channels (each device makes a part of the sums, which are then added):
    docs/quant.md says how. In ``shard_map``, a device's part of a weight is a weight, and the sum
    over input channels is the caller's (``jax.lax.psum``).

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda import int4_matmul
      >>> from jax_baracuda.quant import Int4Weight
      >>> weight = Int4Weight.quantize(jnp.ones((256, 512), jnp.bfloat16))
      >>> out = jax.jit(int4_matmul)(jnp.ones((2, 3, 256), jnp.bfloat16), weight)
      >>> out.shape, out.dtype, float(out[0, 0, 0])
      ((2, 3, 512), dtype(bfloat16), 256.0)

    Sources: AWQ, J. Lin et al., 2023, arXiv:2306.00978; GPTQ, E. Frantar et al., 2022,
    arXiv:2210.17323; mixed-precision products, E. Frantar et al., "MARLIN", 2024, arXiv:2408.11743.
    """
    validation.check_implementation(implementation)
    x, added = convert.array("x", x), convert.optional("bias", bias)
    shape = shapes.check_operands(x, weight, added)
    if implementation == "cuda":
        shapes.check_kernel_dtype(shape)
    elif shape.dtype not in shapes.KERNEL_DTYPES:
        implementation = "reference"
    if weight.order is not None:
        x = jnp.take(x, weight.order, axis=-1)
    product: Callable[..., Any] = functools.partial(reference_call, **shape.options)
    if implementation != "reference":
        insist = implementation == "cuda"
        product = functools.partial(int4_matmul_call, **shape.options, insist=insist)
    operands = compat.match_varying(
        x,
        weight.packed,
        jax.lax.stop_gradient(weight.scales).astype(x.dtype),
        weight.zeros,
        jnp.zeros((0,), x.dtype) if added is None else added.astype(x.dtype),
    )
    return partition.in_auto_mode(functools.partial(_by_rows, product), operands)


def _by_rows(product: Callable[..., Any], x: jax.Array, *weight: jax.Array) -> tuple[jax.Array]:
    """The product of [..., IC] as one of [M, K], K a multiple of what the kernels read at once."""
    leading, columns = x.shape[:-1], x.shape[-1]
    rows = x.reshape(shapes.count(leading), columns)
    if columns % shapes.X_COLUMNS:
        rows = jnp.pad(rows, ((0, 0), (0, -columns % shapes.X_COLUMNS)))
    (out,) = product(rows, *weight)
    return (out.reshape(*leading, out.shape[-1]),)


def int4_awq_matmul(
    activation: ArrayLike,
    weight_packed: ArrayLike,
    scales: ArrayLike,
    zeros: ArrayLike,
    *,
    group_size: int = 128,
    split_k_iters: int = 8,
) -> jax.Array:
    """``int4_matmul`` on a weight in the plain layout, which every call puts into the kernels' own.

    That costs a pass over the weight. In a loop, make ``quant.Int4Weight.from_packed`` of the same
    operands once, and call ``int4_matmul``: the result is the same.

    Args:
      activation: [M, IC], float16, bfloat16 or float32.
      weight_packed: int32 [OC, IC/8], eight input channels a word, the first in the low nibble.
      scales: float [IC/g, OC].
      zeros: int32 [IC/g, OC/8], eight output channels a word.
      group_size: g, a multiple of 32; -1 for one group.
      split_k_iters: an int >= 1. It has no effect: how a sum is split is chosen by shapes.

    Returns:
      [M, OC] in the dtype of ``activation``.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError, RuntimeError: as ``int4_matmul``.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda import int4_awq_matmul
      >>> words = jnp.full((64, 32), 0x33333333, jnp.int32)  # 3 everywhere
      >>> zeros = jnp.full((2, 8), 0x11111111, jnp.int32)  # 1 everywhere
      >>> x = jnp.ones((4, 256), jnp.bfloat16)
      >>> out = int4_awq_matmul(x, words, jnp.ones((2, 64), jnp.bfloat16), zeros)
      >>> out.shape, float(out[0, 0])
      ((4, 64), 512.0)

    Source: AWQ, J. Lin et al., 2023, arXiv:2306.00978.
    """
    activation = convert.array("activation", activation)
    words = convert.array("weight_packed", weight_packed)
    shapes.check_raw_operands(activation, words, split_k_iters)
    weight = Int4Weight.from_packed(words, scales, zeros, group_size=group_size)
    return int4_matmul(activation, weight)
