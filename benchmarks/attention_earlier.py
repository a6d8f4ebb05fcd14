"""Peers that few machines have, as they were measured on another day, beside cuDNN through torch.

A cell's figure of such a peer is put at as many times that of torch's cuDNN as on that day.
"""

from __future__ import annotations

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LABELS = {
    "flash4": "FlashAttention-4 (torch)",
    "flash_attn_jax": "FlashAttention-2 (JAX)",
}

# TFLOP/s by pass and (D, causal) for each length, on an H200 on 2026-11-20: bench_attention.py's
# grid in bfloat16; torch 2.11 with cuDNN 9.19, flash-attn-4 4.0.0b36, flash_attn_jax 0.6.2.
FIGURES: dict[str, dict[tuple[int, bool], dict[str, tuple[int | None, ...]]]] = {
    "fwd": {
        (64, False): {
            "torch_cudnn": (383, 413, 437, 462, 447, 451),
            "flash4": (323, 390, 454, 478, 536, 541),
            "flash_attn_jax": (260, 285, 300, 309, 312, 315),
        },
        (64, True): {
            "torch_cudnn": (257, 336, 376, 418, 422, 429),
            "flash4": (181, 258, 367, 431, 471, 498),
            "flash_attn_jax": (181, 228, 262, 285, 296, 305),
        },
        (128, False): {
            "torch_cudnn": (519, 563, 641, 601, 599, 606),
            "flash4": (452, 534, 586, 585, 656, 671),
            "flash_attn_jax": (311, 343, 360, 369, 373, 379),
        },
        (128, True): {
            "torch_cudnn": (330, 413, 483, 518, 552, 547),
            "flash4": (268, 394, 496, 545, 588, 601),
            "flash_attn_jax": (204, 258, 296, 321, 338, 346),
        },
        (256, False): {
            "torch_cudnn": (504, 586, 630, 645, 663, 662),
            "flash4": (486, 635, 601, 686, 692, 724),
            "flash_attn_jax": (281, None, None, None, None, None),
        },
        (256, True): {
            "torch_cudnn": (335, 438, 514, 548, 601, 607),
            "flash4": (300, 433, 540, 601, 644, 644),
            "flash_attn_jax": (212, None, None, None, None, None),
        },
    },
    "bwd": {
        (64, False): {
            "torch_cudnn": (275, 357, 394, 416, 427, 439),
            "flash4": (334, 407, 453, 463, 505, 522),
            "flash_attn_jax": (203, 247, 274, 291, 298, 302),
        },
        (64, True): {
            "torch_cudnn": (167, 250, 324, 369, 412, 419),
            "flash4": (216, 311, 377, 436, 486, 512),
            "flash_attn_jax": (136, 189, 233, 263, 283, 299),
        },
        (128, False): {
            "torch_cudnn": (339, 429, 472, 514, 525, 535),
            "flash4": (359, 467, 526, 543, 566, 608),
            "flash_attn_jax": (218, 262, 292, 309, 319, 322),
        },
        (128, True): {
            "torch_cudnn": (213, 316, 409, 445, 478, 512),
            "flash4": (243, 334, 428, 506, 546, 591),
            "flash_attn_jax": (149, 204, 248, 279, 300, 323),
        },
        (256, False): {
            "torch_cudnn": (240, 298, 349, 368, 358, 354),
            "flash4": (254, 300, 341, 335, 365, 381),
            "flash_attn_jax": (190, None, None, None, None, None),
        },
        (256, True): {
            "torch_cudnn": (178, 246, 300, 335, 370, 375),
            "flash4": (178, 245, 293, 329, 351, 367),
            "flash_attn_jax": (137, None, None, None, None, None),
        },
    },
}


def over_cudnn(peer: str, passes: str, head_dim: int, causal: bool, length: int) -> float | None:
    """How many times as fast as torch's cuDNN the peer was in a cell; None if it did not run."""
    figures = FIGURES.get(passes, {}).get((head_dim, causal), {})
    if not figures or length not in LENGTHS:
        return None
    at = LENGTHS.index(length)
    theirs, cudnn = figures[peer][at], figures["torch_cudnn"][at]
    return theirs / cudnn if theirs and cudnn else None
