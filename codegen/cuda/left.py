"""A left operand that is computed on the way to the matrix units: 16-bit tiles in shared memory → registers → any pointwise code.

The warpgroup reads its 64 rows by ldmatrix in the order of wgmma's register fragments, computes the operand of the next step of
k while the matrix units work on this one, and hands it over in registers. Row statistics are added up from the same values.
"""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cuda.emit import literal, parameter_names, register_type, stored_type
from eqsat.codegen.cuda.operand import MATRIX_DTYPES, Operand, axis_names, axis_strides, buffers, contiguous, loads_of, matrix
from eqsat.codegen.printer import print_offset, print_statements
from eqsat.codegen.problem import ContractProblem, nest
from eqsat.ir import Expr
from eqsat.types import DType

STEP = 64  # elements of k that a tile has


@dataclass(frozen=True, slots=True)
class Left:
    """What a computed left operand is made of, by the loads it reads.

    `staged` are matrices over rows and k that come by TMA, all with the same axis contiguous; `vectors` vary along k alone (and
    perhaps over the batch), `scalars` not even so.
    """

    staged: tuple[tuple[Expr, Operand], ...]
    vectors: tuple[Expr, ...]
    scalars: tuple[Expr, ...]

    def registers(self, tiles: int) -> int:
        """Return the registers of a thread for fragments, computed ones of two steps, of 64 rows `tiles` times, and for the vectors."""
        return 32 * tiles + 8 * tiles * len(self.staged) + sum(v.dtype.bytes // 2 for v in self.vectors)


def computed_left(problem: ContractProblem) -> Left | str:
    """Return what the left operand is made of, or why it cannot be computed in registers."""
    e = _value(problem)
    if e.dtype not in MATRIX_DTYPES:
        return f"its left operand is computed as {e.dtype}; the matrix units would round it"
    if problem.shape[3] % STEP:
        return f"a computed left operand takes whole steps of {STEP} along k"
    if any(x.op == "iota" for root in _roots(problem) for x in root.walk()):
        return "its left operand depends on positions"
    staged: list[tuple[Expr, Operand]] = []
    vectors: list[Expr] = []
    scalars: list[Expr] = []
    known = buffers(problem.program)
    for load in loads_of(_roots(problem), {}):
        if load.op != "read":
            return "its left operand reads with index arithmetic"
        if not load.axes & {*problem.m, *problem.k}:
            scalars.append(load)
        elif not load.axes & set(problem.m):
            if load.dtype.bytes not in (2, 4) or not contiguous(load, known[load.attrs[0]], problem.k[-1], 2):
                return f"{load.attrs[0]!r} is not contiguous along k in pairs"
            vectors.append(load)
        else:
            found = matrix(problem, load, problem.m)
            if isinstance(found, str):
                return found
            staged.append((load, found))
    if not staged:
        return "its left operand reads no matrix"
    if len({o.k_major for _, o in staged}) > 1 or any(o.dtype is not staged[0][1].dtype for _, o in staged):
        return "the matrices of its left operand lie in different orders, or have different types"
    if any(axis_strides(x, known[x.attrs[0]]).keys() & set(problem.n) for x in (*vectors, *scalars)):
        return "its left operand varies along the columns"
    return Left(tuple(staged), tuple(vectors), tuple(scalars))


def _roots(problem: ContractProblem) -> list[Expr]:
    """Return what is computed of each element of the left operand: its value, and the bodies of the row statistics."""
    return [_value(problem), *_bodies(problem)]


def _value(problem: ContractProblem) -> Expr:
    """Return the left operand before casts that keep every value."""
    e = problem.contractions[0].a
    while e.op == "cast" and e.dtype is DType.F32 and e.args[0].dtype in MATRIX_DTYPES:
        e = e.args[0]
    return e


def left_reads(left: Left) -> frozenset[str]:
    """Return the names of the buffers that are read beside the tiles."""
    return frozenset(x.attrs[0] for x in (*left.vectors, *left.scalars))


def print_scalars(problem: ContractProblem, left: Left) -> list[str]:
    """Print the loads that vary along the batch at most, and the registers that hold fragments and vectors."""
    known, pointers = buffers(problem.program), parameter_names(problem.program)
    names = axis_names({"tile.batch": problem.batch}, problem.program.extents)
    out = []
    for i, e in enumerate(left.scalars):
        name = e.attrs[0]
        out.append(
            f"const {register_type(e.dtype)} s{i} = ordered_one({pointers[name]} + {print_offset(e, known[name], names)});"
        )
    out += [f"Raw<16> x{i}[TILES][4];" for i in range(len(left.staged))]
    return out + [f"Raw<{2 * e.dtype.bytes}> g{i};" for i, e in enumerate(left.vectors)]


def print_fetch(problem: ContractProblem, left: Left) -> list[str]:
    """Print the loads of the vectors for the step that begins at `k0`: two neighbours for each lane, which has the step in the warp.

    Shared memory is busy every cycle with what the matrix units read, so that each load of a warp costs one of theirs: eight
    loads of two neighbours for each vector, straight to where they are needed, took 7 % of the time (measured on an H200).
    """
    known, pointers = buffers(problem.program), parameter_names(problem.program)
    names = axis_names({"tile.batch": problem.batch, "k": problem.k}, problem.program.extents)
    body = [
        f"g{i} = ordered<2>({pointers[e.attrs[0]]} + {print_offset(e, known[e.attrs[0]], names)});"
        for i, e in enumerate(left.vectors)
    ]
    return ["const int k = k0 + 2 * lane_id();", *body] if body else []


def print_spread(left: Left) -> list[str]:
    """Print how the lanes that need them get the vectors' elements for fragment `q`."""
    out = []
    for i, e in enumerate(left.vectors):
        words = "; ".join(
            f"v{i}[h].w[{w}] = __shfl_sync(~0u, g{i}.w[{w}], 8 * q + 4 * h + lane_id() % 4)" for w in range(e.dtype.bytes // 2)
        )
        out += [f"Raw<{2 * e.dtype.bytes}> v{i}[2];", f"UNROLL for (int h = 0; h < 2; ++h) {{ {words}; }}"]
    return out


def print_fragments(left: Left) -> list[str]:
    """Print the reading of fragment `q` of every staged matrix."""
    return [f"x{n}[i][q] = left_fragment<A>(A::rows64(slot + {n} * A::bytes, first + i), q);" for n in range(len(left.staged))]


def print_words(problem: ContractProblem, left: Left, combine: list[str]) -> list[str]:
    """Print the computation of register `r` of fragment `q`, two neighbours along k, and of statistics that need its vectors.

    One product, sum or difference of two 16-bit numbers rounds once, as arithmetic on pairs does.

    Parameters
    ----------
    combine : list of str
        The combining class of each statistic.
    """
    e, kind = _value(problem), left.staged[0][1].dtype
    stats = [] if rides(problem, left) else [*enumerate(zip(combine, _bodies(problem), strict=True))]
    if (
        e.op in _PAIRS
        and not stats
        and all(a.dtype is kind and a in (*left.vectors, *(x for x, _ in left.staged)) for a in e.args)
    ):
        words = [_word(left, a) for a in e.args]
        return [f"to[i][q][r] = pair_{e.op}<T>({', '.join(words)});"]
    leaves = {x: f"Element<{stored_type(x.dtype)}>::get(x{i}[i][q], 2 * r + e)" for i, (x, _) in enumerate(left.staged)}
    leaves |= {x: f"Element<{stored_type(x.dtype)}>::get(v{i}[r / 2], e)" for i, x in enumerate(left.vectors)}
    lines, values = _statements([e, *(body for _, (_, body) in stats)], leaves, left)
    added = [
        f"stat[i][{j}][r % 2] = {op}::of(stat[i][{j}][r % 2], {v});" for (j, (op, _)), v in zip(stats, values[1:], strict=True)
    ]
    body = [*lines, f"y[e] = {values[0]};", *added]
    return [
        "float y[2];",
        "UNROLL for (int e = 0; e < 2; ++e) {",
        *(f"  {line}" for line in body),
        "}",
        "to[i][q][r] = Pack<T>::template from<2>(y).w[0];",
    ]


def print_riding(problem: ContractProblem, left: Left, combine: list[str]) -> list[str]:
    """Print what adds element `e` of register `r` of fragment `q` to the row statistics while the matrix units work."""
    leaves = {x: f"Element<{stored_type(x.dtype)}>::get(x{i}[i][q], 2 * r + e)" for i, (x, _) in enumerate(left.staged)}
    lines, values = _statements(_bodies(problem), leaves, left)
    added = [
        f"stat[i][{j}][r % 2] = {op}::of(stat[i][{j}][r % 2], {v});"
        for j, (op, v) in enumerate(zip(combine, values, strict=True))
    ]
    return [*lines, *added]


def rides(problem: ContractProblem, left: Left) -> bool:
    """Whether the statistics read nothing but the staged matrices: they are then added up when the operand is under way."""
    return not set(left.vectors) & {e for body in _bodies(problem) for e in body.walk()}


_PAIRS = ("mul", "add", "sub")


def _word(left: Left, e: Expr) -> str:
    """Return the C expression of the pair of neighbours that a leaf has in register `r`."""
    if e in left.vectors:
        return f"v{left.vectors.index(e)}[r / 2].w[0]"
    return f"x{[x for x, _ in left.staged].index(e)}[i][q].w[r]"


def _bodies(problem: ContractProblem) -> list[Expr]:
    return [nest(s)[1] for s in problem.statistics]


def _statements(roots: list[Expr], leaves: dict[Expr, str], left: Left) -> tuple[list[str], list[str]]:
    known = leaves | {x: f"s{i}" for i, x in enumerate(left.scalars)}
    return print_statements(roots, lambda e: known.get(e) or (literal(e) if e.op == "const" else None), register_type)
