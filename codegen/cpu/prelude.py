"""Select from `prelude.h` the blocks that a kernel's text mentions, so that emitted files are short and stand alone."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"\b\w+\b")
_DEFINES = re.compile(
    r"^(?:EQ|static) [\w ]*?[ *](eq_\w+)\("  # functions
    r"|^#define (\w+)"
    r"|^typedef [\w ]+? (\w+)(?: __attribute__|;)"
    r"|^void \*(mem\w+)\(",  # the two functions of the C library
    re.MULTILINE,
)
_TYPED = re.compile(r"^//:(.*):\n", re.MULTILINE)
_BITS = {"f32": "32", "f64": "64", "i32": "32", "i64": "64", "u16": "16", "u8": "8"}


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the prelude: the names it defines, the names it mentions, and its text."""

    defines: frozenset[str]
    mentions: frozenset[str]
    text: str


@functools.cache
def blocks() -> tuple[Block, ...]:
    """Return all blocks of `prelude.h` in order, typed ones once for each of their types."""
    text = Path(__file__).with_name("prelude.h").read_text(encoding="utf-8")
    out: list[Block] = []
    for piece in text.split("\n\n"):
        typed = _TYPED.search(piece)
        if typed is None:
            out.append(_block(piece.strip()))
            continue
        body = piece.replace(typed[0], "").strip()
        out += [_block(body.replace("@", name).replace("#", _BITS[name])) for name in typed[1].split()]
    return tuple(b for b in out if b.defines)


def _block(text: str) -> Block:
    found = {name for groups in _DEFINES.findall(text) for name in groups if name}
    return Block(frozenset(found), frozenset(_WORD.findall(text)), text)


def prelude(body: str, lanes: int, mask_bits: int) -> str:
    """Return the definitions that `body` needs, directly or through other definitions.

    Parameters
    ----------
    body : str
        C text that uses names of `prelude.h`.
    lanes : int
        Elements of a vector, a power of two.
    mask_bits : int
        Bits of one lane of a mask: 32 or 64.
    """
    wanted = set(_WORD.findall(body)) | {"EQ"}
    chosen: set[int] = set()
    everything = blocks()
    grew = True
    while grew:
        grew = False
        for i, block in enumerate(everything):
            if i not in chosen and block.defines & wanted:
                chosen.add(i)
                wanted |= block.mentions
                grew = True
    head = [f"#define LANES {lanes}", f"#define MASK_BITS {mask_bits}"]
    return "\n".join(head + [everything[i].text for i in sorted(chosen)])
