"""Loops as lines of C."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Body = Callable[[str, str | None, int], list[str]]


def loop(header: str, body: Sequence[str]) -> list[str]:
    """Return a block: `header {`, the indented body, `}`."""
    return [f"{header} {{".strip(), *indented(body), "}"]


def indented(lines: Sequence[str]) -> list[str]:
    """Return the lines, each moved in by one level; preprocessor lines too."""
    return [f"  {x}" for x in lines]


def parallel(threads: int) -> list[str]:
    """Return the pragma before a loop whose iterations are independent (threads 1: none; 0: all cores)."""
    return [] if threads == 1 else ["#pragma omp parallel for"]


def vector_loop(
    counter: str,
    start: str,
    stop: int | str,
    width: int,
    unroll: int,
    body: Body,
) -> Iterator[str]:
    """Print a loop over vectors from `start` to `stop`: unrolled, single vectors, then the part of a vector that is left.

    `body(position, part, u)` prints one vector at `position`; `part` is None for a whole one, else how many lanes count; `u`
    counts the vectors of an unrolled iteration. With a constant range only the pieces that run are printed.
    """
    step = width * unroll
    known = isinstance(stop, int) and start == "0"
    count = int(stop) if known else 0
    positions = [counter if u == 0 else f"({counter} + {u * width})" for u in range(unroll)]
    block = [line for u, p in enumerate(positions) for line in body(p, None, u)]
    if not known:
        yield f"pos {counter} = {start};"
        yield from loop(f"for (; {counter} + {step} <= {stop}; {counter} += {step})", block)
        if unroll > 1:
            yield from loop(f"for (; {counter} + {width} <= {stop}; {counter} += {width})", body(counter, None, 0))
        yield from loop(f"if ({counter} < {stop})", body(counter, f"(int)({stop} - {counter})", 0))
        return
    whole = count // step * step
    if whole:
        yield from loop(f"for (pos {counter} = 0; {counter} < {whole}; {counter} += {step})", block)
    rest = (count - whole) // width * width
    if rest:
        header = f"for (pos {counter} = {whole}; {counter} < {whole + rest}; {counter} += {width})"
        yield from loop(header, body(counter, None, 0))
    if count - whole - rest:
        yield from loop("", [f"const pos {counter} = {whole + rest};", *body(counter, str(count - whole - rest), 0)])
