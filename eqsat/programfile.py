"""Programs in files: a program text, or a Python file with a name for an expression, a builder or a baseline."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from eqsat.errors import UsageError


def program_in(what: str) -> Any:
    """Return the program, expression or builder's result that FILE[:NAME] names.

    Parameters
    ----------
    what : str
        A program text (`.eqsat`), or a Python file; NAME is an attribute of it, `build` if it is left out.

    Raises
    ------
    UsageError
        There is no such file, or it has no such name.
    """
    from eqsat import text  # the language is loaded only by those who read programs

    path, attribute = _parts(what)
    if path.suffix != ".py":
        return text.loads(path.read_text(), file=str(path))
    module = module_in(path)
    if not hasattr(module, attribute):
        offered = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise UsageError(f"{path} has no {attribute!r}; it has {offered}")
    value = getattr(module, attribute)
    return value() if callable(value) else value


def baseline_in(what: str) -> Any:
    """Return the file's `baseline(torch, *inputs)`, or None if it has none (or is a program text)."""
    path, _ = _parts(what)
    return getattr(module_in(path), "baseline", None) if path.suffix == ".py" else None


def _parts(what: str) -> tuple[Path, str]:
    name, _, attribute = what.rpartition(":") if ":" in what else (what, "", "")
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"expected FILE or FILE:NAME; {path} does not exist or is a folder")
    return path, attribute or "build"


def module_in(path: Path) -> ModuleType:
    """Return the module that a Python file makes, by the file's name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"expected a Python file; {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
