"""The receipt: what was asked, what was found, which rules led there, what was proved, what was measured, what was not."""

from __future__ import annotations

import dataclasses
import datetime
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import eqsat
from eqsat import text
from eqsat.codegen.plan import Executable
from eqsat.search import knobs
from eqsat.search.device import Measurement, Verdict
from eqsat.search.extraction import Certificate

FORMAT = 1

LIMITS = (
    "rules hold over the reals; floating-point effects are bounded by the checks, not proved",
    "schedules are checked by running them, not by a proof of their index arithmetic",
    "the step from emitted source to machine code is the compiler's and is trusted",
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as read from its JSON record; every top-level entry is also an attribute.

    Attributes
    ----------
    record : mapping
        The whole record, plain data.
    """

    record: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.record[name]
        except KeyError:
            raise AttributeError(f"a receipt has no entry {name!r}; it has {', '.join(self.record)}") from None

    @property
    def closed(self) -> bool:
        """Whether no unmeasured plan of the stated space can be faster by more than ε."""
        return str(self.record["search"]["verdict"]).startswith("closed")

    @property
    def counts(self) -> Mapping[str, int]:
        """Schedules enumerated, illegal, refused by the compiler, wrong, timed, …; kernels and plans."""
        counts: Mapping[str, int] = self.record["search"]["counts"]
        return counts

    @property
    def flops(self) -> int:
        """Arithmetic operations of one call of the chosen plan."""
        return int(self.record["plan"]["flops"])

    @property
    def bytes(self) -> int:
        """Bytes that one call of the chosen plan moves at least: each kernel's inputs and outputs once."""
        return int(self.record["plan"]["bytes"])

    @property
    def prepared_bytes(self) -> int:
        """Bytes that are kept for each set of constants: what is computed from them once."""
        return sum(k["prepared"]["bytes"] for k in self.record["plan"]["kernels"] if k["prepared"])

    @property
    def median_ns(self) -> float | None:
        """Time of the chosen plan with cold caches (ns); None if it was not measured."""
        timing = self.record.get("timing")
        return None if timing is None else float(timing["median_ns"])

    def __str__(self) -> str:
        return "\n".join(_lines(self.record))


def build(
    executable: Executable,
    *,
    target: str,
    device: str,
    fingerprint: str,
    options: Mapping[str, Any],
    rules: Sequence[Mapping[str, Any]],
    saturation: Mapping[str, Any],
    derivation: Mapping[str, Any],
    proof: Mapping[str, Any],
    certificate: Certificate,
    counts: Mapping[str, int],
    kernels: Sequence[Mapping[str, Any]],
    verdict: Verdict | None,
    timing: Measurement | None,
    alternatives: Sequence[Mapping[str, Any]],
    interrupted: bool,
    notes: Sequence[str],
    regions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of a finished search: plain data, equal to what is read back from its JSON text."""
    program = executable.plan.program
    programs = [s.kernel.program for s in executable.call.steps]
    search = dataclasses.asdict(certificate) | {"counts": dict(counts)}
    record = {
        "format": FORMAT,
        "eqsat": eqsat.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "program": {"text": text.dumps(program), "digest": program.digest, "flops": program.flops, "bytes": program.bytes},
        "target": target,
        "device": {"name": device, "fingerprint": fingerprint, "python": platform.python_version(), "numpy": np.__version__},
        "options": dict(options),
        "rules": list(rules),
        "saturation": dict(saturation),
        "derivation": dict(derivation),
        "proof": dict(proof),
        "plan": {
            "digest": executable.plan.digest,
            "flops": sum(p.flops for p in programs),
            "bytes": sum(p.bytes for p in programs),
            "kernels": list(kernels),
        },
        "verification": None if verdict is None else dataclasses.asdict(verdict),
        "timing": None if timing is None else dataclasses.asdict(timing),
        "alternatives": list(alternatives),
        "search": search,
        "interrupted": interrupted,
        "not_proved": list(LIMITS),
        "notes": list(notes),
    }
    if regions is not None:
        record["regions"] = dict(regions)
    plain: dict[str, Any] = _plain(record)
    return plain


def _plain(value: Any) -> Any:
    """Return lists for tuples, and the names of numbers that JSON has not: "inf", "-inf", "nan"."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def kernel_record(executable: Executable, index: int, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the receipt says of one kernel of the plan."""
    step = executable.steps[index]
    source = step.binary.source
    once = step.kernel in executable.plan.prepared
    kept = executable.preparation.writes
    sizes = {o.name: o.bytes for o in step.kernel.program.outputs if o.name in kept}
    times = [t["measurement"]["median_ns"] for t in trials if t["schedule"] == str(step.schedule) and t.get("measurement")]
    return {
        "writes": list(step.kernel.writes),
        "reads": list(step.kernel.reads),
        "family": step.kernel.problem.family,
        "program": text.dumps(step.kernel.program),
        "shown": [text.show(o.expr) for o in step.kernel.program.outputs],
        "schedule": str(step.schedule),
        "source": source.digest,
        "binary": step.binary.digest,
        "compiler": step.binary.compiler,
        "resources": dataclasses.asdict(step.binary.resources),
        "flops": step.kernel.program.flops,
        "bytes": step.kernel.program.bytes,
        "prepared": {"bytes": sum(sizes.values()), "median_ns": times[-1] if times else None} if once else None,
        "knobs": knobs.bought(str(step.schedule), trials),
        "trials": list(trials),
    }


def _once(k: Mapping[str, Any]) -> list[str]:
    """Say what a kernel costs that runs once for the constants it reads."""
    if not k["prepared"]:
        return []
    taken = k["prepared"]["median_ns"]
    time = "" if taken is None else f"{taken / 1e6:.3g} ms "
    size = f", {k['prepared']['bytes'] / 1e6:.3g} MB kept" if k["prepared"]["bytes"] else ""
    return [f"{time}once for the constants {', '.join(k['reads'])}{size}" if k["reads"] else f"{time}once{size}"]


def _lines(r: Mapping[str, Any]) -> list[str]:
    timing = r["timing"]
    lines = [f"program  {r['program']['digest'][:12]} on {r['device']['name']} ({r['target']}), {r['created']}"]
    if timing is None:
        lines.append("time     unmeasured: chosen by model")
    else:
        spread = f"[{timing['low_ns'] / 1e3:.2f}, {timing['high_ns'] / 1e3:.2f}]"
        lines.append(
            f"time     {timing['median_ns'] / 1e3:.2f} µs {spread} over {len(timing['samples_ns'])} samples, cold caches"
        )
        rate, flops = r["plan"]["bytes"] / timing["median_ns"], r["plan"]["flops"] / timing["median_ns"]
        lines.append(f"rates    {rate:.1f} GB/s of minimal traffic, {flops:.1f} GFLOP/s")
    behind = f" under measured {r['search']['empirical']}" if r["search"]["empirical"] else ""
    lines.append(f"search   {r['search']['verdict']}{behind}, gap {100 * r['search']['gap']:.1f} % ({r['search']['space']})")
    lines.append("counts   " + ", ".join(f"{v} {k}" for k, v in r["search"]["counts"].items()))
    for k in r["plan"]["kernels"]:
        made = [f"{name} = {shown}" for name, shown in zip(k["writes"], k["shown"], strict=True)]
        kind = "prepared" if k["prepared"] else "kernel  "
        measured = [f"knobs: {knobs.shown(k['knobs'])}"] if k.get("knobs") else []
        lines.append(f"{kind} " + "\n         ".join([*made, *_once(k), f"{k['family']}: {k['schedule']}", *measured]))
    checks = (r["verification"] or {}).get("checks", ())
    lines += [f"check    {c['name']}: worst {c['worst']:.3g} of its bound" for c in checks]
    lines += _regions(r["regions"]) if "regions" in r else []
    steps = r["derivation"]["steps"]
    steps = [s for s in steps if s["rule"]]
    shown = [s["rule"] + (" (reversed)" if s["direction"] == "reverse" else "") for s in steps if not s["rearranges"]]
    detail = f", {len(steps)} steps" + (f": {', '.join(shown)}" if shown else "") if steps else ""
    lines.append(f"derived  {r['derivation']['status']}{detail}")
    if "proof" in r:
        lines.append(f"proof    {_proof(r['proof'])}")
    lines += [f"unproved {x}" for x in r["not_proved"]]
    lines += [f"note     {x}" for x in r["notes"]]
    return lines


def _regions(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each different region, and one for the borders."""
    for p in found["parts"]:
        kernels = p["kernels"][1] - p["kernels"][0]
        yield f"region   {p['count']}× {p['operations']} operations in {kernels} kernels, {p['saturation']['nodes']} nodes: {p['search']['verdict']}"
    stored, most_ns = (sum(float(b[k]) for b in found["borders"]) for k in ("bytes", "saves_ns"))
    yield f"borders  {len(found['borders'])} store {stored / 2**20:.1f} MiB; fusing across them could save {most_ns / 1e3:.2f} µs at most"


def _proof(proof: Mapping[str, Any]) -> str:
    """Return in words how the plan is known to be the program."""
    value = proof["value"]["note"]
    if proof["method"] != "derived":
        return f"plan and program are {value}" if proof["value"]["method"] != "untested" else value
    resting = "" if proof["weakest"] is None else f" (weakest evidence of a rule: {proof['weakest']})"
    return f"derived{resting}; and {value}"
