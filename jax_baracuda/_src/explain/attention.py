"""explain for flash_attention and what is built on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jax_baracuda._src import compat, registry, validation
from jax_baracuda._src.attention import dot_product, dropout, masked, shapes
from jax_baracuda._src.attention.call import check_seed_shape
from jax_baracuda._src.explain import info

HOPPER = "flash_attention_wgmma"  # the forward kernel for Hopper GPUs
# As in ffi/attention/params.h. A row bias is one that all rows share.
SOFT_CAP, ALIBI, BIAS, DROPOUT, ROW_BIAS, ALL_FEATURES, FLOAT_BIAS = 1, 2, 4, 8, 16, 31, 32
BOUNDED_CAP = 64  # of bfloat16: the forward kernel then needs no maxima
_MOST_THRESHOLD = 0x7C00  # of dropout alone: as in ffi/attention/hopper/config.h
_MOST_BOUNDED_CAP = 56.0  # as there


def flash_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    implementation: str | None = None,
    return_lse: bool = False,
    **options: Any,
) -> info.KernelInfo:
    del return_lse
    query, key, value = map(info.aval, (query, key, value))
    arrays = _take_arrays(options)
    shape = shapes.check_operands(query, key, value, **arrays)
    static = shapes.check_options(shape.head_dim, **options)
    features = _features(shape.dtype, static, arrays)
    return _attention("flash_attention", shape, static, implementation, features)


def flash_attention_varlen(
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
) -> info.KernelInfo:
    del return_lse
    query, key, value = map(info.aval, (query, key, value))
    bounds = dict(cu_seqlens_q=info.aval(cu_seqlens_q), cu_seqlens_k=info.aval(cu_seqlens_k))
    arrays = _take_arrays(options)
    longest: dict[str, Any] = dict(max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)
    shape = shapes.check_packed_operands(query, key, value, **bounds, **longest, **arrays)
    static = shapes.check_options(shape.head_dim, **longest, **options)
    features = _features(shape.dtype, static, arrays)
    return _attention("flash_attention_varlen", shape, static, implementation, features)


def dot_product_attention(
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
) -> info.KernelInfo:
    del return_residual
    arrays = (query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    avals = (None if array is None else info.aval(array) for array in arrays)
    operands = dot_product.check_operands(
        *(aval and jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    )
    query, key, value, bias, mask, *_ = operands
    obstacle = dot_product.why_not(
        operands, scale=scale, local_window_size=local_window_size, implementation=implementation
    )
    op = "dot_product_attention"
    if obstacle:
        return dataclasses.replace(
            info.reference(op, str(query.dtype), implementation),
            name="jax.nn.dot_product_attention",
            implementation="cudnn" if implementation == "cudnn" else "xla",
            note=f"left to jax.nn: {obstacle}",
        )
    shape = shapes.check_operands(query, key, value)
    shape = dataclasses.replace(shape, segments=masked.by_segments(bias, mask))
    static = shapes.check_options(shape.head_dim, scale=scale)
    added = None if shape.segments else bias if mask is None else mask
    static["causal"] = bool(is_causal)
    return _attention(
        op, shape, static, implementation, _features(shape.dtype, static, {"bias": added})
    )


def products(dtype: str) -> str:
    """What multiplies the matrices."""
    if dtype == "float32":
        return "float32 products, each as three of TF32 on tensor cores"
    return f"{dtype} products, on tensor cores"


def _take_arrays(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the optional arrays of flash_attention out of its options."""
    seed = info.aval(options.pop("dropout_seed", None))
    check_seed_shape(seed, options.get("dropout_rate", 0.0))
    names = set(options) & set(shapes.ARGUMENTS)
    return {name: info.aval(options.pop(name)) for name in names}


def _attention(
    op: str,
    shape: shapes.AttentionShape,
    options: shapes.AttentionOptions,
    implementation: str | None,
    features: int,
) -> info.KernelInfo:
    validation.check_implementation(implementation)
    if implementation != "reference":
        shapes.check_head_dims(shape)
    if not info.runs_on_cuda(implementation):
        return info.reference(op, shape.dtype, implementation)
    deterministic = options["deterministic"] or compat.deterministic_ops()
    repeats = "too" if deterministic else "with deterministic=True"
    name, backward, why = _kernels(shape, features, deterministic)
    splits = False
    if name == HOPPER and not shape.symbolic:
        splits = not features and shapes.may_split(shape)
        why = _tiles(shape, options, features)
    scratch = shapes.workspace_bytes("backward", shape)
    targets = (registry.FLASH_ATTENTION, registry.FLASH_ATTENTION_BACKWARD)
    obstacle = next(filter(None, map(info.obstacle, targets)), "")
    return info.KernelInfo(
        op=op,
        name=name,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=shape.dtype,
        accumulator="float32",
        deterministic=deterministic,
        batch_invariant=not splits,
        workspace_bytes=shapes.workspace_bytes("forward", shape),
        note=f"{products(shape.dtype)}{why}; the output repeats bit for bit, gradients {repeats}; "
        f"the backward pass runs {backward} and takes {scratch} bytes of workspace{obstacle}",
    )


def _features(dtype: str, options: shapes.AttentionOptions, arrays: dict[str, Any]) -> int:
    """What scores go through besides a positive scale and a mask, as the kernels count it."""
    if options["scale"] <= 0:
        return ALL_FEATURES
    bias = arrays.get("bias")
    features = (
        (SOFT_CAP if options["logits_soft_cap"] > 0 else 0)
        | (ALIBI if arrays.get("alibi_slopes") is not None else 0)
        | (BIAS if bias is not None else 0)
        | (DROPOUT if options["dropout_rate"] > 0 else 0)
    )
    steep = dropout.threshold(options["dropout_rate"]) > _MOST_THRESHOLD
    if features == DROPOUT and steep:
        return ALL_FEATURES
    if features == SOFT_CAP and dtype == "bfloat16":
        return BOUNDED_CAP if options["logits_soft_cap"] <= _MOST_BOUNDED_CAP else SOFT_CAP
    if bias is None or features != BIAS:
        return features
    if bias.shape[-2] == 1:
        return ROW_BIAS
    return _boxes(bias) or ALL_FEATURES


def _boxes(bias: Any) -> int:
    """The forward kernel for Hopper GPUs that loads it in boxes, where there is one; else 0."""
    in_boxes = bias.shape[-1] * bias.dtype.itemsize % 16 == 0
    kernels = {2: BIAS, 4: FLOAT_BIAS}
    return kernels.get(bias.dtype.itemsize, 0) if in_boxes else 0


def _tiles(shape: shapes.AttentionShape, options: shapes.AttentionOptions, features: int) -> str:
    """The plan of the Hopper kernel, which it makes from the shapes alone."""
    plan = registry.hopper_plan(
        features=features,
        causal=options["causal"],
        packs=shape.batch,
        sequences=shape.sequences,
        query_rows=options["max_seqlen_q"] or shape.query_rows,
        keys=options["max_seqlen_k"] or shape.keys,
        q_heads=shape.q_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        value_dim=shape.value_dim,
        split_bytes=shapes.split_bytes(shape),
    )
    if not plan:
        return ""
    text = f", in tiles of {plan['rows']} rows and {plan['keys']} keys"
    if plan["packed"] > 1:
        text += f", the rows those of {plan['packed']} heads"
    return text + (f", the keys split over {plan['splits']} CTAs" if plan["splits"] > 1 else "")


def _kernels(
    shape: shapes.AttentionShape, features: int, deterministic: bool
) -> tuple[str, str, str]:
    """The kernels of both passes; on a Hopper GPU, what keeps a call from its own kernels."""
    forward, backward = "flash_attention_mma", "flash_attention_backward_mma"
    if registry.serving_architecture() != "90a":
        return forward, backward, ""
    obstacles = {
        "float32": shape.dtype == "float32",
        "head dimensions that are not multiples of 8": (shape.head_dim | shape.value_dim) % 8 > 0,
    }
    found = [name for name, there in obstacles.items() if there]
    if found:
        return forward, backward, f" ({HOPPER} does not take {' or '.join(found)})"
    features = SOFT_CAP if features == BOUNDED_CAP else features
    dim = max(shape.head_dim, shape.value_dim)
    alone = features in (SOFT_CAP, ALIBI, DROPOUT, ROW_BIAS) or (features == BIAS and dim <= 128)
    if not features or (alone and not deterministic) or dim <= 64 or 96 < dim <= 128:
        pairs = "_pair" if dim > 128 else ""  # of CTAs, for a block of keys
        backward = f"flash_attention_backward_wgmma{pairs}"
    return HOPPER, backward, ""
