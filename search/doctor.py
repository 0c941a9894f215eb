"""What is usable on this machine, and why not."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass

from eqsat.errors import EnvironmentMissingError
from eqsat.search.store import Store, default_path


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of the machine: whether it is usable, and what was found or what to do."""

    part: str
    usable: bool
    detail: str

    def record(self) -> dict[str, object]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{'ok ' if self.usable else '-- '} {self.part:<16} {self.detail}"


def examine() -> list[Finding]:
    """Look at everything that a search can use."""
    return [
        _package("egglog", "the e-graph engine"),
        _ask("CPU", _cpu),
        _ask("C compilers", _compilers),
        _ask("NVRTC", _nvrtc),
        _ask("GPU", _gpu),
        _package("cupy", "arrays and checks on the device; pip install 'eqsat[cuda]'", distribution="cupy-cuda13x"),
        _package("torch", "PyTorch arrays and baselines (optional)"),
        _ask("store", _store),
    ]


def _ask(part: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, question())
    except EnvironmentMissingError as e:
        return Finding(part, False, str(e))


def _package(name: str, purpose: str, distribution: str = "") -> Finding:
    try:
        return Finding(name, True, f"{importlib.metadata.version(distribution or name)}: {purpose}")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed: {purpose}")


def _cpu() -> str:
    from eqsat.search import cpu_device  # each part is loaded only when it is asked about

    return cpu_device.cpu_name()


def _compilers() -> str:
    from eqsat.codegen.cpu import compiler

    found = compiler.compilers()
    if not found:
        raise EnvironmentMissingError("no C compiler: set CC, or install gcc or clang, or pip install 'eqsat[cpu]' (ziglang)")
    return ", ".join(f"{c.name} {c.version}" for c in found)


def _nvrtc() -> str:
    from eqsat.codegen.cuda import nvrtc

    return f"{nvrtc.version()}: PTX and cubin can be emitted"


def _gpu() -> str:
    from eqsat.codegen.cuda import driver

    info = driver.device_info()
    return f"{info.name}, {info.target}"


def _store() -> str:
    store = Store(default_path())
    try:
        counts = ", ".join(f"{n} {t}" for t, n in store.counts().items())
        if store.notes:
            raise EnvironmentMissingError("; ".join(store.notes))
        return f"{default_path()}: {counts}"
    finally:
        store.close()
