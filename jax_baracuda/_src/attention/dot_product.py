"""dot_product_attention: jax.nn's function of that name, on the flash_attention kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_baracuda._src.attention import masked

Implementation = Literal["cuda", "reference", "xla", "cudnn"] | None
Window = int | tuple[int, int] | None


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: Window = None,
    implementation: Implementation = None,
    return_residual: Literal[False] = False,
) -> jax.Array: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: Window = None,
    implementation: Implementation = None,
    return_residual: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: Window = None,
    implementation: Implementation = None,
    return_residual: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""A drop-in for ``jax.nn.dot_product_attention``: its arguments, its rules, fused kernels.

    .. math:: out = \mathrm{softmax}(scale \; query \cdot key^T + bias) \; value

    Shapes, in jax.nn's letters: B batch, T queries, S keys, N query heads, K key/value heads (N a
    multiple of K; query head n reads head n // (N / K)), H head dimension.

    Args:
      query: [B, T, N, H] or [T, N, H].
      key: [B, S, K, H] or [S, K, H], the dtype of ``query``.
      value: like ``key``.
      bias: added to the scaled logits; 4-D and broadcastable to [B, N, T, S], or 3-D to
        [N, T, S]. It has a gradient, in its own shape.
      mask: booleans, shaped as ``bias``; True keeps a key. A mask beside a bias of another shape is
        written into the bias, which then has the shape of both together; only a mask of keys alone
        ([B, 1, 1, S]) stays apart and costs nothing.
      scale: factor on the logits; None for 1/sqrt(H).
      is_causal: query i sees keys j <= i, whatever T and S are: both count from the first row.
        (``flash_attention`` counts from the last row.)
      query_seq_lengths: int32 [B]; query rows from there on give 0.
      key_value_seq_lengths: int32 [B]; keys from there on are not seen.
      local_window_size: (left, right) or an int for both: query i sees keys i - left to i + right.
      implementation: None runs the CUDA kernels on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run them; "reference" is always plain jax.numpy; "xla" and "cudnn"
        are jax.nn's own, and call it.
      return_residual: also return the log-sum-exp of the logits.

    Returns:
      ``out``, in the shape and dtype of ``query``; with ``return_residual`` also the natural
      log-sum-exp, [B, T, N] or [T, N] in the dtype of ``key``, which has no gradient.

    What the kernels do not take goes to ``jax.nn.dot_product_attention`` itself, which holds all
    logits in memory: a dtype other than float16, bfloat16 and float32; H above 256; arrays
    without elements; a traced ``scale``; a ``local_window_size`` that is not made of ints >= 0; a
    complex bias. ``explain("dot_product_attention", ...)`` says so.

    Where the results differ from jax.nn's:

    - A query that sees no key (all of its keys are masked, or the length is 0) gives 0, has a
      log-sum-exp of -inf and passes no gradient on. jax.nn gives the mean of all values, masked
      ones too. A query row past ``query_seq_lengths`` gives 0 in both, and here also a log-sum-exp
      of -inf, where jax.nn has a large negative number.
    - Keys and values past ``key_value_seq_lengths`` may hold anything, even NaN.
    - float32 products are exact to float32 whatever ``jax_default_matmul_precision`` says, and
      16-bit ones are summed in float32.

    Raises:
      ValueError: at trace time, for shapes or dtypes that do not fit together.
      NotImplementedError: at trace time, with ``implementation="cuda"``, for what the kernels do
        not take.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernels.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda import dot_product_attention
      >>> x = jnp.ones((2, 128, 8, 64), jnp.bfloat16)
      >>> dot_product_attention(x, x, x, is_causal=True).shape
      (2, 128, 8, 64)

    Source: the function replaced is described at
    https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html.
    """
    operands = check_operands(
        query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths
    )
    obstacle = why_not(
        operands, scale=scale, local_window_size=local_window_size, implementation=implementation
    )
    if obstacle:
        # Looked up now, and untyped: its overloads do not know a union of implementations.
        jax_nn: Any = jax.nn.dot_product_attention
        result: jax.Array | tuple[jax.Array, jax.Array] = jax_nn(
            query,
            key,
            value,
            bias,
            mask,
            scale=scale,
            is_causal=is_causal,
            query_seq_lengths=query_seq_lengths,
            key_value_seq_lengths=key_value_seq_lengths,
            local_window_size=local_window_size,
            implementation=implementation if implementation in _JAX_NN else None,
            return_residual=return_residual,
        )
        return result
    out, lse = masked.attend(
        *operands,
        scale=_static_scale(scale),
        is_causal=bool(is_causal),
        local_window_size=_pair(local_window_size),
        implementation=implementation,  # type: ignore[arg-type]
    )
    shape = jnp.shape(query)
    out = out.reshape(shape)
    if not return_residual:
        return out
    residual = jnp.swapaxes(lse, 1, 2).astype(operands[1].dtype).reshape(shape[:-1])
    return out, jax.lax.stop_gradient(residual)


_JAX_NN = ("xla", "cudnn")
_IMPLEMENTATIONS = (None, "cuda", "reference", *_JAX_NN)


def check_operands(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, query_lengths: Any, kv_lengths: Any
) -> tuple[Any, ...]:
    """The operands as arrays, the first five [B, T, N, H] and so on; ValueError by name."""
    query, key, value = (_four_dimensional(array) for array in (query, key, value))
    bias, mask = (None if array is None else _four_dimensional(array) for array in (bias, mask))
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 4:
            raise ValueError(f"{name} has shape {array.shape}; it must have 4 dimensions, or 3.")
        if array.dtype != key.dtype:
            raise ValueError(
                f"{name} has dtype {array.dtype} and key has {key.dtype}; they must be equal."
            )
    batch, length, q_heads, head_dim = query.shape
    if (key.shape[0], key.shape[3]) != (batch, head_dim):
        raise ValueError(
            f"query has shape {query.shape} and key has {key.shape}; the batch and the head "
            "dimension must be equal."
        )
    if value.shape != key.shape:
        raise ValueError(f"value has shape {value.shape} and key has {key.shape}.")
    if not key.shape[2] or q_heads % key.shape[2]:
        raise ValueError(
            f"query has {q_heads} heads and key has {key.shape[2]}; the query heads must be a "
            "multiple of the key/value heads."
        )
    logits = (batch, q_heads, length, key.shape[1])
    for name, array in (("bias", bias), ("mask", mask)):
        if array is None:
            continue
        pairs = zip(array.shape, logits, strict=False)
        if array.ndim != 4 or any(given not in (1, size) for given, size in pairs):
            raise ValueError(
                f"{name} has shape {array.shape}; it must be broadcastable to [B, N, T, S] = "
                f"{logits}."
            )
    if mask is not None and mask.dtype != np.dtype(bool):
        raise ValueError(f"mask has dtype {mask.dtype}; it must be bool. A bias is added.")
    lengths = [
        None if array is None else _lengths(name, array, batch)
        for name, array in (
            ("query_seq_lengths", query_lengths),
            ("key_value_seq_lengths", kv_lengths),
        )
    ]
    return query, key, value, bias, mask, *lengths


def why_not(
    operands: Sequence[Any], *, scale: Any, local_window_size: Any, implementation: str | None
) -> str:
    """Why a call is left to jax.nn; empty if the kernels (or the reference) take it.

    Raises NotImplementedError instead where the kernels were insisted on.
    """
    if implementation not in _IMPLEMENTATIONS:
        given = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(f"implementation is {implementation!r}; supported are {given}.")
    if implementation in _JAX_NN:
        return f"implementation is {implementation!r}"
    query, key, value, bias, *_ = operands
    obstacle = masked.why_not(query, key, value, bias)
    if scale is not None and _static_scale(scale) is None:
        obstacle = "scale is not a finite Python number"
    if local_window_size is not None and _pair(local_window_size) is None:
        obstacle = f"local_window_size is {local_window_size!r}; supported are ints >= 0"
    if obstacle and implementation == "cuda":
        raise NotImplementedError(f"dot_product_attention on CUDA: {obstacle}.")
    return obstacle


def _four_dimensional(array: Any) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        array = jnp.asarray(array)
        return array.reshape((1,) * (4 - array.ndim) + array.shape)
    return jax.ShapeDtypeStruct((1,) * (4 - array.ndim) + array.shape, array.dtype)


def _lengths(name: str, array: Any, batch: int) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        array = jnp.asarray(array)
    if array.shape != (batch,) or array.dtype != np.dtype("int32"):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; it must be int32 [B] = "
            f"({batch},)."
        )
    return array


def _static_scale(scale: Any) -> float | None:
    """The scale as a Python number, None if it is not known now."""
    if scale is None or isinstance(scale, jax.core.Tracer) or np.ndim(scale):
        return None
    number = float(scale)
    return number if math.isfinite(number) else None


def _pair(window: Any) -> tuple[int, int] | None:
    sizes = (window, window) if isinstance(window, int) else window
    if not isinstance(sizes, (tuple, list)) or len(sizes) != 2:
        return None
    if not all(isinstance(size, (int, np.integer)) and size >= 0 for size in sizes):
        return None
    return int(sizes[0]), int(sizes[1])
