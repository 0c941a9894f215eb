"""Whether two expressions mean the same: equal normal forms, over the reals, for the extents they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from eqsat.access import Index
from eqsat.ir import Expr
from eqsat.ops import Kind
from eqsat.proof.functions import quotient, tensor
from eqsat.proof.meaning import Meaning, Values, as_truth, choice, within
from eqsat.proof.normalform import UNIT, Atom, Poly, UndecidedError, arrange, effort, index, number, single
from eqsat.proof.reductions import expand_equal, rename
from eqsat.types import DType

Places = Mapping[str, Poly]

_EFFORT = 20_000  # products multiplied out in one attempt: a second or two


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
    for meet in (_common, _meeting, _nothing):  # what both contain need not be looked into, unless it must
        try:
            with effort(_EFFORT):
                named = meet(a, b)
                first, second = _Reader(named), _Reader(named)
                if expand_equal(first.form(a), second.form(b)) and first.undefined == second.undefined:
                    return True
        except (UndecidedError, RecursionError):
            continue
    return None


Names = Mapping[str, tuple[str, tuple[str, ...]]]
"""By digest of an expression: the name under which it stays closed, and its axes in an order that goes with the name."""


def _nothing(a: Expr, b: Expr) -> Names:
    return {}


def _common(a: Expr, b: Expr) -> Names:
    """Name operations that occur in both as they are."""
    here = {e.digest: e for e in a.walk() if e.args}
    return {e.digest: (e.digest, tuple(sorted(e.axes))) for e in b.walk() if e.digest in here}


def _meeting(a: Expr, b: Expr) -> Names:
    """Name values that are used more than once and have equal forms in both, small ones first: each from those before it."""
    names = dict(_common(a, b))
    waiting = [(n, side, e) for side, root in enumerate((a, b)) for n, e in _shared(root, names)]
    found: list[dict[str, tuple[str, tuple[str, ...]]]] = [{}, {}]
    for _, side, e in sorted(waiting, key=lambda w: w[:2]):
        try:
            with effort(_EFFORT // 4):
                key, order = _canonical(e, names)
        except UndecidedError:
            continue
        found[side][key] = e.digest, order
        if key in found[1 - side]:
            names |= {digest: (key, by) for digest, by in (found[0][key], found[1][key])}
    return names


def _canonical(e: Expr, names: Names) -> tuple[str, tuple[str, ...]]:
    """Return a text that equal values share whatever their axes are called, and the axes in the order that goes with it."""
    reader = _Reader(names)
    form = reader.form(e)
    ordered, named, arranged = arrange(reader.points, form, rename) if reader.points else ((), (), form)
    to = {v.args[0]: single(n) for v, n in zip(ordered, named, strict=True)}
    undefined = sorted(rename(v, to).key for v in reader.meaning.violations.values())
    return " ".join([str(e.dtype), arranged.key, *undefined]), tuple(v.args[0][1:] for v in ordered)


def _shared(e: Expr, closed: Names) -> Iterator[tuple[int, Expr]]:
    """Yield operations over a reduction that several others use, each with its place among all, operands first."""
    users = Counter(x.digest for n in e.walk() for x in {x.digest: x for x in n.args}.values())
    reducing: set[str] = set()
    for place, n in enumerate(e.walk()):
        if n.row.kind is Kind.REDUCE or any(x.digest in reducing for x in n.args):
            reducing.add(n.digest)
            if users[n.digest] > 1 and n.digest not in closed:
                yield place, n


def values_of(dtype: DType) -> Values:
    """Return what a dtype holds."""
    return "truth" if dtype is DType.BOOL else "real" if dtype.is_float else "whole"


class _Reader:
    """Reads an expression as a form; operations in `names` stay closed."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.meaning = Meaning()
        self.points: list[Atom] = []
        self._memo: dict[tuple[str, str, str], Poly] = {}

    def form(self, e: Expr) -> Poly:
        """Return the form of a whole expression at a point of its axes."""
        self.points = [index(f"@{n}", number(k)) for n, k in e.type.axes]
        return self._read(e, {p.args[0][1:]: single(p) for p in self.points})

    @property
    def undefined(self) -> frozenset[str]:
        """Where the value is not defined."""
        return frozenset(self.meaning.violations)

    def _read(self, e: Expr, at: Places) -> Poly:
        here = {n: at[n] for n in sorted(e.axes)}
        key = (e.digest, " ".join(f"{n}={p.key}" for n, p in here.items()), self.meaning.branch.key)
        if key not in self._memo:
            self._memo[key] = self._closed(e, here) if e.digest in self.names else self._opened(e, here)
        return self._memo[key]

    def _closed(self, e: Expr, at: Places) -> Poly:
        name, order = self.names[e.digest]
        places = tuple((str(i), at[n]) for i, n in enumerate(order))
        self.meaning.require(tensor(f"undefined {name}", "truth", places))
        return tensor(name, values_of(e.dtype), places)

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
