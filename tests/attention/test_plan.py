"""The kernels' own choice of tiles, a host function of the extension."""

from __future__ import annotations

import itertools

import pytest

from jax_baracuda._src.attention import shapes
from jax_baracuda._src.explain.attention import (
    ALIBI,
    ALL_FEATURES,
    BIAS,
    BOUNDED_CAP,
    DROPOUT,
    FLOAT_BIAS,
    ROW_BIAS,
    SOFT_CAP,
)

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


# ---- the Hopper kernel

ANY, TWO_CTAS, FEW, PAGES, PAIRS = range(5)
ONE_FEATURE = (SOFT_CAP, ALIBI, BIAS, DROPOUT, ROW_BIAS, FLOAT_BIAS, BOUNDED_CAP)
FEATURES = (*ONE_FEATURE, SOFT_CAP | ALIBI, ALL_FEATURES)


def hopper(
    batch: int, rows: int, keys: int, heads: tuple[int, int], dims: tuple[int, int], **kind: object
) -> dict[str, int]:
    """With the workspace that shapes.py gives, unless told otherwise."""
    shape = shapes.AttentionShape(batch, rows, keys, *heads, *dims, "bfloat16", 1, False)
    return ffi.hopper_plan(
        **{"features": 0, "causal": False, "split_bytes": shapes.split_bytes(shape)} | kind,
        packs=batch,
        sequences=1,
        query_rows=rows,
        keys=keys,
        q_heads=heads[0],
        kv_heads=heads[1],
        head_dim=dims[0],
        value_dim=dims[1],
    )


@pytest.mark.parametrize(
    ("sizes", "causal", "plan"),
    [
        # batch, rows, keys, heads; rows x keys of a tile, its use, heads in it, splits
        ((1, 16, 8192, (32, 8)), True, (128, 128, FEW, 4, 16)),
        ((1, 128, 8192, (32, 8)), True, (128, 128, FEW, 1, 4)),
        ((4, 16, 2048, (32, 8)), True, (128, 128, FEW, 4, 4)),
        ((1, 1, 32768, (32, 8)), True, (128, 128, FEW, 4, 16)),
        ((1, 1, 32768, (32, 4)), False, (128, 128, FEW, 8, 32)),
        ((1, 512, 4096, (8, 8)), True, (128, 128, FEW, 1, 4)),
        ((64, 16, 2048, (64, 8)), True, (128, 128, FEW, 8, 1)),
        ((1, 512, 512, (16, 16)), True, (128, 128, ANY, 1, 1)),
        ((32, 512, 512, (16, 16)), True, (128, 128, ANY, 1, 1)),
        ((32, 512, 512, (16, 16)), False, (128, 128, ANY, 1, 1)),
        ((8, 2048, 2048, (16, 16)), True, (128, 128, ANY, 1, 1)),
        ((1, 200, 200, (4, 2)), True, (128, 128, ANY, 1, 1)),
    ],
)
def test_plan_of_a_hopper_call(sizes, causal, plan):
    got = hopper(*sizes, (128, 128), causal=causal)
    assert tuple(got[name] for name in ("rows", "keys", "use", "packed", "splits")) == plan


@pytest.mark.parametrize(
    ("length", "causal", "plan"),
    [
        # rows x keys of a tile, its use
        (512, True, (128, 64, TWO_CTAS)),
        (1024, True, (128, 64, TWO_CTAS)),
        (4096, True, (128, 64, TWO_CTAS)),
        (16384, True, (192, 128, ANY)),
        (512, False, (128, 64, TWO_CTAS)),
        (1024, False, (192, 128, ANY)),
    ],
)
def test_short_calls_of_head_dim_64_share_an_sm(length, causal, plan):
    got = hopper(16384 // length, length, length, (32, 32), (64, 64), causal=causal)
    assert tuple(got[name] for name in ("rows", "keys", "use")) == plan


@pytest.mark.parametrize(
    ("keys", "causal", "blocks"),
    [(512, True, 64), (512, False, 64), (1024, True, 64), (1024, False, 80), (2048, True, 80)],
)
def test_short_calls_of_head_dim_256_have_shorter_blocks(keys, causal, blocks):
    got = hopper(16384 // keys, keys, keys, (8, 8), (256, 256), causal=causal)
    assert tuple(got[name] for name in ("rows", "keys", "use")) == (128, blocks, ANY)


@pytest.mark.parametrize(
    ("rows", "keys", "causal", "use"),
    [
        (16384, 16384, False, PAIRS),
        (16384, 16384, True, ANY),
        (16200, 16384, False, ANY),  # 127 tiles
        (16384, 2048, False, ANY),
    ],
)
def test_tiles_without_a_mask_come_in_pairs(rows, keys, causal, use):
    got = hopper(1, rows, keys, (16, 4), (128, 128), causal=causal)
    assert tuple(got[name] for name in ("rows", "keys", "use")) == (128, 128, use)


@pytest.mark.parametrize("keys", [600, 5000])
def test_few_tiles_have_the_blocks_of_the_usual_ones(keys):
    """So that packing a group changes no bits."""
    for dims in ((64, 64), (128, 128), (192, 128), (256, 256)):
        usual = hopper(64, 512, keys, (8, 8), dims)
        few = hopper(40, 16, keys, (64, 8), dims)
        assert usual["use"] != FEW
        assert few["use"] == FEW
        assert few["keys"] == usual["keys"]


def test_plans_fill_the_sms_and_not_more():
    """Over many sizes: splits are of at least 256 keys, and tiles that share keys are one wave."""
    sizes = itertools.product((1, 3, 40), (1, 5, 16, 130, 700), (1, 511, 512, 3000, 60000))
    for (batch, rows, keys), heads in itertools.product(
        sizes, ((1, 1), (32, 8), (12, 4), (200, 1))
    ):
        for dims in ((64, 64), (40, 24), (128, 128), (192, 128), (256, 256)):
            got = hopper(batch, rows, keys, heads, dims)
            # What shapes.py gives is never too little.
            assert got == hopper(batch, rows, keys, heads, dims, split_bytes=2**50)
            assert got["packed"] in (1, heads[0] // heads[1])
            if got["use"] != FEW:
                assert (got["packed"], got["splits"]) == (1, 1)
            if got["splits"] > 1:
                assert got["tiles"] <= shapes.SPLIT_SMS
                assert got["splits"] * shapes.LEAST_SPLIT_KEYS <= keys
                shape = shapes.AttentionShape(1, rows, keys, *heads, *dims, "bfloat16", 1, False)
                assert shapes.may_split(shape)


def test_no_splits_without_workspace_or_with_features():
    sizes = (1, 16, 8192, (32, 8), (128, 128))
    assert hopper(*sizes, split_bytes=0)["splits"] == 1
    assert all(hopper(*sizes, features=some)["use"] == ANY for some in FEATURES)


@pytest.mark.parametrize("features", [0, *FEATURES])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dims", [(8, 8), (64, 64), (96, 40), (128, 192), (256, 256)], ids=str)
def test_every_head_dim_has_a_hopper_tile(features, causal, dims):
    for keys in (1, 500, 5000):
        tile = hopper(2, 300, keys, (4, 4), dims, features=features, causal=causal)
        assert tile["dim"] >= dims[0]
        assert tile["dim_v"] >= dims[1]


@pytest.mark.parametrize("features", ONE_FEATURE)
def test_one_feature_has_wider_blocks_than_many(features):
    sizes = (2, 300, 500, (4, 4), (128, 128))
    many = hopper(*sizes, features=SOFT_CAP | ALIBI | BIAS | DROPOUT)
    assert hopper(*sizes, features=features)["keys"] == 128 > many["keys"]
    assert hopper(*sizes, features=ALL_FEATURES) == many


@pytest.mark.parametrize(
    ("features", "length", "causal", "use"),
    [
        (SOFT_CAP, 512, False, TWO_CTAS),
        (SOFT_CAP, 16384, True, TWO_CTAS),
        (ALIBI, 512, False, TWO_CTAS),
        (ALIBI, 1024, True, TWO_CTAS),
        (ALIBI, 2048, True, ANY),
        (ROW_BIAS, 512, False, TWO_CTAS),
        (ROW_BIAS, 1024, False, ANY),
        (ROW_BIAS, 2048, True, TWO_CTAS),
        (ROW_BIAS, 2048, False, ANY),
        (ROW_BIAS, 4096, True, ANY),
        (DROPOUT, 512, False, TWO_CTAS),
        (DROPOUT, 1024, False, ANY),
        (DROPOUT, 1024, True, TWO_CTAS),
        (DROPOUT, 2048, True, ANY),
        (BIAS, 512, True, ANY),
        (BOUNDED_CAP, 8192, True, TWO_CTAS),
        (BOUNDED_CAP, 16384, True, ANY),
        (BOUNDED_CAP, 1024, False, TWO_CTAS),
        (BOUNDED_CAP, 2048, False, ANY),
    ],
)
def test_calls_of_head_dim_64_with_a_feature_that_share_an_sm(features, length, causal, use):
    sizes = (16384 // length, length, length, (32, 32), (64, 64))
    assert hopper(*sizes, causal=causal, features=features)["use"] == use


@pytest.mark.parametrize("dim", [8, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("features", [0, *FEATURES])
def test_keys_in_pages_have_one_tile_a_head_dim(dim, features):
    """Whatever the sizes, so that no request's bits depend on the others."""
    tiles = [
        hopper(batch, rows, keys, (8, 2), (dim, dim), paged=True, features=features)
        for batch, rows, keys in ((1, 1, 1), (64, 64, 10**6), (8, 4096, 4096))
    ]
    for tile in tiles:
        assert tile["use"] == PAGES
        assert tile["rows"] == 128
        assert tile["dim"] >= dim
        assert (tile["packed"], tile["splits"]) == (1 if features else 4, 1)
    assert len({(tile["dim"], tile["keys"]) for tile in tiles}) == 1


@pytest.mark.parametrize(
    ("group", "packed"),
    [
        (1, 1),
        (4, 4),
        (5, 5),
        (7, 7),
        (20, 20),
        (48, 24),
        (64, 64),
        (100, 25),
        (130, 13),
        (256, 128),
    ],
)
def test_heads_of_a_group_share_a_tile_of_pages(group, packed):
    """As many as leave nine tenths of its 128 rows in use."""
    got = hopper(5, 1, 100, (2 * group, 2), (128, 128), paged=True)
    assert got["packed"] == packed
    assert got["tiles"] >= 2 * group // packed
    assert 128 // packed * packed >= 0.9 * 128
