"""What explain answers, and what decides whether a call runs on CUDA here."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jax_baracuda._src import registry


@dataclasses.dataclass(frozen=True)
class KernelInfo:
    """What a call would run.

    Attributes:
      op: the public function, such as "flash_decode".
      name: the kernel, or "reference" for plain jax.numpy.
      implementation: "cuda" or "reference"; "xla" or "cudnn" for a call that is left to jax.nn.
      arch: the CUDA architecture of the build that would serve the GPU of this process, such as
        "90a"; None on the reference, without a GPU, and where no built architecture fits it.
      dtype: of the operands and of the output.
      accumulator: the dtype of sums and of the softmax.
      deterministic: whether equal calls give equal bits, gradients included.
      batch_invariant: whether the bits of a request do not depend on the rest of the batch.
      workspace_bytes: scratch memory of a call on one device.
      note: why this kernel; and, where the call would raise, why.
    """

    op: str
    name: str
    implementation: str
    arch: str | None
    dtype: str
    accumulator: str
    deterministic: bool
    batch_invariant: bool
    workspace_bytes: int
    note: str


def aval(array: Any) -> Any:
    """The shape and dtype that jax gives an array; None and avals as they are."""
    if array is None or isinstance(array, jax.ShapeDtypeStruct):
        return array
    try:
        return jax.typeof(array)
    except TypeError:
        return array  # has a shape and a dtype, or is reported by the check of its argument


def runs_on_cuda(implementation: str | None) -> bool:
    """Whether a call would run its CUDA kernel, or be compiled for it."""
    if implementation is None:
        return registry.has_cuda_device() and jax.default_backend() == "gpu"
    return implementation == "cuda"


def reference(op: str, dtype: str, implementation: str | None) -> KernelInfo:
    """What a call runs that is left to plain jax.numpy."""
    why = "asked for" if implementation else f"the backend is {jax.default_backend()}"
    return KernelInfo(
        op=op,
        name="reference",
        implementation="reference",
        arch=None,
        dtype=dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=False,
        workspace_bytes=0,
        note=f"plain jax.numpy, compiled by XLA: {why}",
    )


def obstacle(target: str) -> str:
    """Why a call of the kernel would fail here, empty if it would not."""
    extension = registry.register()
    if target not in extension.targets:
        return f"; it cannot run here: {extension.problem}"
    if not registry.has_cuda_device():
        return "; there is no CUDA device here"
    if registry.serving_architecture() is None:
        return f"; the build ({';'.join(registry.architectures())}) does not fit this GPU"
    return ""
