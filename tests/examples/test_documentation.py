"""The Python examples of the README and of docs/ run as they stand, on any machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_pages_have_examples() -> None:
    found = {page.name: len(BLOCK.findall(page.read_text())) for page in PAGES}
    assert found["README.md"] >= 4
    assert found["attention.md"] >= 8


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name
)
def test_examples_run(page: Path) -> None:
    """All blocks of a page, in order, in one namespace; lines are those of the page."""
    text = page.read_text()
    names: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * before + block[1], str(page), "exec"), names)
