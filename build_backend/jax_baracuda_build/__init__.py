"""PEP 517 build backend: scikit-build-core, with the kernels left out where none are wanted.

Without kernels the wheel is pure Python and needs neither a compiler nor CMake. With kernels it
asks for the build requirements of CUDA code, and for an nvcc only where none is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from scikit_build_core import build as _build

from . import archs as _archs
from . import manylinux as _manylinux
from . import toolchain as _toolchain

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, list[str] | str]


def _settings(settings: Settings | None, archs: tuple[str, ...]) -> Settings:
    """The user's settings plus what the selected architectures imply."""
    if archs:
        ours: Settings = {"cmake.define.JAX_BARACUDA_CUDA_ARCHS": ";".join(archs)}
    else:
        ours = {"wheel.cmake": "false", "wheel.py-api": "py3"}
    return {**(settings or {}), **ours}


def _prepare(settings: Settings | None) -> tuple[Settings, bool]:
    """Make the environment ready for a build. Returns its settings and whether it has kernels."""
    archs = _archs.select(os.environ)
    if archs:
        nvcc = _toolchain.find(os.environ)
        os.environ.update(nvcc.environment())
        _archs.say(f"kernels for {';'.join(archs)} with {nvcc.path}")
    else:
        _archs.say(
            f"no kernels: {_archs.VARIABLE} is 'none', or unset and no GPU of compute capability "
            "8.0 or newer is here; '80;90a', say, builds for those"
        )
    return _settings(settings, archs), bool(archs)


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """Nothing for a pure wheel; the CUDA build's requirements otherwise."""
    return _toolchain.requirements(os.environ) if _archs.select(os.environ) else []


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """As for a wheel."""
    return get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: Settings | None = None) -> list[str]:
    """Sources need nothing."""
    return []


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """Write the metadata of the wheel that `build_wheel` would build."""
    settings = _settings(config_settings, _archs.select(os.environ))
    return _build.prepare_metadata_for_build_wheel(metadata_directory, settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """Write the metadata of the wheel that `build_editable` would build."""
    settings = _settings(config_settings, _archs.select(os.environ))
    return _build.prepare_metadata_for_build_editable(metadata_directory, settings)


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel; one with kernels gets the manylinux tag that its symbols allow."""
    settings, kernels = _prepare(config_settings)
    name = _build.build_wheel(wheel_directory, settings, metadata_directory)
    return _manylinux.retag(Path(wheel_directory, name)).name if kernels else name


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build an editable wheel: Python files are read from the source tree."""
    settings, _ = _prepare(config_settings)
    return _build.build_editable(wheel_directory, settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings | None = None) -> str:
    """Pack the sources."""
    return _build.build_sdist(sdist_directory, config_settings)
