"""What flash_attention lowers to, with no GPU and, in a process of its own, with no extension."""

import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jax_baracuda import flash_attention, flash_attention_varlen
from jax_baracuda._src.attention import shapes

TARGET = "jax_baracuda_flash_attention"
KERNELS = (TARGET, f"{TARGET}_backward", f"{TARGET}_bias_grad")
UNCHECKED = [export.DisabledSafetyCheck.custom_call(name) for name in KERNELS]
B, S, K, HQ, HKV, D, DV = 2, 10, 12, 4, 2, 16, 8
NOTHING = "tensor<0xf32>"
ATTRIBUTES = [name for name in shapes.AttentionOptions.__annotations__ if name != "deterministic"]


def avals(*, dtype="float32", batch=B, rows=S, keys=K):
    sizes = (batch, rows, HQ, D), (batch, keys, HKV, D), (batch, keys, HKV, DV)
    return tuple(jax.ShapeDtypeStruct(size, dtype) for size in sizes)


def random_operands(**sizes):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=a.shape).astype(a.dtype) for a in avals(**sizes))


def gradient(function, argnums=(0, 1, 2)):
    return jax.grad(lambda *args: function(*args).astype(jnp.float32).sum(), argnums)


def lower(function, *args, platforms=("cuda",)):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def custom_calls(text):
    """The calls of our kernels: (name, line)."""
    return re.findall(rf"(?=.*custom_call @({TARGET}\w*)).*?(\S.*)", text)


def attribute(line, name):
    return re.search(rf"\b{name} = ([^,}}]+)", line)[1]


def test_the_forward_kernel_gets_its_operands_whole_and_its_workspace():
    ((name, line),) = custom_calls(lower(flash_attention, *avals()))
    assert name == TARGET
    ids = "tensor<0xi32>"
    assert line.endswith(
        "(tensor<2x10x4x16xf32>, tensor<2x12x2x16xf32>, tensor<2x12x2x8xf32>, "
        f"{NOTHING}, {NOTHING}, {NOTHING}, {', '.join([ids] * 6)}, tensor<0xui32>) -> "
        "(tensor<2x10x4x8xf32>, tensor<2x4x10xf32>, tensor<256xui8>)"
    )
    assert "(%arg0, %arg1, %arg2, " in line  # nothing between the arguments and the kernel
    assert "dense<[3, 2, 1, 0]> : tensor<4xindex>" in line  # major to minor
    assert {name: attribute(line, name) for name in ATTRIBUTES} == {
        "scale": "2.500000e-01 : f32",
        "causal": "false",
        "top_left": "false",
        "window_left": "-1 : i64",
        "window_right": "-1 : i64",
        "sink_tokens": "0 : i64",
        "logits_soft_cap": "0.000000e+00 : f32",
        "dropout_rate": "0.000000e+00 : f32",
        "max_seqlen_q": "0 : i64",
        "max_seqlen_k": "0 : i64",
    }
    assert "deterministic" not in line
    assert "mhlo.backend_config = {" in line  # so the typed FFI API


def every_option(query, key, value, bias, sinks, slopes, q_lengths, k_lengths, q_ids, k_ids):
    return flash_attention(
        query,
        key,
        value,
        scale=0.5,
        is_causal=True,
        local_window_size=(7, 3),
        sink_tokens=2,
        sinks=sinks,
        alibi_slopes=slopes,
        logits_soft_cap=30.0,
        bias=bias,
        query_seq_lengths=q_lengths,
        key_value_seq_lengths=k_lengths,
        query_segment_ids=q_ids,
        key_value_segment_ids=k_ids,
        dropout_rate=0.25,
        dropout_seed=np.array([1, 2], np.uint32),
        deterministic=True,
    )


def every_operand(bias_rows):
    options = (
        ((1, HQ, bias_rows, K), "float16"),
        ((HQ,), "bfloat16"),
        ((B, HQ), "float32"),
        ((B,), "uint8"),
        ((B,), "int32"),
        ((B, S), "int32"),
        ((B, K), "int16"),
    )
    return *avals(dtype="bfloat16"), *(jax.ShapeDtypeStruct(*like) for like in options)


OTHER_OPTION_TYPES = (
    "tensor<1x4xf32>, tensor<2x4xf32>, tensor<2xi32>, tensor<2xi32>, "
    "tensor<2x10xi32>, tensor<2x12xi32>, tensor<0xi32>, tensor<0xi32>, tensor<2x4x4xui32>)"
)


@pytest.mark.parametrize("bias_rows", [1, S])
def test_every_option_reaches_every_kernel(monkeypatch, bias_rows):
    """The gradient of a bias with one row comes with the others, that of another one does not."""
    monkeypatch.setenv("XLA_FLAGS", "")
    text = lower(gradient(every_option, (0, 1, 2, 3, 4)), *every_operand(bias_rows))
    calls = dict(custom_calls(text))
    assert sorted(calls) == sorted(KERNELS[:2] if bias_rows == 1 else KERNELS)
    for line in calls.values():
        assert {name: attribute(line, name) for name in ATTRIBUTES} == {
            "scale": "5.000000e-01 : f32",
            "causal": "true",
            "top_left": "false",
            "window_left": "7 : i64",
            "window_right": "0 : i64",
            "sink_tokens": "2 : i64",
            "logits_soft_cap": "3.000000e+01 : f32",
            "dropout_rate": "2.500000e-01 : f32",
            "max_seqlen_q": "0 : i64",
            "max_seqlen_k": "0 : i64",
        }
    query, key, value = "tensor<2x10x4x16xbf16>", "tensor<2x12x2x16xbf16>", "tensor<2x12x2x8xbf16>"
    out, lse = "tensor<2x10x4x8xbf16>", "tensor<2x4x10xf32>"
    bias = f"tensor<1x4x{bias_rows}x12xf16>"
    options = f"{bias}, {OTHER_OPTION_TYPES}"
    scratch = 256 + 8 * B * 2
    assert calls[KERNELS[0]].endswith(
        f"({query}, {key}, {value}, {options} -> ({out}, {lse}, tensor<{scratch}xui8>)"
    )
    # The kernel for Hopper GPUs takes a block of 128 rows and 64 columns a head here.
    scratch = 2048 + 8 * B * 2 + B * HQ * (4 * 128 * (64 + 2) + 4 * 4)
    with_bias = ""
    if bias_rows == 1:
        with_bias, scratch = f"{bias}, ", scratch + 256 + 4 * B * HQ * K
    assert calls[KERNELS[1]].endswith(
        f"({query}, {key}, {value}, {out}, {lse}, {out}, {NOTHING}, {options} -> "
        f"({query}, {key}, {value}, {lse}, {with_bias}tensor<{scratch}xui8>)"
    )
    assert attribute(calls[KERNELS[1]], "deterministic") == "true"
    if bias_rows == 1:
        return
    scratch = 256 + 8 * B * 2
    assert calls[KERNELS[2]].endswith(
        f"({query}, {key}, {value}, {lse}, {out}, {lse}, {options} -> "
        f"({bias}, tensor<{scratch}xui8>)"
    )


def test_packed_sequences_reach_every_kernel():
    def function(query, key, value, bounds_q, bounds_k, bias, ids):
        return flash_attention_varlen(
            query,
            key,
            value,
            bounds_q,
            bounds_k,
            max_seqlen_q=9,
            max_seqlen_k=11,
            bias=bias,
            query_segment_ids=ids,
            key_value_segment_ids=ids,
            dropout_rate=0.5,
            dropout_seed=jax.random.key(0),
        )

    shapes_and_dtypes = [
        ((30, HQ, D), "float16"),
        ((30, HKV, D), "float16"),
        ((30, HKV, DV), "float16"),
        ((4,), "int32"),
        ((4,), "uint32"),
        ((3, 1, 9, 11), "float32"),
        ((30,), "int32"),
    ]
    operands = [jax.ShapeDtypeStruct(*like) for like in shapes_and_dtypes]
    calls = dict(custom_calls(lower(gradient(function, (0, 1, 2, 5)), *operands)))
    assert sorted(calls) == sorted(KERNELS)
    optional = (
        f"tensor<3x1x9x11xf32>, {NOTHING}, {NOTHING}, tensor<0xi32>, tensor<0xi32>, "
        "tensor<1x30xi32>, tensor<1x30xi32>, tensor<1x4xi32>, tensor<1x4xi32>, tensor<3x4x4xui32>)"
    )
    for line in calls.values():
        assert optional in line
        assert attribute(line, "max_seqlen_q") == "9 : i64"
        assert attribute(line, "max_seqlen_k") == "11 : i64"
    results = "(tensor<1x30x4x8xf16>, tensor<1x4x30xf32>, tensor<272xui8>)"
    assert calls[TARGET].endswith(f"-> {results}")


@pytest.mark.parametrize("flags", ["", "--xla_gpu_deterministic_ops=true"])
@pytest.mark.parametrize("asked", [False, True])
def test_determinism_is_asked_for_by_argument_or_flag(monkeypatch, flags, asked):
    monkeypatch.setenv("XLA_FLAGS", flags)

    def function(*operands):
        return flash_attention(*operands, deterministic=asked)

    calls = dict(custom_calls(lower(gradient(function), *avals())))
    assert attribute(calls[KERNELS[1]], "deterministic") == str(bool(flags) or asked).lower()


def test_the_gradient_of_a_bias_costs_only_those_who_want_it():
    bias = np.zeros((1, 1, S, K), np.float32)

    def function(*operands):
        return flash_attention(*operands, bias=bias)

    calls = dict(custom_calls(lower(gradient(function), *avals())))
    assert sorted(calls) == sorted(KERNELS[:2])


def test_the_lse_has_a_cotangent_only_where_it_is_used():
    def loss(query, key, value):
        out, lse = flash_attention(query, key, value, return_lse=True)
        return out.sum() + lse.sum()

    line = dict(custom_calls(lower(jax.grad(loss), *avals())))[KERNELS[1]]
    assert "tensor<2x4x10xf32>, tensor<2x10x4x8xf32>, tensor<2x4x10xf32>, tensor<0x" in line


def test_other_platforms_get_plain_operations():
    for function in (flash_attention, gradient(flash_attention)):
        text = lower(function, *avals(), platforms=("cpu",))
        assert "custom_call" not in text
        assert "dot_general" in text
        assert custom_calls(lower(function, *avals(), platforms=("cpu", "cuda")))


def test_the_reference_is_plain_operations_on_cuda_too():
    def function(*operands):
        return flash_attention(*operands, implementation="reference")

    assert "custom_call" not in lower(gradient(function), *avals())


def test_residuals_are_operands_out_and_lse_alone():
    _, pull = jax.vjp(flash_attention, *random_operands())
    sizes = sorted(array.shape for array in jax.tree.leaves(pull) if array.size)
    wanted = [a.shape for a in avals()] + [(B, S, HQ, DV), (B, HQ, S)]
    assert sizes == sorted(wanted)


def test_no_equation_has_a_row_for_each_pair():
    """Memory grows with the lengths, not with their product."""
    rows, keys = 70, 90
    operands = avals(rows=rows, keys=keys)
    for function in (flash_attention, gradient(flash_attention)):
        jaxpr = jax.make_jaxpr(function)(*operands)
        largest = max(var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars)
        assert largest <= max(a.size for a in operands)
        assert f"{rows}x{keys}x" not in lower(function, *operands)


def test_one_equation_a_pass_takes_the_arguments_as_they_are():
    jaxpr = jax.make_jaxpr(flash_attention)(*avals()).jaxpr
    text = str(jaxpr)
    assert text.count(f" {TARGET}[") == 1
    ((call,),) = [[e for e in jaxpr.eqns if e.primitive.name == "custom_vjp_call"]]
    assert [var for var in call.invars if var in jaxpr.invars] == jaxpr.invars
    assert text.count("transpose") == 0


def test_no_extension_and_no_gpu_are_needed():
    program = f"""
        import sys
        sys.modules["jax_baracuda._ffi"] = None  # what an install without kernels has
        import jax
        import jax.numpy as jnp
        import jax_baracuda
        from jax_baracuda._src import registry

        assert not registry.register().targets
        query, key = jnp.ones((1, 3, 2, 8)), jnp.ones((1, 4, 1, 8))
        loss = lambda *args: jax_baracuda.flash_attention(*args).sum()
        assert abs(loss(query, key, key) - 48) < 1e-4
        step = jax.jit(jax.grad(loss))
        assert step(query, key, key).shape == query.shape
        text = step.trace(query, key, key).lower(lowering_platforms=("cuda",)).as_text()
        assert "@{TARGET}_backward" in text
    """
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_export_for_cpu_runs():
    step = jax.jit(gradient(flash_attention))
    exported = export.export(step, platforms=["cpu"])(*avals())
    operands = random_operands()
    cpu = jax.devices("cpu")[0]
    got = jax.jit(exported.call)(*jax.device_put(operands, cpu))
    for ours, theirs in zip(got, step(*operands), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_export_for_cuda_names_the_kernels():
    step = jax.jit(gradient(flash_attention))
    with pytest.raises(ValueError, match=TARGET):  # jax asks for a promise that we do not give
        export.export(step, platforms=["cuda"])(*avals())
    exported = export.export(step, platforms=["cuda"], disabled_checks=UNCHECKED)(*avals())
    assert exported.platforms == ("cuda",)
    assert sorted(dict(custom_calls(exported.mlir_module()))) == sorted(KERNELS[:2])


def test_symbolic_sizes_take_no_workspace_that_depends_on_them():
    batch, keys = export.symbolic_shape("batch, keys")
    query, key, _ = (
        jax.ShapeDtypeStruct((batch, size, heads, 64), "bfloat16")
        for size, heads in ((S, HQ), (keys, HKV), (keys, HKV))
    )
    exported = export.export(
        jax.jit(flash_attention), platforms=["cuda"], disabled_checks=UNCHECKED
    )(query, key, key)
    assert "tensor<256xui8>" in exported.mlir_module()


@pytest.mark.parametrize("names", ["batch", "rows", "keys", "batch, rows, keys"])
def test_export_with_symbolic_sizes(names):
    sizes = dict(zip(names.split(", "), export.symbolic_shape(names), strict=True))
    symbolic = avals(**sizes)

    def function(*operands):
        return flash_attention(
            *operands,
            is_causal=True,
            alibi_slopes=np.ones(HQ, np.float32),
            dropout_rate=0.1,
            dropout_seed=np.array([1, 2], np.uint32),
        )

    for step in (function, gradient(function)):
        exported = export.export(jax.jit(step), platforms=["cpu"])(*symbolic)
        operands = random_operands(**{name: 5 + len(name) for name in sizes})
        cpu = jax.devices("cpu")[0]
        got = jax.jit(exported.call)(*jax.device_put(operands, cpu))
        for ours, theirs in zip(*map(jax.tree.leaves, (got, step(*operands))), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        on_cuda = export.export(jax.jit(step), platforms=["cuda"], disabled_checks=UNCHECKED)
        assert custom_calls(on_cuda(*symbolic).mlir_module())


@pytest.mark.parametrize(
    "sizes",
    [dict(batch=0), dict(rows=0), dict(keys=0), dict(rows=0, keys=0)],
    ids=lambda sizes: "-".join(sizes),
)
def test_empty_dimensions(sizes):
    operands = random_operands(**sizes)
    query, _, value = operands

    def function(*operands):
        return flash_attention(
            *operands,
            sinks=np.ones(HQ, np.float32),
            query_seq_lengths=np.zeros(len(query), np.int32),
            bias=np.zeros((1, 1, 1, operands[1].shape[1]), np.float32),
            dropout_rate=0.1,
            dropout_seed=np.zeros(2, np.uint32),
            return_lse=True,
        )

    out, lse = function(*operands)
    assert out.shape == (*query.shape[:3], value.shape[3])
    assert lse.shape == (len(query), HQ, query.shape[1])
    assert (out == 0).all()
    assert (lse == -jnp.inf).all()
    gradients = gradient(lambda *args: function(*args)[0])(*operands)
    assert [g.shape for g in gradients] == [a.shape for a in operands]
    assert all((g == 0).all() for g in gradients)
    assert custom_calls(lower(function, *operands))
