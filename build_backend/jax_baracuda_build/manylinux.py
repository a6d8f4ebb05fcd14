"""The platform tag of a wheel: the oldest glibc that can load what was compiled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from .archs import BuildError, say


def retag(wheel: Path) -> Path:
    """Replace the wheel's linux tag by the manylinux tag that its symbols allow.

    Without auditwheel (a build with --no-build-isolation) the wheel stays as it is: good for the
    machine that built it.
    """
    if "-linux_" not in wheel.name:
        return wheel
    if importlib.util.find_spec("auditwheel") is None:
        say(f"auditwheel is not installed: {wheel.name} keeps its tag, for this machine only")
        return wheel
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        result = subprocess.run(
            [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", scratch, str(wheel)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        repaired = list(Path(scratch).glob("*.whl"))
        if result.returncode != 0 or len(repaired) != 1:
            print(result.stdout, file=sys.stderr)
            raise BuildError(f"auditwheel could not tag {wheel.name}; its reasons are above")
        target = wheel.with_name(repaired[0].name)
        repaired[0].replace(target)
    if target != wheel:
        wheel.unlink()
    say(f"built {target.name}, {target.stat().st_size / 1e6:.1f} MB")
    return target
