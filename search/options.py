"""The options of `optimize`, parsed once and checked: an object that exists is a valid one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from eqsat.errors import UsageError

NUMERICS = ("exact", "reassociates", "approximates", "unstable")
PRECISIONS = ("strict", "tf32", "fast")


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for.

    Parameters
    ----------
    target : str
        "native", "cpu", or an architecture such as "sm_90".
    budget_s : float
        Seconds for the whole search.
    rules : tuple of Path
        Rule files added to the built-in ones.
    precision : str
        "strict": errors no worse than IEEE arithmetic in the accumulator type; "tf32" and "fast" permit less.
    numerics : tuple of str
        Classes of rewrite rules admitted.
    measure : bool
        Measure on the device; False chooses by model and says "unmeasured".
    epsilon : float
        The search is closed when no plan can be faster by more than this share.
    without : tuple of str
        Names of rules left out.
    """

    target: str = "native"
    budget_s: float = 60.0
    rules: tuple[Path, ...] = ()
    precision: str = "strict"
    numerics: tuple[str, ...] = ("exact", "reassociates")
    measure: bool = True
    epsilon: float = 0.02
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"expected precision out of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if unknown := [n for n in self.numerics if n not in NUMERICS]:
            raise UsageError(f"expected numeric classes out of {', '.join(NUMERICS)}; got {unknown}")
        if not 0 <= self.epsilon < 1:
            raise UsageError(f"expected 0 ≤ epsilon < 1; got {self.epsilon}")
        for path in self.rules:
            if not path.is_file():
                raise UsageError(f"expected a rule file; {path} does not exist or is a folder")

    @property
    def digest(self) -> str:
        """SHA-256 of what can change the result (the budget does not: more time only looks further)."""
        parts = (self.target, self.precision, sorted(self.numerics), self.measure, self.epsilon, sorted(self.without))
        rules = [hashlib.sha256(p.read_bytes()).hexdigest() for p in self.rules]
        return hashlib.sha256(repr((parts, rules)).encode()).hexdigest()


_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_budget(value: str | float) -> float:
    """Return a budget in seconds: a number of seconds, or text such as "500ms", "60s", "5min", "1h"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(value))
        if found is None or found[2] not in _UNITS:
            raise UsageError(f'expected a budget such as "60s", "5min" or a number of seconds; got {value!r}')
        seconds = float(found[1]) * _UNITS[found[2]]
    if not seconds > 0:
        raise UsageError(f"expected a budget above zero; got {value!r}")
    return seconds
