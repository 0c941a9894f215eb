"""An optimized program as files: what `save` writes, `load` reads, and the store keeps as one archive.

`plan.json` holds the program text, the kernels, schedules and launch data; beside it lie each kernel's source and binary,
and `receipt.json`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from eqsat import text
from eqsat.codegen.kernel import Arg, BufferArg, KernelBinary, KernelSource, Resources, Schedule, TensorMapArg, WorkspaceArg
from eqsat.codegen.online import online_problem
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import Problem, contract_problem, point_problem, reduce_problem
from eqsat.errors import UsageError
from eqsat.ir import Program
from eqsat.search.schedules import schedule_classes
from eqsat.types import DType

_FINDERS: dict[str, Callable[[Program], Problem | str]] = {
    "point": point_problem,
    "reduce": reduce_problem,
    "contract": contract_problem,
    "online": online_problem,
}
_ARGS: dict[str, Any] = {"buffer": BufferArg, "map": TensorMapArg, "workspace": WorkspaceArg}


def find_problem(program: Program, family: str) -> Problem:
    """Return the problem of `family` that a kernel-sized program poses; UsageError with the reason if it poses none."""
    found = _FINDERS[family](program)
    if isinstance(found, str):
        raise UsageError(f"the program is no {family} kernel: {found}")
    return found


def to_files(executable: Executable, receipt: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bundle: file name to contents."""
    files: dict[str, bytes] = {}
    steps = []
    for n, step in enumerate(executable.steps):
        source, image = step.binary.source, step.binary.image
        suffix, kind = ("cu", "cubin") if source.language == "cuda" else ("c", "so")
        name = f"kernel{n}"
        files[f"{name}.{suffix}"] = source.text.encode()
        files[f"{name}.{kind}"] = image
        if step.binary.ptx:
            files[f"{name}.ptx"] = step.binary.ptx.encode()
        steps.append(_step_record(name, step))
    record = {"format": 1, "program": text.dumps(executable.plan.program), "steps": steps, "overlapped": executable.overlapped}
    files["plan.json"] = json.dumps(record, indent=1).encode()
    files["receipt.json"] = json.dumps(receipt, indent=1).encode()
    return files


def _step_record(name: str, step: Step) -> dict[str, Any]:
    source = step.binary.source
    fields = {f.name: getattr(step.schedule, f.name) for f in dataclasses.fields(step.schedule)}
    launch = {k: getattr(source, k) for k in _LAUNCH}
    return {
        "name": name,
        "family": step.kernel.problem.family,
        "program": text.dumps(step.kernel.program),
        "schedule": {"class": type(step.schedule).__name__, "fields": fields},
        "language": source.language,
        "launch": launch,
        "args": [_arg_record(a) for a in source.args],
        "compiler": step.binary.compiler,
        "resources": dataclasses.asdict(step.binary.resources),
    }


_LAUNCH = ("entry", "grid", "block", "cluster", "shared_bytes", "workspace_bytes", "options", "requires", "cooperative")


def _arg_record(arg: Arg) -> dict[str, Any]:
    kind = next(k for k, t in _ARGS.items() if isinstance(arg, t))
    fields = {f.name: getattr(arg, f.name) for f in dataclasses.fields(arg)}
    return {"kind": kind, **{k: v.value if isinstance(v, DType) else v for k, v in fields.items()}}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _arg(record: Mapping[str, Any]) -> Arg:
    fields: dict[str, Any] = {k: _frozen(v) for k, v in record.items() if k != "kind"}
    if "dtype" in fields:
        fields["dtype"] = DType.parse(fields["dtype"])
    made: Arg = _ARGS[record["kind"]](**fields)
    return made


def from_files(files: Mapping[str, bytes]) -> tuple[Executable, dict[str, Any]]:
    """Return the executable and the receipt of a bundle; UsageError names a file that is missing or malformed."""
    try:
        record = json.loads(files["plan.json"])
        receipt = json.loads(files["receipt.json"])
        program = text.loads(record["program"], file="plan.json")
        steps = tuple(_step(files, r) for r in record["steps"])
    except (KeyError, ValueError, TypeError) as e:
        raise UsageError(f"expected a bundle written by save(): plan.json, receipt.json and the kernels; got {e!r}") from e
    return Executable(Plan(program, tuple(s.kernel for s in steps)), steps, bool(record.get("overlapped", False))), receipt


def _step(files: Mapping[str, bytes], r: Mapping[str, Any]) -> Step:
    kernel = Kernel(find_problem(text.loads(r["program"], file=r["name"]), r["family"]))
    cls: type[Schedule] = schedule_classes()[r["schedule"]["class"]]
    suffix, kind = ("cu", "cubin") if r["language"] == "cuda" else ("c", "so")
    launch: dict[str, Any] = {k: _frozen(v) for k, v in r["launch"].items()}
    body = files[f"{r['name']}.{suffix}"].decode()
    source = KernelSource(language=r["language"], text=body, args=tuple(_arg(a) for a in r["args"]), **launch)
    reported: dict[str, Any] = {k: _frozen(v) for k, v in r["resources"].items()}
    resources = Resources(**reported)
    ptx = files.get(f"{r['name']}.ptx", b"").decode()
    binary = KernelBinary(source, files[f"{r['name']}.{kind}"], r["compiler"], resources, ptx)
    return Step(kernel, cls(**r["schedule"]["fields"]), binary)


def pack(files: Mapping[str, bytes]) -> bytes:
    """Pack a bundle into one archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in sorted(files.items()):
            z.writestr(name, body)
    return buffer.getvalue()


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the files of a packed bundle."""
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        return {name: z.read(name) for name in z.namelist()}
