"""What has to be proved of a rule's equation: in every case that the guards leave open, that two forms are equal.

In each case (`eqsat.proof.cases`) both sides are read as forms at one point of their axes. Numbers of the rule and extents are
unknowns with the signs that the guards give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from eqsat.gate.draw import is_menu
from eqsat.gate.equation import Equation, UncheckableError
from eqsat.ops import BY_CONSTRUCTOR, Kind, Result
from eqsat.proof.cases import Case, NotProvedError, axis_key, cases
from eqsat.proof.functions import is_positive, quotient, raised, tensor
from eqsat.proof.meaning import Meaning, Values, as_truth, choice, within
from eqsat.proof.normalform import UNIT, Atom, Poly, UndecidedError, index, number, single
from eqsat.proof.reductions import expand_equal, maximum
from eqsat.sexpr import Node
from eqsat.signature import RANGES


@dataclass(frozen=True, slots=True)
class Goal:
    """Two forms that should be equal in a case, and what is known there.

    Attributes
    ----------
    case : Case
    left, right : Poly
    violations : tuple of two mappings
        Where each side is undefined, by text.
    premises : tuple of (str, Poly)
        Comparisons with 0.
    points : tuple of Atom
        The index variables of the point at which both sides are looked at.
    """

    case: Case
    left: Poly
    right: Poly
    violations: tuple[Mapping[str, Poly], Mapping[str, Poly]]
    premises: tuple[tuple[str, Poly], ...]
    points: tuple[Atom, ...]

    @property
    def same(self) -> bool:
        """Whether the normal forms decide it."""
        return expand_equal(self.left, self.right)

    @property
    def defined_alike(self) -> bool:
        """Whether both sides are defined in the same places."""
        return self.violations[0].keys() == self.violations[1].keys()


def goals(equation: Equation, typings: Sequence[Mapping[str, str]]) -> Iterator[Goal]:
    """Yield what has to be proved of an equation, case by case.

    Raises
    ------
    NotProvedError
        If there are too many cases, or one is not of a kind that can be proved.
    """
    seen: set[tuple[str, str]] = set()
    for case in cases(equation, typings):
        try:
            goal = _Side(equation, case).goal()
        except (UndecidedError, UncheckableError) as e:
            raise NotProvedError(str(e)) from e
        if goal is not None and (goal.left.key, goal.right.key) not in seen:
            seen.add((goal.left.key, goal.right.key))
            yield goal


class _Side:
    """Reads both sides of an equation in one case."""

    def __init__(self, equation: Equation, case: Case) -> None:
        self.equation, self.case = equation, case
        self.sorts = dict(equation.numbers)
        self.extents = {c: single(Atom("extent", (c,), integer=True, positive=True)) for c in set(case.axis.values())}
        self.numbers: dict[str, Poly] = {}
        self.nonzero: list[Atom] = []
        self.divided: dict[tuple[str, str], tuple[Poly, Poly]] = {}
        self.premises: list[tuple[str, Poly]] = []
        self.inside = [g.args for g in equation.guards if g.head == "inside"]
        self.nonnegative = {g.args[0].text for g in equation.guards if g.head == "at-least-zero" and g.args[0].kind == "symbol"}

    def goal(self) -> Goal | None:
        """Return what has to be shown; None if the guards rule the case out."""
        if not self._take_guards():
            return None
        points = {c: index(f"@{c}", n) for c, n in self.extents.items()}
        here = {c: single(p) for c, p in points.items()}
        for m in self.equation.made:
            self.extents[m.variable] = self.calculate(m.extent, Meaning(self.nonzero))
        sides: list[tuple[Poly, Mapping[str, Poly]]] = []
        for term in (self.equation.left, self.equation.right):
            meaning = Meaning(self.nonzero, poles=True)
            form = _Reading(self, meaning).value(term, here)[0]
            sides.append((form, meaning.violations))
        (left, a), (right, b) = sides
        return Goal(self.case, left, right, (a, b), (*self.premises, *self._ranges(here)), tuple(points.values()))

    def _ranges(self, here: Mapping[str, Poly]) -> Iterator[tuple[str, Poly]]:
        """Yield what range guards say of variables, at the point itself."""
        reading = _Reading(self, Meaning(self.nonzero))
        for g in self.equation.guards:
            if g.head in RANGES and g.args[0].kind == "symbol":
                op, limit = RANGES[g.head]
                value = reading.value(g.args[0], here)[0]
                yield (">=" if op == "Maximum" else "<="), value - number(Fraction(limit))

    def _take_guards(self) -> bool:
        """Learn extents, signs and definitions; return whether the numeric guards can hold."""
        menus = [g for g in self.equation.guards if is_menu(g)]
        matched = {n.text for t in (self.equation.left, *menus) for n in t.walk() if n.kind == "symbol"}
        facts = [g for g in self.equation.guards if g.head in ("=", "!=", "<", "<=", ">", ">=") and len(g.args) == 2]
        for g in facts:
            for a, b in (g.args, g.args[::-1]):
                if g.head == "=" and a.head == "extent" and b.kind == "int":
                    self.extents[self.case.axis[axis_key(a.args[0])]] = number(int(b.text))
        for v, sort in self.equation.numbers:
            if v in matched:
                self.numbers[v] = self._unknown(v, sort, facts)
        self._divide_extents(facts)
        self._exceed_extents(facts)
        waiting = [g for g in facts if self._numeric(g)]
        while waiting:
            later = []
            for g in waiting:
                known = self._learn(g)
                if known is False:
                    return False
                if known is None:
                    later.append(g)
            if len(later) == len(waiting):
                raise UndecidedError(f"the guard {later[0]} cannot be read")
            waiting = later
        return True

    def _divide_extents(self, facts: Sequence[Node]) -> None:
        """Where a guard speaks of extent(k) % t, write extent(k) as t·q + r, with r = 0 or with t = r + s, s ≥ 1."""
        named = {v.text: e for g in facts if g.head == "=" for v, e in (g.args, g.args[::-1]) if v.kind == "symbol"}
        for g in facts:
            for zero, rest in (g.args, g.args[::-1]):
                if g.head not in ("=", "!=") or str(zero) != "0" or rest.head != "%":
                    continue
                whole, by = (named.get(a.text, a) if a.kind == "symbol" else a for a in rest.args)
                c = self.case.axis[axis_key(whole.args[0])] if whole.head == "extent" else ""
                if c not in self.extents or self.extents[c].lone is None or by.kind not in ("symbol", "int"):
                    continue
                if by.kind == "symbol" and (by.text not in self.numbers or not is_positive(self.numbers[by.text])):
                    continue
                # The quotient is ≥ 1 if the extent is known to be ≥ t; else an extent t·0 + r < t is a case of its own.
                if g.head == "!=" and not any(_at_least(f, rest.args[0], by) for f in facts):
                    continue
                self._divide(c, by, exact=g.head == "=")

    def _exceed_extents(self, facts: Sequence[Node]) -> None:
        """Where a guard says that a whole number lies below extent(k), write extent(k) as that number and a rest."""
        named = {v.text: e for g in facts if g.head == "=" for v, e in (g.args, g.args[::-1]) if v.kind == "symbol"}
        for g in facts:
            low, high = g.args if g.head in ("<", "<=") else g.args[::-1]
            high = high.args[0] if high.head == "to-f64" else high
            high = named.get(high.text, high) if high.kind == "symbol" else high
            if g.head not in ("<", "<=", ">", ">=") or high.head != "extent" or self._waits(low) or low.kind in ("int", "float"):
                continue
            c = self.case.axis[axis_key(high.args[0])]
            below = self._calculated(low)
            if c in self.extents and self.extents[c].lone is not None and below is not None and below.integer:
                strictly = g.head in ("<", ">")
                rest = Atom("number", (f"{c} rest",), integer=True, positive=strictly, nonnegative=True)
                self.extents[c] = below + single(rest)

    def _divide(self, c: str, by: Node, *, exact: bool) -> None:
        q, r, s = (single(Atom("number", (f"{c} {x}",), integer=True, positive=True)) for x in "qrs")
        if exact:
            divisor = self.numbers[by.text] if by.kind == "symbol" else number(int(by.text))
            self.extents[c] = divisor * q
        elif by.kind == "symbol":
            self.numbers[by.text] = divisor = r + s
            self.extents[c] = divisor * q + r
            self.divided[self.extents[c].key, divisor.key] = q, r

    def _numeric(self, guard: Node) -> bool:
        names = set(self.sorts)
        return any(
            a.kind in ("int", "float")
            or a.head == "extent"
            or (a.kind == "symbol" and a.text in names)
            or a.head in _CALCULATIONS
            for a in guard.args
        )

    def _unknown(self, v: str, sort: str, facts: Sequence[Node]) -> Poly:
        """Return an unknown number with the sign that a guard gives it."""
        positive = negative = nonnegative = nonzero = False
        for g in facts:
            for head, (a, b) in ((g.head, g.args), (_MIRRORED[g.head], g.args[::-1])):
                if a.kind == "symbol" and a.text == v and b.kind in ("int", "float"):
                    positive |= (head == ">" and b.number >= 0) or (head == ">=" and b.number > 0)
                    negative |= (head == "<" and b.number <= 0) or (head == "<=" and b.number < 0)
                    nonnegative |= head == ">=" and b.number >= 0
                    nonzero |= head == "!=" and b.number == 0
        positive |= any(m.extent.kind == "symbol" and m.extent.text == v for m in self.equation.made)  # an extent is ≥ 1
        whole = sort == "i64" or any(g.head == "whole" and g.args[0].text == v for g in self.equation.guards)
        atom = Atom("number", (v,), integer=whole, positive=positive or negative, nonnegative=nonnegative)
        if nonzero:
            self.nonzero.append(atom)
        return -single(atom) if negative else single(atom)

    def _learn(self, guard: Node) -> bool | None:
        """Take a fact about numbers in; False if it cannot hold, None if it waits for another."""
        if guard.head == "=":
            for a, b in (guard.args, guard.args[::-1]):
                if a.kind == "symbol" and a.text in self.sorts and a.text not in self.numbers:
                    value = self._calculated(b)
                    if value is None:
                        return None
                    self.numbers[a.text] = value
                    return True
        left, right = (self._calculated(a) for a in guard.args)
        if left is None or right is None:
            return None
        difference = left - right
        if difference.constant is not None:
            return _HOLDS[guard.head](difference.constant)
        self.premises.append((guard.head, difference))
        return True

    def _calculated(self, node: Node) -> Poly | None:
        return None if self._waits(node) else self.calculate(node, Meaning(self.nonzero))

    def _waits(self, node: Node) -> bool:
        return any(n.kind == "symbol" and n.text in self.sorts and n.text not in self.numbers for n in node.walk())

    def calculate(self, node: Node, meaning: Meaning) -> Poly:
        """Return a numeric expression as a form."""
        if node.kind == "symbol" and node.text in self.numbers:
            return self.numbers[node.text]
        if node.kind == "int":
            return number(int(node.text))
        if node.kind == "float":
            return meaning.constant(node.number if "inf" in node.text or node.text == "NaN" else Fraction(node.number))
        if node.head == "extent":
            return self.extents[self.case.axis[axis_key(node.args[0])]]
        if node.head not in _CALCULATIONS:
            raise UndecidedError(f"the prover cannot calculate {node}")
        args = [self.calculate(a, meaning) for a in node.args]
        if node.head == "to-i64" and not args[0].integer:
            raise UndecidedError(f"the prover cannot calculate {node}; guard with (whole …)")
        if node.head in ("/", "%"):
            known = self.divided.get((args[0].key, args[1].key))
            return _divided(node, args, meaning) if known is None else known[node.head == "%"]
        if node.head == "^":
            if any(a.integer for a in args) and not any(n.kind == "float" for n in node.walk()):
                raise UndecidedError("^ of whole numbers is exclusive or")
            return meaning.power(*args)
        return _CALCULATIONS[node.head](*args)


def _at_least(fact: Node, whole: Node, by: Node) -> bool:
    """Whether a guard says that c·by ≤ whole for a number c ≥ 1, in one of the ways to write it."""
    low, high = fact.args if fact.head in ("<=", "<") else fact.args[::-1]
    scaled = low.args if low.head == "*" else (low,)
    factors = [a for a in scaled if a != by]
    return (
        fact.head in ("<=", "<", ">=", ">")
        and high == whole
        and len(factors) < len(scaled)
        and all(a.kind == "int" and int(a.text) >= 1 for a in factors)
    )


def _divided(node: Node, args: Sequence[Poly], meaning: Meaning) -> Poly:
    """Return a quotient of numbers, or of whole numbers ≥ 0 with truncation."""
    floats = any(n.kind == "float" or n.head == "to-f64" for n in node.walk())
    if floats or not all(a.integer for a in args):
        if node.head == "%":
            raise UndecidedError("a remainder of numbers that are not whole")
        return args[0] * meaning.power(args[1], -UNIT)
    whole = quotient(args[0], args[1])
    return whole if node.head == "/" else args[0] - whole * args[1]


_MIRRORED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_HOLDS: Mapping[str, Callable[[Fraction], bool]] = {
    "=": lambda d: d == 0, "!=": lambda d: d != 0, "<": lambda d: d < 0,
    "<=": lambda d: d <= 0, ">": lambda d: d > 0, ">=": lambda d: d >= 0,
}  # fmt: skip
_CALCULATIONS: Mapping[str, Callable[..., Poly]] = {
    "to-i64": lambda a: a,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a * raised(b, -1),
    "%": lambda a, b: a - b,
    "^": lambda a, b: a,
    "min": lambda a, b: -maximum([((), -a), ((), -b)]),
    "max": lambda a, b: maximum([((), a), ((), b)]),
    "neg": lambda a: -a,
    "abs": lambda a: maximum([((), a), ((), -a)]),
    "to-f64": lambda a: a,
}


class _Reading:
    """Reads one side at a point of its axes."""

    def __init__(self, side: _Side, meaning: Meaning) -> None:
        self.side, self.case, self.meaning = side, side.case, meaning

    def value(self, node: Node, at: Mapping[str, Poly]) -> tuple[Poly, Values]:
        """Return the form of a term and what its values are."""
        if node.kind == "symbol":
            kind = self.case.kinds[node.text]
            return tensor(node.text, kind, self._places(node.text, at), nonnegative=node.text in self.side.nonnegative), kind
        row = BY_CONSTRUCTOR[node.head]
        match row.name:
            case "const":
                return self.side.calculate(node.args[0], self.meaning), "real"
            case "iota":
                return at[self._axis(node.args[0])], "whole"
            case "cast":
                form, kind = self.value(node.args[0], at)
                to = self._kind_named(node.args[1])
                return self.meaning.pointwise("cast", [form], [kind], to), to
            case "where":
                return self._chosen(node, at)
            case "access":
                return self._accessed(node, at)
        if row.kind is Kind.REDUCE:
            c = self._axis(node.args[0])
            variable = self._variable(c, at)
            form, kind = self.value(node.args[1], {**at, c: single(variable)})
            return self.meaning.reduction(row.name, form, variable, kind), _result(row.result, [kind])
        parts = [self.value(a, at) for a in node.args]
        kinds = [k for _, k in parts]
        return self.meaning.pointwise(row.name, [f for f, _ in parts], kinds), _result(row.result, kinds)

    def _axis(self, node: Node) -> str:
        return self.case.axis[axis_key(node)]

    def _places(self, name: str, at: Mapping[str, Poly]) -> tuple[tuple[str, Poly], ...]:
        return tuple((c, at[c]) for c in sorted(self.case.axes[name]))

    def _kind_named(self, node: Node) -> Values:
        if node.kind == "symbol":
            return self.case.kinds[node.text]
        return "truth" if node.text == "bool" else "whole" if node.text in ("i32", "i64") else "real"

    def _variable(self, c: str, at: Mapping[str, Poly]) -> Atom:
        taken = frozenset().union(*(p.free for p in at.values()))
        name = c
        while name in taken:
            name += "'"
        self.meaning.bound[name] = variable = index(name, self.side.extents[c])
        return variable

    def _chosen(self, node: Node, at: Mapping[str, Poly]) -> tuple[Poly, Values]:
        condition = as_truth(*self.value(node.args[0], at))
        a, kind_a = self._under(condition, node.args[1], at)
        b, kind_b = self._under(UNIT - condition, node.args[2], at)
        return choice(condition, a, b), _result(Result.BRANCHES, [kind_a, kind_b])

    def _under(self, condition: Poly, node: Node, at: Mapping[str, Poly]) -> tuple[Poly, Values]:
        outer, self.meaning.branch = self.meaning.branch, self.meaning.branch * condition
        out = self.value(node, at)
        self.meaning.branch = outer
        return out

    def _accessed(self, node: Node, at: Mapping[str, Poly]) -> tuple[Poly, Values]:
        c = self._axis(node.args[0])
        place = self.index(node.args[1], at)
        stated = any(self._axis(k) == c and self.index(ix, at) == place for ix, k in self.side.inside)
        inside = UNIT if stated else within(place, self.side.extents[c])
        form, kind = self._under(inside, node.args[2], {**at, c: place})
        return inside * form, kind

    def index(self, node: Node, at: Mapping[str, Poly]) -> Poly:
        """Return an index expression as a form."""
        if node.kind == "symbol":
            return tensor(node.text, "whole", self._places(node.text, at))
        if node.head == "Axis":
            return at[self._axis(node.args[0])]
        if node.head == "Whole":
            return self.side.calculate(node.args[0], self.meaning)
        if node.head == "Substitute":
            return self.index(node.args[0], {**at, self._axis(node.args[1]): self.index(node.args[2], at)})
        first = self.index(node.args[0], at)
        if node.head == "Plus":
            return first + self.index(node.args[1], at)
        by = self.side.calculate(node.args[1], self.meaning)
        if node.head == "Times":
            return first * by
        whole = quotient(first, by)
        return whole if node.head == "Quotient" else first - whole * by


def _result(result: Result, kinds: Sequence[Values]) -> Values:
    match result:
        case Result.BOOL:
            return "truth"
        case Result.INDEX:
            return "whole"
        case Result.FLOAT:
            return "real"
        case Result.COUNT if kinds == ["truth"]:
            return "whole"
    if all(k == "truth" for k in kinds):
        return "truth"
    return "real" if "real" in kinds else "whole"
