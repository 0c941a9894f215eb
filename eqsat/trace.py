"""Tracing: from a Python function, or from an expression built of `tensor`s, to a program over named axes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from eqsat.array import Array, as_array, parse_dtype, walk
from eqsat.errors import ShapeError, TraceError, UsageError
from eqsat.ir import Input, Program
from eqsat.naming import name_axes

Spec = Any  # an Array, a (shape, dtype) pair, or anything with a shape and a dtype


def tensor(name: str, shape: int | Sequence[int], dtype: object = "f32", constant: bool = False) -> Array:
    """Return the input `name` of a program under construction.

    Parameters
    ----------
    name : str
        A Python identifier; arrays are passed to the result in the order in which the names first occur.
    shape : sequence of int
    dtype : str, DType or NumPy dtype
    constant : bool
        Promise that the contents never change between calls (a weight): what depends on constants alone is computed once.

    Examples
    --------
    >>> x, w = tensor("x", (16, 64), "bf16"), tensor("w", (64, 32), "bf16")
    >>> (x @ w).shape
    (16, 32)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(f"expected an identifier as the name of a tensor; got {name!r}")
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in extents):
        raise ShapeError(f"tensor {name!r}: expected whole numbers as extents; got {extents}")
    return Array("input", (), (name, bool(constant)), tuple(int(n) for n in extents), parse_dtype(dtype))


def trace(function: Callable[..., Any], *specs: Spec) -> Program:
    """Run `function` on traced arrays and return what it computes as a program.

    Parameters
    ----------
    function : callable
        A function of arrays; its parameters name the inputs. It returns an array or a tuple of arrays.
    specs : Array, (shape, dtype) pair, or anything with `shape` and `dtype`
        One for each parameter: a NumPy array serves as an example of its own shape.

    Examples
    --------
    >>> program = trace(lambda x, r: abs(x) + r, ((4, 8), "f32"), ((8,), "f32"))
    >>> [i.name for i in program.inputs], program.outputs[0].shape
    (['x', 'r'], (4, 8))
    """
    arguments = [_argument(name, spec) for name, spec in zip(_parameter_names(function, len(specs)), specs, strict=True)]
    return to_program(function(*arguments), inputs=arguments)


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    names: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}{i}" for i in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            if len(names) >= count and parameter.default is parameter.empty:
                raise UsageError(f"the function takes an array {parameter.name!r} for which no shape and dtype was given")
            names.append(parameter.name)
    if len(names) < count:
        raise UsageError(f"the function takes {len(names)} arrays; {count} shapes were given")
    return names[:count]


def _argument(name: str, spec: Spec) -> Array:
    if isinstance(spec, Array):
        constant = spec.op == "input" and bool(spec.params[1])
        return tensor(name, spec.shape, spec.dtype, constant)
    if hasattr(spec, "shape") and hasattr(spec, "dtype"):
        return tensor(name, tuple(spec.shape), spec.dtype)
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], (tuple, list, int)):
        return tensor(name, spec[0], spec[1])
    raise UsageError(
        f"parameter {name!r}: expected a (shape, dtype) pair such as ((16, 4096), 'bf16'), a tensor() or an array; got {spec!r:.80}"
    )


def with_constants(program: Program, names: Sequence[str]) -> Program:
    """Return the program with the inputs called `names` declared constant.

    Raises
    ------
    UsageError
        If it has no such input.
    """
    known = [i.name for i in program.inputs]
    if unknown := [n for n in names if n not in known]:
        raise UsageError(f"expected constants among the inputs {', '.join(known)}; got {', '.join(map(repr, unknown))}")
    inputs = tuple(replace(i, constant=True) if i.name in names else i for i in program.inputs)
    return program if inputs == program.inputs else Program(inputs, program.outputs)


def to_program(
    value: Array | Sequence[Array], names: Sequence[str] | None = None, inputs: Sequence[Array] | None = None
) -> Program:
    """Return the program that computes `value`.

    Parameters
    ----------
    value : Array or sequence of Array
        One output each.
    names : sequence of str, optional
        Names of the outputs; `out`, or `out0`, `out1`, … by default.
    inputs : sequence of Array, optional
        Order of the inputs, unused ones included; by default the order of first use.
    """
    outputs: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    for out in outputs:
        if not isinstance(out, (Array, int, float)):
            raise TraceError(f"expected the function to return an array or a tuple of arrays; it returned {type(out).__name__}")
    if not outputs:
        raise TraceError("expected at least one array as a result; got an empty tuple")
    arrays = [as_array(out) for out in outputs]
    used = [node for node in walk(arrays) if node.op == "input"]
    declared = list(inputs) if inputs is not None else used
    table = _inputs(declared, used)
    return name_axes(table, list(zip(_output_names(names, len(arrays), table), arrays, strict=True)))


def as_program(value: Any, *specs: Spec) -> Program:
    """Return the program that `value` stands for: a program, an expression (or several), or a function with its specs."""
    if isinstance(value, Program):
        return value
    if isinstance(value, (Array, tuple, list)):
        if specs:
            raise UsageError("an expression knows its tensors; shapes are given along with a function only")
        return to_program(value)
    if callable(value):
        return trace(value, *specs)
    raise UsageError(
        f"expected a program, an expression built of tensor()s, or a function with shapes; got {type(value).__name__}"
    )


def _inputs(declared: Sequence[Array], used: Sequence[Array]) -> tuple[Input, ...]:
    out: dict[str, Input] = {}
    for node in (*declared, *used):
        name, constant = node.params
        row = Input(name, node.shape, node.dtype, constant)
        if out.setdefault(name, row) != row:
            raise ShapeError(f"two tensors are called {name!r}: {out[name]} and {row}; give them different names.")
    if stray := [n.params[0] for n in used if n.params[0] not in {d.params[0] for d in declared}]:
        raise TraceError(f"the function uses the tensor {stray[0]!r}, which is not one of its parameters; make it one.")
    return tuple(out.values())


def _output_names(names: Sequence[str] | None, count: int, inputs: Sequence[Input]) -> list[str]:
    taken = {i.name for i in inputs}
    if names is not None:
        if len(names) != count or len(set(names)) != count or taken & set(names):
            raise UsageError(f"expected {count} output names, distinct and unlike the inputs'; got {list(names)}")
        return list(names)
    stem = "out"
    while any(name.startswith(stem) for name in taken):
        stem += "_"
    return [stem] if count == 1 else [f"{stem}{i}" for i in range(count)]
