"""Rows over windows and prefixes: convolutions, pooling, scans."""

from __future__ import annotations

from eqsat.search.workloads.workload import Workload


def workloads() -> list[Workload]:
    """Return the rows."""
    return []
