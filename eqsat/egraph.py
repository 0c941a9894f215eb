"""The e-graph engine: the only module that touches egglog.

egglog gives no limit on time, nodes or memory, hears Ctrl-C late, and aborts the process when memory ends; so the session
runs the functions below in a worker process that it may kill. They run one ruleset a step and never use the back-off
scheduler, which leaves stale rows in egglog 13.2.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eqsat.errors import ContradictionError, SaturationError, TextError

_PRINT_LIMIT = 400
# a string, an opening quote that nothing closes, a comment, a parenthesis, or the first character of anything else
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|"|;[^\n]*|[()]|[^\s()";]+', re.DOTALL)
_ERROR_PLACE = re.compile(r"In (\d+):(\d+)[^ ]* of ([^\n]*?): ([^\n]*)\n(.*)", re.DOTALL)


@cache
def engine() -> Any:
    """Return egglog's extension module.

    Loaded by itself it takes 20 ms; `import egglog.bindings` first runs the package's Python layer (black, graphviz,
    opentelemetry), which takes 160 to 270 ms and which we do not use.
    """
    if "egglog.bindings" in sys.modules:
        return sys.modules["egglog.bindings"]
    found = importlib.util.find_spec("egglog")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("bindings*")):
            if path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
                loader = importlib.machinery.ExtensionFileLoader("egglog.bindings", str(path))
                spec = importlib.util.spec_from_loader("egglog.bindings", loader)
                assert spec is not None
                module = importlib.util.module_from_spec(spec)
                loader.exec_module(module)
                return module
    import egglog.bindings  # laid out otherwise than the releases we know

    return egglog.bindings


def check_syntax(text: str, file: str) -> None:
    """Raise TextError with file, line and column unless `text` is a sequence of egglog commands."""
    EGraph().parse(text, file)


def split_forms(text: str, file: str = "<text>") -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each top-level form.

    The engine's parser copies its whole input into the span of every object it makes (84 kB of rules: 1.6 GB), and
    reports an unclosed parenthesis at the end of the file; so forms are parsed one by one and balance is checked here.
    """
    depth = start = 0
    opened: list[int] = []

    def wrong(reason: str, at: int) -> TextError:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        return TextError(reason, file=file, line=line, column=column, source=text)

    line, counted = 1, 0
    for token in _TOKEN.finditer(text):
        at, ch = token.start(), text[token.start()]
        if ch == "(":
            if depth == 0:
                start = at
                line, counted = line + text.count("\n", counted, at), at
            opened.append(at)
            depth += 1
        elif ch == ")":
            if depth == 0:
                raise wrong("a closing parenthesis too many", at)
            opened.pop()
            depth -= 1
            if depth == 0:
                yield line, text[start : at + 1]
        elif ch == '"' and len(token[0]) < 2:
            raise wrong("expected a closing quote", at)
        elif depth == 0 and ch != ";":
            raise wrong("expected a command in parentheses", at)
    if depth:
        raise wrong("this parenthesis is never closed", opened[0])


class EGraph:
    """An engine's e-graph with errors in our words."""

    def __init__(self) -> None:
        self._engine = engine()
        self._graph = self._engine.EGraph()
        self._size = self._engine.PrintSize(self._engine.RustSpan("", 0, 0), None)

    def parse(self, text: str, file: str = "<eqsat>") -> list[Any]:
        """Return the commands of `text`."""
        commands: list[Any] = []
        for line, form in split_forms(text, file):
            with _our_errors(file, text):
                commands += self._graph.parse_program("\n" * (line - 1) + form, file)
        return commands

    def run(self, text: str, file: str = "<eqsat>") -> None:
        """Parse and run commands one by one, so that an error names its own."""
        commands = self.parse(text, file)
        with _our_errors(file, text):
            self._graph.run_program(*commands)

    def step(self, commands: list[Any]) -> tuple[bool, int]:
        """Run a parsed `run-schedule`; return whether anything changed and how many matches there were."""
        with _our_errors("<eqsat>", ""):
            report = self._graph.run_program(*commands)[0].report
        return bool(report.updated), sum(report.num_matches_per_rule.values())

    def holds(self, fact: str) -> bool:
        """Return whether the fact is in the e-graph."""
        commands = self._graph.parse_program(f"(check {fact})")
        try:
            self._graph.run_program(*commands)
        except self._engine.EggSmolError as error:
            if "heck failed" not in str(error):
                raise
            return False
        return True

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of every table."""
        return dict(self._graph.run_program(self._size)[0].sizes)

    def tables(self) -> dict[str, Table]:
        """Return all rows, base values and sets decoded; other values as numbers, equal where the engine's are."""
        return Decoder(self._graph).tables()


@dataclass(slots=True)
class Table:
    """A function of the e-graph: argument sorts, result sort, and its rows as (arguments, result)."""

    arguments: tuple[str, ...]
    result: str
    is_global: bool
    rows: list[tuple[tuple[Any, ...], Any]]


class Decoder:
    """Turns the engine's values into Python's. A value is unique within its sort only."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._base = {
            "i64": graph.value_to_i64, "f64": graph.value_to_f64, "String": graph.value_to_string, "bool": graph.value_to_bool,
            "Axes": lambda v: tuple(sorted(map(graph.value_to_string, graph.value_to_set(v)))), "Unit": lambda v: None,
        }  # fmt: skip
        self._known: dict[str, dict[Any, Any]] = {}
        self._count = 0

    def tables(self) -> dict[str, Table]:
        """Decode everything."""
        out: dict[str, Table] = {}
        for name, f in self._graph.freeze().functions.items():
            sorts = tuple(f.input_sorts)
            rows = [
                (tuple(self._value(s, v) for s, v in zip(sorts, r.inputs, strict=True)), self._value(f.output_sort, r.output))
                for r in f.rows
                if not r.subsumed
            ]
            out[name] = Table(sorts, f.output_sort, f.is_let_binding, rows)
        return out

    def _value(self, sort: str, value: Any) -> Any:
        known = self._known.setdefault(sort, {})
        if value not in known:
            decode = self._base.get(sort)
            if decode is None:
                known[value] = self._count
                self._count += 1
            else:
                known[value] = decode(value)
        return known[value]


@contextmanager
def _our_errors(file: str, text: str) -> Iterator[None]:
    """Turn the engine's errors and panics into ours; a panic is a BaseException, which nothing else would catch."""
    try:
        yield
    except engine().EggSmolError as error:
        place = _ERROR_PLACE.match(str(error))
        if place is None:
            raise _stopped(_said(error)) from None
        line, column, _, _, reason = place.groups()
        reason = " ".join(reason.split())
        raise TextError(reason, file=file, line=int(line), column=int(column), source=text) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _stopped(f"the e-graph engine stopped: {_said(error)}") from None


def _stopped(message: str) -> SaturationError:
    return ContradictionError(message) if "Illegal merge" in message else SaturationError(message)


def _said(error: BaseException) -> str:
    text = str(error)
    if "Illegal merge" in text:
        function = text.rpartition("function ")[2].strip(" .")
        text = f"Illegal merge: rules made two values equal that differ in {function or 'a fact that never changes'}"
    return text if len(text) <= _PRINT_LIMIT else text[:_PRINT_LIMIT] + " …"
