"""The kernels' own choice of tiles, a host function of the extension."""

from __future__ import annotations

import pytest

ffi = pytest.importorskip(
    "jax_baracuda._ffi", reason="this installation has no kernels", exc_type=ImportError
)

# Shared memory in bytes of an SM, and what one CTA may have of it (CUDA programming guide).
GPUS = {"sm_80": (167936, 166912), "sm_86": (102400, 101376), "sm_90": (233472, 232448)}
DIMS = [
    (1, 1),
    (8, 3),
    (64, 64),
    (96, 40),
    (128, 128),
    (192, 128),
    (128, 192),
    (192, 192),
    (256, 256),
]


def tiles(gpu: str, dims: tuple[int, int], **kind: object) -> dict[str, dict[str, int]]:
    sm_shared, cta_shared = GPUS[gpu]
    return ffi.attention_tiles(
        **{"dtype": "bfloat16", "features": False} | kind,
        head_dim=dims[0],
        value_dim=dims[1],
        sm_shared=sm_shared,
        cta_shared=cta_shared,
    )


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_every_call_has_kernels_that_fit(gpu, dtype, features, dims):
    """Static variables take up to 1 KB beside what is counted."""
    chosen = tiles(gpu, dims, dtype=dtype, features=features)
    assert set(chosen) == {"forward", "backward"}
    for tile in chosen.values():
        assert tile["dim"] >= dims[0]
        assert tile["dim_v"] >= dims[1]
        assert tile["shared_bytes"] + 1024 <= GPUS[gpu][1]


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 192, 256])
def test_a_compiled_head_dim_is_not_padded(gpu, dim):
    assert tiles(gpu, (dim, dim))["forward"]["dim"] == dim
    assert tiles(gpu, (dim, dim))["backward"]["dim"] == dim


def test_a_large_sm_holds_two_ctas_with_wide_blocks_of_keys():
    assert tiles("sm_90", (128, 128))["forward"]["keys"] == 64
    assert tiles("sm_80", (128, 128))["forward"]["keys"] == 32
    assert tiles("sm_90", (128, 128))["forward"]["shared_bytes"] * 2 <= GPUS["sm_90"][0]


def test_no_kernel_where_nothing_fits():
    assert (
        ffi.attention_tiles(
            dtype="bfloat16",
            features=False,
            head_dim=256,
            value_dim=256,
            sm_shared=65536,
            cta_shared=65536,
        )
        == {}
    )
