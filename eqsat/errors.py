"""Every error a user can meet: each says what was expected, what came, and what to do next."""

from __future__ import annotations


class EqsatError(Exception):
    """Base of all errors that eqsat raises on purpose."""


class UsageError(EqsatError):
    """A call, an option or an argument is not of the form the interface takes (exit code 2)."""


class ShapeError(UsageError):
    """Extents or ranks of two operands do not fit each other."""


class DTypeError(UsageError):
    """A dtype is unknown, or an operation is not defined for it."""


class TraceError(UsageError):
    """A traced Python function did something whose result depends on the data."""


class TextError(UsageError):
    """A program text or a rule file is malformed; the message names file, line and column."""

    def __init__(self, reason: str, *, file: str = "<text>", line: int = 1, column: int = 1, source: str = "") -> None:
        self.reason, self.file, self.line, self.column = reason, file, line, column
        lines = source.splitlines()
        shown = lines[line - 1] if 0 < line <= len(lines) else ""
        caret = f"\n  {shown}\n  {' ' * (column - 1)}^" if shown else ""
        super().__init__(f"{file}:{line}:{column}: {reason}{caret}")


class RuleError(TextError):
    """A rule is malformed, forbidden, incomplete or named twice."""


class FalseRuleError(EqsatError):
    """A rule's two sides differ; the message holds the counterexample."""


class SaturationError(EqsatError):
    """The e-graph worker failed in a way that replay could not mend."""


class ContradictionError(SaturationError):
    """Rules made two values equal that differ in a fact which never changes, such as the dtype.

    `rules` names those that met: the one that equated the values, then those that brought the values in.
    """

    def __init__(self, message: str, rules: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.rules = rules


class ExtractionError(EqsatError):
    """No plan could be extracted from the e-graph."""


class IllegalScheduleError(EqsatError):
    """A schedule breaks one of its family's rules of legality."""


class CompileError(EqsatError):
    """A compiler refused a kernel, or made one that may not be used (spills, stack, serialised matrix instructions)."""


class EnvironmentMissingError(EqsatError):
    """Something this machine lacks is needed: a compiler, a GPU, a driver, disk space (exit code 3)."""


class KernelFaultError(EqsatError):
    """A kernel faulted or hung on the device; its worker was replaced."""


class WrongResultError(EqsatError):
    """A kernel's output is outside the error bound computed from its program."""


class StoreError(EqsatError):
    """The store could not be read or written."""


class NoKernelError(EqsatError):
    """The search ended without one verified kernel (exit code 1)."""
