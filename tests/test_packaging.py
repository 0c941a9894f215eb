"""What is shipped: the sdist makes the wheel, the wheel holds every file once, and it works where nothing else is."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"": ROOT / "eqsat", "rules/": ROOT / "rules", "codegen/": ROOT / "codegen", "search/": ROOT / "search"}
SHIPPED = {".py", ".egg", ".cu", ".cuh", ".c", ".h", ".json", ".md"}

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel of the tree in `source` with the installed backend; nothing is downloaded."""
    code = f"import hatchling.build as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("tree")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def expected() -> set[str]:
    """Return every file of the package, as the wheel should name it."""
    return {
        f"eqsat/{prefix}{path.relative_to(folder).as_posix()}"
        for prefix, folder in FOLDERS.items()
        for path in folder.rglob("*")
        if path.suffix in SHIPPED and path.is_file() and "__pycache__" not in path.parts and not _linked(path, folder)
    }


def _linked(path: Path, folder: Path) -> bool:
    return any(p.is_symlink() for p in path.parents if folder in p.parents)


def test_the_wheel_made_from_the_sdist_holds_every_file_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        names = Counter(n for n in z.namelist() if ".dist-info/" not in n)
    assert [n for n, count in names.items() if count > 1] == []
    assert set(names) - {"eqsat/py.typed"} == expected()
    assert {Path(n).parts[0] for n in names} == {"eqsat"}, "no generic name lands in site-packages"


def test_the_sdist_holds_what_its_tests_and_readme_need(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {n.partition("/")[2] for n in tar.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "Makefile",
        "pyproject.toml",
        "examples/demo.py",
        "bench/tables.py",
    } <= names
    assert {"tests/test_packaging.py", "tests/codegen/fake_cuda.c", "docs/receipts.md"} <= names


def test_an_installed_wheel_lists_rules_and_emits_cuda_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(target)}
    code = (
        "import eqsat, pathlib; from eqsat import optimize, tensor; from eqsat.rulefile import builtin_rules\n"
        "assert pathlib.Path(eqsat.__file__).is_relative_to(pathlib.Path.cwd()), eqsat.__file__\n"
        "best = optimize(tensor('x', (8, 8), 'f32') * 2, target='sm_90', measure=False, store=':memory:')\n"
        "print(len(builtin_rules().rules), best.cubin[0][:4])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, magic = done.stdout.split()
    assert int(count) > 50
    assert magic == r"b'\x7fELF'"
