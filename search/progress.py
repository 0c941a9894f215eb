"""Progress of a search: a live line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol


class Progress(Protocol):
    """Told what the search does."""

    def stage(self, name: str) -> None:
        """Report that a stage begins."""

    def note(self, text: str) -> None:
        """Report a detail of the stage."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


class Silent:
    """Reports nothing."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Terminal:
    """A spinner with the stage, its detail and the seconds gone, on stderr."""

    def __init__(self) -> None:
        from rich.console import Console  # slow import (50 ms), and only a terminal needs it
        from rich.status import Status

        self._status = Status("starting", console=Console(stderr=True))
        self._began = time.monotonic()
        self._stage = ""

    def stage(self, name: str) -> None:
        """Show that a stage begins."""
        self._stage = name
        self._show("")

    def note(self, text: str) -> None:
        """Show a detail of the stage."""
        self._show(text)

    def _show(self, text: str) -> None:
        self._status.update(f"[bold]{self._stage}[/bold] {text} [dim]{time.monotonic() - self._began:.0f} s[/dim]")

    def __enter__(self) -> Terminal:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()


def progress_for(wanted: bool | Progress | None) -> Progress:
    """Return the reporter asked for: True, False, one's own, or None for a live line on a terminal and silence elsewhere."""
    if wanted is None:
        wanted = sys.stderr.isatty()
    if isinstance(wanted, bool):
        return Terminal() if wanted else Silent()
    return wanted
