"""Models learn from measurements: a fit orders kernels that it has not seen, and is data that the search reads."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen import fitted
from eqsat.codegen.cuda.wgmma import WgmmaTile
from eqsat.codegen.problem import contract_problem
from eqsat.codegen.targets import TARGETS
from eqsat.errors import UsageError
from eqsat.search import model_fit
from eqsat.search.model_fit import Measured, judge, report
from eqsat.search.schedules import family_of
from eqsat.search.store import Store, StoredTrial
from eqsat.search.workloads.contract import gemm

RATES = TARGETS["sm_90"].rates
TILES = [WgmmaTile(m, n, 2, 0, 1, 1, 8) for m, n in itertools.product((128, 256), (32, 64, 96, 128, 160, 176))]


def kernel(m: int, n: int, k: int, noise: np.random.Generator) -> Measured:
    """Return a kernel whose true times differ from the model's by a smooth factor, which grows with narrow tiles."""
    problem = contract_problem(gemm(m, n, k).program())
    assert not isinstance(problem, str)

    def true_ns(s: WgmmaTile) -> float:
        own = family_of(s).predict_ns(problem, s, RATES)
        return own * math.exp(1.5 - 0.6 * math.log2(s.bn / 32) + 0.5 * (s.bm == 256) + 0.01 * noise.standard_normal())

    return Measured(f"{m} {n} {k}", problem, {s: true_ns(s) for s in TILES})


@pytest.fixture(scope="module")
def kernels() -> list[Measured]:
    noise = np.random.default_rng(0)
    return [kernel(m, n, k, noise) for m, n, k in itertools.product((1024, 2048, 4096), (1024, 4096), (512, 2048))]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(fitted, "FOLDER", tmp_path)
    fitted.corrections.cache_clear()
    yield tmp_path
    fitted.corrections.cache_clear()


def test_a_fit_orders_kernels_that_were_left_out_better_than_the_analytic_model(kernels: list[Measured]) -> None:
    record, fits = report(kernels, "sm_90")
    row = record["families"]["contract"]
    assert row["kernels"] == len(kernels)
    assert row["fitted"]["correlation"] > 0.9
    assert row["fitted"]["correlation"] >= row["analytic"]["correlation"]
    assert row["fitted"]["share_first"] > 0.95
    assert set(fits) == {"WgmmaTile"}


def test_the_loss_of_a_choice_is_what_it_takes_beyond_the_best(kernels: list[Measured]) -> None:
    k = kernels[0]
    slowest_first = judge(k, lambda _family, _problem, s: -k.times[s])  # type: ignore[index]
    assert slowest_first.correlation == pytest.approx(-1)
    assert slowest_first.first == pytest.approx(max(k.times.values()) / min(k.times.values()) - 1)
    assert 0 <= slowest_first.eight <= slowest_first.first


def test_a_written_fit_is_read_back_and_corrects_predictions(kernels: list[Measured], shipped: Path) -> None:
    _, fits = report(kernels, "sm_90")
    assert fitted.corrections("sm_90") == {}
    fitted.write("sm_90", fits, {"kernels": len(kernels)})
    s, k = TILES[0], kernels[0]
    family = family_of(s)
    corrected = fitted.predicted_ns(family, k.problem, s, RATES, fitted.corrections("sm_90"))
    assert corrected == pytest.approx(k.times[s], rel=0.1)
    assert fitted.predicted_ns(family, k.problem, s, RATES, {}) == family.predict_ns(k.problem, s, RATES)
    assert json.loads((shipped / "sm_90.json").read_text())["kernels"] == len(kernels)


def test_too_few_measurements_are_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_fit, "workloads_of", lambda *_: (gemm(256, 256, 256),))
    with pytest.raises(UsageError, match="eqsat bench"):
        model_fit.run([tmp_path / "empty.sqlite"], "sm_90")


def test_a_store_is_asked_for_the_schedules_of_the_kernels_that_programs_lower_to() -> None:
    store = Store(":memory:")
    program = gemm(1024, 1024, 1024).program()
    asked: list[str] = []

    class Spy(Store):
        def measured(self, kernel: str) -> dict[str, float]:
            asked.append(kernel)
            return {}

    assert model_fit.kernels_of([program], [Spy(":memory:")], "sm_90") == []
    for s in TILES:
        store.put_trial(asked[0], "some context", StoredTrial(str(s), "ok", 1000.0 + s.bn, {}))
    (found,) = model_fit.kernels_of([program], [store], "sm_90")
    assert len(found.times) >= model_fit.LEAST_TRIALS
    assert all(found.times[s] == 1000.0 + s.bn for s in found.times)
