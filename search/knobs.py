"""What each knob of a schedule bought: the chosen value against the best that was measured with any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bought(schedule: str, trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a record for each knob that was tried with several values, the one that bought most first.

    Parameters
    ----------
    schedule : str
        The chosen one, as text: its class, then `knob=value` for each knob.
    trials : sequence of dict
        What was measured for the same kernel, with `schedule` and `measurement`.

    Returns
    -------
    list of dict
        `knob`, its `value`, the best `other` value with all other knobs free, and `bought`: how much longer that takes, as a share.
    """
    kind, own = _parsed(schedule)
    measured = [(_parsed(t["schedule"]), float(t["measurement"]["median_ns"])) for t in trials if t.get("measurement")]
    alike = [(values, ns) for (name, values), ns in measured if name == kind and values.keys() == own.keys()]
    mine = [ns for values, ns in alike if values == own]
    found = []
    for knob, value in own.items():
        others = [(ns, values[knob]) for values, ns in alike if values[knob] != value]
        if mine and others:
            ns, other = min(others)
            found.append({"knob": knob, "value": value, "other": other, "bought": ns / mine[-1] - 1})
    return sorted(found, key=lambda f: -f["bought"])


def _parsed(schedule: str) -> tuple[str, dict[str, int]]:
    kind, *knobs = schedule.split()
    pairs = (knob.split("=") for knob in knobs)
    return kind, {name: int(value) for name, value in pairs}


def shown(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the knobs as a line of text."""
    return ", ".join(f"{f['knob']}={f['value']} {100 * f['bought']:+.1f} % against {f['other']}" for f in found)
