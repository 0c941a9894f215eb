"""Rates of a device are measured once and remembered whole."""

import dataclasses

from eqsat.codegen.kernel import Rates
from eqsat.codegen.targets import parse_target
from eqsat.search.machine import Place, rates_of
from eqsat.search.store import Store
from tests.search.fake_device import FakeDevice

MEASURED = Rates(40.0, 35.0, (("f32", 250.0), ("f64", 125.0)), 600.0, 1.5, True, 1 << 25, cached=120.0)
PLACE = Place(parse_target("cpu"), "a CPU", "a CPU; 1 threads", None)


def test_every_rate_that_was_measured_is_remembered() -> None:
    store = Store(":memory:")
    assert rates_of(PLACE, FakeDevice(rates_table=MEASURED), store) == MEASURED
    other = FakeDevice(rates_table=dataclasses.replace(MEASURED, read=1.0))
    assert rates_of(PLACE, other, store) == MEASURED


def test_rates_remembered_in_another_form_are_measured_again() -> None:
    store = Store(":memory:")
    store.put_fact(f"rates {PLACE.fingerprint}", {"read": 1.0, "flops": [["f32", 1.0]]})
    assert rates_of(PLACE, FakeDevice(rates_table=MEASURED), store) == MEASURED


def test_without_a_device_the_rates_are_those_of_the_target() -> None:
    assert rates_of(PLACE, None, Store(":memory:")) is PLACE.target.rates
