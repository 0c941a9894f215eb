"""Print expressions as C over vectors: each value once, in the outermost loop that binds all axes on which it depends."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eqsat.codegen.cpu.loads import Load, Loop, loads, output_offset
from eqsat.codegen.printer import is_load
from eqsat.ir import Expr, Output, Program
from eqsat.types import DType, promote

REGISTER = {
    DType.F64: "f64", DType.F32: "f32", DType.F16: "f32", DType.BF16: "f32",
    DType.I64: "i64", DType.I32: "i32", DType.BOOL: "m",
}  # fmt: skip
STORAGE = {
    DType.F64: "f64", DType.F32: "f32", DType.F16: "u16", DType.BF16: "u16",
    DType.I64: "i64", DType.I32: "i32", DType.BOOL: "u8",
}  # fmt: skip
ELEMENT = {
    "f64": "double", "f32": "float", "u16": "unsigned short", "i64": "long long", "i32": "int", "u8": "unsigned char",
}  # fmt: skip
_ENCODED = {DType.F16: "f16", DType.BF16: "bf16", DType.BOOL: "bool"}
_MASK_OPS = {"add": "{0} | {1}", "sub": "{0} ^ {1}", "mul": "{0} & {1}", "maximum": "{0} | {1}", "minimum": "{0} & {1}"}
_MASK_TESTS = {"lt": "~{0} & {1}", "le": "~{0} | {1}", "eq": "~({0} ^ {1})"}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def register_bytes(dtype: DType) -> int:
    """Return the bytes of one lane of a register that holds `dtype` (masks follow the widest and count 0)."""
    return 0 if dtype is DType.BOOL else dtype.accumulator.bytes


def widest(exprs: Sequence[Expr]) -> int:
    """Return the widest lane in bytes (4 or 8) among the registers of `exprs` and their operands."""
    return max([4, *(register_bytes(x.dtype) for e in exprs for x in e.walk())])


@dataclass(slots=True)
class Scope:
    """One level of a loop nest: the axes it binds, its lines so far, and the values at hand in it (digest -> C name)."""

    covers: frozenset[str] = frozenset()
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The loops along which a vector runs, the C text of its first position, and how many lanes count (None: all)."""

    loops: tuple[Loop, ...]
    position: str
    part: str | None = None

    @property
    def covers(self) -> frozenset[str]:
        """All axes of its loops."""
        return frozenset().union(*(x.covers for x in self.loops))


def positions(loops: Sequence[Loop], position: str) -> dict[str, str]:
    """Return the C text of each loop's counter when the nest is counted by one `position`."""
    if len(loops) == 1:
        return {loops[0].axis: position}
    out: dict[str, str] = {}
    step = math.prod(x.extent for x in loops)
    for i, x in enumerate(loops):
        step //= max(x.extent, 1)
        text = position if step == 1 else f"{position} / {step}"
        out[x.axis] = f"({text})" if i == 0 else f"({text} % {x.extent})"
    return out


class Printer:
    """Prints values of a program as vector statements into the scopes of a loop nest.

    Parameters
    ----------
    program : Program
    lanes : int
        Elements of a vector.

    Notes
    -----
    `names` gives the C text of each axis at the current place of the nest ("0" for one of extent 1 or merged into
    another); `stored` gives for values kept in arrays (by digest) the C text that loads a vector of them.
    """

    def __init__(self, program: Program, lanes: int) -> None:
        self.program = program
        self.width = lanes
        self.loads: dict[str, Load] = {x.expr.digest: x for x in loads(program)}
        self.pointers = {b.name: f"p{i}_{_word(b.name)}" for i, b in enumerate(program.inputs)}
        several = len(program.outputs) > 1
        self.outs = {o.name: f"out{n if several else ''}_{_word(o.name)}" for n, o in enumerate(program.outputs)}
        self.offsets = {o.name: output_offset(o) for o in program.outputs}
        self.names = dict.fromkeys(program.extents, "0")
        self.stored: dict[str, Callable[[Lanes], str]] = {}
        self._count = 0

    def fresh(self, stem: str = "t") -> str:
        """Return a new C name."""
        self._count += 1
        return f"{stem}{self._count}"

    def value(self, e: Expr, scopes: Sequence[Scope], lanes: Lanes | None) -> str:
        """Return the C name of the value of `e`, printing what is missing into the scopes (outermost first)."""
        return self._value(e, scopes, lanes)[0]

    def _value(self, e: Expr, scopes: Sequence[Scope], lanes: Lanes | None) -> tuple[str, int]:
        for level, scope in enumerate(scopes):
            if e.digest in scope.names:
                return scope.names[e.digest], level
        if e.op == "const":
            return literal(e), 0
        if e.digest in self.stored and lanes is not None:
            name = scopes[-1].names[e.digest] = self.define(e.dtype, self.stored[e.digest](lanes), scopes[-1])
            return name, len(scopes) - 1
        level = max((i for i, s in enumerate(scopes) if s.covers & e.axes), default=0)
        if is_load(e):
            text = self._load(self.loads[e.digest], scopes[level], lanes)
        elif e.op == "iota":
            text = self._iota(e, scopes[level], lanes)
        else:
            found = [self._value(a, scopes, lanes) for a in e.args]
            level = max(x for _, x in found)
            text = operation(e, [t for t, _ in found])
        name = self.define(e.dtype, text, scopes[level])
        scopes[level].names[e.digest] = name
        return name, level

    def define(self, dtype: DType, text: str, scope: Scope) -> str:
        """Print a new constant of the register type of `dtype` and return its name."""
        name = self.fresh()
        scope.lines.append(f"const v{REGISTER[dtype]} {name} = {text};")
        return name

    def _load(self, load: Load, scope: Scope, lanes: Lanes | None) -> str:
        storage, encoded = STORAGE[load.buffer.dtype], _ENCODED.get(load.buffer.dtype)
        raw = self._raw(load, storage, scope, lanes)
        return f"eq_decode_{encoded}({raw})" if encoded else raw

    def _raw(self, load: Load, storage: str, scope: Scope, lanes: Lanes | None) -> str:
        pointer, axes = self.pointers[load.buffer.name], load.expr.axes
        if lanes is None or not lanes.covers & axes:
            at = f"{pointer}[{load.offset.text(self.names)}]"
            guard = load.guard_text(self.names)
            return f"eq_splat_{storage}({f'{guard} ? {at} : 0' if guard else at})"
        along = lanes.loops[0].axis if len(lanes.loops) == 1 else ""
        smooth = along and along not in load.offset.opaque and not lanes.covers & load.guard_axes
        if smooth and load.offset.factor(along) == 1:
            names = self.names | {along: lanes.position}
            at = f"{pointer} + {load.offset.text(names)}"
            text = f"eq_load_{storage}({at})" if lanes.part is None else f"eq_load_part_{storage}({at}, {lanes.part})"
            guard = load.guard_text(names)
            return f"(({guard}) ? {text} : (v{storage}){{0}})" if guard else text
        names = self.names | positions(lanes.loops, f"({lanes.position} + l)")
        at, guard = f"{pointer}[{load.offset.text(names)}]", load.guard_text(names)
        return self._gather(storage, f"{guard} ? {at} : 0" if guard else at, scope, lanes)

    def _gather(self, storage: str, element: str, scope: Scope, lanes: Lanes) -> str:
        """Print a vector whose lane l is `element`; lanes that do not count are 0."""
        name = self.fresh("gathered")
        count = lanes.part if lanes.part is not None else str(self.width)
        scope.lines += [f"v{storage} {name} = {{0}};", f"for (int l = 0; l < {count}; l++) {name}[l] = {element};"]
        return name

    def _iota(self, e: Expr, scope: Scope, lanes: Lanes | None) -> str:
        axis = e.attrs[0]
        if lanes is None or axis not in lanes.covers:
            text = f"eq_splat_i64({self.names[axis]})"
        elif len(lanes.loops) == 1:
            text = f"eq_iota_i64({lanes.position})" if lanes.loops[0].axis == axis else "eq_splat_i64(0)"
        else:
            text = self._gather("i64", positions(lanes.loops, f"({lanes.position} + l)")[axis], scope, lanes)
        return converted(text, DType.I64, e.dtype)

    def write(self, outputs: Sequence[Output], scopes: Sequence[Scope], lanes: Lanes | None) -> None:
        """Print the values of outputs into the scopes, and their stores into the innermost."""
        for o in outputs:
            self.store(self.value(o.expr, scopes, lanes), scopes[-1], lanes, o)

    def store(self, value: str, scope: Scope, lanes: Lanes | None, output: Output | None = None) -> None:
        """Print the store of an output's value (the first's) at the current position: a vector along `lanes`, or one element."""
        output = output or self.program.outputs[0]
        out, offset = self.outs[output.name], self.offsets[output.name]
        dtype, storage = output.dtype, STORAGE[output.dtype]
        encoded = encode(value, output.expr.dtype, dtype)
        if lanes is None:
            scope.lines.append(f"{out}[{offset.text(self.names)}] = ({encoded})[0];")
            return
        along = lanes.loops[0].axis if len(lanes.loops) == 1 else ""
        if along and offset.factor(along) == 1:
            at = f"{out} + {offset.text(self.names | {along: lanes.position})}"
            part = "" if lanes.part is None else "_part"
            scope.lines.append(f"eq_store{part}_{storage}({at}, {encoded}{f', {lanes.part}' if part else ''});")
            return
        name = self.fresh("scattered")
        count = lanes.part if lanes.part is not None else str(self.width)
        names = self.names | positions(lanes.loops, f"({lanes.position} + l)")
        scope.lines += [
            f"const v{storage} {name} = {encoded};",
            f"for (int l = 0; l < {count}; l++) {out}[{offset.text(names)}] = {name}[l];",
        ]


def encode(value: str, dtype: DType, stored: DType) -> str:
    """Return the vector of stored elements of `value`, rounded once."""
    if stored in (DType.F16, DType.BF16):
        return f"eq_encode_{stored}({narrowed(value, dtype)})"
    text = converted(value, dtype, stored)
    return f"eq_encode_bool({text})" if stored is DType.BOOL else text


def narrowed(value: str, dtype: DType) -> str:
    """Return `value` as f32 on its way to 16 bits: wider types are rounded to odd, so that rounding again does no harm."""
    if dtype.accumulator is DType.F32 or dtype is DType.BOOL:
        return converted(value, dtype, DType.F32)
    return f"eq_odd_f32({converted(value, dtype, DType.F64)})"


def converted(value: str, dtype: DType, to: DType) -> str:
    """Return `value` in the register type of `to`: x != 0 for bool.

    Integers wrap, floats round to nearest even, or towards zero to an integer, with 0 for NaN and infinities.
    """
    old, new = REGISTER[dtype], REGISTER[to]
    if old == new:
        return value
    if new == "m":
        return f"eq_true_{old}({value})"
    if old == "m":
        return {
            "f32": f"(vf32)(eq_bits32({value}) & 0x3f800000)",
            "f64": f"(vf64)(eq_bits64({value}) & 0x3ff0000000000000LL)",
            "i32": f"-eq_bits32({value})",
            "i64": f"-eq_bits64({value})",
        }[new]
    if old[0] == "f" and new[0] == "i":
        return f"__builtin_convertvector(eq_finite_{old}({value}), v{new})"
    return f"__builtin_convertvector({value}, v{new})"


def literal(e: Expr) -> str:
    """Return a constant as a vector."""
    x = e.attrs[0]
    if e.dtype is DType.BOOL:
        return f"((vm){{0}} - {int(x)})"
    register = REGISTER[e.dtype]
    if register in ("i32", "i64"):
        # the least value has no literal of its own type
        text = f"({x + 1} - 1)" if register == "i32" else f"({x + 1}LL - 1)"
        return f"eq_splat_{register}({text if x < 0 else x})"
    if math.isnan(x) or math.isinf(x):
        text = '__builtin_nanf("")' if math.isnan(x) else f"{'-' if x < 0 else ''}__builtin_inff()"
    else:
        text = f"{np.float32(x)!s}f" if register == "f32" else repr(float(x))
        text = text.replace("inff", "__builtin_inff()")
    return f"eq_splat_{register}({text})"


def operation(e: Expr, operands: list[str]) -> str:
    """Return the C text of one op applied to vectors: operands are converted to the type in which it computes."""
    kinds = [a.dtype for a in e.args]
    register = REGISTER[e.dtype]
    if e.op == "cast":
        if e.dtype in (DType.F16, DType.BF16) and kinds[0] not in (e.dtype, DType.BOOL):
            return f"eq_round_{e.dtype}({narrowed(operands[0], kinds[0])})"
        return converted(operands[0], kinds[0], e.dtype)
    if e.op == "where":
        yes, no = (converted(x, d, e.dtype) for x, d in zip(operands[1:], kinds[1:], strict=True))
        return f"eq_where_{register}({converted(operands[0], kinds[0], DType.BOOL)}, {yes}, {no})"
    if e.op in ("lt", "le", "eq"):
        return _comparison(e.op, operands, kinds)
    same = [converted(x, d, e.dtype) for x, d in zip(operands, kinds, strict=True)]
    if e.op in ("and", "or"):
        return f"{same[0]} {'&' if e.op == 'and' else '|'} {same[1]}"
    if e.op == "not":
        return f"~{same[0]}"
    if register == "m":
        return _MASK_OPS[e.op].format(*same) if e.op in _MASK_OPS else same[0]
    return _arithmetic(e.op, register, same)


def _comparison(op: str, operands: list[str], kinds: list[DType]) -> str:
    common = promote(kinds[0], kinds[1])
    a, b = (converted(x, d, common) for x, d in zip(operands, kinds, strict=True))
    if common is DType.BOOL:
        return _MASK_TESTS[op].format(a, b)
    return f"eq_{op}_{REGISTER[common]}({a}, {b})"


def _arithmetic(op: str, register: str, operands: list[str]) -> str:
    whole = register in ("i32", "i64")
    if op in _INFIX and not whole:
        return f"{operands[0]} {_INFIX[op]} {operands[1]}"
    if op == "neg":
        return f"eq_sub_{register}((v{register}){{0}}, {operands[0]})" if whole else f"-{operands[0]}"
    if op == "floor" and whole:
        return operands[0]
    return f"eq_{op}_{register}({', '.join(operands)})"


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)
