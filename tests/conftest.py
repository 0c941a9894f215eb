"""What tests share: a cache folder of their own, and one program optimized on this CPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from eqsat import numpy_like as fn
from eqsat.array import Array
from eqsat.search.result import Optimized
from eqsat.trace import tensor

# The same examples in every run, so that a change is judged by what it changes; campaigns (EQSAT_FUZZ_EXAMPLES) look elsewhere.
settings.register_profile("repeatable", derandomize=True)
if "EQSAT_FUZZ_EXAMPLES" not in os.environ:
    settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep stores and evidence out of the user's cache; rules are checked once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.delenv("EQSAT_DEBUG", raising=False)
        patch.delenv("EQSAT_DUMP", raising=False)
        yield folder


def linear_gelu() -> Array:
    """Return gelu(x @ w + b) of small odd extents: a contraction with an epilogue."""
    x, w, b = tensor("x", (5, 19), "f32"), tensor("w", (19, 23), "f32"), tensor("b", (23,), "f32")
    return fn.gelu(x @ w + b, approximate="tanh")


@pytest.fixture(scope="session")
def optimized(own_cache: Path) -> Optimized:
    """Return `linear_gelu` optimized on this machine's CPU with a short budget."""
    from eqsat.search.optimize import optimize

    return optimize(linear_gelu(), target="cpu", budget="8s", store=":memory:")


@pytest.fixture(scope="session")
def saved(optimized: Optimized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `optimized` was saved in; tests copy it before they change it."""
    return optimized.save(tmp_path_factory.mktemp("saved") / "linear_gelu")


@pytest.fixture(scope="session")
def saved_sm90(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `linear_gelu` for sm_90, chosen by model: no GPU is needed."""
    from eqsat.search.optimize import optimize

    found = optimize(linear_gelu(), target="sm_90", measure=False, store=":memory:")
    return found.save(tmp_path_factory.mktemp("saved") / "linear_gelu_sm90")
