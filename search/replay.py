"""Check a receipt again: that its kernels follow from its words (replay), and that they are right on this machine (verify)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqsat.codegen.plan import Executable, Plan
from eqsat.errors import CompileError, EnvironmentMissingError
from eqsat.rulefile import builtin_rules
from eqsat.search import machine
from eqsat.search.machine import Place
from eqsat.search.proofs import Proofs
from eqsat.search.regional import region_plan
from eqsat.search.result import load
from eqsat.search.schedules import family_of
from eqsat.search.store import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: whether it holds, and what was found."""

    subject: str
    holds: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was checked."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return all(f.holds for f in self.findings)

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"ok": self.ok, "findings": [dataclasses.asdict(f) for f in self.findings]}

    def __str__(self) -> str:
        return "\n".join(f"{'ok  ' if f.holds else 'FAIL'} {f.subject}: {f.detail}" for f in self.findings)


def replay(folder: str | Path) -> Report:
    """Derive, emit and compile again what the receipt in `folder` says, and compare digests.

    The derivation is found anew with the built-in rules (a receipt made with other rule files derives no further than
    those); sources are emitted anew from problem and schedule; binaries are compiled anew, and compared where the compiler is the same.
    """
    saved = load(folder)
    findings = list(_digests(saved.executable, saved.receipt.record))
    record = saved.receipt.record
    findings.append(_derived(saved.executable, record))
    place = machine.resolve(str(record["target"]))
    for n, step in enumerate(saved.executable.steps):
        source = family_of(step.schedule).emit(step.kernel.problem, step.schedule)
        same = source.digest == record["plan"]["kernels"][n]["source"]
        findings.append(
            Finding(f"kernel {n} source", same, "emitted anew, identical" if same else "the code generator emits other text now")
        )
        if same:
            findings.append(_compiled(n, saved.executable, place))
    return Report(tuple(findings))


def _derived(executable: Executable, record: Mapping[str, Any]) -> Finding:
    rules = builtin_rules().admit(record["options"]["numerics"])
    before: list[str] = []
    now: list[str] = []
    missing: list[str] = []
    for plan, kept in _searched(executable.plan, record):
        found = Proofs(plan.program, rules).derived(plan)
        before += [s["rule"] for s in kept["steps"]]
        now += [s.rule for s in found.steps]
        missing += [] if found.found else [found.status]
    status = missing[0] if missing else "derived"
    return Finding(
        "derivation", not missing, f"{len(now)} steps, {'the same rules' if before == now else 'by other rules'}: {status}"
    )


def _searched(plan: Plan, record: Mapping[str, Any]) -> Iterator[tuple[Plan, Mapping[str, Any]]]:
    """Yield each plan that was searched as one, with its derivation: the whole, or those of the different regions."""
    if "regions" not in record:
        yield plan, record["derivation"]
        return
    for part in record["regions"]["parts"]:
        yield from _searched(region_plan(plan, part), part)


def _compiled(n: int, executable: Executable, place: Place) -> Finding:
    step = executable.steps[n]
    with _compiling(place) as compile_sources:
        ((_, binary),) = list(compile_sources([step.binary.source]))
    if isinstance(binary, CompileError):
        return Finding(f"kernel {n} binary", False, str(binary).splitlines()[0])
    if binary.compiler != step.binary.compiler:
        return Finding(
            f"kernel {n} binary",
            True,
            f"compiles with {binary.compiler}; made by {step.binary.compiler}, so bytes are not compared",
        )
    same = binary.digest == step.binary.digest
    return Finding(f"kernel {n} binary", same, "compiled anew, identical" if same else "the same compiler gave other bytes")


@contextlib.contextmanager
def _compiling(place: Place) -> Iterator[Any]:
    if place.open_device is None:
        yield lambda sources: machine.compile_for(place, sources)
        return
    device = place.open_device(Store(":memory:"))
    try:
        yield device.compile
    finally:
        device.close()


def _digests(executable: Executable, record: Mapping[str, Any]) -> Iterator[Finding]:
    for n, (step, k) in enumerate(zip(executable.steps, record["plan"]["kernels"], strict=True)):
        for what, mine, said in (("binary", step.binary.digest, k["binary"]), ("source", step.binary.source.digest, k["source"])):
            detail = "as the receipt says" if mine == said else "the file differs from the receipt"
            yield Finding(f"kernel {n} {what} digest", mine == said, detail)
    same = executable.plan.program.digest == record["program"]["digest"]
    yield Finding("program digest", same, "as the receipt says" if same else "the program differs from the receipt")


def verify(folder: str | Path) -> Report:
    """Run the plan saved in `folder` against the oracle on this machine's device, and check every digest.

    Raises
    ------
    EnvironmentMissingError
        The device that the plan is for is not here.
    """
    saved = load(folder)
    record = saved.receipt.record
    findings = list(_digests(saved.executable, record))
    place = machine.resolve(str(record["target"]))
    if place.open_device is None:
        raise EnvironmentMissingError(f"expected the device of the receipt ({record['device']['name']}); {place.note}")
    device = place.open_device(Store(":memory:"))
    try:
        verdict = device.verify_plan(saved.executable)
    finally:
        device.close()
    findings += [
        Finding(f"check {c.name}", c.passed, f"worst {c.worst:.3g} of its bound, seed {c.seed} {c.note}".rstrip())
        for c in verdict.checks
    ]
    rejected, tried = verdict.power
    findings.append(Finding("power of the checks", rejected == tried, f"{rejected} of {tried} seeded faults rejected"))
    return Report(tuple(findings))
