"""Evidence for rules: what it says, where it is kept, and when it still counts.

Evidence counts for one text of a rule and one text of the gate and the prover. That of the shipped rules is committed
(`rules/evidence.json`, written by `make evidence`), so that loading them proves nothing again; that of a user's rules is
kept in the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

Method = Literal["proved", "field", "fuzz", "structural"]

_JUDGES = (
    "proof/normalform.py",
    "proof/functions.py",
    "proof/reductions.py",
    "proof/meaning.py",
    "proof/cases.py",
    "proof/laws.py",
    "proof/solver.py",
    "proof/prover.py",
    "gate/*.py",
    "rulecheck.py",
    "ops.py",
    "signature.py",
    "access.py",
    "indexterms.py",
)
"""The files whose text decides what evidence means."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a rule is admitted.

    Attributes
    ----------
    rule, digest : str
        Name and digest of the rule.
    method : {"proved", "field", "fuzz", "structural"}
        Proved for all extents and axes; tested in prime fields and floats; tested in floats (and integers where they
        serve); claims nothing about values.
    numerics : str
        The class that was tested, also of what is proved: a proof speaks of the reals.
    trials, compared, skipped : int
        Situations; elements compared; elements where a side is undefined or the tolerance says nothing.
    extents : tuple of str
        The extent assignments, such as `k=2 p=3 q=5`.
    log2_bound : float or None
        Of what is tested in fields: base-2 logarithm of the chance that a law passes the field tests though it is false for
        some axes and extents drawn (degree over prime for each field, by Schwartz and Zippel; the largest over the situations).
    seed : int
    how : str
        Of what is proved: "normal form", "z3", or both.
    why : str
        Of what is tested: why it is not proved.
    time_ms : float
        Time that proof and tests took.
    """

    rule: str
    digest: str
    method: Method
    numerics: str
    trials: int = 0
    compared: int = 0
    skipped: int = 0
    extents: tuple[str, ...] = ()
    log2_bound: float | None = None
    seed: int = 0
    how: str = ""
    why: str = ""
    time_ms: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        if self.method == "structural":
            return f"{self.rule}: structural, claims no values"
        bound = f", a false law passes with probability ≤ 2^{self.log2_bound:.0f}" if self.log2_bound is not None else ""
        how = f" ({self.how})" if self.how else ""
        return f"{self.rule}: {self.method}{how}, {self.trials} situations, {self.compared} elements ({self.numerics}){bound}"


@functools.cache
def judge_digest() -> str:
    """Return a SHA-256 over the code that decides, so that no evidence outlives the gate or the op table that gave it."""
    folder = Path(__file__).parents[1]
    paths = sorted(p for pattern in _JUDGES for p in folder.glob(pattern))
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()


def committed(digest: str, name: str) -> Evidence | None:
    """Return the evidence shipped for a rule's digest, if it is of this gate."""
    kept = _shipped().get(digest)
    return None if kept is None else _read(kept, name)


@functools.cache
def _shipped() -> Mapping[str, Mapping[str, Any]]:
    try:
        record = json.loads((resources.files("eqsat") / "rules" / "evidence.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        _LOG.warning("the shipped evidence cannot be read (%s); rules are proved and tested again", e)
        return {}
    rules: Mapping[str, Mapping[str, Any]] = record["rules"]
    return rules if record["gate"] == judge_digest() else {}


def write_committed(evidence: Iterable[Evidence]) -> Path:
    """Write the evidence for the shipped rules, one line for each, and return the file."""
    by_digest = {e.digest: e for e in sorted(evidence, key=lambda e: e.rule)}
    lines = [f'"{digest}": {json.dumps(asdict(e), ensure_ascii=False)}' for digest, e in by_digest.items()]
    body = ",\n".join(lines)
    path = Path(str(resources.files("eqsat") / "rules" / "evidence.json"))
    path.write_text(f'{{"gate": "{judge_digest()}",\n"rules": {{\n{body}\n}}}}\n', encoding="utf-8")
    _shipped.cache_clear()
    return path


def cached(digest: str, name: str, folder: Path | None) -> Evidence | None:
    """Return the evidence kept in a folder for a rule's digest, if it is of this gate."""
    if folder is None:
        return None
    try:
        kept = json.loads((folder / f"{digest}.json").read_text(encoding="utf-8"))
        return _read(kept, name) if kept.pop("gate") == judge_digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing kept, or a file cut short: test again


def keep(evidence: Evidence, folder: Path | None) -> None:
    """Write evidence to a folder; where that fails it is said, and costs only time."""
    if folder is None:
        return
    text = json.dumps(asdict(evidence) | {"gate": judge_digest()})
    part = folder / f"{evidence.digest}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(folder / f"{evidence.digest}.json")
    except OSError as e:
        _LOG.warning("the evidence for %s could not be kept in %s (%s); it will be tested again", evidence.rule, folder, e)


def _read(kept: Mapping[str, Any], name: str) -> Evidence:
    fields = {k: v for k, v in kept.items() if k != "gate"}
    return Evidence(**{**fields, "rule": name, "extents": tuple(kept["extents"])})
