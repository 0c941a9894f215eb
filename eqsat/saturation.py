"""Saturation as data: which rulesets run in which order, under which limits, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from eqsat.errors import UsageError

Stop = Literal["saturated", "rounds", "nodes", "matches", "time", "memory", "goal", "skipped"]
LIMITS: tuple[Stop, ...] = ("nodes", "matches", "time", "memory")
"""Stops that leave something unexplored."""


class EgglogRule(Protocol):
    """What the session asks of a rule."""

    @property
    def name(self) -> str:
        """Unique name; receipts quote it."""

    @property
    def phase(self) -> str:
        """Phase whose rulesets it joins."""

    def egglog(self, ruleset: str) -> str:
        """Return the rule as egglog commands in `ruleset`, named `name`."""


@dataclass(frozen=True, slots=True)
class RuleText:
    """A rule given as egglog text, in which `{ruleset}` stands for the ruleset that the session makes for it."""

    name: str
    phase: str
    text: str

    def egglog(self, ruleset: str) -> str:
        """Return the text with the ruleset filled in."""
        return self.text.replace("{ruleset}", ruleset)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of saturation.

    Parameters
    ----------
    name : str
        What reports call it.
    rules : tuple of str
        The rule phases whose rules run, one rule a step, the analysis brought up to date after each.
    rounds : int or None
        Rounds over all its rules; None: until nothing changes.
    grows : bool
        Whether it enlarges the space and so may be cut short by a limit. What follows growth (lowering) always completes.
    """

    name: str
    rules: tuple[str, ...]
    rounds: int | None = None
    grows: bool = True


PHASES: tuple[Phase, ...] = (
    Phase("analysis", ("analysis",), grows=False),
    Phase("algebra", ("algebra", "fold")),
    # One round: with reassociation, distributing a product of n sums to saturation explodes from n = 4
    # (research: 180 rows after one round at n = 4, over 600,000 without a bound).
    Phase("distribute", ("distribute",), rounds=1),
    Phase("algebra after distribution", ("algebra", "fold")),
    # What is laid side by side is taken apart again by the algebra, which therefore does not see it.
    Phase("pack", ("pack",)),
    Phase("lowering", ("lowering",), grows=False),
    Phase("analysis after lowering", ("analysis",), grows=False),
)
"""The default course of a saturation; freezing follows the last phase."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When growth stops.

    Parameters
    ----------
    nodes : int
        E-nodes of values and regions, looked at between steps.
    matches : int
        Matches of all rules, those of the analysis included, looked at between steps: a measure of time that is the same on
        every machine. Some 30,000 to 60,000 take a second.
    soft_s : float
        Seconds of the worker's own processor time, looked at between steps: what else the machine does changes nothing.
    hard_s : float
        Seconds after which the worker is killed inside a step and the run repeated up to the step before.
    memory_bytes : int
        Resident memory of the worker, looked at between steps; the operating system enforces twice as much.
    """

    nodes: int = 20_000
    matches: int = 40_000
    soft_s: float = 6.0
    hard_s: float = 20.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if min(self.nodes, self.matches, self.memory_bytes) < 1 or not 0 < self.soft_s <= self.hard_s:
            raise UsageError(
                f"limits are positive and soft_s ≤ hard_s; got nodes={self.nodes}, matches={self.matches}, "
                f"soft_s={self.soft_s}, hard_s={self.hard_s}, memory_bytes={self.memory_bytes}"
            )


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How often a rule matched, and the time spent matching and applying it."""

    name: str
    matches: int
    time_ms: float


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What one phase did: why it stopped, rounds and steps run, e-nodes after it, and its time.

    Where a limit was met, `rule` is the rule whose step met it.
    """

    name: str
    stop: Stop
    rounds: int
    steps: int
    nodes: int
    time_ms: float
    rule: str = ""


@dataclass(frozen=True, slots=True)
class SaturationReport:
    """The course of a saturation.

    Parameters
    ----------
    phases : tuple of PhaseReport
    rules : tuple of RuleCount
        In order of name; a `birewrite` counts its two directions together.
    nodes, classes : int
        Of the frozen table.
    steps : int
        Rule steps run.
    time_ms : float
        Wall time of the worker, loading and freezing included, replays too.
    replays : tuple of str
        Why the worker had to be replaced and the run repeated, if it had to.
    """

    phases: tuple[PhaseReport, ...]
    rules: tuple[RuleCount, ...]
    nodes: int
    classes: int
    steps: int
    time_ms: float
    replays: tuple[str, ...] = ()

    @property
    def stop(self) -> Stop:
        """Return "saturated" if every phase without a round limit ran out of new facts, else the limit that was hit."""
        cut = [p.stop for p in self.phases if p.stop in LIMITS]
        return cut[0] if cut else "saturated"

    @property
    def why(self) -> str:
        """Say where growth ended, and the rule whose step met the limit."""
        cut = [p for p in self.phases if p.stop in LIMITS]
        if not cut:
            return "saturated"
        return f"{cut[0].stop} in phase {cut[0].name} at {cut[0].nodes} nodes, after rule {cut[0].rule}"

    def __str__(self) -> str:
        head = f"{self.stop}: {self.nodes} nodes in {self.classes} classes, {self.steps} steps, {self.time_ms:.1f} ms"
        lines = [head, *(f"replayed: {why}" for why in self.replays)]
        lines.append(f"{'phase':<28}{'stop':<12}{'rounds':>7}{'steps':>7}{'nodes':>8}{'ms':>9}")
        lines += [f"{p.name:<28}{p.stop:<12}{p.rounds:>7}{p.steps:>7}{p.nodes:>8}{p.time_ms:>9.1f}" for p in self.phases]
        fired = sorted((r for r in self.rules if r.matches), key=lambda r: (-r.matches, r.name))
        if fired:
            lines.append(f"{'rule':<40}{'matches':>9}{'ms':>9}")
            lines += [f"{r.name:<40}{r.matches:>9}{r.time_ms:>9.2f}" for r in fired]
        return "\n".join(lines)
