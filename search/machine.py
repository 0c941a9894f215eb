"""What this machine offers: resolve a target's name into a device to measure on, or into a compiler without a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates
from eqsat.codegen.targets import Target, parse_target
from eqsat.errors import CompileError, EnvironmentMissingError
from eqsat.search.device import Device
from eqsat.search.store import Store


@dataclass(frozen=True, slots=True)
class Place:
    """Where a search takes place: a target, and how to open its device; `open_device` is None where nothing can be measured.

    `fingerprint` names device, driver and compilers, and costs no device time.
    """

    target: Target
    name: str
    fingerprint: str
    open_device: Callable[[Store], Device] | None
    note: str = ""


def resolve(target: str) -> Place:
    """Return the place for a target's name.

    "native" is the GPU if there is one, else the CPU. A CUDA target whose architecture is at hand is measured there;
    otherwise its kernels are chosen by model and compiled only.
    """
    if target == "native":
        found = _cuda_place(None)
        return found if isinstance(found, Place) else _cpu_place()
    wanted = parse_target(target)
    if wanted.kind == "cpu":
        return _cpu_place()
    found = _cuda_place(wanted)
    return (
        found
        if isinstance(found, Place)
        else Place(wanted, wanted.model, f"no device; {_nvrtc()}", None, f"nothing was measured: {found}")
    )


def _cpu_place() -> Place:
    from eqsat.search import cpu_device  # a device's modules are needed only where it is used

    return Place(
        parse_target("cpu"), cpu_device.cpu_name(), cpu_device.fingerprint(), lambda store: cpu_device.open_device(store)
    )


def _cuda_place(wanted: Target | None) -> Place | str:
    """Return the GPU's place if its architecture is the one wanted, else why not."""
    from eqsat.codegen.cuda import driver
    from eqsat.search import cuda_device

    try:
        info = driver.device_info()
        mine = cuda_device.target_of(info)
    except EnvironmentMissingError as e:
        return str(e)
    if wanted is not None and mine.name != wanted.name:
        return f"the GPU here is {info.name} ({mine.name}); kernels for {wanted.name} are compiled, not measured"
    return Place(mine, info.name, cuda_device.fingerprint(), lambda store: cuda_device.open_device(store))


def _nvrtc() -> str:
    from eqsat.codegen.cuda import nvrtc

    return f"NVRTC {nvrtc.version()}"


def compile_for(place: Place, sources: Sequence[KernelSource]) -> Iterator[tuple[int, KernelBinary | CompileError]]:
    """Compile sources without a device, PTX included for CUDA."""
    if place.target.kind == "cpu":
        from eqsat.codegen.cpu import compiler

        return compiler.compile_many(sources)
    from eqsat.codegen.cuda import nvrtc

    return nvrtc.compile_many(sources, place.target, ptx=True)


def rates_of(place: Place, device: Device | None, store: Store) -> Rates:
    """Return measured rates, remembered by the store; data-sheet rates where there is no device."""
    if device is None:
        return place.target.rates
    key = f"rates {place.fingerprint}"
    known = store.fact(key)
    if isinstance(known, dict) and known.keys() == {f.name for f in dataclasses.fields(Rates)}:
        return Rates(**{**known, "flops": tuple((str(path), float(rate)) for path, rate in known["flops"])})
    rates = device.rates()
    store.put_fact(key, dataclasses.asdict(rates))
    return rates
