"""explain: which kernel a call would run, without running it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class KernelInfo:
    """Which kernel a call would run."""

    name: str


def explain(fn_name: str, *avals: Any, **options: Any) -> KernelInfo:
    """Tells which kernel a call would run."""
    raise NotImplementedError
