"""Reads compiled programs."""

from __future__ import annotations

import math
import re

_RESULT = re.compile(r"\w+\[([\d,]*)\]")


def copies(text: str, elements: int) -> list[str]:
    """The copies of at least so many elements in a compiled program's text.

    Both that of a whole array and the start of an asynchronous one count, inside fusions too: a
    cache of that size that is written in place is never copied.
    """
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (?:copy|copy-start)\(", line)
        if match and _largest(match[1]) >= elements:
            found.append(line.strip())
    return found


def _largest(types: str) -> int:
    """Elements of the largest array among the types of an instruction's results."""
    shapes = [match[1].split(",") for match in _RESULT.finditer(types)]
    return max((math.prod(int(n) for n in shape if n) for shape in shapes), default=0)
