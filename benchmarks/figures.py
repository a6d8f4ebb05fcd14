"""How every plot begins and ends: no display, one legend below all panels, a title, the file."""

from __future__ import annotations

import pathlib
from typing import Any


def start(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """A figure and its panels [rows][columns]; options of ``pyplot.subplots``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, squeeze=False, **options)


def finish(
    figure: Any, title: str, path: pathlib.Path, handles: dict[str, Any] | None = None
) -> None:
    """Writes the file, with a legend of the handles, or of what has a label in any panel."""
    from matplotlib import pyplot

    if handles is None:
        handles = {}  # an implementation may be missing in the first panel
        for axis in figure.axes:
            handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=max(1, len(handles)),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
