"""eqsat: an e-graph superoptimizing search compiler for tensor programs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from eqsat.search.optimize import optimize
    from eqsat.search.result import Optimized, load
    from eqsat.trace import tensor, trace

# Loaded on first use, so that `import eqsat` stays light.
_HOME = {
    "optimize": "eqsat.search.optimize",
    "Optimized": "eqsat.search.result",
    "load": "eqsat.search.result",
    "tensor": "eqsat.trace",
    "trace": "eqsat.trace",
}

__all__ = ["Optimized", "load", "optimize", "tensor", "trace"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eqsat' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
