"""C compilers: find those of this machine, and compile a kernel's source to a shared object."""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from eqsat.codegen.kernel import KernelBinary, KernelSource, Resources
from eqsat.errors import CompileError, EnvironmentMissingError

_LIMIT_S = 180.0
_FLAGS = ("-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-s")  # -s: zig would record its folder
OPENMP = "-fopenmp"  # an option in KernelSource.options
_CHOICE = "compiler="  # an option "compiler=gcc" in KernelSource.options names the compiler


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler: what it is ("gcc", "clang", "zig"), its version, and the words that start it."""

    name: str
    version: str
    command: tuple[str, ...]

    @property
    def has_openmp(self) -> bool:
        """Whether it compiles and links OpenMP (found by trying, once)."""
        return _has_openmp(self)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def compilers() -> tuple[Compiler, ...]:
    """Return the C compilers of this machine, the preferred first: $CC, clang, gcc, and the ziglang wheel.

    One for each name: a CC that is gcc takes the place of the gcc on the path.
    """
    return _find(os.environ.get("CC", ""), os.environ.get("PATH", ""))


def default_compiler() -> Compiler:
    """Return the preferred compiler.

    Raises
    ------
    EnvironmentMissingError
        If there is none.
    """
    found = compilers()
    if not found:
        raise EnvironmentMissingError(
            "expected a C compiler; looked for $CC, clang and gcc on the path, and the Python package ziglang. "
            "Install one of them, for example: pip install 'eqsat[cpu]' (ziglang), or apt install gcc."
        )
    return found[0]


@functools.cache
def _find(cc: str, _path: str) -> tuple[Compiler, ...]:
    found: dict[str, Compiler] = {}
    for command in (tuple(shlex.split(cc)), ("clang",), ("gcc",), ("cc",)):
        compiler = _probe(command) if command and shutil.which(command[0]) else None
        if compiler is not None:
            found.setdefault(compiler.name, compiler)
    wheel = importlib.util.find_spec("ziglang")
    if wheel is not None and "zig" not in found:
        found["zig"] = Compiler("zig", importlib.metadata.version("ziglang"), (*_start_zig(wheel), "cc"))
    return tuple(found.values())


def _start_zig(wheel: ModuleSpec) -> tuple[str, ...]:
    """Return the words that start zig: the wheel's program itself where it is seen, a fifth faster than through Python."""
    programs = [Path(folder) / "zig" for folder in wheel.submodule_search_locations or ()]
    direct = next((str(p) for p in programs if os.access(p, os.X_OK)), None)
    return (direct,) if direct else (sys.executable, "-m", "ziglang")


def _probe(command: tuple[str, ...]) -> Compiler | None:
    """Ask a command for its version; None if it does not answer like a C compiler."""
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = answer.stdout.splitlines()[0] if answer.returncode == 0 and answer.stdout else ""
    version = re.search(r"\d+(\.\d+)+", first)
    if version is None:
        return None
    name = "zig" if any("zig" in word for word in command) else "clang" if "clang" in first else "gcc"
    return Compiler(name, version.group(), command)


@functools.cache
def _has_openmp(compiler: Compiler) -> bool:
    if compiler.name == "zig":
        return False  # the wheel has no OpenMP runtime
    probe = "int probe(void) { int s = 0;\n#pragma omp parallel for reduction(+ : s)\nfor (int i = 0; i < 8; i++) s += i; return s; }\n"
    try:
        _run(compiler, probe, (OPENMP,), "-O0")
    except CompileError:
        return False
    return True


def usable_threads() -> int:
    """Return the number of threads that OpenMP would use: OMP_NUM_THREADS, else the cores of this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))


def compiler_for(source: KernelSource) -> Compiler:
    """Return the compiler that a source asks for by an option `compiler=<name>`, else the preferred one.

    Raises
    ------
    CompileError
        If this machine lacks the one named, or it lacks OpenMP and the source needs it.
    EnvironmentMissingError
        If there is no compiler at all.
    """
    preferred = default_compiler()
    wanted = next((o.removeprefix(_CHOICE) for o in source.options if o.startswith(_CHOICE)), preferred.name)
    known = {c.name: c for c in compilers()}
    if wanted not in known:
        raise CompileError(f"the schedule asks for the compiler {wanted!r}; this machine has {', '.join(known)}.")
    if OPENMP in source.options and not known[wanted].has_openmp:
        raise CompileError(f"the schedule asks for OpenMP, which {known[wanted]} does not have here.")
    if OPENMP in source.options and usable_threads() == 1:
        raise CompileError("the schedule asks for threads; this process may use one (OMP_NUM_THREADS, or its cores).")
    return known[wanted]


def compile_source(source: KernelSource, compiler: Compiler | None = None, opt: str = "-O3") -> KernelBinary:
    """Compile a C kernel to a shared object.

    Parameters
    ----------
    source : KernelSource
        `options` go to the compiler, but for `compiler=<name>`, which chooses it.
    compiler : Compiler, optional
        Overrides the source's choice.
    opt : str
        Optimisation level.

    Returns
    -------
    KernelBinary
        Its image is the shared object; its `compiler` says name, version and flags.

    Raises
    ------
    CompileError
        With the compiler's log.
    EnvironmentMissingError
        If there is no compiler, or no space for its output.
    """
    chosen = compiler or compiler_for(source)
    options = tuple(o for o in source.options if not o.startswith(_CHOICE))
    image, log = _run(chosen, source.text, options, opt)
    warnings = tuple(line for line in log.splitlines() if "warning:" in line)
    flags = " ".join((opt, *_FLAGS, *options))
    return KernelBinary(source, image, f"{chosen} {flags}", Resources(warnings=warnings))


def compile_many(sources: Sequence[KernelSource], threads: int = 0) -> Iterator[tuple[int, KernelBinary | CompileError]]:
    """Compile in parallel; yield (index, binary or error) as they finish. Equal sources are compiled once.

    Parameters
    ----------
    sources : sequence of KernelSource
    threads : int
        Compilers at work at once; by default one for each core.
    """
    import joblib  # slow import, and only a search compiles

    groups: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        groups.setdefault(source.digest, []).append(i)
    work = joblib.Parallel(n_jobs=threads or os.cpu_count() or 1, backend="threading", return_as="generator_unordered")
    wanted = True
    jobs = (joblib.delayed(_attempt)(m[0], sources[m[0]]) for m in itertools.takewhile(lambda _: wanted, groups.values()))
    results = work(jobs)
    try:
        for first, result in results:
            for i in groups[sources[first].digest]:
                yield i, result
    finally:
        wanted = False  # the caller stopped early: nothing new begins, and joblib warns unless what runs is waited for
        for _ in results:
            pass


def _attempt(index: int, source: KernelSource) -> tuple[int, KernelBinary | CompileError]:
    try:
        return index, compile_source(source)
    except CompileError as error:
        return index, error


def _run(compiler: Compiler, text: str, options: Sequence[str], opt: str) -> tuple[bytes, str]:
    """Compile in a fresh folder under fixed file names (so that equal sources give equal images); return (image, log)."""
    try:
        with tempfile.TemporaryDirectory(prefix="eqsat-cc-") as folder:
            (Path(folder) / "kernel.c").write_text(text, encoding="utf-8")
            command = [*compiler.command, opt, *_FLAGS, *options, "kernel.c", "-o", "kernel.so", *_libraries(compiler)]
            done = subprocess.run(
                command, cwd=folder, env=_environment(compiler), capture_output=True, text=True, timeout=_LIMIT_S, check=False
            )
            if done.returncode:
                raise CompileError(
                    f"{compiler} refused the kernel ({' '.join(command[len(compiler.command) :])}):\n{done.stderr[:4000]}"
                )
            return (Path(folder) / "kernel.so").read_bytes(), done.stderr
    except subprocess.TimeoutExpired:
        raise CompileError(f"{compiler} did not finish within {_LIMIT_S:g} s.") from None
    except OSError as error:
        raise EnvironmentMissingError(
            f"expected to start {compiler.command[0]} and to write to {tempfile.gettempdir()}; got {error}. "
            "Free some space there, or set TMPDIR to another folder."
        ) from error


def _libraries(compiler: Compiler) -> tuple[str, ...]:
    # zig builds its own C runtime unless told not to (3 s and 47 MB at the first run); symbols resolve in the process
    return ("-nostdlib",) if compiler.name == "zig" else ("-lm",)


def _environment(compiler: Compiler) -> dict[str, str]:
    if compiler.name != "zig":
        return dict(os.environ)
    folder = _zig_cache()
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}


@functools.cache
def _zig_cache() -> str:
    """Return a cache folder that lives as long as the process: zig never prunes its own (89 MB after 230 kernels)."""
    folder = tempfile.mkdtemp(prefix="eqsat-zig-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
