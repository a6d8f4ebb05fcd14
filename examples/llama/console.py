"""What a serving run shows while it runs: every request's text as it grows, and how fast."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .scheduler import Stream
from .serving import Engine


class LineDisplay:
    """Prints each line of a text as it is complete, behind the number of its request."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[Stream, tuple[int, int]] = {}  # number, lines printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, stream: Stream) -> None:
        """To be called when a stream came, and when it grew."""
        number, printed = self._seen.setdefault(stream, (len(self._seen), 0))
        lines = stream.answer.split(b"\n")
        complete = lines if stream.ended else lines[:-1]
        for line in complete[printed:]:
            self._console.print(f"{number:3d} | {shown(line)}", markup=False, soft_wrap=True)
        self._seen[stream] = number, len(complete)


class LiveDisplay:
    """A table of the requests at hand with the ends of their texts, and the totals.

    Whole texts are printed above it as they end.
    """

    def __init__(self, console: Console, engine: Engine, requests: int) -> None:
        self._console, self._engine, self._requests = console, engine, requests
        self._going: dict[Stream, int] = {}  # number
        self._came = self._tokens = 0
        self._began = time.perf_counter()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, stream: Stream) -> None:
        """To be called when a stream came, and when it grew."""
        if stream not in self._going:
            self._going[stream], self._came = self._came, self._came + 1
            return
        self._tokens += 1
        if stream.ended:
            prompt, answer = bytes(stream.tokens[: stream.prompt_length]), stream.answer
            text = Text.assemble((shown(prompt, "\n"), "dim"), shown(answer, "\n"))
            self._console.rule(str(self._going.pop(stream)), align="left", style="dim")
            self._console.print(text)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        for justify, ratio in (("right", None), ("left", None), ("right", None), ("left", 1)):
            table.add_column(justify=justify, ratio=ratio, no_wrap=True)
        width, height = self._console.size
        for stream, number in list(self._going.items())[: max(1, height - 4)]:
            state, style = state_of(stream)
            text = shown(stream.tokens)[-max(1, width - 24) :]
            table.add_row(str(number), Text(state, style), str(len(stream.generated)), Text(text))
        return Group(table, self._totals())

    def _totals(self) -> RenderableType:
        scheduler = self._engine.scheduler
        seconds = max(time.perf_counter() - self._began, 1e-9)
        ended = self._came - len(self._going)
        totals = Table.grid(padding=(0, 2))
        totals.add_row(
            ProgressBar(total=self._requests, completed=ended, width=24),
            f"{ended}/{self._requests} requests",
            f"{self._tokens / seconds:.0f} tokens/s",
            f"step {self._engine.steps}",
            f"{len(scheduler.running)} running, {len(scheduler.waiting)} waiting",
            f"{scheduler.allocator.free_pages} of {scheduler.config.num_pages} pages free",
        )
        return totals


Display = LineDisplay | LiveDisplay


def make_display(engine: Engine, requests: int, plain: bool = False) -> Display:
    """A live table on a terminal; lines of text elsewhere, or if asked."""
    console = Console(highlight=False)
    live = console.is_terminal and not plain
    return LiveDisplay(console, engine, requests) if live else LineDisplay(console)


def state_of(stream: Stream) -> tuple[str, str]:
    """In a word, and its style."""
    if stream.pages is None:
        return "waits", "dim"
    return ("writes", "green") if stream.generated else ("reads", "yellow")


def shown(text: bytes | bytearray, newline: str = "⏎") -> str:
    """Bytes as text, without what a terminal would take for commands."""
    letters = text.decode("utf-8", "replace").expandtabs(4)
    return "".join(
        newline if letter == "\n" else letter if letter.isprintable() else "�" for letter in letters
    )
