"""Makes Flax's own products as exact as the kernels', and leaves memory for other processes."""

import os
from collections.abc import Iterator

import jax
import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """On a GPU, products of float32 are otherwise of TF32, and loss curves would part."""
    with jax.default_matmul_precision("highest"):
        yield
