"""What is imported where: heavy packages late, each foreign library by the modules that are made for it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eqsat

PACKAGE = Path(eqsat.__file__).parent
HEAVY = {"black", "click", "cuda", "cupy", "egglog", "joblib", "networkx", "numpy", "rich", "scipy", "torch", "z3", "ziglang"}


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages in memory after a fresh interpreter ran `code`."""
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert "eqsat" in loaded_by("import eqsat")
    assert not loaded_by("import eqsat") & HEAVY


def test_writing_an_expression_loads_neither_the_engine_nor_a_solver_nor_a_gpu_library() -> None:
    code = "import eqsat; x = eqsat.tensor('x', (4, 4), 'f32'); (x @ x).sum(0)"
    assert not loaded_by(code) & (HEAVY - {"numpy"})


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["optimize", "--help"], ["doctor", "--help"]])
def test_help_loads_nothing_but_the_command_line(arguments: list[str]) -> None:
    code = f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): from eqsat.cli import run; run({arguments!r})\npass"
    assert not loaded_by(f"exec({code!r})") & (HEAVY - {"click"})


def imports() -> Iterator[tuple[str, str]]:
    """Yield (module, what it imports) for every import statement in the package, local ones too."""
    # Path.rglob does not enter folders that are links, as codegen and search are in a checkout.
    for path in {p for folder in (".", "codegen", "search") for p in (PACKAGE / folder).rglob("*.py")}:
        module = ".".join(("eqsat", *path.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, a.name) for a in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((module, f"{node.module}.{a.name}") for a in node.names)


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("cuda.bindings.nvrtc", {"eqsat.codegen.cuda.nvrtc"}),
        ("cuda.bindings.driver", {"eqsat.codegen.cuda.driver"}),
        ("egglog", {"eqsat.egraph"}),
        ("z3", {"eqsat.proof.solver"}),
        ("scipy", {"eqsat.planchoice", "eqsat.search.model_fit"}),
    ],
)
def test_a_foreign_library_has_one_home(library: str, homes: set[str]) -> None:
    found = {module for module, name in imports() if name == library or name.startswith(f"{library}.")}
    assert found == homes
