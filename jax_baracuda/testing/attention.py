"""Runs an attention case, forward or with its gradients, and judges the results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_baracuda._src.attention import call as attention_call
from jax_baracuda._src.attention import shapes
from jax_baracuda._src.attention.reference import flash_attention_reference
from jax_baracuda.testing.attention_cases import AttentionCase, AttentionInputs
from jax_baracuda.testing.attention_oracle import AttentionOracle, attention_oracle
from jax_baracuda.testing.calls import host, jit_once
from jax_baracuda.testing.compare import Report, compare

Implementation = Literal["cuda", "reference"] | None
Results = dict[str, np.ndarray]
# The optional operands in the order of the primitive, by the names of the public arguments.
_OPTIONS = (
    "bias",
    "sinks",
    "alibi_slopes",
    "query_seq_lengths",
    "key_value_seq_lengths",
    "query_segment_ids",
    "key_value_segment_ids",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "dropout_seed",
)
_DENSE = _OPTIONS[:7]
_DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")


def attention_function(
    case: AttentionCase, *, implementation: Implementation = None, return_lse: bool = True
) -> Callable[..., Any]:
    """The public function of a case with its options: a function of ``AttentionInputs.arrays()``.

    A ``top_left`` case is called as ``dot_product_attention`` calls it.
    """
    import jax_baracuda

    if case.top_left:
        return functools.partial(_attend_top_left, case, implementation, return_lse)
    name = "flash_attention_varlen" if case.varlen else "flash_attention"
    return functools.partial(
        getattr(jax_baracuda, name),
        **case.options(),
        return_lse=return_lse,
        implementation=implementation,
    )


def _attend_top_left(
    case: AttentionCase,
    implementation: Implementation,
    return_lse: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_seed: jax.Array | None = None,
    **given: jax.Array,
) -> Any:
    optional = dict.fromkeys(_DENSE) | given
    shape = shapes.check_operands(query, key, value, **optional)
    options = shapes.check_options(shape.head_dim, **case.options(), top_left=True)
    out, lse = attention_call.attend(
        shape, options, query, key, value, optional, dropout_seed, implementation
    )
    return (out, lse) if return_lse else out


def gradient_function(
    case: AttentionCase, *, implementation: Implementation = None
) -> Callable[..., dict[str, jax.Array]]:
    """A function of ``arrays()`` and the cotangents ``dout`` and ``dlse``: value and gradients."""
    attend = attention_function(case, implementation=implementation)
    return functools.partial(_value_and_gradients, attend)


def _value_and_gradients(
    attend: Callable[..., Any], dout: Any, dlse: Any = None, **operands: Any
) -> dict[str, Any]:
    names = [n for n in _DIFFERENTIABLE if n in operands and operands[n].dtype != jnp.bool_]
    rest = {name: array for name, array in operands.items() if name not in names}

    def objective(chosen: dict[str, jax.Array]) -> Any:
        out, lse = attend(**chosen, **rest)
        # What is not differentiated through has no cotangent at all, not one of zeros.
        return (out, lse) if dlse is None else ((out, lse), lse)

    chosen = {name: operands[name] for name in names}
    differentiated, pull, lse = jax.vjp(objective, chosen, has_aux=True)
    (gradients,) = pull(dout if dlse is None else (dout, dlse))
    out = differentiated if dlse is None else differentiated[0]
    return {"out": out, "lse": lse} | {f"d{name}": gradients[name] for name in names}


def run_attention(
    case: AttentionCase,
    inputs: AttentionInputs,
    *,
    gradients: bool = False,
    implementation: Implementation = None,
) -> Results:
    """Calls the public function of a case under jit on the default device, "reference" on the CPU.

    Returns:
      Host arrays by name: "out" and "lse"; with gradients also "dquery", "dkey", "dvalue", and
      "dbias" and "dsinks" as far as there are such operands.
    """
    arrays: dict[str, Any] = inputs.arrays()
    if gradients:
        arrays["dout"] = inputs.dout
        if inputs.dlse is not None:
            arrays["dlse"] = inputs.dlse
    call = (gradient_function if gradients else attention_function)(
        case, implementation=implementation
    )
    device = host() if implementation == "reference" else jax.devices()[0]
    with jax.default_device(device):
        results = jit_once(call, device.platform)(jax.device_put(arrays))
    if not gradients:
        results = dict(zip(("out", "lse"), results, strict=True))
    return {name: np.asarray(array) for name, array in results.items()}


def reference_attention(
    case: AttentionCase, inputs: AttentionInputs, *, gradients: bool = False
) -> Results:
    """The same-precision reference: plain jnp on the CPU, products in the dtype of the case."""
    operands = _reference_operands(case, inputs)
    attend = functools.partial(_reference_call, _reference_options(case), case.dtype)
    device = host()
    with jax.default_device(device):
        if gradients:
            operands["dout"] = _packed(case, inputs.dout)
            dlse = inputs.dlse
            if dlse is None:
                batch = () if case.varlen else (case.batch,)
                dlse = np.zeros((*batch, case.query_heads, case.query_length), np.float32)
            operands["dlse"] = _packed(case, dlse)
            call: Callable[..., Any] = functools.partial(_value_and_gradients, attend)
            results = jit_once(call, device.platform)(operands)
        else:
            out, lse = jit_once(attend, device.platform)(operands)
            results = {"out": out, "lse": lse}
    results = {name: np.asarray(array) for name, array in results.items()}
    for name in results:
        # The axis of packs, or of the batch over which the sinks are the same.
        if name == "dsinks" or (case.varlen and name != "dbias"):
            results[name] = results[name][0]
    return results


def _reference_call(
    options: Mapping[str, Any], dtype: str, query: Any, key: Any, value: Any, **given: Any
) -> Any:
    missing = jnp.zeros((0,), jnp.float32)
    operands = [given.get(name, missing) for name in _OPTIONS]
    return flash_attention_reference(query, key, value, *operands, **options, dtype=dtype)


def _reference_options(case: AttentionCase) -> dict[str, Any]:
    left, right = (-1 if size is None else size for size in case.window)
    longest_q, longest_k = case.max_lengths if case.varlen else (0, 0)
    return {
        "scale": case.softmax_scale,
        "causal": case.is_causal,
        "top_left": case.top_left,
        "window_left": left,
        "window_right": right,
        "sink_tokens": case.sink_tokens,
        "logits_soft_cap": case.logits_soft_cap or 0.0,
        "dropout_rate": float(np.float32(case.dropout_rate)),  # as the kernels hold it
        "max_seqlen_q": longest_q,
        "max_seqlen_k": longest_k,
    }


def _reference_operands(case: AttentionCase, inputs: AttentionInputs) -> dict[str, Any]:
    arrays: dict[str, Any] = inputs.arrays()
    for name in ("sinks", "alibi_slopes"):
        if name in arrays and arrays[name].ndim == 1:
            arrays[name] = arrays[name][None]
    for name in arrays:
        by_row = ("query", "key", "value", "query_segment_ids", "key_value_segment_ids")
        if name in (*by_row, "cu_seqlens_q", "cu_seqlens_k"):
            arrays[name] = _packed(case, arrays[name])
    if "dropout_seed" in arrays:
        words = np.zeros((case.sequences, case.query_heads, 4), np.uint32)
        words[..., :2] = arrays["dropout_seed"]
        words[..., 2] = np.arange(case.query_heads)
        words[..., 3] = np.arange(case.sequences)[:, None]
        arrays["dropout_seed"] = words
    return arrays


def _packed(case: AttentionCase, array: np.ndarray) -> np.ndarray:
    """With the axis of packs, of which there is one."""
    return array[None] if case.varlen else array


def check_attention(
    case: AttentionCase,
    inputs: AttentionInputs,
    results: Mapping[str, np.ndarray],
    *,
    oracle: AttentionOracle | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
) -> list[Report]:
    """Judges the results of a case against the float64 oracle.

    Args:
      case: the case.
      inputs: what the results were computed from.
      results: as from ``run_attention``.
      oracle: the exact results; computed when it is not given.
      reference: the same-precision results whose errors are the yardstick; those of
        ``reference_attention`` when it is not given.

    Returns:
      A report for each of the results. Any may be not ok: nothing is raised.
    """
    gradients = "dquery" in results
    if oracle is None:
        oracle = attention_oracle(case, inputs, gradients=gradients)
    if reference is None:
        reference = reference_attention(case, inputs, gradients=gradients)
    factor = 2.0 if case.logits_soft_cap is None else 3.0
    # What float32 sums, exponentials and logarithms lose whatever their order, relative to the
    # weights and absolute in the log-sum-exp; and half a unit in the last place of a 16-bit number.
    sums = 8 * float(np.finfo(np.float32).eps) * (1 + oracle.logit_size)
    rounding = float(ml_dtypes.finfo(case.dtype).eps) / 2
    reports = []
    for name, result in results.items():
        exact = oracle.results[name]
        epsilon = sums
        if name != "lse":
            size = max(float(np.abs(exact).max(initial=0.0)), oracle.noise[name])
            stored = float(ml_dtypes.finfo(result.dtype).eps) / 2
            epsilon = (max(rounding, stored) + sums) * size
        reports.append(
            compare(
                result,
                exact,
                reference[name],
                name=f"{case.name} {name}",
                factor=factor,
                epsilon=epsilon,
            )
        )
    return reports
