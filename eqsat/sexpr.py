"""Read s-expressions (rule files, terms) into nodes that know where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from eqsat.errors import TextError

NodeKind = Literal["list", "symbol", "string", "int", "float"]

_TOKEN = re.compile(
    r'(?P<blank>[ \t\r\f\v]+)|(?P<line>\n)|(?P<comment>;[^\n]*)|(?P<open>\()|(?P<close>\))|(?P<string>")|(?P<atom>[^\s()";]+)'
)
_STRING = re.compile(r'"((?:[^"\\\n]|\\[^\n])*)"')
_INT = re.compile(r"-?\d+")
_FLOAT = re.compile(r"-?(\d+\.\d*|\d*\.\d+|\d+)([eE][+-]?\d+)?|-?inf|NaN")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Node:
    """A list or an atom. Two nodes are equal if they read the same, wherever they stand.

    Attributes
    ----------
    kind : {"list", "symbol", "string", "int", "float"}
    text : str
        Spelling of an atom; a string without its quotes.
    items : tuple of Node
        Elements of a list.
    line, column : int
        Position of the first character, from 1.
    """

    kind: NodeKind
    text: str = ""
    items: tuple[Node, ...] = ()
    line: int = field(default=1, compare=False)
    column: int = field(default=1, compare=False)

    @property
    def head(self) -> str:
        """The symbol that a list starts with; empty for anything else."""
        return self.items[0].text if self.items and self.items[0].kind == "symbol" else ""

    @property
    def args(self) -> tuple[Node, ...]:
        """The elements of a list after its head."""
        return self.items[1:]

    @property
    def number(self) -> float:
        """The value of an int or float atom."""
        return float(self.text)

    def walk(self) -> Iterator[Node]:
        """Yield this node and everything in it, outer before inner, left to right."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.items))

    def __str__(self) -> str:
        if self.kind == "list":
            return f"({' '.join(map(str, self.items))})"
        if self.kind == "string":
            return '"' + self.text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
        return self.text


def symbol(text: str, at: Node | None = None) -> Node:
    """Return a symbol, standing where `at` stands."""
    return Node("symbol", text, (), at.line if at else 1, at.column if at else 1)


def listed(*items: Node | str, at: Node | None = None) -> Node:
    """Return a list of nodes (a str stands for a symbol), standing where `at` stands."""
    nodes = tuple(symbol(i, at) if isinstance(i, str) else i for i in items)
    return Node("list", "", nodes, at.line if at else 1, at.column if at else 1)


def read_forms(
    text: str, file: str = "<text>", error: type[TextError] = TextError, nesting: int | None = None
) -> tuple[Node, ...]:
    """Read every top-level form of `text`.

    Parameters
    ----------
    text : str
    file : str
        Name shown in errors.
    error : type of TextError
        What to raise.
    nesting : int, optional
        Deepest nesting allowed; whoever walks the forms by recursion sets one.

    Returns
    -------
    tuple of Node

    Raises
    ------
    TextError
        At an unclosed parenthesis (where it opens), an extra closing one, an unclosed string.
    """
    forms: list[Node] = []
    stack: list[tuple[list[Node], int, int]] = []
    position, line, start = 0, 1, 0

    def fail(reason: str, at_line: int, at_column: int) -> TextError:
        return error(reason, file=file, line=at_line, column=at_column, source=text)

    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise fail(f"unexpected character {text[position]!r}; remove it", line, position - start + 1)
        column = match.start() - start + 1
        position = match.end()
        token = match.lastgroup
        if token == "line":
            line, start = line + 1, position
        elif token == "open":
            if nesting is not None and len(stack) >= nesting:
                raise fail(f"parentheses are nested deeper than {nesting}; write the term in parts", line, column)
            stack.append(([], line, column))
        elif token == "close":
            if not stack:
                raise fail("this parenthesis closes nothing; remove it or add the one that opens", line, column)
            items, at_line, at_column = stack.pop()
            (stack[-1][0] if stack else forms).append(Node("list", "", tuple(items), at_line, at_column))
        elif token in ("string", "atom"):
            if token == "string":
                closed = _STRING.match(text, match.start())
                if closed is None:
                    raise fail('this string is not closed on its line; end it with "', line, column)
                position = closed.end()
                node = Node("string", re.sub(r"\\(.)", _unescape, closed[1]), (), line, column)
            else:
                node = Node(_kind(match[0]), match[0], (), line, column)
            (stack[-1][0] if stack else forms).append(node)
    if stack:
        raise fail("this parenthesis is never closed; add ) where its form ends", *stack[-1][1:])
    return tuple(forms)


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[0])


def _kind(atom: str) -> NodeKind:
    if _INT.fullmatch(atom):
        return "int"
    return "float" if _FLOAT.fullmatch(atom) else "symbol"
