"""What `optimize` returns: a callable with its sources, binaries, receipt and leaderboard; it can be saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eqsat.codegen.plan import Executable
from eqsat.errors import EnvironmentMissingError, UsageError
from eqsat.search import bundle
from eqsat.search.receipt import Receipt


class Runner(Protocol):
    """Runs an executable on the caller's arrays."""

    def __call__(self, *arrays: Any) -> Any:
        """Return the output array, or a tuple of them."""


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Plans and kernels by time; prints as a table."""

    rows: tuple[tuple[str, float | None, str], ...]

    def __str__(self) -> str:
        head = f"{'':<4}{'time':>12}  {'what':<40} schedule"
        lines = [head]
        for n, (what, median_ns, note) in enumerate(self.rows, 1):
            shown = "unmeasured" if median_ns is None else f"{median_ns / 1e3:.2f} µs"
            lines.append(f"{n:<4}{shown:>12}  {what:<40} {note}")
        return "\n".join(lines)


@dataclass(slots=True)
class Optimized:
    """The fastest verified plan for a program.

    Call it with the program's inputs in order (a function's parameters; an expression's tensors by first use): NumPy arrays
    on the CPU, CuPy or PyTorch arrays on CUDA (on the current stream); it returns the output (a tuple if there are several).
    """

    executable: Executable
    receipt: Receipt
    _runner: Runner | None = field(default=None, repr=False)

    @property
    def source(self) -> str:
        """Source text of the kernels, in launch order."""
        return "\n".join(s.binary.source.text for s in self.executable.steps)

    @property
    def ptx(self) -> str:
        """PTX of the kernels, in launch order ("" for the CPU target)."""
        return "\n".join(s.binary.ptx for s in self.executable.steps if s.binary.ptx)

    @property
    def cubin(self) -> tuple[bytes, ...]:
        """Cubin of each kernel, in launch order (empty for the CPU target)."""
        return tuple(s.binary.image for s in self.executable.steps if s.binary.source.language == "cuda")

    @property
    def leaderboard(self) -> Leaderboard:
        """Plans that were timed whole, then each kernel's schedules, fastest first."""
        rows: list[tuple[str, float | None, str]] = [
            (_contestant(a), a["median_ns"], a["note"]) for a in self.receipt.record["alternatives"]
        ]
        for k in self.receipt.record["plan"]["kernels"]:
            timed = [t for t in k["trials"] if t.get("measurement")]
            timed.sort(key=lambda t: t["measurement"]["median_ns"])
            what = f"{'prepared' if k['prepared'] else 'kernel'} {', '.join(k['writes'])} ({k['family']})"
            rows += [(what, t["measurement"]["median_ns"], t["schedule"]) for t in timed[:8]]
        return Leaderboard(tuple(rows))

    def __call__(self, *arrays: Any) -> Any:
        """Run the plan on the program's inputs, in order."""
        if self._runner is None:
            self._runner = make_runner(self.executable)
        return self._runner(*arrays)

    def save(self, folder: str | Path) -> Path:
        """Write plan, sources, binaries and receipt into `folder`; `eqsat.load` runs them without searching again."""
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name, body in self.files().items():
                (path / name).write_bytes(body)
        except OSError as e:
            raise EnvironmentMissingError(f"expected to write the bundle to {path}; got {e}. Choose a folder with space.") from e
        return path

    def files(self) -> dict[str, bytes]:
        """Return the bundle as file names and contents."""
        return bundle.to_files(self.executable, dict(self.receipt.record))

    def __str__(self) -> str:
        return str(self.receipt)


def _contestant(alternative: Mapping[str, Any]) -> str:
    if alternative["plan"] == "baseline":
        return "the caller's baseline"
    return f"plan of {alternative['kernels']} kernel" + ("s" if alternative["kernels"] != 1 else "")


def from_bundle(files: Mapping[str, bytes]) -> Optimized:
    """Return the optimized program that a bundle holds."""
    executable, record = bundle.from_files(files)
    return Optimized(executable, Receipt(record))


def load(folder: str | Path) -> Optimized:
    """Return a program saved by `Optimized.save`, ready to run without a search."""
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"expected a folder written by save(); {path} is none")
    return from_bundle({p.name: p.read_bytes() for p in path.iterdir() if p.is_file()})


def make_runner(executable: Executable) -> Runner:
    """Return a runner for the executable's language; the CUDA one needs a GPU."""
    if executable.steps[0].binary.source.language == "c":
        from eqsat.search.cpu_device import CpuRunner  # each runner brings in its own device's modules

        return CpuRunner(executable)
    from eqsat.search.runner import CudaRunner

    return CudaRunner(executable)
