"""The families of kernels for CPUs, and which of them a schedule belongs to."""

from __future__ import annotations

from eqsat.codegen.cpu.columns import ColumnFamily
from eqsat.codegen.cpu.contract import ContractFamily
from eqsat.codegen.cpu.online import OnlineFamily
from eqsat.codegen.cpu.point import PointFamily
from eqsat.codegen.cpu.reduce import ReduceFamily
from eqsat.codegen.cpu.scan import ScanFamily
from eqsat.codegen.cpu.skinny import SkinnyFamily
from eqsat.codegen.cpu.window import WindowFamily
from eqsat.codegen.kernel import Family, Schedule
from eqsat.errors import IllegalScheduleError

FAMILIES: tuple[Family, ...] = (
    PointFamily(),
    ReduceFamily(),
    ColumnFamily(),
    WindowFamily(),
    ScanFamily(),
    ContractFamily(),
    SkinnyFamily(),
    OnlineFamily(),
)


def family_of(schedule: Schedule) -> Family:
    """Return the family that emits this class of schedule."""
    for family in FAMILIES:
        if type(schedule) in family.schedules:
            return family
    known = ", ".join(s.__name__ for f in FAMILIES for s in f.schedules)
    raise IllegalScheduleError(f"expected a CPU schedule ({known}); got {type(schedule).__name__}")
