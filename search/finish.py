"""The end of a search: time the finalists whole, compare with the baseline, write the receipt."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eqsat.canonical import canonical_key
from eqsat.codegen.kernel import Rates
from eqsat.codegen.plan import Executable, Step
from eqsat.errors import CompileError, KernelFaultError, NoKernelError, WrongResultError
from eqsat.gate.evidence import Evidence
from eqsat.ir import Program
from eqsat.regions import Partition
from eqsat.rulefile import RuleSet
from eqsat.saturation import SaturationReport
from eqsat.search import receipt, regional
from eqsat.search.beside import misled
from eqsat.search.candidates import PREPARED, Candidate, Sweep
from eqsat.search.compose import compose
from eqsat.search.device import Device, Measurement, Verdict
from eqsat.search.extraction import Certificate
from eqsat.search.machine import Place, compile_for
from eqsat.search.options import Options
from eqsat.search.proofs import Proofs, proof_record
from eqsat.search.result import Optimized
from eqsat.search.schedules import family_of
from eqsat.text import show

_COMPILED_BY_MODEL = (0, 1, 4, 12)  # schedules compiled together, best predicted first, before a kernel is given up


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan chosen, its check and time as a whole, the plans it was timed beside, and the baseline's time.

    `winner` is the caller's baseline where it computes the same and was faster: it is then what the result calls.
    """

    executable: Executable
    verdict: Verdict | None = None
    timing: Measurement | None = None
    alternatives: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
    winner: Callable[..., Any] | None = None


def select(device: Device, made: Sequence[Executable], baseline: Callable[..., Any] | None) -> Decision:
    """Verify whole plans and time them side by side; the fastest one that is right wins.

    A plan of several kernels for a GPU takes part twice, with kernels that overlap and without.

    Raises
    ------
    WrongResultError
        If no plan passes its check.
    """
    made = [*made, *(dataclasses.replace(e, overlapped=True) for e in made if _may_overlap(e))]
    verdicts = [device.verify_plan(e) for e in made]
    right = [(e, v) for e, v in zip(made, verdicts, strict=True) if v.ok]
    notes = [
        f"plan {e.plan.digest[:12]}{_overlap(e)} failed its check as a whole: {v.reason}"
        for e, v in zip(made, verdicts, strict=True)
        if not v.ok
    ]
    if not right:
        raise WrongResultError("; ".join(notes))
    right, times = _timed(device, right, notes)
    if not right:
        raise WrongResultError("; ".join(notes))
    order = sorted(range(len(right)), key=lambda i: times[i].median_ns)
    alternatives = [
        {
            "plan": right[i][0].plan.digest,
            "kernels": len(right[i][0].call.steps),
            "median_ns": times[i].median_ns,
            "note": "; ".join(str(s.schedule) for s in right[i][0].steps) + _overlap(right[i][0]),
        }
        for i in order
    ]
    best = order[0]
    winner = None
    if right[best][0].overlapped:
        apart = [times[i].median_ns for i in order if right[i][0] == dataclasses.replace(right[best][0], overlapped=False)]
        saved = f": {times[best].median_ns / 1e3:.2f} µs instead of {apart[0] / 1e3:.2f}" if apart else ""
        notes.append(f"its kernels overlap{saved}")
    if baseline is not None:
        beside = device.time_beside(right[best][0], baseline)
        own, other = beside.plan, beside.baseline
        chosen = {"plan": right[best][0].plan.digest, "kernels": len(right[best][0].call.steps)}
        called = "called from Python, result allocated, beside the other"
        alternatives.append({**chosen, "median_ns": own.median_ns, "note": called})
        alternatives.append({"plan": "baseline", "kernels": 0, "median_ns": other.median_ns, "note": called})
        ratio = other.median_ns / own.median_ns
        won = "beats" if own.high_ns < other.low_ns else "does not beat"
        notes.append(f"the plan {won} the baseline: {ratio:.2f}x, called from Python, interleaved")
        if not beside.difference and other.high_ns < own.low_ns:
            winner = baseline
            notes.append("nothing beat the baseline: calling the result calls the baseline; its kernels are kept beside it")
        if beside.difference:
            notes.append(f"the baseline computes something else, so that the comparison means little: {beside.difference}")
        if set_here := misled():
            notes.append(
                f"the baseline may be slowed by {', '.join(set_here)} in this environment: unset it for a fair comparison"
            )
    return Decision(right[best][0], right[best][1], times[best], tuple(alternatives), tuple(notes), winner)


def _may_overlap(e: Executable) -> bool:
    """Whether it has several kernels in each call and they are launched one by one, on a GPU."""
    steps = [s for s in e.call.steps if not s.kernel.is_empty]
    return len(steps) > 1 and all(s.binary.source.language == "cuda" for s in steps)


def _overlap(e: Executable) -> str:
    return " (overlapping)" if e.overlapped else ""


def _timed(
    device: Device, right: list[tuple[Executable, Verdict]], notes: list[str]
) -> tuple[list[tuple[Executable, Verdict]], list[Measurement]]:
    """Time plans side by side; if one faults they are timed one by one, and the faulty ones are left out and noted."""
    try:
        return right, device.time_plans([e for e, _ in right])
    except KernelFaultError:
        kept, times = [], []
        for e, verdict in right:
            try:
                times += device.time_plans([e])
                kept.append((e, verdict))
            except KernelFaultError as fault:
                notes.append(f"plan {e.plan.digest[:12]}{_overlap(e)} faulted when it was timed: {fault}")
        return kept, times


def compile_by_model(place: Place, candidate: Candidate, counts: dict[str, int]) -> Step:
    """Compile a kernel's schedules in the order of their predicted time; the first that compiles cleanly is taken."""
    ranked = candidate.legal
    counts["enumerated"] += len(ranked) + candidate.illegal
    failures = []
    for first, last in itertools.pairwise(_COMPILED_BY_MODEL):
        tried = ranked[first:last]
        found = dict(compile_for(place, [family_of(s).emit(candidate.problem, s) for s in tried]))
        for index, schedule in enumerate(tried):
            binary = found[index]
            if not isinstance(binary, CompileError):
                return Step(candidate.kernel, schedule, binary)
            counts["refused"] += 1
            failures.append(str(binary).splitlines()[0])
    raise NoKernelError(
        f"none of {len(failures)} schedules of {candidate.node.family} compiled for {place.target.name}: {failures[:3]}"
    )


def record(
    program: Program,
    options: Options,
    place: Place,
    decided: Decision,
    certificate: Certificate,
    sweeps: Mapping[str, Sweep],
    counts: Mapping[str, int],
    report: SaturationReport,
    ruleset: RuleSet,
    evidence: Mapping[str, Evidence],
    proofs: Proofs,
    *,
    interrupted: bool,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the receipt's record of a finished search."""
    executable = decided.executable
    derived = derivation_record(program, executable, proofs)
    used = {s["rule"] for s in derived["steps"]}
    rules = [
        {
            "name": r.name,
            "digest": r.digest,
            "numerics": r.numerics,
            "law": r.law,
            "evidence": dataclasses.asdict(evidence[r.name]),
        }
        for r in ruleset.rules
        if r.name in used
    ]
    once = executable.preparation.steps
    trials = [_trials_of(s, sweeps, prepared=s in once) for s in executable.steps]
    kernels = [receipt.kernel_record(executable, n, found) for n, found in enumerate(trials)]
    return receipt.build(
        executable,
        target=place.target.name,
        device=place.name,
        fingerprint=place.fingerprint,
        options=dataclasses.asdict(options) | {"rules": [p.name for p in options.rules]},
        rules=rules,
        saturation=dataclasses.asdict(report) | {"stop": report.stop, "rules_digest": ruleset.digest},
        derivation=derived,
        proof=proof_record(proofs.of(executable.plan), derived, evidence),
        certificate=certificate,
        counts=counts,
        kernels=kernels,
        verdict=decided.verdict,
        timing=decided.timing,
        alternatives=decided.alternatives,
        interrupted=interrupted,
        notes=(*decided.notes, *notes),
    )


def record_regions(
    partition: Partition,
    made: Mapping[str, Optimized],
    options: Options,
    place: Place,
    decided: Decision,
    rates: Rates,
    *,
    interrupted: bool,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the receipt's record of a search by regions; `made` has the result of each different one."""
    parts = [made[p.digest].receipt.record for p in partition.distinct]
    executables = {digest: found.executable for digest, found in made.items()}
    return receipt.build(
        decided.executable,
        target=place.target.name,
        device=place.name,
        fingerprint=place.fingerprint,
        options=dataclasses.asdict(options) | {"rules": [p.name for p in options.rules]},
        rules=list({r["name"]: r for part in parts for r in part["rules"]}.values()),
        saturation=regional.saturation(parts),
        derivation=regional.derivation(partition, parts),
        proof=regional.proof(partition, parts),
        certificate=regional.certificate(partition, {p.digest: made[p.digest].receipt.record for p in partition.distinct}),
        counts=regional.counted(parts),
        kernels=list(regional.kernels(decided.executable, partition, made)),
        verdict=decided.verdict,
        timing=decided.timing,
        alternatives=decided.alternatives,
        interrupted=interrupted,
        notes=(*decided.notes, *notes),
        regions=regional.record(partition, made, executables, rates),
    )


def _trials_of(step: Step, sweeps: Mapping[str, Sweep], *, prepared: bool) -> list[dict[str, object]]:
    key = f"{step.kernel.problem.family} {canonical_key(step.kernel.program)}"
    sweep = sweeps.get(f"{PREPARED} {key}", sweeps.get(key)) if prepared else sweeps.get(key)
    return [_brief(t) for t in sweep.trials] if sweep else []


def _brief(trial: Mapping[str, Any]) -> dict[str, object]:
    """Return a trial without what only the store needs."""
    keep = {k: trial[k] for k in ("schedule", "status", "note", "binary", "measurement", "remembered") if k in trial}
    verdict = trial.get("verdict")
    if verdict:
        keep["worst"] = max((c["worst"] for c in verdict["checks"]), default=0.0)
    return keep


def derivation_record(program: Program, executable: Executable, proofs: Proofs) -> dict[str, Any]:
    """Return the chains of named rules from each output as written to the plan's form of it."""
    ends = [
        {"output": output.name, "from": show(output.expr), "to": show(target)}
        for output, target in zip(program.outputs, compose(executable.plan), strict=True)
    ]
    return proofs.checked(executable.plan) | {"ends": ends}


def result(decided: Decision, built: Mapping[str, Any]) -> Optimized:
    """Return what the caller gets."""
    return Optimized(decided.executable, receipt.Receipt(built), decided.winner)
