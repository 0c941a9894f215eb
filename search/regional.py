"""A plan for a whole program out of plans for its regions, and what the receipt says of them.

Buffers are called as outside, equal kernels compiled once. The receipt keeps for each different region its program, derivation,
proof and certificate, and for each border what it stores: what fusing across it could have saved is at most that traffic.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eqsat import text
from eqsat.codegen.kernel import Arg, KernelBinary, KernelSource, Rates, WorkspaceArg
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.ir import Expr, Input, Output, Program, read, rebuild
from eqsat.proof.agreement import agree
from eqsat.regions import Partition, Region, rejoin
from eqsat.search import receipt
from eqsat.search.bundle import find_problem
from eqsat.search.extraction import Certificate
from eqsat.search.result import Optimized
from eqsat.search.schedules import family_of

Compile = Callable[[KernelSource], KernelBinary]


def assemble(partition: Partition, made: Mapping[str, Executable], compile_source: Compile) -> Executable:
    """Return the executable of a whole program.

    Parameters
    ----------
    partition : Partition
    made : mapping of str to Executable
        By digest of the region's program.
    compile_source : callable
        Compiles a kernel whose text differs in more than names from the region's own.
    """
    steps: list[Step] = []
    for region, names in zip(partition.regions, buffer_names(partition, made), strict=True):
        steps += [renamed_step(s, names, compile_source) for s in made[region.program.digest].steps]
    return Executable(Plan(partition.program, tuple(s.kernel for s in steps)), tuple(steps))


def buffer_names(partition: Partition, made: Mapping[str, Executable]) -> list[dict[str, str]]:
    """Return for each region the name in the whole plan of every buffer of the region's plan."""
    taken = {i.name for i in partition.program.inputs} | {name for r in partition.regions for name in r.outputs}
    return [_outer_names(r, made[r.program.digest], f"r{n}_", taken) for n, r in enumerate(partition.regions)]


def _outer_names(region: Region, part: Executable, stem: str, taken: set[str]) -> dict[str, str]:
    """Return the name outside of every buffer of a region's plan, and note the new ones."""
    names = dict(zip((i.name for i in region.program.inputs), region.inputs, strict=True))
    names |= dict(zip((o.name for o in region.program.outputs), region.outputs, strict=True))
    for inner in part.intermediates:
        name = stem + inner
        while name in taken:
            name = f"{name}_"
        taken.add(name)
        names[inner] = name
    return names


def renamed_step(step: Step, names: Mapping[str, str], compile_source: Compile) -> Step:
    """Return a kernel over buffers of other names; it is compiled again only if that changes more than names in its source."""
    problem = find_problem(renamed(step.kernel.program, names), step.kernel.problem.family)
    source = family_of(step.schedule).emit(problem, step.schedule)
    old = step.binary.source
    args = tuple(_renamed_arg(a, names) for a in old.args)
    same = dataclasses.replace(source, text="") == dataclasses.replace(old, text="", args=args)
    if same and _skeleton(source.text, tuple(names.values())) == _skeleton(old.text, tuple(names)):
        binary = dataclasses.replace(step.binary, source=source)
    else:
        binary = compile_source(source)
    return Step(Kernel(problem), step.schedule, binary)


def renamed(program: Program, names: Mapping[str, str]) -> Program:
    """Return a kernel's program over buffers of other names."""
    memo: dict[str, Expr] = {}
    for e in program.walk():
        if e.op == "read":
            extents = e.type.extents
            shape = tuple(extents[a] if a else 1 for a in e.attrs[1])
            memo[e.digest] = read(names[e.attrs[0]], e.attrs[1], shape, e.dtype)
        else:
            memo[e.digest] = rebuild(e, tuple(memo[a.digest] for a in e.args))
    inputs = tuple(Input(names[i.name], i.shape, i.dtype, i.constant) for i in program.inputs)
    outputs = tuple(Output(names[o.name], memo[o.expr.digest], o.axes, o.dtype) for o in program.outputs)
    return Program(inputs, outputs)


def _renamed_arg(arg: Arg, names: Mapping[str, str]) -> Arg:
    return arg if isinstance(arg, WorkspaceArg) else dataclasses.replace(arg, name=names[arg.name])


def _skeleton(text: str, names: Sequence[str]) -> str:
    """Return source text without comments, the buffers in its identifiers by number."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    number = {name: str(n) for n, name in enumerate(names)}
    if not number:
        return code
    known = "|".join(sorted(map(re.escape, number), key=len, reverse=True))
    return re.sub(rf"(?<=_)({known})\b", lambda found: f"#{number[found[1]]}", code)


def certificate(partition: Partition, parts: Mapping[str, Mapping[str, Any]]) -> Certificate:
    """Return what is settled of the whole program: the sum over its regions, which store what crosses their borders."""
    found = [(partition.count(p), parts[p.digest]["search"]) for p in partition.distinct]
    best = sum(n * float(c["best_ns"]) for n, c in found)
    bound = sum(n * min(float(c["bound_ns"]), float(c["best_ns"])) for n, c in found)
    verdicts = [str(c["verdict"]) for _, c in found]
    verdict = "unmeasured" if "unmeasured" in verdicts else "open" if "open" in verdicts else max(verdicts, key=len)
    gap = 1.0 if verdict == "unmeasured" or not 0 < best < float("inf") else max(0.0, 1 - bound / best)
    empirical = " and ".join(dict.fromkeys(what for _, c in found for what in str(c["empirical"]).split(" and ") if what))
    mib = partition.border_bytes / 2**20
    space = (
        f"{len(partition.regions)} regions, {len(found)} different, whose {len(partition.borders)} borders store {mib:.1f} MiB: "
    )
    space += "; ".join(f"{n}× {c['space']}" for n, c in found)
    measured, rounds = (sum(int(c[k]) for _, c in found) for k in ("measured", "rounds"))
    return Certificate(verdict, gap, float(found[0][1]["epsilon"]), bound, best, empirical, space, measured, rounds)


def counted(parts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the sums of what the searches of the regions counted."""
    out: dict[str, int] = {}
    for part in parts:
        for what, n in part["search"]["counts"].items():
            out[what] = out.get(what, 0) + n
    return out


def saturation(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one report of the regions' saturations: phases in a row, matches and times summed."""
    reports = [p["saturation"] for p in parts]
    rules: dict[str, dict[str, Any]] = {}
    for r in (r for report in reports for r in report["rules"]):
        old = rules.setdefault(r["name"], {"name": r["name"], "matches": 0, "time_ms": 0.0})
        old["matches"], old["time_ms"] = old["matches"] + r["matches"], old["time_ms"] + r["time_ms"]
    cut = [r["stop"] for r in reports if r["stop"] != "saturated"]
    return {
        "phases": [p | {"name": f"region {n}: {p['name']}"} for n, r in enumerate(reports) for p in r["phases"]],
        "rules": [rules[name] for name in sorted(rules)],
        **{k: sum(r[k] for r in reports) for k in ("nodes", "classes", "steps", "time_ms")},
        "replays": [why for r in reports for why in r["replays"]],
        "stop": cut[0] if cut else "saturated",
        "rules_digest": reports[0]["rules_digest"],
    }


def proof(partition: Partition, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the weakest of the regions' proofs, or that of their being the program together, if that is weaker."""
    joined = agree([o.expr for o in partition.program.outputs], [o.expr for o in rejoin(partition).outputs])
    value = {f.name: getattr(joined, f.name) for f in dataclasses.fields(joined)} | {"note": f"regions put together: {joined}"}
    found = [*(p["proof"] for p in parts), {"method": joined.method, "weakest": None, "value": value}]
    return max(found, key=lambda p: _PROOFS.index(p["method"]))


_PROOFS = ("derived", "identical", "normal form", "field", "laws", "float", "untested", "refuted")


def derivation(partition: Partition, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether all regions have derivations; the chains stand with the regions."""
    missing = [p["derivation"]["status"] for p in parts if p["derivation"]["status"] != "derived"]
    ends = [{"output": o.name, "from": "", "to": ""} for o in partition.program.outputs]
    return {"status": missing[0] if missing else "derived", "goals": 0, "parts": [], "names": [], "steps": [], "ends": ends}


def record(
    partition: Partition, made: Mapping[str, Optimized], executables: Mapping[str, Executable], rates: Rates
) -> dict[str, Any]:
    """Return what the receipt says of regions and borders.

    `saves_ns` is the most that fusing across a border could have saved: what it stores written and read once.
    """
    names = buffer_names(partition, executables)
    first: dict[str, int] = {}
    starts = [0]
    for n, region in enumerate(partition.regions):
        first.setdefault(region.program.digest, n)
        starts.append(starts[-1] + len(executables[region.program.digest].steps))
    parts = []
    for program in partition.distinct:
        n, found = first[program.digest], made[program.digest].receipt.record
        parts.append(
            {
                "program": text.dumps(program),
                "digest": program.digest,
                "count": partition.count(program),
                "operations": partition.regions[n].operations,
                "kernels": [starts[n], starts[n + 1]],
                "buffers": names[n],
                "saturation": {k: found["saturation"][k] for k in ("nodes", "classes", "stop", "time_ms")},
                "derivation": found["derivation"],
                "proof": found["proof"],
                "search": found["search"],
                **({"regions": found["regions"]} if "regions" in found else {}),
            }
        )
    borders = [
        {"name": b.name, "shape": list(b.shape), "dtype": b.dtype, "bytes": b.bytes, "saves_ns": 2 * b.bytes / rates.read}
        for b in partition.borders
    ]
    return {"borders": borders, "parts": parts}


def kernels(executable: Executable, partition: Partition, made: Mapping[str, Optimized]) -> Iterator[dict[str, Any]]:
    """Yield what the receipt says of each kernel, with the trials of the region's own."""
    trials = [k["trials"] for r in partition.regions for k in made[r.program.digest].receipt.record["plan"]["kernels"]]
    for n, found in enumerate(trials):
        yield receipt.kernel_record(executable, n, found)


def region_plan(plan: Plan, part: Mapping[str, Any]) -> Plan:
    """Return the plan of a region, under the region's own names, out of the plan of the whole."""
    inner = {outer: name for name, outer in part["buffers"].items()}
    kernels = plan.kernels[slice(*part["kernels"])]
    found = [find_problem(renamed(k.program, inner), k.problem.family) for k in kernels]
    return Plan(text.loads(part["program"], file="receipt.json"), tuple(map(Kernel, found)))
