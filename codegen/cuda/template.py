"""Filling a kernel template: lines that depend on a flag, and slots for printed code."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence


def fill(template: str, flags: Collection[str], slots: Mapping[str, Sequence[str]]) -> str:
    """Fill a template: keep what is marked with a flag only if it is set, and put the lines of each slot at its name.

    `//@flag` at the end of a line marks that line, `//@begin flag` alone on a line marks all up to `//@end`.

    A slot that stands alone on a line takes that line's indentation; one with no lines removes it.
    """
    out: list[str] = []
    block = ""
    for line in template.splitlines():
        code, mark, flag = line.partition("//@")
        begin = flag.strip().removeprefix("begin ") if flag.startswith("begin ") else ""
        if begin or flag.strip() == "end":
            block = begin
            continue
        if (mark and flag.strip() not in flags) or (block and block not in flags):
            continue
        code = code.rstrip() if mark else line
        indent, word = code[: len(code) - len(code.lstrip())], code.strip()
        if word in slots:
            out += [f"{indent}{text}" for text in slots[word]]
            continue
        for name, lines in slots.items():
            code = " ".join(lines).join(re.split(rf"\b{name}\b", code))
        out.append(code)
    return "\n".join(out) + "\n"
