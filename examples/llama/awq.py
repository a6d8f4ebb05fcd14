"""Four-bit layers in AWQ's files (``version: "gemm"``), the format that the hub has most of.

Only the format: ``Int4Weight.quantize`` rounds to the nearest level and looks at no activations,
as AWQ does (J. Lin et al., 2023, arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_baracuda.quant import Int4Weight

_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of a word, for each of eight output channels


def awq_settings(weights: Sequence[Int4Weight]) -> dict[str, Any]:
    """The ``quantization_config`` of these layers; stacked ones will do."""
    group_size = min(weight.group_size for weight in weights)
    for weight in weights:
        rows, columns = weight.shape
        unlike = rows > group_size != weight.group_size  # a layer of one group fits any size
        if unlike or weight.order is not None or columns % 8:
            raise ValueError(
                f"a layer of {rows} x {columns} with groups of {weight.group_size} does not fit "
                f"AWQ's files: they have one group size, here {group_size}, groups in the order of "
                "the channels, and output channels by eights"
            )
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }


def awq_tensors(weight: Int4Weight, group_size: int) -> dict[str, np.ndarray]:
    """One layer: qweight int32 [IC, OC/8], qzeros int32 [R, OC/8] and scales [R, OC]."""
    rows, columns = weight.shape
    groups = -(-rows // group_size)
    scales = np.asarray(weight.scales)[:groups, :columns]
    zeros = np.asarray(weight.zeros)[:groups, :columns]
    group = np.arange(rows) // group_size
    # The matrix is exactly (level - zero) * scale.
    steps = np.where(scales == 0, 1, scales).astype(np.float32)[group]
    levels = np.rint(np.asarray(weight.dequantize()) / steps) + zeros[group]
    return {"qweight": _words(levels), "qzeros": _words(zeros), "scales": scales}


def _words(nibbles: np.ndarray) -> np.ndarray:
    """[n, 8 m] -> int32 [n, m]."""
    eights = nibbles.astype(np.uint32).reshape(len(nibbles), -1, 8)
    return (eights << 4 * _NIBBLE.astype(np.uint32)).sum(-1, dtype=np.uint32).view(np.int32)
