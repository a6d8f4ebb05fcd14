"""Comparison with an oracle, relative to what the same precision can reach."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of one comparison.

    Attributes:
      name: what was compared.
      ok: whether the shape, the NaN and infinity masks and the error are right.
      error: the largest |actual - oracle| over the finite coordinates.
      reference_error: the same for the same-precision reference.
      bound: the largest error that passes: factor * reference_error + epsilon.
      worst: the coordinate of the largest error, or of the first wrong mask.
      message: one sentence with the numbers.
    """

    name: str
    ok: bool
    error: float
    reference_error: float
    bound: float
    worst: tuple[int, ...]
    message: str

    def check(self) -> Report:
        """Raises AssertionError with the message unless the comparison passed."""
        if not self.ok:
            raise AssertionError(self.message)
        return self


def compare(
    actual: ArrayLike,
    oracle: ArrayLike,
    reference: ArrayLike,
    *,
    name: str = "result",
    factor: float = 2.0,
    epsilon: float = 0.0,
) -> Report:
    """Compares a result with an oracle of higher precision.

    The error may be at most ``factor`` times that of ``reference``, the same computation by plain
    operations in the precision of the result, plus ``epsilon``. NaN, +inf and -inf must sit exactly
    where the oracle has them. The rule is that of FlashAttention's tests
    (https://github.com/Dao-AILab/flash-attention).

    Args:
      actual: the result, any shape and dtype.
      oracle: the exact result, same shape.
      reference: the same-precision result, same shape.
      name: names the result in the message.
      factor: how many times the reference's error may be reached.
      epsilon: absolute, in the units of the result.

    Returns:
      A report; ``report.check()`` raises when it is not ok.

    Raises:
      ValueError: the reference disagrees with the oracle in shape or mask.

    Example:
      >>> compare([1.0, 2.0], [1.0, 2.0], [1.0, 2.01], name="out").ok
      True
    """
    got, exact, ref = (np.asarray(x).astype(np.float64) for x in (actual, oracle, reference))
    if ref.shape != exact.shape or _first_mask_difference(ref, exact) is not None:
        raise ValueError(f"{name}: the reference differs from the oracle in shape or NaN mask.")

    def failed(worst: tuple[int, ...], message: str) -> Report:
        return Report(name, False, np.inf, np.nan, np.nan, worst, f"{name}: {message}")

    if got.shape != exact.shape:
        return failed((), f"shape {got.shape}, expected {exact.shape}.")
    wrong = _first_mask_difference(got, exact)
    if wrong is not None:
        return failed(
            wrong,
            f"{got[wrong]} at {wrong}, expected {exact[wrong]}: the NaN or infinity masks differ.",
        )

    errors = _errors(got, exact)
    reference_error = float(_errors(ref, exact).max(initial=0.0))
    bound = factor * reference_error + epsilon
    if not errors.size:
        return Report(name, True, 0.0, 0.0, bound, (), f"{name}: empty.")
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
    error = float(errors[worst])
    message = (
        f"{name}: error {error:.3e} at {worst} (got {got[worst]:.6g}, expected "
        f"{exact[worst]:.6g}), "
        f"bound {bound:.3e} = {factor:g} x the reference's {reference_error:.3e} + {epsilon:.1e}."
    )
    return Report(name, error <= bound, error, reference_error, bound, worst, message)


def _errors(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Absolute differences, 0 where the masks already said everything."""
    finite = np.isfinite(exact)
    errors: np.ndarray = np.abs(np.where(finite, values, 0) - np.where(finite, exact, 0))
    return errors


def _first_mask_difference(a: np.ndarray, b: np.ndarray) -> tuple[int, ...] | None:
    """The first coordinate that is NaN, +inf or -inf in one array and not in the other."""
    different = (np.isnan(a) != np.isnan(b)) | (np.isposinf(a) != np.isposinf(b))
    different |= np.isneginf(a) != np.isneginf(b)
    if not different.any():
        return None
    return tuple(int(i) for i in np.unravel_index(np.argmax(different), different.shape))
