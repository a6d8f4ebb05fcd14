"""Eight CPU devices for the sharding tests, and the `gpu` marker."""

import os

# Read when jax starts its CPU backend; other backends take no notice.
_EIGHT_CPUS = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT_CPUS}".strip()

# So that several test processes (pytest -n) can share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` where jax sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda_device():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and jax sees none here"))


def _has_cuda_device() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


@pytest.fixture(scope="session")
def eight_devices() -> list[jax.Device]:
    """Eight CPU devices, whatever the default backend is."""
    devices = jax.devices("cpu")
    assert len(devices) >= 8, "jax was started before tests/conftest.py could ask for 8 CPU devices"
    return devices[:8]
