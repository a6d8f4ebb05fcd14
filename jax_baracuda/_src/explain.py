"""explain: which kernel a call would run, without running it. One private function an op."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jax_baracuda._src import compat, registry, validation
from jax_baracuda._src.attention import dot_product, masked
from jax_baracuda._src.attention import shapes as attention_shapes
from jax_baracuda._src.attention.call import check_seed_shape
from jax_baracuda._src.decode import shapes as decode_shapes


@dataclasses.dataclass(frozen=True)
class KernelInfo:
    """What a call would run.

    Attributes:
      op: the public function, such as "flash_decode".
      name: the kernel, or "reference" for plain jax.numpy.
      implementation: "cuda" or "reference"; "xla" or "cudnn" for a call that is left to jax.nn.
      arch: the CUDA architecture of the build that would serve the GPU of this process, such as
        "90a"; None on the reference, without a GPU, and where no built architecture fits it.
      dtype: of the operands and of the output.
      accumulator: the dtype of sums and of the softmax.
      deterministic: whether equal calls give equal bits, gradients included.
      batch_invariant: whether the bits of a request do not depend on the rest of the batch.
      workspace_bytes: scratch memory of a call on one device.
      note: why this kernel; and, where the call would raise, why.
    """

    op: str
    name: str
    implementation: str
    arch: str | None
    dtype: str
    accumulator: str
    deterministic: bool
    batch_invariant: bool
    workspace_bytes: int
    note: str


def explain(fn_name: str, *avals: Any, **options: Any) -> KernelInfo:
    """Which kernel ``getattr(jax_baracuda, fn_name)(*avals, **options)`` would run in this process.

    Nothing is run or compiled. Without a GPU it tells of the reference; ``implementation="cuda"``
    tells of the CUDA kernel on any machine.

    Args:
      fn_name: the name of a public function, such as "flash_attention".
      *avals: its array arguments: arrays, or anything with a shape and a dtype, such as
        ``jax.ShapeDtypeStruct``.
      **options: its keyword arguments, as for the call itself.

    Returns:
      A ``KernelInfo``.

    Raises:
      ValueError: for an unknown function.
      Exception: whatever the call itself would raise for its arguments.

    Example::

      >>> import jax, jax_baracuda
      >>> query = jax.ShapeDtypeStruct((2, 32, 128), "bfloat16")
      >>> cache = jax.ShapeDtypeStruct((2, 8, 4096, 128), "bfloat16")
      >>> jax_baracuda.explain("flash_decode", query, cache, cache, implementation="cuda").name
      'flash_decode_mma'
    """
    if fn_name not in _OPS:
        raise ValueError(f"fn_name is {fn_name!r}; supported are {', '.join(map(repr, _OPS))}.")
    return _OPS[fn_name](*avals, **options)


def _flash_decode(
    query: Any,
    key: Any,
    value: Any,
    kv_lengths: Any = None,
    *,
    kv_layout: str = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: Any = None,
    alibi_slopes: Any = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> KernelInfo:
    del return_lse
    validation.check_implementation(implementation)
    operands = map(_aval, (query, key, value, kv_lengths, sinks, alibi_slopes))
    shape = decode_shapes.check_operands(*operands, kv_layout=kv_layout)
    options = decode_shapes.check_options(
        shape.head_dim,
        kv_layout=kv_layout,
        scale=scale,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        num_splits=num_splits,
    )
    if not _runs_on_cuda(implementation):
        return _reference("flash_decode", shape.dtype, implementation)
    splits = options["num_splits"]
    if shape.dtype == "float32":
        name, why = "flash_decode_simt", "float32 products, on CUDA cores"
    else:
        name, why = "flash_decode_mma", f"{shape.dtype} products, on tensor cores"
    parts = f"{splits} parts" if splits else "parts chosen by occupancy"
    return KernelInfo(
        op="flash_decode",
        name=name,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=shape.dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=splits > 0,
        workspace_bytes=decode_shapes.workspace_bytes(shape, splits),
        note=f"{why}; each cache in {parts}{_obstacle(registry.FLASH_DECODE)}",
    )


def _flash_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    implementation: str | None = None,
    return_lse: bool = False,
    **options: Any,
) -> KernelInfo:
    del return_lse
    query, key, value = map(_aval, (query, key, value))
    arrays = _take_arrays(options)
    shape = attention_shapes.check_operands(query, key, value, **arrays)
    static = attention_shapes.check_options(shape.head_dim, **options)
    return _attention("flash_attention", shape, static, implementation, arrays)


def _flash_attention_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    implementation: str | None = None,
    return_lse: bool = False,
    **options: Any,
) -> KernelInfo:
    del return_lse
    query, key, value = map(_aval, (query, key, value))
    bounds = dict(cu_seqlens_q=_aval(cu_seqlens_q), cu_seqlens_k=_aval(cu_seqlens_k))
    arrays = _take_arrays(options)
    longest: dict[str, Any] = dict(max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)
    shape = attention_shapes.check_packed_operands(query, key, value, **bounds, **longest, **arrays)
    static = attention_shapes.check_options(shape.head_dim, **longest, **options)
    return _attention("flash_attention_varlen", shape, static, implementation, arrays)


def _dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: Any = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> KernelInfo:
    del is_causal, return_residual
    arrays = (query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    avals = (None if array is None else _aval(array) for array in arrays)
    operands = dot_product.check_operands(
        *(aval and jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    )
    query, key, value, bias, mask, *_ = operands
    obstacle = dot_product.why_not(
        operands, scale=scale, local_window_size=local_window_size, implementation=implementation
    )
    op = "dot_product_attention"
    if obstacle:
        info = _reference(op, str(query.dtype), implementation)
        return dataclasses.replace(
            info,
            name="jax.nn.dot_product_attention",
            implementation="cudnn" if implementation == "cudnn" else "xla",
            note=f"left to jax.nn: {obstacle}",
        )
    shape = attention_shapes.check_operands(query, key, value)
    shape = dataclasses.replace(shape, segments=masked.by_segments(bias, mask))
    static = attention_shapes.check_options(shape.head_dim)
    added = None if shape.segments else mask if bias is None else bias
    return _attention(op, shape, static, implementation, {"bias": added})


def _take_arrays(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the optional arrays of flash_attention out of its options."""
    seed = _aval(options.pop("dropout_seed", None))
    check_seed_shape(seed, options.get("dropout_rate", 0.0))
    names = set(options) & set(attention_shapes.ARGUMENTS)
    return {name: _aval(options.pop(name)) for name in names}


def _attention(
    op: str,
    shape: attention_shapes.AttentionShape,
    options: attention_shapes.AttentionOptions,
    implementation: str | None,
    arrays: dict[str, Any],
) -> KernelInfo:
    validation.check_implementation(implementation)
    if implementation != "reference":
        attention_shapes.check_head_dims(shape)
    if not _runs_on_cuda(implementation):
        return _reference(op, shape.dtype, implementation)
    products = f"{shape.dtype} products, on tensor cores"
    if shape.dtype == "float32":
        products = "float32 products, each as three of TF32 on tensor cores"
    deterministic = options["deterministic"] or compat.deterministic_ops()
    repeats = "too" if deterministic else "with deterministic=True"
    name, why = _forward_kernel(shape, options, arrays)
    backward = attention_shapes.workspace_bytes("backward", shape)
    obstacle = _obstacle(registry.FLASH_ATTENTION) or _obstacle(registry.FLASH_ATTENTION_BACKWARD)
    return KernelInfo(
        op=op,
        name=name,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=shape.dtype,
        accumulator="float32",
        deterministic=deterministic,
        batch_invariant=True,
        workspace_bytes=attention_shapes.workspace_bytes("forward", shape),
        note=f"{products}{why}; the output repeats bit for bit, gradients {repeats}; the backward "
        f"pass takes {backward} bytes of workspace{obstacle}",
    )


def _forward_kernel(
    shape: attention_shapes.AttentionShape,
    options: attention_shapes.AttentionOptions,
    arrays: dict[str, Any],
) -> tuple[str, str]:
    """The kernel of the forward pass; on a Hopper GPU, what keeps a call from its own kernel."""
    if registry.serving_architecture() != "90a":
        return "flash_attention_mma", ""
    obstacles = {
        "float32": shape.dtype == "float32",
        "head dimensions that are not multiples of 8": (shape.head_dim | shape.value_dim) % 8 > 0,
        "bias": arrays.get("bias") is not None,
        "alibi_slopes": arrays.get("alibi_slopes") is not None,
        "logits_soft_cap": options["logits_soft_cap"] > 0,
        "dropout": options["dropout_rate"] > 0,
        "a scale that is not positive": options["scale"] <= 0,
    }
    found = [name for name, there in obstacles.items() if there]
    if not found:
        return "flash_attention_wgmma", ""
    return "flash_attention_mma", f" (flash_attention_wgmma does not take {', '.join(found)})"


_OPS: dict[str, Callable[..., KernelInfo]] = {
    "dot_product_attention": _dot_product_attention,
    "flash_attention": _flash_attention,
    "flash_attention_varlen": _flash_attention_varlen,
    "flash_decode": _flash_decode,
}


def _aval(array: Any) -> Any:
    """The shape and dtype that jax gives an array; None and avals as they are."""
    if array is None or isinstance(array, jax.ShapeDtypeStruct):
        return array
    try:
        return jax.typeof(array)
    except TypeError:
        return array  # has a shape and a dtype, or is reported by the check of its argument


def _runs_on_cuda(implementation: str | None) -> bool:
    if implementation is None:
        return registry.has_cuda_device() and jax.default_backend() == "gpu"
    return implementation == "cuda"


def _reference(op: str, dtype: str, implementation: str | None) -> KernelInfo:
    why = "asked for" if implementation else f"the backend is {jax.default_backend()}"
    return KernelInfo(
        op=op,
        name="reference",
        implementation="reference",
        arch=None,
        dtype=dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=False,
        workspace_bytes=0,
        note=f"plain jax.numpy, compiled by XLA: {why}",
    )


def _obstacle(target: str) -> str:
    """Why a call of the kernel would fail here, empty if it would not."""
    extension = registry.register()
    if target not in extension.targets:
        return f"; it cannot run here: {extension.problem}"
    if not registry.has_cuda_device():
        return "; there is no CUDA device here"
    if registry.serving_architecture() is None:
        return f"; the build ({';'.join(registry.architectures())}) does not fit this GPU"
    return ""
