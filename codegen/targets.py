"""Targets by name: the architecture to compile for, its limits, and data-sheet ceilings for choices made without a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eqsat.codegen.kernel import Rates
from eqsat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Target:
    """What is compiled for, and what its hardware allows.

    Parameters
    ----------
    name : str
        As the user writes it.
    kind : {"cuda", "cpu"}
    arch : str
        What NVRTC is told (`sm_90a`: with the architecture's own instructions); "" for the CPU.
    shared_bytes : int
        Dynamic shared memory that one block may use.
    registers : int
        32-bit registers that one thread may use.
    processors : int
        Multiprocessors of the model that `rates` describes (nominal; a device reports its own).
    rates : Rates
        Data-sheet ceilings of that model; a lower bound by them is admissible for it, and says nothing of another.
    model : str
        The model that the nominal figures describe.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    arch: str
    shared_bytes: int
    registers: int
    processors: int
    rates: Rates
    model: str

    @property
    def capability(self) -> int:
        """Compute capability times ten (90 for sm_90); 0 for the CPU."""
        return int("".join(c for c in self.arch if c.isdigit()) or 0)


def _cuda(
    name: str, arch: str, model: str, shared_bytes: int, processors: int, ghz: float, gbps: float, tflops: dict[str, float]
) -> Target:
    """Make a row from data-sheet figures; a level-1 cache brings 128 bytes per clock to each multiprocessor."""
    flops = tuple((path, 1e3 * rate) for path, rate in tflops.items())
    # A kernel that does nothing takes 0.7 µs in a graph and about 1 µs more to start and drain (measured on an H200).
    rates = Rates(read=gbps, copy=gbps, flops=flops, issue=128 * processors * ghz, launch_ns=1000.0)
    return Target(name, "cuda", arch, shared_bytes, 255, processors, rates, model)


# Vendor data sheets: dense rates with fp32 accumulation, boost clock.
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _cuda("sm_80", "sm_80", "A100 SXM 80 GB", 166912, 108, 1.41, 2039,
              {"f32": 19.5, "tf32": 156, "bf16": 312, "f16": 312, "f64": 9.7}),
        _cuda("sm_86", "sm_86", "GeForce RTX 3090", 101376, 82, 1.70, 936,
              {"f32": 35.6, "tf32": 35.6, "bf16": 71, "f16": 71, "f64": 0.56}),
        _cuda("sm_89", "sm_89", "GeForce RTX 4090", 101376, 128, 2.52, 1008,
              {"f32": 82.6, "tf32": 82.6, "bf16": 165, "f16": 165, "f64": 1.29}),
        _cuda("sm_90", "sm_90a", "H200 SXM", 232448, 132, 1.98, 4800,
              {"f32": 67, "tf32": 494, "bf16": 989, "f16": 989, "f64": 34}),
        _cuda("sm_100", "sm_100", "B200", 232448, 148, 1.97, 8000,
              {"f32": 75, "tf32": 1125, "bf16": 2250, "f16": 2250, "f64": 37}),
        _cuda("sm_120", "sm_120", "GeForce RTX 5090", 101376, 170, 2.41, 1792,
              {"f32": 104.8, "tf32": 104.8, "bf16": 209.5, "f16": 209.5, "f64": 1.64}),
        # One core with AVX-512 at 4 GHz and the memory channel it can fill; a measured CPU replaces these at once.
        Target("cpu", "cpu", "", 0, 0, 1, Rates(read=40, copy=40, flops=(("f32", 256.0), ("f64", 128.0)), issue=512, launch_ns=50.0),
               "one AVX-512 core"),
    )
}  # fmt: skip


def parse_target(name: str) -> Target:
    """Return the target called `name`.

    Raises
    ------
    UsageError
        If there is none, or for "native", which the caller resolves by looking at the machine.
    """
    if name in TARGETS:
        return TARGETS[name]
    known = ", ".join(TARGETS)
    if name == "native":
        raise UsageError(f"expected a concrete target out of {known}; got 'native'. Resolve it against the machine first.")
    raise UsageError(f"expected a target out of {known}, native; got {name!r}. Choose the one of your device (sm_90 is Hopper).")
