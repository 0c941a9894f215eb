"""The kernel families for CUDA, and which of them a schedule belongs to."""

from __future__ import annotations

import functools

from eqsat.codegen.cuda.mma import MmaFamily
from eqsat.codegen.cuda.online_simt import OnlineSimtFamily
from eqsat.codegen.cuda.online_split import OnlineSplitFamily
from eqsat.codegen.cuda.online_split_wgmma import OnlineSplitWgmmaFamily
from eqsat.codegen.cuda.online_wgmma import OnlineWgmmaFamily
from eqsat.codegen.cuda.point import PointFamily
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.scan import ScanFamily
from eqsat.codegen.cuda.simt import SimtFamily
from eqsat.codegen.cuda.skinny import SkinnyFamily
from eqsat.codegen.cuda.split import SplitFamily
from eqsat.codegen.cuda.stream import StreamFamily
from eqsat.codegen.cuda.wgmma import WgmmaFamily
from eqsat.codegen.cuda.window import WindowFamily
from eqsat.codegen.cuda.window_wgmma import WindowWgmmaFamily
from eqsat.codegen.kernel import Family, Schedule
from eqsat.errors import UsageError

FAMILIES: tuple[Family, ...] = (
    PointFamily(),
    ReduceFamily(),
    WindowFamily(),
    ScanFamily(),
    WgmmaFamily(),
    SkinnyFamily(),
    StreamFamily(),
    WindowWgmmaFamily(),
    SplitFamily(),
    MmaFamily(),
    SimtFamily(),
    OnlineWgmmaFamily(),
    OnlineSplitWgmmaFamily(),
    OnlineSplitFamily(),
    OnlineSimtFamily(),
)


@functools.cache
def _by_schedule() -> dict[type[Schedule], Family]:
    return {s: f for f in FAMILIES for s in f.schedules}


def family_of(schedule: Schedule) -> Family:
    """Return the family that emits kernels for a schedule."""
    found = _by_schedule().get(type(schedule))
    if found is None:
        known = ", ".join(s.__name__ for s in _by_schedule())
        raise UsageError(f"expected a CUDA schedule out of {known}; got {schedule}. Use the families of its own target.")
    return found
