"""A workload: an expression for eqsat and, for its baseline, the same as PyTorch code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.ir import Program
from eqsat.trace import tensor, to_program

Spec = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the board or of a sweep.

    Parameters
    ----------
    name : str
    inputs : tuple of (name, shape, dtype)
    expression : callable, optional
        Takes traced arrays; None where the program is built already.
    baseline : callable
        Takes the torch module and torch tensors; None: there is nothing to compare with.
    device : {"cuda", "cpu"}
        Where the row belongs by its size.
    bound : {"memory", "arithmetic", "algebra"}
        What limits it; "algebra" rows are won by rewriting and are left out of means.
    goal : float, optional
        The ratio to the best baseline that the project set itself for the row.
    others : mapping of str to callable
        Further baselines, called like `baseline`, timed as they are.
    below : mapping of str to int
        Integer inputs, which are drawn from 0 up to that number.
    built : Program, optional
        The program, where there is one already; else `expression` makes it.
    """

    name: str
    inputs: tuple[Spec, ...]
    expression: Callable[..., Array] | None
    baseline: Callable[..., Any] | None
    device: str = "cuda"
    bound: str = "memory"
    goal: float | None = None
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    below: Mapping[str, int] = field(default_factory=dict)
    built: Program | None = None

    def program(self) -> Program:
        """Return the program, its inputs in the row's order."""
        if self.built is not None:
            return self.built
        assert self.expression is not None, "a workload has an expression or a program"
        inputs = [tensor(n, shape, dtype) for n, shape, dtype in self.inputs]
        return to_program(self.expression(*inputs), inputs=inputs)


def specs(dtype: str, **shapes: Sequence[int]) -> tuple[Spec, ...]:
    """Return inputs of one dtype by their names and shapes."""
    return tuple((name, tuple(shape), dtype) for name, shape in shapes.items())


def rms(x: Array) -> Array:
    """Return x over the root of the mean of its squares along the last axis."""
    return x * np.rsqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rms_torch(torch: Any, x: Any) -> Any:
    """Return `rms` in PyTorch, as a user writes it."""
    return x * torch.rsqrt(torch.mean(x * x, -1, keepdim=True) + 1e-6)
