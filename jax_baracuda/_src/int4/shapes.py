"""Validation, workspace and choice of kernel of int4_matmul: pure functions of shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypedDict

from jax_baracuda._src import validation
from jax_baracuda._src.int4 import image
from jax_baracuda._src.int4.weight import Int4Weight
from jax_baracuda._src.validation import DTYPES, HasShape

KERNEL_DTYPES = ("float16", "bfloat16")
X_COLUMNS = 8  # the kernels read rows of x by 16 bytes
MAX_SPLITS = 8
# For sums that go through memory: on GPUs without clusters; on Hopper of a medium number of rows,
# and of more, where tiles of the last wave are divided (ffi/int4/config.h).
SMALL_WORKSPACE, PART_WORKSPACE, STREAM_WORKSPACE = 4 << 20, 8 << 20, 33 << 20
PART_ROWS = 128
_NIBBLES = 8

SMALL_ROWS = 16  # more rows go to the kernels for Hopper where there are any


class MatmulOptions(TypedDict):
    """The static options in the form that the primitive, the kernel and the reference take."""

    group_size: int
    out_features: int


@dataclasses.dataclass(frozen=True)
class MatmulShape:
    """The sizes of one product, checked."""

    rows: int  # M: all leading dimensions together
    in_features: int
    out_features: int
    group_size: int
    dtype: str

    @property
    def options(self) -> MatmulOptions:
        """What the primitive is told besides the arrays."""
        return MatmulOptions(group_size=self.group_size, out_features=self.out_features)


def check_operands(x: HasShape, weight: Any, bias: HasShape | None) -> MatmulShape:
    """Checks the arrays against each other; raises ValueError or NotImplementedError by name."""
    if not isinstance(weight, Int4Weight):
        raise ValueError(
            f"weight is a {type(weight).__name__}; it must be a jax_baracuda.quant.Int4Weight."
        )
    dtype = validation.dtype_name(x)
    if dtype not in DTYPES:
        raise NotImplementedError(f"x has dtype {dtype}; supported are {', '.join(DTYPES)}.")
    check_weight(weight)
    in_features, out_features = weight.shape
    if not x.shape or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be [..., IC] with IC = {in_features}, the "
            "input channels of weight."
        )
    for what, part, whole in (
        ("input", in_features, weight.in_features),
        ("output", out_features, weight.out_features),
    ):
        if part != whole and whole % image.TILE:
            raise NotImplementedError(
                f"weight has {whole} {what} channels and is sharded along them; supported are "
                f"multiples of {image.TILE}. Under jit others are gathered."
            )
    if weight.order is not None and in_features != weight.in_features:
        raise NotImplementedError(
            "weight has an order (act-order) and its input channels are sharded, so that a "
            "device's part of x is not that of its part of weight; supported are output channels. "
            "Under jit both are."
        )
    if bias is not None:
        if tuple(bias.shape) != (out_features,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({out_features},).")
        if validation.dtype_name(bias) not in DTYPES:
            raise ValueError(
                f"bias has dtype {validation.dtype_name(bias)}; supported are {', '.join(DTYPES)}."
            )
    rows = count(x.shape[:-1])
    return MatmulShape(rows, in_features, out_features, weight.group_size, dtype)


def count(leading: Sequence[int]) -> int:
    """M: the rows of all leading dimensions together."""
    return math.prod(leading)


def check_weight(weight: Int4Weight) -> None:
    """Raises unless the arrays of the weight, or of a device's part of it, belong together."""
    if len(weight.packed.shape) != 3 or weight.packed.shape[2] != image.TILE_BYTES:
        raise ValueError(
            f"weight.packed has shape {tuple(weight.packed.shape)}; it must be [OCp/64, ICp/64, "
            f"{image.TILE_BYTES}], one layer. Use jax.lax.scan or jax.vmap over stacked weights."
        )
    strips, tiles, _ = weight.packed.shape
    groups = -(-tiles * image.TILE // weight.group_size)
    wanted = (groups, strips * image.STRIP)
    for name, array in (("scales", weight.scales), ("zeros", weight.zeros)):
        if tuple(array.shape) != wanted:
            raise ValueError(
                f"weight.{name} has shape {tuple(array.shape)}; for weight.packed of shape "
                f"{tuple(weight.packed.shape)} and group_size {weight.group_size} it must be "
                f"{wanted}."
            )
    if weight.order is not None and tuple(weight.order.shape) != (weight.in_features,):
        raise ValueError(
            f"weight.order has shape {tuple(weight.order.shape)}; it must be "
            f"({weight.in_features},)."
        )


def check_kernel_dtype(shape: MatmulShape) -> None:
    """Raises where implementation="cuda" finds no kernel."""
    if shape.dtype not in KERNEL_DTYPES:
        raise NotImplementedError(
            f"x has dtype {shape.dtype} and implementation is 'cuda'; supported there are "
            f"{', '.join(KERNEL_DTYPES)}."
        )


def check_raw_operands(activation: HasShape, weight_packed: HasShape, split_k_iters: int) -> None:
    """Checks what int4_awq_matmul adds to the checks of Int4Weight.from_packed."""
    validation.check_rank("activation", activation, "[M, IC]")
    validation.check_rank("weight_packed", weight_packed, "[OC, IC/8]")
    if activation.shape[1] != weight_packed.shape[1] * _NIBBLES:
        raise ValueError(
            f"activation has shape {tuple(activation.shape)} and weight_packed has "
            f"{tuple(weight_packed.shape)}; they must be [M, IC] and [OC, IC/8]."
        )
    if validation.index(split_k_iters) is None or split_k_iters < 1:
        raise ValueError(f"split_k_iters is {split_k_iters!r}; it must be an int >= 1.")


def workspace_bytes(rows: Any, strips: int, tiles: int) -> int:
    """Scratch memory for sums that go through memory, at most 33 MiB.

    Args:
      rows: M; may be symbolic, under jax.export.
      strips: OCp / 64.
      tiles: ICp / 64.
    """
    elements = rows * strips * image.STRIP
    if not isinstance(elements, int):  # more than is needed serves too
        return STREAM_WORKSPACE
    if not elements or not tiles:
        return 0
    if rows > PART_ROWS:
        return STREAM_WORKSPACE
    most = PART_WORKSPACE if rows > SMALL_ROWS else SMALL_WORKSPACE
    splits = min(MAX_SPLITS, tiles, most // 4 // elements)
    return 4 * splits * elements if splits >= 2 else 0


def kernel_name(rows: int, arch: str | None) -> str:
    """The kernels that serve so many rows on a built architecture; None is the newest.

    Which tile, and which of the two ``wgmma`` kernels, the extension chooses by its cost model; it
    leaves layers of few channels to the small kernels for up to 32 rows, and takes some of very
    many channels from 9 rows on.
    """
    return "int4_wgmma" if rows > SMALL_ROWS and arch in (None, "90a") else "int4_small"
