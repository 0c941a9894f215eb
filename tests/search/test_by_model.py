"""Without a device: every target gets kernels that compile, chosen by model, and the receipt says that nothing was measured."""

import pytest

from eqsat import optimize, tensor
from eqsat.codegen.targets import TARGETS
from eqsat.search import machine
from tests.conftest import linear_gelu


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_served_without_measuring(name: str) -> None:
    found = optimize(linear_gelu(), target=name, measure=False, store=":memory:")
    assert found.receipt.target == name
    assert found.receipt.search["verdict"] == "unmeasured"
    assert found.receipt.timing is None
    assert all(step.binary.image for step in found.executable.steps)
    if TARGETS[name].kind == "cuda":
        assert f".target {TARGETS[name].arch}" in found.ptx


def test_a_gpu_that_is_not_here_is_chosen_for_by_model_and_the_reason_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cuda_place", lambda wanted: "the GPU here is another")
    found = optimize(tensor("x", (8, 8), "f32") * 2, target="sm_90", store=":memory:")
    assert found.receipt.search["verdict"] == "unmeasured"
    assert "nothing was measured: the GPU here is another" in found.receipt.notes


def test_the_tensor_core_kernel_is_chosen_where_it_serves() -> None:
    x, w = tensor("x", (1024, 1024), "bf16"), tensor("w", (1024, 1024), "bf16")
    hopper = optimize(x @ w, target="sm_90", measure=False, store=":memory:")
    assert hopper.receipt.plan["kernels"][0]["schedule"].startswith("WgmmaTile")
    assert "wgmma.mma_async" in hopper.ptx
    ampere = optimize(x @ w, target="sm_80", measure=False, store=":memory:")
    assert "wgmma.mma_async" not in ampere.ptx
