"""The traced positional array: an immutable graph node that behaves like a NumPy array without data.

Operators, indexing and methods build graphs; nothing is computed. `eqsat.naming` turns a graph into a program over
named axes. The NumPy protocols make plain NumPy code build graphs as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, SupportsIndex, TypeAlias

import numpy as np

from eqsat import views
from eqsat.access import Index
from eqsat.errors import DTypeError, ShapeError, TraceError
from eqsat.ops import OPS, Kind, Result, result_dtype
from eqsat.types import DType, promote
from eqsat.views import Entries, Fill, Shape

Axis = int | Sequence[int] | None
Operand: TypeAlias = "Array | bool | int | float | np.generic | np.ndarray[Any, Any]"  # an array of data is refused with advice


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Array:
    """A node of a traced graph.

    Attributes by `op`: `input` (name, constant), `const` (value,), `iota` () over one dimension, `view` (one index for each
    dimension of the operand, fill), reductions (dimensions,), pointwise ops and `cast` (). Compare structure by `digest`;
    `==` is the elementwise comparison.
    """

    op: str
    args: tuple[Array, ...]
    params: tuple[Any, ...]
    shape: Shape
    dtype: DType
    digest: str = field(default="")

    __array_priority__ = 1000

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.shape):
            raise ShapeError(f"expected extents of at least 1; got the shape {list(self.shape)}")
        shown = [str(p) if not isinstance(p, tuple) else " ".join(map(str, p)) for p in self.params]
        text = f"{self.op}|{'|'.join(shown)}|{self.shape}|{self.dtype}|{'|'.join(a.digest for a in self.args)}"
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Array({self.op}, shape={list(self.shape)}, dtype={self.dtype})"

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def T(self) -> Array:  # noqa: N802 - NumPy's name
        """All dimensions reversed."""
        return self.permute(*range(self.ndim)[::-1])

    @property
    def mT(self) -> Array:  # noqa: N802 - the array API's name
        """The last two dimensions swapped."""
        if self.ndim < 2:
            raise ShapeError(f".mT takes at least two dimensions; got the shape {list(self.shape)}")
        return self.swapaxes(-1, -2)

    def __len__(self) -> int:
        if not self.shape:
            raise TraceError("len() of an array without dimensions")
        return self.shape[0]

    # Operators

    def __add__(self, other: Operand) -> Array:
        return pointwise("add", self, other)

    def __radd__(self, other: Operand) -> Array:
        return pointwise("add", other, self)

    def __sub__(self, other: Operand) -> Array:
        return pointwise("sub", self, other)

    def __rsub__(self, other: Operand) -> Array:
        return pointwise("sub", other, self)

    def __mul__(self, other: Operand) -> Array:
        return pointwise("mul", self, other)

    def __rmul__(self, other: Operand) -> Array:
        return pointwise("mul", other, self)

    def __truediv__(self, other: Operand) -> Array:
        return pointwise("div", self, other)

    def __rtruediv__(self, other: Operand) -> Array:
        return pointwise("div", other, self)

    def __floordiv__(self, other: Operand) -> Array:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: Operand) -> Array:
        return floor_divide(other, self)

    def __mod__(self, other: Operand) -> Array:
        return self - floor_divide(self, other) * other

    def __pow__(self, other: Operand) -> Array:
        return power(self, other)

    def __rpow__(self, other: Operand) -> Array:
        return power(other, self)

    def __matmul__(self, other: Operand) -> Array:
        return matmul(self, other)

    def __rmatmul__(self, other: Operand) -> Array:
        return matmul(other, self)

    def __neg__(self) -> Array:
        return pointwise("neg", self)

    def __pos__(self) -> Array:
        return self

    def __abs__(self) -> Array:
        return pointwise("abs", self)

    def __lt__(self, other: Operand) -> Array:
        return pointwise("lt", self, other)

    def __le__(self, other: Operand) -> Array:
        return pointwise("le", self, other)

    def __gt__(self, other: Operand) -> Array:
        return pointwise("lt", other, self)

    def __ge__(self, other: Operand) -> Array:
        return pointwise("le", other, self)

    def __eq__(self, other: Operand) -> Array:  # type: ignore[override]  # NumPy's meaning: elementwise
        return pointwise("eq", self, other)

    def __ne__(self, other: Operand) -> Array:  # type: ignore[override]
        return pointwise("not", pointwise("eq", self, other))

    def __and__(self, other: Operand) -> Array:
        return pointwise("and", self, other)

    def __rand__(self, other: Operand) -> Array:
        return pointwise("and", other, self)

    def __or__(self, other: Operand) -> Array:
        return pointwise("or", self, other)

    def __ror__(self, other: Operand) -> Array:
        return pointwise("or", other, self)

    def __invert__(self) -> Array:
        return pointwise("not", self)

    # What would need the data

    def __bool__(self) -> NoReturn:
        raise TraceError(
            "the truth of a traced array is not known while tracing, so `if`, `while`, `and`, `or` and `not` cannot use it. "
            "Write where(condition, a, b), maximum/minimum, or & | ~ for conditions."
        )

    def _refuse_value(self, what: str) -> NoReturn:
        raise TraceError(
            f"{what} needs the values of a traced array, which has none while tracing. Keep the computation in array "
            "operations, or pass the number to the function as a plain Python argument."
        )

    def __float__(self) -> NoReturn:
        self._refuse_value("float()")

    def __int__(self) -> NoReturn:
        self._refuse_value("int()")

    def __index__(self) -> NoReturn:
        self._refuse_value("using it as an index")

    def __complex__(self) -> NoReturn:
        self._refuse_value("complex()")

    def item(self) -> NoReturn:
        """Raise: there is no value while tracing."""
        self._refuse_value("item()")

    def tolist(self) -> NoReturn:
        """Raise: there are no values while tracing."""
        self._refuse_value("tolist()")

    def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
        self._refuse_value("making a NumPy array of it")

    def __iter__(self) -> NoReturn:
        raise TraceError(
            "a traced array is not iterated over: a Python loop would be unrolled element by element. Use array operations and "
            "reductions (sum, max, einsum), or x[0], x[1], … for a few fixed positions."
        )

    def __contains__(self, value: object) -> NoReturn:
        self._refuse_value("`in`")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TraceError(
            "a traced array is immutable: write where(mask, new, old), concatenate or pad instead of assigning to x[…]"
        )

    # NumPy protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        from eqsat.numpy_protocol import call_ufunc  # that module is built on this one

        return call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        from eqsat.numpy_protocol import call_function  # that module is built on this one

        return call_function(function, args, options)

    # Re-indexing

    def __getitem__(self, key: object) -> Array:
        entries, shape = views.parse_key(key, self.shape)
        return view(self, entries, shape)

    def reshape(self, *shape: int | Sequence[int]) -> Array:
        """Return the elements in row-major order under another shape; one extent may be −1."""
        wanted = list(_integers(shape, "reshape"))
        if wanted.count(-1) == 1:
            rest = math.prod(n for n in wanted if n != -1)
            wanted[wanted.index(-1)] = self.size // rest if rest > 0 else 1
        if any(n < 1 for n in wanted):
            raise ShapeError(f"expected extents of at least 1 (one of them may be -1); got {list(shape)}")
        return view(self, views.reshape(self.shape, tuple(wanted)), tuple(wanted))

    def flatten(self) -> Array:
        """Return all elements along one dimension."""
        return self.reshape(-1)

    ravel = flatten

    def permute(self, *order: int | Sequence[int]) -> Array:
        """Return the dimensions in the given order."""
        axes = [a % self.ndim if -self.ndim <= a < self.ndim else a for a in _integers(order, "permute")]
        if sorted(axes) != list(range(self.ndim)):
            raise ShapeError(
                f"expected an order of all {self.ndim} dimensions; got {list(order)}. To exchange two of them use swapaxes()."
            )
        entries = tuple(views.dim(axes.index(s)) for s in range(self.ndim))
        return view(self, entries, tuple(self.shape[a] for a in axes))

    def transpose(self, *order: int | Sequence[int]) -> Array:
        """Return the dimensions in the given order, or reversed if none is given (NumPy's meaning)."""
        return self.permute(*order) if order else self.T

    def swapaxes(self, a: int, b: int) -> Array:
        """Return it with two dimensions exchanged."""
        (a,), (b,) = views.axis_numbers(a, self.ndim), views.axis_numbers(b, self.ndim)
        order = list(range(self.ndim))
        order[a], order[b] = b, a
        return self.permute(*order)

    def squeeze(self, axis: Axis = None) -> Array:
        """Return it without the dimensions of extent 1 (those of `axis` only, if given)."""
        drop = [d for d, n in enumerate(self.shape) if n == 1] if axis is None else views.axis_numbers(axis, self.ndim)
        if wide := [d for d in drop if self.shape[d] != 1]:
            raise ShapeError(f"squeeze takes dimensions of extent 1; dimension {wide[0]} of {list(self.shape)} is wider")
        return self.reshape([n for d, n in enumerate(self.shape) if d not in drop])

    # Element types

    def astype(self, dtype: object, **_: object) -> Array:
        """Return the values rounded to another element type."""
        return cast(self, dtype)

    # Reductions

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return sums along `axis`."""
        return reduce("sum", self, axis, keepdims)

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return products along `axis`."""
        return reduce("prod", self, axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return maxima along `axis`."""
        return reduce("max", self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return minima along `axis`."""
        return reduce("min", self, axis, keepdims)

    def any(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return whether any value along `axis` is not 0."""
        return reduce("any", self, axis, keepdims)

    def all(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return whether no value along `axis` is 0."""
        return reduce("all", self, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Array:
        """Return the first position of the maximum along `axis` (of all elements, if None)."""
        return reduce("argmax", self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Array:
        """Return the first position of the minimum along `axis` (of all elements, if None)."""
        return reduce("argmin", self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Array:
        """Return means along `axis`."""
        return self.sum(axis, keepdims) / self._count(axis)

    def var(self, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Array:
        """Return variances along `axis`: Σ(x − mean)² / (count − correction)."""
        centred = self - self.mean(axis, keepdims=True)
        return (centred * centred).sum(axis, keepdims) / (self._count(axis) - correction)

    def std(self, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Array:
        """Return standard deviations along `axis`."""
        return pointwise("sqrt", self.var(axis, keepdims, correction))

    def _count(self, axis: Axis) -> int:
        return math.prod(self.shape[d] for d in views.axis_numbers(axis, self.ndim))


def parse_dtype(name: object) -> DType:
    """Return the dtype called `name`, which may also be a type such as `np.float32`."""
    return DType.parse(name.__name__ if isinstance(name, type) else name)


def _integers(values: Sequence[int | Sequence[int]], what: str) -> tuple[int, ...]:
    flat = values[0] if len(values) == 1 and isinstance(values[0], Sequence) else values
    out = []
    for value in flat:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise ShapeError(f"{what} takes whole numbers; got {value!r}")
        out.append(value.__index__())
    return tuple(out)


def constant(value: float, dtype: DType) -> Array:
    """Return the constant `value` as an array without dimensions."""
    if dtype in (DType.I32, DType.I64):
        bits = dtype.bytes * 8
        if value != int(value) or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise DTypeError(f"the constant {value!r} is not a value of {dtype}; cast the array to a wider type first")
        value = int(value)
    return Array("const", (), (bool(value) if dtype is DType.BOOL else float(value) if dtype.is_float else value,), (), dtype)


def as_array(value: Operand, like: DType | None = None) -> Array:
    """Return `value` as an Array. A Python or NumPy scalar takes the type `like`, widened only in kind (int to float)."""
    if isinstance(value, Array):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        raise TraceError(
            f"an array of data {list(value.shape)} {value.dtype} met a traced array. Make it a parameter of the function (or a "
            "tensor(…, constant=True)) and pass the data when calling the result."
        )
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise TraceError(f"expected a traced array or a number; got {type(value).__name__} {value!r:.80}")
    if isinstance(value, bool):
        kind = like or DType.BOOL
    elif isinstance(value, int):
        kind = DType.I64 if like in (None, DType.BOOL) else like
    else:
        kind = like if like is not None and like.is_float else DType.F32
    return constant(value, kind)


_ON_BOOL = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}  # NumPy's arithmetic of truth values
_LOGIC = ("and", "or", "not")


def pointwise(name: str, *operands: Operand) -> Array:
    """Apply a row of the op table elementwise, with broadcasting and weakly typed scalars."""
    row = OPS[name]
    strong = [x.dtype for x in operands[row.result is Result.BRANCHES :] if isinstance(x, Array)]
    like: DType | None = None
    for dtype in strong:
        like = dtype if like is None else promote(like, dtype)
    if row.result is Result.BRANCHES:
        condition = as_array(operands[0])
        if condition.dtype is not DType.BOOL:
            raise DTypeError(f"{name} takes a bool condition; got {condition.dtype}. Compare it first: x != 0.")
        args = (condition, *(as_array(x, like) for x in operands[1:]))
    else:
        args = tuple(as_array(x, like) for x in operands)
    kinds = tuple(a.dtype for a in args)
    if all(k is DType.BOOL for k in kinds) and row.result is not Result.BRANCHES:
        if name in ("sub", "neg", "abs", "floor"):
            raise DTypeError(f"{name} is not defined for bool; use ~ and !=, or cast it with astype")
        name = _ON_BOOL.get(name, name)
    elif name in _LOGIC:
        raise DTypeError(f"{name} takes bool operands; got {', '.join(map(str, kinds))}. Compare them first: x != 0.")
    shape = views.broadcast_shapes([a.shape for a in args], name)
    return Array(name, args, (), shape, result_dtype(OPS[name], kinds))


def cast(x: Operand, dtype: object) -> Array:
    """Return `x` rounded to `dtype`."""
    kind = parse_dtype(dtype)
    x = as_array(x, kind)
    if x.dtype is kind:
        return x
    if kind is DType.BOOL:
        return x != 0
    return Array("cast", (x,), (), x.shape, kind)


def power(x: Operand, exponent: Operand) -> Array:
    """Return x ** exponent; small whole exponents and ±1/2 become products, reciprocals and roots."""
    if not isinstance(x, Array):
        x = as_array(x, exponent.dtype if isinstance(exponent, Array) else None)
    value = exponent.item() if isinstance(exponent, (np.generic, np.ndarray)) and np.ndim(exponent) == 0 else exponent
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value in (0.5, -0.5):
            return pointwise("sqrt" if value > 0 else "rsqrt", x)
        if value == -1:
            return pointwise("recip", x)
        if value == int(value) and 1 <= value <= 8:
            return _whole_power(x, int(value))
    return pointwise("pow", x, exponent)


def _whole_power(x: Array, count: int) -> Array:
    if count == 1:
        return x
    half = _whole_power(x, count // 2)
    square = half * half
    return square * x if count % 2 else square


def floor_divide(x: Operand, y: Operand) -> Array:
    """Return floor(x / y); for floats only."""
    out = pointwise("div", x, y)
    if not all(a.dtype.is_float for a in (x, y) if isinstance(a, Array)):
        raise DTypeError("floor division and remainder are defined for floats; cast the integers with astype first")
    return pointwise("floor", out)


def view(x: Array, entries: Entries, shape: Shape, fill: Fill = "zero") -> Array:
    """Return `x` re-indexed; a view of a view becomes one view where the two compose."""
    entries = views.simplify(entries, shape)
    total = all(views.inside(e, shape, n) for e, n in zip(entries, x.shape, strict=True))
    if total or fill == "any":
        entries = tuple(Index.const(0) if n == 1 else e for e, n in zip(entries, x.shape, strict=True))
    if total:
        fill = "any"
    if x.op == "view":
        inner, inner_fill = x.params
        source = x.args[0]
        joined = views.compose(entries, fill, shape, inner, x.shape, source.shape)
        if joined is not None:
            return view(source, joined, shape, "zero" if "zero" in (fill, inner_fill) else "any")
    unchanged = tuple(Index.const(0) if n == 1 else views.dim(d) for d, n in enumerate(shape))
    if shape == x.shape and entries == unchanged:
        return x
    return Array("view", (x,), (entries, fill), shape, x.dtype)


def expand_dims(x: Array, axis: Axis) -> Array:
    """Return `x` with dimensions of extent 1 inserted, so that they are the dimensions `axis` of the result."""
    added = axis if isinstance(axis, Sequence) else (axis,)
    new = views.axis_numbers(tuple(a for a in added if a is not None), x.ndim + len(added))
    rest = [d for d in range(x.ndim + len(new)) if d not in new]
    shape = [1] * (x.ndim + len(new))
    for d, n in zip(rest, x.shape, strict=True):
        shape[d] = n
    return view(x, tuple(views.dim(d) for d in rest), tuple(shape))


def broadcast_to(x: Operand, shape: Sequence[int]) -> Array:
    """Return `x` repeated along new and unit dimensions up to `shape`."""
    x, wanted = as_array(x), _integers([shape], "broadcast_to")
    lead = len(wanted) - x.ndim
    if lead < 0 or any(n not in (1, wanted[lead + d]) for d, n in enumerate(x.shape)):
        raise ShapeError(f"the shape {list(x.shape)} does not broadcast to {list(wanted)}")
    return view(x, tuple(Index.const(0) if n == 1 else views.dim(lead + d) for d, n in enumerate(x.shape)), wanted)


def reduce(name: str, x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Reduce `x` along `axis` (all dimensions, if None)."""
    x, row = as_array(x), OPS[name]
    over = views.axis_numbers(axis, x.ndim)
    if row.result is Result.INDEX and axis is not None and len(over) != 1:
        raise ShapeError(f"{name} takes one axis or None; got {axis}")
    shape = [1 if d in over else n for d, n in enumerate(x.shape) if keepdims or d not in over]
    if name in ("any", "all") and x.dtype is not DType.BOOL:
        x = x != 0
    elif x.dtype is DType.BOOL and name in ("max", "min"):
        name = "any" if name == "max" else "all"
    elif x.dtype is DType.BOOL and name in ("prod", "argmax", "argmin"):
        x = cast(x, DType.I64)
    if row.result is Result.INDEX and axis is None:
        x, over = x.reshape(-1), (0,)
    return _reduce_dims(name, x, over).reshape(shape)


def _reduce_dims(name: str, x: Array, over: tuple[int, ...]) -> Array:
    """Return the reduction without the dimensions `over`; those of extent 1 only lose their dimension."""
    dtype = result_dtype(OPS[name], (x.dtype,))
    wide = tuple(d for d in over if x.shape[d] > 1)
    slim = x.reshape([n for d, n in enumerate(x.shape) if d not in over or n > 1])
    if not wide:
        zero = constant(0, dtype)
        return broadcast_to(zero, slim.shape) if OPS[name].result is Result.INDEX else cast(slim, dtype)
    dims = tuple(d - sum(e < d and x.shape[e] == 1 for e in over) for d in wide)
    shape = tuple(n for d, n in enumerate(slim.shape) if d not in dims)
    return Array(name, (slim,), (dims,), shape, dtype)


def matmul(a: Operand, b: Operand) -> Array:
    """Return the matrix product over the last dimension of `a` and the last but one of `b`, batched over the others."""
    a, b = as_array(a), as_array(b)
    if not a.ndim or not b.ndim:
        raise ShapeError("@ takes arrays with at least one dimension; multiply by a number with *")
    left = a if a.ndim > 1 else expand_dims(a, 0)
    right = b if b.ndim > 1 else expand_dims(b, 1)
    if left.shape[-1] != right.shape[-2]:
        raise ShapeError(
            f"@: the last dimension of {list(a.shape)} (extent {left.shape[-1]}) meets the "
            f"{'last but one' if b.ndim > 1 else 'only'} dimension of {list(b.shape)} (extent {right.shape[-2]}); they must be equal."
        )
    product = expand_dims(left, -2) * expand_dims(right.mT, -3)
    out = product.any(-1) if product.dtype is DType.BOOL else product.sum(-1)
    drop = [d for d, operand in ((-2, a), (-1, b)) if operand.ndim == 1]
    return out.squeeze(drop) if drop else out


def is_pointwise(x: Array) -> bool:
    """Whether the node is a pointwise op (casts included)."""
    return x.op in OPS and OPS[x.op].kind is Kind.POINTWISE


def is_reduction(x: Array) -> bool:
    """Whether the node is a reduction."""
    return x.op in OPS and OPS[x.op].kind is Kind.REDUCE


def walk(roots: Sequence[Array]) -> list[Array]:
    """Return each distinct node once, operands before users."""
    out: dict[str, Array] = {}
    stack: list[tuple[Array, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            out.setdefault(node.digest, node)
        elif node.digest not in out:
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args))
    return list(out.values())
