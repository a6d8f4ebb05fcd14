"""Eight CPU devices for the sharding tests, the markers, and processes that share a machine."""

import glob
import os


def add_xla_flags(*flags: str) -> None:
    """Those of the flags that the environment does not name. Read when jax starts a backend."""
    given = os.environ.get("XLA_FLAGS", "")
    new = [flag for flag in flags if flag.split("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()


add_xla_flags("--xla_force_host_platform_device_count=8")

if not glob.glob("/dev/nvidia[0-9]*"):
    # Nearly all the time would go to LLVM, for programs that run once on a few numbers. The last
    # (plain loops for what XLA fuses, with no MLIR between) is for jaxlibs before 0.12 and has no
    # flag of its own in all of them.
    add_xla_flags(
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    )

# So that several test processes (pytest -n) can share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process of each core: threads of its own for every core would only be in the others' way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PJRT_NPROC", "2")
    # Nor does XLA look for the fastest of its own kernels, while others use the GPU. No test is of
    # their speed; those that look at what XLA makes by default start processes with other flags.
    add_xla_flags("--xla_gpu_autotune_level=0", "--xla_gpu_force_compilation_parallelism=1")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Gives the workers of pytest -n one test after another, the long ones first of all.

    But for those of `xdist_group("memory")`, which have one worker: none gives memory of the GPU
    back that it once took.
    """
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"
    if hasattr(config, "workerinput"):
        config.option.loadgroup = True  # what a worker makes of that


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` where jax sees no CUDA device; begins with what is `long`."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda_device():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and jax sees none here"))
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


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
