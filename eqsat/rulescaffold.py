"""A first rule file of one's own: a commented example of each kind that fails its check until it is filled in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eqsat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Scaffold:
    """An example rule that is false as it stands.

    Attributes
    ----------
    about : str
        What kind of rule it is, in a few words.
    why : str
        Why it is false.
    guards : str
        What has to be added after `:when` to make it true.
    rule : str
        The rule's text with its keys on lines of their own, without `:when`.
    """

    about: str
    why: str
    guards: str
    rule: str


SCAFFOLDS: dict[str, Scaffold] = {
    "equation": Scaffold(
        "an equation between pointwise operations",
        "c may be negative, and then the maximum becomes a minimum",
        "(> c 0.0)",
        """(rewrite (Maximum (Mul (Const c) a) (Const 0.0))
         (Mul (Const c) (Maximum a (Const 0.0)))
  :name "scale-out" :phase algebra :numerics exact
  :law "max(c·a, 0) = c·max(a, 0)   if c > 0")""",
    ),
    "reduction": Scaffold(
        "an equation about a reduction over an axis",
        "b may vary along k, and then it has to stay under the maximum",
        "(free-of k b)",
        """(rewrite (Max k (Minimum a b)) (Minimum (Max k a) b)
  :name "cap-out" :phase algebra :numerics exact
  :law "max_k min(a, b) = min(max_k a, b)   if k ∉ axes(b)")""",
    ),
    "dtype": Scaffold(
        "an equation that holds for floats only",
        "a quotient of integers is a float, so the two sides differ in dtype",
        "(float a)",
        """(rewrite (Div (Mul a (Const 2.0)) (Const 2.0)) a
  :name "double-and-halve" :phase algebra :numerics reassociates
  :law "2·a / 2 = a   if a is a float")""",
    ),
}
"""By the name that `eqsat rules new --kind` takes."""


def scaffold(path: Path, kind: str = "equation") -> Path:
    """Write a new rule file with an example to fill in.

    Parameters
    ----------
    path : Path
        Must not exist; `.egg` is added if it has no suffix.
    kind : str
        Out of `SCAFFOLDS`.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    UsageError
        If the file exists, its folder does not, or the kind is unknown.
    """
    if kind not in SCAFFOLDS:
        raise UsageError(f"expected a kind of rule out of {', '.join(SCAFFOLDS)}; got {kind!r}")
    path = path if path.suffix else path.with_suffix(".egg")
    if path.exists():
        raise UsageError(f"{path} exists already; give the new file another name")
    if not path.parent.is_dir():
        raise UsageError(f"expected a folder to write {path.name} to; {path.parent} does not exist")
    path.write_text(text_of(SCAFFOLDS[kind], path.name), encoding="utf-8")
    return path


def text_of(example: Scaffold, file: str) -> str:
    """Return the text of a new file called `file`."""
    return f""";; {file}: say here what the rules of this file are for.
;;
;; The example below is {example.about}. It is false as it stands: {example.why}.
;;   eqsat rules check {file}             shows the smallest counterexample
;; Add the missing premise after the two sides,
;;   :when ({example.guards})
;; and the check admits it. Then write your own law in its place:
;;   eqsat rules value {file} PROGRAM     says what a rule changes: the plan and its time, with and without it
;; rules/README.md of the project lists terms, guards and keys.

{example.rule}
"""
