"""Look inside: `EQSAT_DEBUG=1..5` opens one stage more each, `EQSAT_DUMP=folder` writes the same as numbered files.

1 summary, 2 rule matches and stop reason, 3 candidates and trials, 4 emitted sources, 5 compiler output. Both go through the
logger "eqsat"; only this module reads the environment for them.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from eqsat.errors import EnvironmentMissingError, UsageError

SUMMARY, RULES, CANDIDATES, SOURCES, COMPILER = 1, 2, 3, 4, 5


@dataclass(slots=True)
class Inspector:
    """Shows stages up to `level` on stderr and writes them to `folder`, if there is one."""

    level: int = 0
    folder: Path | None = None
    _number: itertools.count[int] = field(default_factory=itertools.count)

    def show(self, level: int, title: str, text: Callable[[], str], suffix: str = "txt") -> None:
        """Show a stage's outcome; `text` is called only if someone looks."""
        if level > self.level and self.folder is None:
            return
        body = text()
        if level <= self.level:
            logging.getLogger("eqsat").info("%s\n%s", title, body)
        if self.folder is not None:
            name = "".join(c if c.isalnum() else "-" for c in title.lower())
            try:
                (self.folder / f"{next(self._number):03d}-{name}.{suffix}").write_text(body)
            except OSError as e:
                raise EnvironmentMissingError(f"expected to write to EQSAT_DUMP={self.folder}; got {e}") from e


def inspector() -> Inspector:
    """Return the inspector that the environment asks for."""
    text = os.environ.get("EQSAT_DEBUG", "0")
    if not text.isdigit() or int(text) > COMPILER:
        raise UsageError(f"expected EQSAT_DEBUG out of 0…{COMPILER}; got {text!r}")
    folder = os.environ.get("EQSAT_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    if int(text):
        logger = logging.getLogger("eqsat")
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
    return Inspector(int(text), Path(folder) if folder else None)
