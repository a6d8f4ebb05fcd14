"""Quantised weights in the words of every checkpoint format, and what numpy reads in them.

``read`` follows the formats' published formulas, number by number, and shares nothing with
``jax_baracuda.quant``, which it is there to test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing.compare import Report

AWQ_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])

# The relative Frobenius error that a kernel may have, which may round each weight to 16 bits.
BOUNDS = {"float16": 5e-4, "bfloat16": 3e-3, "float32": 1e-6}

FORMATS = (
    "packed",
    "awq_gemm",
    "awq_gemv",
    "gptq_v1",
    "gptq_v2",
    "gptq_act_order",
    "compressed_symmetric",
    "compressed_asymmetric",
    "compressed_act_order",
)


@dataclasses.dataclass(frozen=True)
class RawWeight:
    """A weight as a checkpoint has it.

    Attributes:
      format: one of FORMATS.
      arrays: by the names of the arguments of Int4Weight's constructor.
      in_features: IC.
      out_features: OC.
      group_size: of the checkpoint; -1 for one group.
    """

    format: str
    arrays: dict[str, np.ndarray]
    in_features: int
    out_features: int
    group_size: int

    def convert(self) -> Int4Weight:
        """By the constructor of the format."""
        arrays: dict[str, Any] = jax.device_put(self.arrays)
        size = {"group_size": self.group_size}
        if self.format == "packed":
            return Int4Weight.from_packed(**arrays, **size)
        if self.format == "awq_gemm":
            return Int4Weight.from_awq_gemm(**arrays, **size)
        if self.format == "awq_gemv":
            return Int4Weight.from_awq_gemv(**arrays, **size)
        if self.format.startswith("gptq"):
            offset = int(self.format != "gptq_v2")
            return Int4Weight.from_gptq(**arrays, **size, zero_offset=offset)
        return Int4Weight.from_compressed_tensors(**arrays, **size)


def make_raw_weight(
    format: str,
    in_features: int,
    out_features: int,
    group_size: int = 128,
    *,
    seed: int = 0,
    dtype: str = "float16",
) -> RawWeight:
    """Random words, which is to say random numbers and zero points of all 16 values.

    Args:
      format: one of FORMATS.
      in_features: a multiple of 8, or a symmetric compressed_tensors weight.
      out_features: a multiple of 8.
      group_size: a multiple of 32, or -1.
      seed: of the random numbers.
      dtype: of the scales.
    """
    rng = np.random.default_rng([seed, in_features, out_features])
    size = in_features if group_size == -1 else group_size
    groups = -(-in_features // size)
    words = (in_features // 8, out_features // 8)

    def integers(*shape: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31, shape, np.int64).astype(np.int32)

    def factors(*shape: int) -> np.ndarray:
        numbers = rng.uniform(0.5, 1.5, shape) / in_features**0.5 / 4
        return np.asarray(numbers, ml_dtypes_of(dtype))

    arrays: dict[str, np.ndarray]
    if format == "packed":
        arrays = {
            "weight_packed": integers(out_features, words[0]),
            "scales": factors(groups, out_features),
            "zeros": integers(groups, words[1]),
        }
    elif format == "awq_gemm":
        arrays = {
            "qweight": integers(in_features, words[1]),
            "qzeros": integers(groups, words[1]),
            "scales": factors(groups, out_features),
        }
    elif format == "awq_gemv":
        wide = -(-groups // 8) + 1  # more than is needed, as llm-awq pads it
        arrays = {
            "qweight": integers(out_features, words[0]),
            "qzeros": integers(out_features, wide),
            "scales": factors(out_features, 8 * wide),
        }
    elif format.startswith("gptq"):
        arrays = {
            "qweight": integers(words[0], out_features),
            "qzeros": integers(groups, words[1]),
            "scales": factors(groups, out_features),
        }
    else:
        arrays = {
            "weight_packed": integers(out_features, words[0]),
            "weight_scale": factors(out_features, groups),
        }
        if "asymmetric" in format:
            arrays["weight_zero_point"] = integers(words[1], groups)
    if "act_order" in format:
        arrays["g_idx"] = rng.permutation(np.arange(in_features, dtype=np.int32) // size)
    return RawWeight(format, arrays, in_features, out_features, group_size)


def read(raw: RawWeight) -> np.ndarray:
    """The matrix [IC, OC] in float64: exactly (q - z) * s."""
    arrays = raw.arrays
    ic = np.arange(raw.in_features)[:, None]
    oc = np.arange(raw.out_features)[None, :]
    size = raw.in_features if raw.group_size == -1 else raw.group_size
    group = arrays["g_idx"][ic] if "g_idx" in arrays else ic // size

    def nibble(words: np.ndarray, place: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = (words.astype(np.int64) >> 4 * place) & 15
        return numbers

    zero: Any
    if raw.format == "awq_gemm":
        q = nibble(arrays["qweight"][ic, oc // 8], AWQ_NIBBLE[oc % 8])
        zero = nibble(arrays["qzeros"][group, oc // 8], AWQ_NIBBLE[oc % 8])
        scale = arrays["scales"][group, oc]
    elif raw.format == "awq_gemv":
        q = nibble(arrays["qweight"][oc, ic // 8], ic % 8)
        zero = nibble(arrays["qzeros"][oc, group // 8], group % 8)
        scale = arrays["scales"][oc, group]
    elif raw.format == "packed":
        q = nibble(arrays["weight_packed"][oc, ic // 8], ic % 8)
        zero = nibble(arrays["zeros"][group, oc // 8], oc % 8)
        scale = arrays["scales"][group, oc]
    elif raw.format.startswith("gptq"):
        q = nibble(arrays["qweight"][ic // 8, oc], ic % 8)
        zero = nibble(arrays["qzeros"][group, oc // 8], oc % 8) + (raw.format != "gptq_v2")
        scale = arrays["scales"][group, oc]
    else:
        q = nibble(arrays["weight_packed"][oc, ic // 8], ic % 8) - 8
        zero = 0
        if "weight_zero_point" in arrays:
            zero = nibble(arrays["weight_zero_point"][oc // 8, group], oc % 8) - 8
        scale = arrays["weight_scale"][oc, group]
    matrix: np.ndarray = (q - zero) * scale.astype(np.float64)
    return matrix


def read_image(packed: np.ndarray) -> np.ndarray:
    """The numbers of the kernels' image [OCp/64, ICp/64, 2048], by the formula of its bytes."""
    strips, tiles, _ = packed.shape
    ic = np.arange(tiles * 64)[:, None]
    oc = np.arange(strips * 64)[None, :]
    tile = (oc // 64) * tiles + ic // 64
    thread = (oc % 64 // 16) * 32 + (oc % 16 // 2) * 4 + ic % 8 // 2
    byte = (tile * 128 + thread) * 16 + (ic % 64 // 16) * 4 + (ic % 2) * 2 + ic % 16 // 8
    numbers: np.ndarray = (packed.reshape(-1)[byte] >> 4 * (oc % 2)) & 15
    return numbers


def relative_error(actual: Any, exact: np.ndarray) -> float:
    """The Frobenius norm of the error over that of the exact result."""
    wide = np.asarray(actual).astype(np.float64)
    return float(np.linalg.norm(wide - exact) / max(float(np.linalg.norm(exact)), 1e-300))


def ml_dtypes_of(name: str) -> np.dtype:
    """A numpy dtype by name, bfloat16 included."""
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@dataclasses.dataclass(frozen=True)
class Int4Case:
    """One product with a square weight.

    Attributes:
      name: says what it is of.
      format: one of FORMATS.
      rows: M.
      features: IC and OC.
      group_size: of the weight.
      dtype: of x, the scales and the result.
    """

    name: str
    format: str
    rows: int
    features: int
    group_size: int
    dtype: str

    def inputs(self) -> tuple[np.ndarray, RawWeight]:
        """x and the weight."""
        size = (self.rows, self.features)
        x = np.random.default_rng(size).normal(size=size)
        raw = make_raw_weight(
            self.format, self.features, self.features, self.group_size, dtype=self.dtype
        )
        return np.asarray(x, ml_dtypes_of(self.dtype)), raw


INT4_CASES = (
    Int4Case("awq-float16-1-row", "awq_gemm", 1, 1024, 128, "float16"),
    Int4Case("compressed-bfloat16-8-rows", "compressed_asymmetric", 8, 1024, 128, "bfloat16"),
    Int4Case("gptq-act-order-float16-17-rows", "gptq_act_order", 17, 712, 64, "float16"),
    Int4Case("gemv-bfloat16-65-rows", "awq_gemv", 65, 512, 32, "bfloat16"),
    Int4Case("packed-float16-300-rows", "packed", 300, 1000, -1, "float16"),
    Int4Case("gptq-float32", "gptq_v2", 5, 256, 64, "float32"),
)


def check_int4(case: Int4Case, x: np.ndarray, raw: RawWeight, out: Any) -> Report:
    """Judges the result of a case against float64 on the exact weight."""
    exact = x.astype(np.float64) @ read(raw)
    error, bound = relative_error(out, exact), BOUNDS[case.dtype]
    name = f"{case.name} out"
    message = f"{name}: error {error:.3e} (Frobenius, relative), bound {bound:.3e}."
    return Report(name, error <= bound, error, 0.0, bound, (), message)
