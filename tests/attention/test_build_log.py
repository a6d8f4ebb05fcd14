"""What ptxas said of the kernels of this installation, which CMake keeps beside the extension."""

from __future__ import annotations

import pathlib
import re

import pytest

import jax_baracuda

LOG = pathlib.Path(jax_baracuda.__file__).with_name("kernels.log")
# Kernels whose registers are counted out: those for Hopper, in files of this name.
BUDGETED = "hopper_"
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
# Notes of ptxas that products which should overlap were put one after the other.
SERIALISED = re.compile(r"C75(?:0[89]|1\d|20)")


def logs(text: str) -> dict[str, str]:
    """By object file."""
    parts = re.split(r"^== (.+)\.cu\.o\.log\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def complaints(text: str) -> list[str]:
    """What is wrong with the kernels of one object file."""
    spills = [f"spills {' + '.join(found)} bytes" for found in SPILLS.findall(text)]
    return [line for line in spills if line != "spills 0 + 0 bytes"] + SERIALISED.findall(text)


def test_the_parser_finds_spills_and_serialised_products():
    clean = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    bad = "    8 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
    note = "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async ...\n"
    text = (
        f"== hopper_a.cu.o.log\n{clean}== hopper_b.cu.o.log\n{clean}{bad}{note}== c.cu.o.log\n{bad}"
    )
    assert {name: complaints(log) for name, log in logs(text).items()} == {
        "hopper_a": [],
        "hopper_b": ["spills 12 + 8 bytes", "C7515"],
        "c": ["spills 12 + 8 bytes"],
    }


def test_kernels_for_hopper_keep_to_their_registers():
    if not LOG.exists():
        pytest.skip("this installation has no log of its kernels")
    budgeted = {name: log for name, log in logs(LOG.read_text()).items() if BUDGETED in name}
    if not budgeted:
        pytest.skip("this installation has no kernels for Hopper")
    assert all(SPILLS.search(log) for log in budgeted.values())  # ptxas was asked to tell
    found = {name: complaints(log) for name, log in budgeted.items() if complaints(log)}
    assert not found
