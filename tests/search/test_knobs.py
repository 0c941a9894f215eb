"""What a knob bought is read off the trials: the chosen value against the best with any other."""

from typing import Any

import pytest

from eqsat.search import knobs


def trial(schedule: str, ns: float | None) -> dict[str, Any]:
    return {"schedule": schedule, "status": "ok", "measurement": None if ns is None else {"median_ns": ns}}


TRIALS = [
    trial("Tile bm=128 bn=256", 100.0),
    trial("Tile bm=128 bn=128", 110.0),
    trial("Tile bm=64 bn=256", 150.0),
    trial("Tile bm=64 bn=128", 105.0),
    trial("Tile bm=256 bn=256", None),
    trial("Other bm=1", 90.0),
]


def test_each_knob_is_compared_with_its_best_other_value() -> None:
    first, second = knobs.bought("Tile bm=128 bn=256", TRIALS)
    assert first == {"knob": "bm", "value": 128, "other": 64, "bought": pytest.approx(0.05)}
    assert second == {"knob": "bn", "value": 256, "other": 128, "bought": pytest.approx(0.05)}


def test_a_knob_that_had_one_value_and_a_schedule_that_was_not_measured_buy_nothing() -> None:
    assert knobs.bought("Other bm=1", TRIALS) == []
    assert knobs.bought("Tile bm=256 bn=256", TRIALS) == []


def test_the_line_names_value_gain_and_alternative() -> None:
    assert knobs.shown(knobs.bought("Tile bm=128 bn=256", TRIALS)).startswith("bm=128 +5.0 % against 64")
