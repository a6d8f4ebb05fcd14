"""The build backend's decisions, and what must hold of a built package. No compiler is run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import jaxlib
import pytest

import jax_baracuda

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))

import jax_baracuda_build  # noqa: E402
from jax_baracuda_build import archs, manylinux, toolchain  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def gpus(*capabilities: str) -> Callable[[], list[str]]:
    return lambda: list(capabilities)


def program(folder: Path, name: str, script: str = "exit 0") -> Path:
    """An executable file, standing in for a compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# Architectures


@pytest.mark.parametrize(
    ("value", "present", "expected"),
    [
        (None, [], ()),
        (None, ["9.0"], ("90a",)),
        (None, ["8.0", "9.0", "9.0"], ("80", "90a")),
        (None, ["12.0", "8.9"], ("89", "120")),
        (None, ["7.5"], ()),
        (None, ["7.5", "8.6"], ("86",)),
        ("", ["9.0"], ("90a",)),
        ("none", ["9.0"], ()),
        ("NONE", ["9.0"], ()),
        ("native", ["9.0"], ("90a",)),
        ("80;90a", ["8.6"], ("80", "90a")),
        ("90a, 80 ,80", [], ("80", "90a")),
        ("100a;103f", [], ("100a", "103f")),
    ],
)
def test_selected_architectures(value, present, expected):
    environ = {} if value is None else {archs.VARIABLE: value}
    assert archs.select(environ, gpus(*present)) == expected


@pytest.mark.parametrize(
    ("value", "present", "says"),
    [
        ("sm_80", [], "'sm_80' is not an architecture"),
        ("9.0", [], "'9.0' is not an architecture"),
        ("80;hopper", [], "'hopper' is not an architecture"),
        ("75;80", [], "leave out '75'"),
        ("native", [], "nvidia-smi finds no GPU"),
        ("native", ["7.5"], "7.5 is older than 8.0"),
    ],
)
def test_architectures_that_cannot_be_built(value, present, says):
    with pytest.raises(archs.BuildError, match=re.escape(says)) as error:
        archs.select({archs.VARIABLE: value}, gpus(*present))
    assert "\n" not in str(error.value)


def test_nvidia_smi_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert archs.query_gpus() == []
    program(tmp_path, "nvidia-smi", 'echo "$*" >&2; echo 8.6; echo 9.0')
    assert archs.query_gpus() == ["8.6", "9.0"]
    program(tmp_path, "nvidia-smi", "echo 9.0; exit 9")
    assert archs.query_gpus() == []


# Requirements and toolchain


def test_requirements_of_a_pure_wheel(monkeypatch):
    monkeypatch.setenv(archs.VARIABLE, "none")
    assert jax_baracuda_build.get_requires_for_build_wheel() == []
    assert jax_baracuda_build.get_requires_for_build_editable() == []


@pytest.mark.parametrize("where", ["PATH", "CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_an_installed_nvcc_is_used(where, tmp_path):
    nvcc = program(tmp_path / "bin", "nvcc")
    environ = {"PATH": "/nonexistent"}
    environ[where] = {"PATH": str(nvcc.parent), "CUDACXX": str(nvcc)}.get(where, str(tmp_path))
    assert toolchain.installed_nvcc(environ) == toolchain.Nvcc(nvcc)
    assert not set(toolchain.CUDA_WHEELS) & set(toolchain.requirements(environ))


def test_wheels_bring_nvcc_where_none_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv(archs.VARIABLE, "80;90a")
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    needed = jax_baracuda_build.get_requires_for_build_wheel()
    assert set(toolchain.CUDA_WHEELS) < set(needed)
    assert toolchain.OLDEST_JAXLIB in needed


def test_the_nvcc_of_the_wheels_is_told_where_cudart_is(tmp_path, monkeypatch):
    toolkit = tmp_path / "nvidia" / "cu13"
    nvcc = program(toolkit / "bin", "nvcc")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setenv("CUDAFLAGS", "-O2")
    importlib.invalidate_caches()
    assert toolchain.wheel_nvcc() is None  # nothing to link with
    (toolkit / "lib").mkdir()
    (toolkit / "lib" / "libcudart_static.a").touch()
    found = toolchain.wheel_nvcc()
    assert found is not None
    assert found.environment() == {"CUDACXX": str(nvcc), "CUDAFLAGS": f"-O2 -L{toolkit / 'lib'}"}


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    def error(environ: dict[str, str]) -> str:
        with pytest.raises(archs.BuildError) as caught:
            toolchain.find(environ)
        message = str(caught.value)
        assert "\n" not in message
        assert f"{archs.VARIABLE}=none" in message
        return message

    environ = {"PATH": str(tmp_path)}
    monkeypatch.setattr(toolchain, "_has_module", lambda name: name != "nanobind")
    assert "pip install 'nanobind" in error(environ)
    monkeypatch.setattr(toolchain, "_has_module", lambda name: name != "cmake")
    assert "no CMake" in error(environ)
    monkeypatch.setattr(toolchain, "_has_module", lambda name: True)
    monkeypatch.setattr(toolchain, "wheel_nvcc", lambda: None)
    assert "no C++ compiler" in error(environ)
    program(tmp_path, "c++")
    assert "no nvcc" in error(environ)
    nvcc = program(tmp_path, "nvcc")
    assert toolchain.find(environ) == toolchain.Nvcc(nvcc)
    with pytest.raises(archs.BuildError, match="CUDACXX=/no/nvcc is not a program"):
        toolchain.find({**environ, "CUDACXX": "/no/nvcc"})


# Wheels


def test_a_wheel_without_kernels_is_pure_and_typed(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    for name in ("jax_baracuda", "build_backend"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
    for path in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / path, source / path)
    # A PATH without compilers or CMake: this build may need neither.
    build = "import sys, jax_baracuda_build as backend; backend.build_wheel(sys.argv[1])"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            build,
            out,
        ],
        cwd=source,
        env={
            "PATH": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(["build_backend", *filter(None, sys.path)]),
            archs.VARIABLE: "none",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.iterdir()
    assert wheel.name == f"jax_baracuda-{PROJECT['version']}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "jax_baracuda/py.typed" in names
    assert not [name for name in names if name.endswith(".so")]
    assert {name.split("/")[0] for name in names} == {
        "jax_baracuda",
        f"jax_baracuda-{PROJECT['version']}.dist-info",
    }


def linux_wheel(folder: Path) -> Path:
    wheel = folder / "jax_baracuda-0.1.0-cp312-abi3-linux_x86_64.whl"
    wheel.write_bytes(b"as built")
    return wheel


def fake_auditwheel(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "auditwheel.py").write_text(f"import pathlib, sys\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "auditwheel", raising=False)


def test_a_wheel_gets_the_tag_that_auditwheel_finds(tmp_path, monkeypatch):
    wheel = linux_wheel(tmp_path)
    fake_auditwheel(
        tmp_path,
        monkeypatch,
        "assert sys.argv[1:3] == ['repair', '--wheel-dir']\n"
        "name = pathlib.Path(sys.argv[4]).name.replace('linux', 'manylinux_2_34')\n"
        "pathlib.Path(sys.argv[3], name).write_text('repaired')",
    )
    tagged = manylinux.retag(wheel)
    assert tagged.name == "jax_baracuda-0.1.0-cp312-abi3-manylinux_2_34_x86_64.whl"
    assert tagged.read_text() == "repaired"
    assert list(tmp_path.glob("*.whl")) == [tagged]


def test_a_wheel_that_auditwheel_refuses_is_an_error(tmp_path, monkeypatch, capfd):
    fake_auditwheel(tmp_path, monkeypatch, "print('symbols too new'); sys.exit(1)")
    with pytest.raises(archs.BuildError, match="could not tag"):
        manylinux.retag(linux_wheel(tmp_path))
    assert "symbols too new" in capfd.readouterr().err


def test_a_wheel_keeps_its_tag_without_auditwheel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manylinux.importlib.util, "find_spec", lambda name: None)
    wheel = linux_wheel(tmp_path)
    assert manylinux.retag(wheel) == wheel
    assert wheel.read_bytes() == b"as built"
    assert "keeps its tag" in capsys.readouterr().out


# The package


def test_the_version_is_the_same_everywhere():
    version = PROJECT["version"]
    assert jax_baracuda.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d.*)\]", changelog, flags=re.MULTILINE)[0] == version


def test_the_readme_names_extras_that_exist():
    lists = re.findall(r"\.\[([\w,]+)\]", (ROOT / "README.md").read_text())
    named = {extra for names in lists for extra in names.split(",")}
    assert named
    assert named <= set(PROJECT["optional-dependencies"])


def test_every_cuda_source_is_listed():
    """A source that CMakeLists.txt does not name would silently be left out."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("ffi/**/*.c[cu]")}
    assert sources
    assert {source for source in sources if source not in cmake} == set()


def test_only_module_cc_knows_python():
    sources = [p for p in ROOT.glob("ffi/**/*.*") if p.suffix in (".cc", ".cu", ".h", ".cuh")]
    includes = re.compile(r"#include\s*[<\"](nanobind/|Python)")
    assert [p.name for p in sources if includes.search(p.read_text())] == ["module.cc"]


# The extension, where this installation has one


@pytest.fixture(scope="module")
def extension() -> Path:
    spec = importlib.util.find_spec("jax_baracuda._ffi")
    if spec is None or spec.origin is None:
        pytest.skip("this installation has no kernels (jax_baracuda._ffi is not built)")
    if ".abi3." in spec.origin and sys.version_info < (3, 12):
        pytest.skip("the extension in this source tree is for Python 3.12 and newer")
    return Path(spec.origin)


def readelf(*arguments: str | Path) -> str:
    command = ["readelf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_extension_needs_no_cuda_library(extension):
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("-dW", extension))
    assert any(name.startswith("libc.so") for name in needed)
    assert not [name for name in needed if re.match(r"lib(cu|nv|python)", name)]


def test_the_extension_exports_its_entry_point_only(extension):
    exported = []
    for line in readelf("--dyn-syms", "-W", extension).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[4] in ("GLOBAL", "WEAK", "UNIQUE") and fields[6] != "UND":
            exported.append(fields[7])
    assert exported == ["PyInit__ffi"]


def test_the_extension_is_of_this_package_and_runtime(extension):
    import jax_baracuda._ffi as ffi

    info = ffi.build_info()
    assert info["version"] == jax_baracuda.__version__
    assert archs.parse(info["cuda_archs"]) == tuple(info["cuda_archs"].split(";"))
    assert re.fullmatch(r"1[23]\.\d+", info["cuda_version"])
    header = Path(jaxlib.__file__).parent / "include/xla/ffi/api/c_api.h"
    found = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header.read_text())
    # A runtime refuses handlers of a newer API than its own.
    assert tuple(map(int, info["ffi_api"].split("."))) <= tuple(map(int, found))
