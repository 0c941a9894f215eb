"""Whether two expressions mean the same: equal normal forms, over the reals, for the extents they have."""

from __future__ import annotations

from collections.abc import Mapping

from eqsat.access import Index
from eqsat.ir import Expr
from eqsat.meaning import Meaning, Values, as_truth, choice, within
from eqsat.normalform import UNIT, Atom, Poly, UndecidedError, index, number, single
from eqsat.normalform_functions import quotient, tensor
from eqsat.normalform_reductions import expand_equal
from eqsat.ops import Kind
from eqsat.types import DType

Places = Mapping[str, Poly]


def equal(a: Expr, b: Expr) -> bool | None:
    """Prove that two expressions have equal values at every point, for all inputs.

    Parameters
    ----------
    a, b : Expr
        Over inputs of the same names.

    Returns
    -------
    bool or None
        True: equal over the reals wherever they are defined, and defined for the same inputs. Infinite constants stand for
        any number, casts between floats for the identity. False: they differ in axes or dtype. None: not decided.
    """
    if a.type != b.type:
        return False
    for shared in (_common(a, b), frozenset[str]()):  # what both contain need not be looked into, unless it must
        try:
            first, second = _Reader(shared), _Reader(shared)
            if (
                expand_equal(first.form(a), second.form(b))
                and first.meaning.violations.keys() == second.meaning.violations.keys()
            ):
                return True
        except (UndecidedError, RecursionError):
            continue
    return None


def _common(a: Expr, b: Expr) -> frozenset[str]:
    """Digests of operations that occur in both."""
    return frozenset({e.digest for e in a.walk() if e.args} & {e.digest for e in b.walk() if e.args})


def values_of(dtype: DType) -> Values:
    """Return what a dtype holds."""
    return "truth" if dtype is DType.BOOL else "real" if dtype.is_float else "whole"


class _Reader:
    """Reads an expression as a form; operations in `shared` stay closed."""

    def __init__(self, shared: frozenset[str]) -> None:
        self.shared = shared
        self.meaning = Meaning()
        self._memo: dict[tuple[str, str, str], Poly] = {}

    def form(self, e: Expr) -> Poly:
        """Return the form of a whole expression at a point of its axes."""
        return self._read(e, {n: single(index(f"@{n}", number(k))) for n, k in e.type.axes})

    def _read(self, e: Expr, at: Places) -> Poly:
        here = {n: at[n] for n in sorted(e.axes)}
        key = (e.digest, " ".join(f"{n}={p.key}" for n, p in here.items()), self.meaning.branch.key)
        if key not in self._memo:
            self._memo[key] = self._closed(e, here) if e.digest in self.shared else self._opened(e, here)
        return self._memo[key]

    def _closed(self, e: Expr, at: Places) -> Poly:
        places = tuple(at.items())
        self.meaning.require(tensor(f"undefined {e.digest}", "truth", places))
        return tensor(e.digest, values_of(e.dtype), places)

    def _opened(self, e: Expr, at: Places) -> Poly:
        match e.op:
            case "read":
                name, axes = e.attrs
                return tensor(name, values_of(e.dtype), tuple((str(i), at[n]) for i, n in enumerate(axes) if n))
            case "const":
                return self.meaning.constant(e.attrs[0])
            case "iota":
                return at[e.attrs[0]]
            case "access":
                return self._accessed(e, at)
            case "where":
                return self._chosen(e, at)
        if e.row.kind is Kind.REDUCE:
            (name,), (arg,) = e.attrs, e.args
            variable = self._variable(name, arg.type.extents[name], at)
            inside = self._read(arg, {**at, name: single(variable)})
            return self.meaning.reduction(e.op, inside, variable, values_of(arg.dtype))
        kinds = [values_of(a.dtype) for a in e.args]
        if "truth" in kinds and e.dtype is DType.BOOL and e.op in ("add", "sub", "mul", "maximum", "minimum", "neg"):
            raise UndecidedError(f"{e.op} of truth values")
        return self.meaning.pointwise(e.op, [self._read(a, at) for a in e.args], kinds, values_of(e.dtype))

    def _variable(self, name: str, extent: int, at: Places) -> Atom:
        taken = frozenset().union(*(p.free for p in at.values()))
        while name in taken:
            name += "'"
        self.meaning.bound[name] = variable = index(name, number(extent))
        return variable

    def _chosen(self, e: Expr, at: Places) -> Poly:
        condition = as_truth(self._read(e.args[0], at), values_of(e.args[0].dtype))
        chosen = self._under(condition, e.args[1], at)
        return choice(condition, chosen, self._under(UNIT - condition, e.args[2], at))

    def _under(self, condition: Poly, e: Expr, at: Places) -> Poly:
        """Read where a condition holds: elsewhere the value need not be defined."""
        outer, self.meaning.branch = self.meaning.branch, self.meaning.branch * condition
        out = self._read(e, at) if self.meaning.branch.terms else number(0)
        self.meaning.branch = outer
        return out

    def _accessed(self, e: Expr, at: Places) -> Poly:
        (arg,), (mapping,) = e.args, e.attrs
        extents = arg.type.extents
        inside, places = UNIT, dict(at)
        for name, position in mapping.entries:
            places[name] = place = index_form(position, at)
            inside = inside * within(place, number(extents[name]))
        return inside * self._under(inside, arg, places) if inside.terms else number(0)


def index_form(position: Index, at: Places) -> Poly:
    """Return an index expression as a form."""
    args = [index_form(a, at) for a in position.args]
    match position.op:
        case "axis":
            return at[position.name]
        case "const":
            return number(position.value)
        case "add":
            return args[0] + args[1]
        case "mul":
            return args[0] * position.value
        case "div":
            return quotient(args[0], number(position.value))
        case _:
            return args[0] - quotient(args[0], number(position.value)) * position.value
