"""Validation, workspace and explain: functions of shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda._src import registry
from jax_baracuda._src.decode import shapes


def aval(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def sizes(batch=2, q_heads=32, kv_heads=8, capacity=4096, head_dim=128):
    return shapes.DecodeShape(batch, q_heads, kv_heads, capacity, head_dim, "bfloat16")


@pytest.mark.parametrize(
    ("layout", "cache"), [("HND", (2, 8, 4096, 128)), ("NHD", (2, 4096, 8, 128))]
)
def test_operands_give_the_sizes_of_either_layout(layout, cache):
    query = aval(2, 32, 128)
    shape = shapes.check_operands(
        query, aval(*cache), aval(*cache), aval(2, dtype="int32"), None, None, kv_layout=layout
    )
    assert shape == sizes()
    assert shape.group == 4
    assert shapes.decode_shape(query, aval(*cache), nhd=layout == "NHD") == shape


@pytest.mark.parametrize(
    ("shape", "num_splits", "expected"),
    [
        (sizes(), 1, 16),  # one part needs no merge
        (sizes(), 5, 2 * 8 * 5 * 4 * 4 * 130),  # one (m, l, o[128]) a head, row and part
        (sizes(capacity=64), 0, 16),  # one block of 64 rows is not split
        (sizes(capacity=65), 0, 2 * (2 * 8 * 2) * 4 * 4 * 130),  # few blocks: two slots a block
        (sizes(batch=64), 0, 2 * 192 * 4 * 4 * 4 * 130),  # many: two slots a resident CTA
        (sizes(batch=64, q_heads=96), 0, 2 * 192 * 2 * 4 * 12 * 130),
        (sizes(batch=64, q_heads=8, head_dim=256), 0, 2 * 192 * 2 * 4 * 1 * 258),
        (sizes(batch=64, q_heads=136), 0, 2 * 192 * 1 * 4 * 17 * 130),
        (sizes(batch=0), 0, 16),
        (sizes(batch=0), 7, 0),
        (sizes(capacity=0), 0, 16),
    ],
)
def test_workspace_bytes(shape, num_splits, expected):
    assert shapes.workspace_bytes(shape, num_splits) == max(16, expected)


def test_workspace_does_not_grow_with_a_long_cache():
    short, long = (shapes.workspace_bytes(sizes(capacity=k), 0) for k in (2**14, 2**24))
    assert short == long < 2**22


@pytest.mark.parametrize(
    ("window", "left"),
    [
        (None, -1),
        (0, 0),
        (7, 7),
        ((3, 0), 3),
        ([3, 9], 3),
        ((np.int64(4), 0), 4),
        (2**40, 2**31 - 1),
    ],
)
def test_local_window_size_counts_keys_to_the_left(window, left):
    assert shapes.check_window(window) == left


def test_options_in_the_form_of_the_kernel():
    defaults = shapes.check_options(64)
    assert defaults == {
        "nhd": False,
        "scale": 0.125,
        "window_left": -1,
        "sink_tokens": 0,
        "logits_soft_cap": 0.0,
        "num_splits": 0,
    }
    given = shapes.check_options(
        64,
        kv_layout="NHD",
        scale=np.float32(2),
        local_window_size=(5, 1),
        sink_tokens=3,
        logits_soft_cap=30,
        num_splits=np.int32(4),
    )
    assert given == {
        "nhd": True,
        "scale": 2.0,
        "window_left": 5,
        "sink_tokens": 3,
        "logits_soft_cap": 30.0,
        "num_splits": 4,
    }
    assert [type(given[name]) for name in ("scale", "num_splits")] == [
        float,
        int,
    ]  # hashable, plain


CALL = (aval(2, 32, 128), aval(2, 8, 4096, 128), aval(2, 8, 4096, 128))


@pytest.mark.parametrize("num_splits", [None, 4])
def test_explain_tells_of_the_cuda_kernel_on_any_machine(num_splits):
    info = jax_baracuda.explain(
        "flash_decode", *CALL, aval(2, dtype="int32"), implementation="cuda", num_splits=num_splits
    )
    assert info.op == "flash_decode"
    assert info.name == "flash_decode_mma"
    assert info.implementation == "cuda"
    assert info.dtype == "bfloat16"
    assert info.accumulator == "float32"
    assert info.deterministic
    assert info.batch_invariant is (num_splits is not None)
    assert info.workspace_bytes == shapes.workspace_bytes(sizes(), num_splits or 0)


def test_explain_tells_of_the_reference():
    info = jax_baracuda.explain("flash_decode", *CALL, implementation="reference")
    assert (info.name, info.implementation, info.arch) == ("reference", "reference", None)
    assert info.workspace_bytes == 0
    assert "asked for" in info.note


def test_explain_without_a_gpu_says_why_it_is_the_reference(monkeypatch):
    monkeypatch.setattr(registry, "has_cuda_device", lambda: False)
    info = jax_baracuda.explain("flash_decode", *CALL)
    assert info.implementation == "reference"
    assert f"backend is {jax.default_backend()}" in info.note


def test_explain_says_what_is_in_the_way_of_a_kernel(monkeypatch):
    missing = registry.Extension(frozenset(), {}, "no luck")
    monkeypatch.setattr(registry, "register", lambda: missing)
    assert "no luck" in jax_baracuda.explain("flash_decode", *CALL, implementation="cuda").note


def test_explain_takes_arrays_as_jax_would_see_them():
    query, cache = np.zeros((1, 4, 8)), np.zeros((1, 2, 16, 8))  # float64, which jax makes float32
    info = jax_baracuda.explain("flash_decode", query, cache, jnp.asarray(cache))
    assert info.dtype == "float32"
    assert (
        jax_baracuda.explain("flash_decode", query, cache, cache, implementation="cuda").name
        == "flash_decode_simt"
    )


def test_explain_refuses_what_the_call_refuses():
    with pytest.raises(
        ValueError, match=r"fn_name is 'flush_decode'; supported are .*'flash_decode'"
    ):
        jax_baracuda.explain("flush_decode", *CALL)
    with pytest.raises(ValueError, match="num_splits is 0"):
        jax_baracuda.explain("flash_decode", *CALL, num_splits=0)
    with pytest.raises(TypeError, match="number_of_splits"):
        jax_baracuda.explain("flash_decode", *CALL, number_of_splits=1)


@pytest.mark.parametrize(
    ("built", "gpu", "expected"),
    [
        (("80", "90a"), "9.0", "90a"),
        (("80", "90a"), "8.6", "80"),  # machine code of the same major version
        (("80", "90a"), "10.0", "80"),  # its PTX, compiled by the driver
        (("80-real", "90a"), "10.0", None),
        (("90-virtual",), "9.0", "90-virtual"),
        (("90a", "100f"), "10.3", "100f"),
        (("80", "90a"), "7.5", None),
        ((), "9.0", None),
        (("all-major",), "9.0", None),
    ],
)
def test_which_built_architecture_serves_a_gpu(built, gpu, expected):
    assert registry.best_architecture(built, gpu) == expected
