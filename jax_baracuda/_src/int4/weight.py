"""Int4Weight: a quantised matrix as a pytree, made from every checkpoint format."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from jax_baracuda._src import sharding, validation
from jax_baracuda._src.int4 import formats, image, reference

GROUP_UNIT = 32
_DTYPES = ("float16", "bfloat16", "float32")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("packed", "scales", "zeros", "order"),
    meta_fields=("in_features", "out_features", "group_size"),
)
@dataclasses.dataclass(frozen=True)
class Int4Weight:
    """A matrix w [IC, OC] of four-bit numbers: ``w(ic, oc) = (q(ic, oc) - z(G, oc)) * s(G, oc)``.

    G is the group of the input channel. ``int4_matmul`` multiplies with it; ``dequantize`` gives
    the numbers. Make one by ``from_awq_gemm``, ``from_awq_gemv``, ``from_gptq``,
    ``from_compressed_tensors``, ``from_packed`` or ``quantize``: the nibbles are put, once, into
    the one image that all kernels read.

    It is a pytree of arrays: pass it through ``jit``, ``scan`` it over stacked layers (every array
    then has a leading axis), donate it, map over it, save it leaf by leaf. Output channels may be
    sharded on axis 0 of ``packed`` and axis 1 of the others, input channels on axis 1 of ``packed``
    and axis 0 of the others.

    Attributes:
      packed: uint8 [OCp/64, ICp/64, 2048], both channels rounded up to 64; see docs/int4.md.
      scales: float16, bfloat16 or float32 [R, OCp], R = ceil(ICp / group_size); 0 in padding.
      zeros: uint8 [R, OCp], 0 to 16.
      order: int32 [IC], which input channel of x each row of the image belongs to (GPTQ's
        act-order); None if they are in order.
      in_features: IC.
      out_features: OC.
      group_size: input channels of a group: 32 or a multiple of 64.

    Raises:
      ValueError: by whatever makes a weight, for arrays whose shapes or dtypes do not fit together
        and for a ``group_size`` that is neither -1 nor a multiple of 32; it names the argument,
        what was given and what is supported.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda.quant import Int4Weight
      >>> weight = Int4Weight.quantize(jnp.ones((256, 128), jnp.bfloat16), group_size=64)
      >>> weight.packed.shape, weight.scales.shape
      ((2, 4, 2048), (4, 128))
    """

    packed: Any
    scales: Any
    zeros: Any
    order: Any
    in_features: int
    out_features: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(IC, OC). In shard_map, those of this device's part."""
        strips, tiles = self.packed.shape[-3:-1]
        return (
            min(self.in_features, tiles * image.TILE),
            min(self.out_features, strips * image.STRIP),
        )

    @property
    def dtype(self) -> Any:
        """That of the scales."""
        return self.scales.dtype

    def astype(self, dtype: DTypeLike) -> Int4Weight:
        """The same weight with scales of another dtype, which should be that of the activations."""
        return dataclasses.replace(self, scales=self.scales.astype(dtype))

    def dequantize(self, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The matrix [IC, OC]. In float32 it is exact. For stacked weights use ``jax.vmap``."""
        if self.packed.ndim != 3:
            raise ValueError(
                f"packed has shape {self.packed.shape}; dequantize takes one weight, whose packed "
                "is [OCp/64, ICp/64, 2048]. Use jax.vmap for stacked ones."
            )
        operands = [self.packed, self.scales, self.zeros]
        operands += [] if self.order is None else [self.order]
        make = functools.partial(_matrix, self.shape, self.group_size, jnp.dtype(dtype))
        (matrix,) = sharding.in_auto_mode(make, operands, _matrix_specs)
        result: jax.Array = matrix
        return result

    @classmethod
    def from_awq_gemm(
        cls, qweight: ArrayLike, qzeros: ArrayLike, scales: ArrayLike, *, group_size: int = 128
    ) -> Int4Weight:
        """From the usual AWQ checkpoint (``version: "gemm"``).

        Args:
          qweight: int32 [IC, OC/8], eight output channels a word in the order 0 2 4 6 1 3 5 7.
          qzeros: int32 [IC/g, OC/8], packed in the same way.
          scales: float [IC/g, OC].
          group_size: g; -1 for one group.
        """
        words = _words("qweight", qweight)
        rows, columns = words.shape[0], words.shape[1] * formats.NIBBLES
        group, groups = _groups(rows, group_size)
        _expect("qzeros", qzeros, (groups, columns // 8))
        _expect("scales", scales, (groups, columns))
        arrays = words, _words("qzeros", qzeros), _floats("scales", scales)
        return cls._pack(formats.from_awq_gemm, arrays, (rows, columns), group)

    @classmethod
    def from_awq_gemv(
        cls, qweight: ArrayLike, qzeros: ArrayLike, scales: ArrayLike, *, group_size: int = 128
    ) -> Int4Weight:
        """From AWQ's GEMV packing (``version: "gemv"``).

        Args:
          qweight: int32 [OC, IC/8], in order.
          qzeros: int32 [OC, zw], group G in nibble G of the row; zw words hold all groups, or more.
          scales: float [OC, 8 zw], of which the first IC/g columns count.
          group_size: g; -1 for one group.
        """
        words, zeros = _words("qweight", qweight), _words("qzeros", qzeros)
        columns, rows = words.shape[0], words.shape[1] * formats.NIBBLES
        group, groups = _groups(rows, group_size)
        factors = _floats("scales", scales)
        for name, given, least in (
            ("qzeros", zeros, -(-groups // formats.NIBBLES)),
            ("scales", factors, groups),
        ):
            if given.ndim != 2 or given.shape[0] != columns or given.shape[1] < least:
                raise ValueError(
                    f"{name} has shape {given.shape}; it must be [OC, at least {least}] with OC = "
                    f"{columns}, for {groups} groups."
                )
        arrays = words, zeros, factors
        return cls._pack(formats.from_awq_gemv, arrays, (rows, columns), group, groups=groups)

    @classmethod
    def from_gptq(
        cls,
        qweight: ArrayLike,
        qzeros: ArrayLike,
        scales: ArrayLike,
        *,
        g_idx: ArrayLike | None = None,
        group_size: int = 128,
        zero_offset: int = 1,
    ) -> Int4Weight:
        """From a GPTQ checkpoint.

        Args:
          qweight: int32 [IC/8, OC], eight input channels a word.
          qzeros: int32 [IC/g, OC/8], zero points less ``zero_offset``.
          scales: float [IC/g, OC].
          g_idx: int [IC], the group of each input channel (act-order), not traced; or None.
          group_size: g; -1 for one group.
          zero_offset: 1 in checkpoint format v1 ("gptq"), 0 in v2 ("gptq_v2"). Some v2 checkpoints
            are labelled v1: the stored zero points of a symmetric one are 7 in v1 and 8 in v2.
        """
        if zero_offset not in (0, 1):
            raise ValueError(f"zero_offset is {zero_offset!r}; supported are 1 (v1) and 0 (v2).")
        words = _words("qweight", qweight)
        rows, columns = words.shape[0] * formats.NIBBLES, words.shape[1]
        group, groups = _groups(rows, group_size)
        _expect("qzeros", qzeros, (groups, columns // 8))
        _expect("scales", scales, (groups, columns))
        return cls._pack(
            formats.from_gptq,
            (words, _words("qzeros", qzeros), _floats("scales", scales)),
            (rows, columns),
            group,
            _order(g_idx, rows, group),
            zero_offset=zero_offset,
        )

    @classmethod
    def from_compressed_tensors(
        cls,
        weight_packed: ArrayLike,
        weight_scale: ArrayLike,
        weight_zero_point: ArrayLike | None = None,
        *,
        g_idx: ArrayLike | None = None,
        group_size: int = 128,
        in_features: int | None = None,
    ) -> Int4Weight:
        """From compressed-tensors' "pack-quantized" format, symmetric or not.

        Args:
          weight_packed: int32 [OC, ceil(IC/8)].
          weight_scale: float [OC, IC/g].
          weight_zero_point: int32 [ceil(OC/8), IC/g], or int8 [OC, IC/g], which older versions of
            the format have; None if the weight is symmetric.
          g_idx: int [IC], the group of each input channel ("actorder": "group"), not traced; or
            None.
          group_size: g; -1 for one group a channel.
          in_features: IC, where it is not a multiple of 8; None if it is.
        """
        words = _words("weight_packed", weight_packed)
        columns, rows = words.shape[0], words.shape[1] * formats.NIBBLES
        if in_features is not None:
            if not 0 <= rows - in_features < formats.NIBBLES:
                raise ValueError(
                    f"in_features is {in_features} and weight_packed has shape {words.shape}; it "
                    f"must be [OC, ceil(in_features / 8)]."
                )
            rows = in_features
        group, groups = _groups(rows, group_size)
        _expect("weight_scale", weight_scale, (columns, groups))
        zeros = None
        if weight_zero_point is not None:
            zeros = _compressed_zeros(weight_zero_point, columns, groups)
        return cls._pack(
            formats.from_compressed_tensors,
            (words, _floats("weight_scale", weight_scale), zeros),
            (rows, columns),
            group,
            _order(g_idx, rows, group),
            rows=rows,
        )

    @classmethod
    def from_packed(
        cls, weight_packed: ArrayLike, scales: ArrayLike, zeros: ArrayLike, *, group_size: int = 128
    ) -> Int4Weight:
        """From the plain layout: the operands of ``int4_awq_matmul``.

        Args:
          weight_packed: int32 [OC, IC/8], eight input channels a word, in order.
          scales: float [IC/g, OC].
          zeros: int32 [IC/g, OC/8], eight output channels a word, in order.
          group_size: g; -1 for one group.
        """
        words = _words("weight_packed", weight_packed)
        columns, rows = words.shape[0], words.shape[1] * formats.NIBBLES
        group, groups = _groups(rows, group_size)
        _expect("scales", scales, (groups, columns))
        _expect("zeros", zeros, (groups, columns // 8))
        arrays = words, _floats("scales", scales), _words("zeros", zeros)
        return cls._pack(formats.from_packed, arrays, (rows, columns), group)

    @classmethod
    def quantize(
        cls, w: ArrayLike, *, group_size: int = 128, symmetric: bool = False
    ) -> Int4Weight:
        """Rounds a float matrix to four bits, each number to the nearest of its group's 16 levels.

        Args:
          w: float16, bfloat16 or float32 [IC, OC]; the scales have its dtype.
          group_size: input channels that share a scale and a zero point; -1 for all.
          symmetric: with the zero point 8 everywhere, instead of one that fits the group.
        """
        weight = jnp.asarray(w)
        if weight.ndim != 2 or str(weight.dtype) not in _DTYPES:
            raise ValueError(
                f"w has shape {weight.shape} and dtype {weight.dtype}; it must be [IC, OC] of "
                f"{', '.join(_DTYPES)}."
            )
        rows, columns = weight.shape
        group, _ = _groups(rows, group_size)
        return cls._pack(
            formats.quantise,
            (weight,),
            (rows, columns),
            group,
            group_size=group,
            symmetric=bool(symmetric),
        )

    @classmethod
    def _pack(
        cls,
        read: Callable[..., formats.Plain],
        arrays: tuple[Any, ...],
        shape: tuple[int, int],
        group: int,
        order: np.ndarray | None = None,
        **options: int,
    ) -> Int4Weight:
        """The weight that ``read(*arrays, **options)`` has in plain integers."""
        rows, columns = shape
        repeats = 1
        if group >= rows:  # one group
            group = max(image.padded(rows), image.TILE)
        elif group != GROUP_UNIT and group % image.TILE:
            repeats, group = group // GROUP_UNIT, GROUP_UNIT  # 96 becomes three groups of 32
        packed, scales, zeros = image.build(
            arrays, order, read=read, group=group, repeats=repeats, options=tuple(options.items())
        )
        return cls(
            packed=packed,
            scales=scales,
            zeros=zeros,
            order=None if order is None else jnp.asarray(order),
            in_features=rows,
            out_features=columns,
            group_size=group,
        )


def _matrix(
    shape: tuple[int, int],
    group_size: int,
    dtype: DTypeLike,
    packed: jax.Array,
    scales: jax.Array,
    zeros: jax.Array,
    order: jax.Array | None = None,
) -> tuple[jax.Array]:
    """The numbers of a weight, in the order of x's columns."""
    matrix = reference.dequantise(packed, scales, zeros, group_size=group_size, dtype=dtype)
    matrix = matrix[: shape[0], : shape[1]]
    if order is not None:
        matrix = jnp.zeros_like(matrix).at[order].set(matrix, unique_indices=True)
    return (matrix,)


def _matrix_specs(avals: Sequence[Any]) -> list[P]:
    """[IC, OC] as the image, [OCp/64, ICp/64, ...], is sharded on an Explicit mesh."""
    strips, tiles, *_ = avals[0].sharding.spec
    return [P(tiles, strips)]


def _words(name: str, array: ArrayLike) -> jax.Array:
    """A matrix of 32-bit words."""
    words = jnp.asarray(array)
    if words.ndim != 2 or words.dtype not in (jnp.int32, jnp.uint32):
        raise ValueError(
            f"{name} has shape {words.shape} and dtype {words.dtype}; it must be a matrix of int32."
        )
    return words


def _floats(name: str, array: ArrayLike) -> jax.Array:
    """Scales."""
    floats = jnp.asarray(array)
    if str(floats.dtype) not in _DTYPES:
        raise ValueError(f"{name} has dtype {floats.dtype}; supported are {', '.join(_DTYPES)}.")
    return floats


def _expect(name: str, array: ArrayLike, shape: tuple[int, ...]) -> None:
    given = np.shape(array)
    if given != shape:
        raise ValueError(f"{name} has shape {given}; it must be {shape}.")


def _compressed_zeros(given: ArrayLike, columns: int, groups: int) -> jax.Array:
    """The zero points of compressed-tensors, 8 added: uint8 [OC, R]."""
    zeros = jnp.asarray(given)
    if zeros.dtype == jnp.int8:
        _expect("weight_zero_point", zeros, (columns, groups))
        return (zeros + 8).astype(jnp.uint8)
    words = _words("weight_zero_point", zeros)
    _expect("weight_zero_point", words, (-(-columns // formats.NIBBLES), groups))
    return formats.unpack_rows(words)[:columns]


def _order(g_idx: ArrayLike | None, rows: int, group_size: int) -> np.ndarray | None:
    """The order of the input channels that puts groups together; None if they are."""
    if g_idx is None:
        return None
    _expect("g_idx", g_idx, (rows,))
    return formats.group_order(np.asarray(g_idx), group_size)


def _groups(rows: int, group_size: int) -> tuple[int, int]:
    """The size and the number of groups."""
    if group_size == -1:
        group_size = max(rows, 1)
    elif validation.index(group_size) is None or group_size <= 0 or group_size % GROUP_UNIT:
        raise ValueError(
            f"group_size is {group_size!r}; supported are multiples of {GROUP_UNIT}, and -1 for "
            "one group over all input channels."
        )
    return group_size, max(1, -(-rows // group_size))
