"""NVRTC: CUDA C++ to cubin, with what ptxas says of it. The only module that touches the compiler; no GPU is needed."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from eqsat.codegen.kernel import KernelBinary, KernelSource, Resources
from eqsat.codegen.targets import Target
from eqsat.errors import CompileError, EnvironmentMissingError, UsageError

# `--no-cache`: with a driver present NVRTC answers repeats from a cache, and then with an empty log (no resources).
OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--diag-suppress=177", "--no-cache", "--device-as-default-execution-space")
# Below this many sources the start of worker processes costs more than the serialised front end.
PROCESSES_FROM = 16


@functools.cache
def _nvrtc() -> Any:
    """Return the bindings, or say what is missing."""
    try:
        from cuda.bindings import nvrtc  # slow import, and only compiling for CUDA needs it
    except ImportError as error:
        raise EnvironmentMissingError(
            "expected the package cuda-bindings; it is not installed. Run: pip install cuda-bindings"
        ) from error
    try:
        status, *_ = nvrtc.nvrtcVersion()
    except (RuntimeError, OSError) as error:  # DynamicLibNotFoundError of newer releases is a RuntimeError
        raise EnvironmentMissingError(
            f"expected the NVRTC library; it could not be loaded ({error}). Run: pip install nvidia-cuda-nvrtc"
        ) from error
    if int(status):
        raise EnvironmentMissingError(f"expected a working NVRTC; nvrtcVersion returned {status}. Reinstall nvidia-cuda-nvrtc.")
    return nvrtc


@functools.cache
def version() -> str:
    """Return the compiler's name and version, as receipts and store keys have it."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"NVRTC {major}.{minor}"


def compile_source(source: KernelSource, target: Target, *, ptx: bool = False, allow_spills: bool = False) -> KernelBinary:
    """Compile one kernel.

    Parameters
    ----------
    source : KernelSource
    target : Target
    ptx : bool
        Whether the PTX text is wanted too.
    allow_spills : bool
        Whether a kernel that spills, keeps a stack frame or has its matrix instructions serialised is let through.

    Returns
    -------
    KernelBinary
        With a cubin for exactly the target's architecture: a cubin of a newer NVRTC loads on an older driver, its PTX does not.

    Raises
    ------
    CompileError
        With the compiler's log, or with "pruned" and what ptxas reported.
    """
    if target.kind != "cuda" or source.language != "cuda":
        raise UsageError(
            f"expected CUDA source for a CUDA target; got {source.language} for {target.name}. Use the C compiler instead."
        )
    nvrtc = _nvrtc()
    options = [f"--gpu-architecture={target.arch}", *OPTIONS, *source.options]
    status, program = nvrtc.nvrtcCreateProgram(source.text.encode(), f"{source.entry}.cu".encode(), 0, [], [])
    _check(status, "nvrtcCreateProgram")
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = _text(nvrtc, program, "ProgramLog")
        if int(status):
            raise CompileError(f"{source.entry} does not compile for {target.arch} ({status}):\n{log}")
        resources = parse_resources(log)
        if not allow_spills and (why := unfit(resources)):
            raise CompileError(f"pruned: the kernel for {target.arch} {why}. Choose a schedule that needs fewer registers.")
        image = _bytes(nvrtc, program, "CUBIN")
        text = _text(nvrtc, program, "PTX") if ptx else ""
        return KernelBinary(source, image, f"{version()} {' '.join(options)}", resources, text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compile_many(
    sources: Sequence[KernelSource], target: Target, threads: int = 0, *, ptx: bool = False
) -> Iterator[tuple[int, KernelBinary | CompileError]]:
    """Compile in parallel; yield (index, binary or error) as they finish.

    Parameters
    ----------
    sources : sequence of KernelSource
    target : Target
    threads : int
        Workers; by default one for each core.

    Notes
    -----
    NVRTC holds one lock around its C++ front end, so threads of one process stop near a speed-up of 7. Many sources on more
    than four cores go to worker processes instead (joblib's, which stay for the next call).
    """
    _nvrtc()  # a missing library is reported here, once, and not by each worker
    workers = min(threads or len(os.sched_getaffinity(0)), max(len(sources), 1))
    if workers > 4 and len(sources) >= PROCESSES_FROM:
        import joblib  # slow import; only large sweeps need it

        pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1)
        results = pool(joblib.delayed(_compile_one)(i, s, target, ptx) for i, s in enumerate(sources))
        try:
            for result in results:  # noqa: UP028  (`yield from` would close `results` outside the block below)
                yield result
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a caller whose time is up leaves the rest on purpose
                results.close()
        return
    with ThreadPoolExecutor(workers) as threads_pool:
        jobs = [threads_pool.submit(_compile_one, i, s, target, ptx) for i, s in enumerate(sources)]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()


def _compile_one(index: int, source: KernelSource, target: Target, ptx: bool) -> tuple[int, KernelBinary | CompileError]:
    """Compile one of many: a refusal is a result."""
    try:
        return index, compile_source(source, target, ptx=ptx)
    except CompileError as error:
        return index, error


def parse_resources(log: str) -> Resources:
    """Read registers, stack, spills, static shared memory and performance warnings out of a `ptxas -v` log."""

    def most(pattern: str) -> int:
        return max((int(n) for n in re.findall(pattern, log)), default=0)

    warnings = sorted({line.strip() for line in log.splitlines() if re.search(r"\bC7[56]\d\d\b", line)})
    return Resources(
        registers=most(r"Used (\d+) registers"),
        stack_bytes=most(r"(\d+) bytes stack frame"),
        spill_bytes=most(r"(\d+) bytes spill stores") + most(r"(\d+) bytes spill loads"),
        shared_bytes=most(r"(\d+) bytes smem"),
        warnings=tuple(warnings),
    )


def unfit(resources: Resources) -> str:
    """Return why a kernel with these resources may not be used, or ""."""
    if resources.spill_bytes:
        return f"spills {resources.spill_bytes} bytes of registers"
    if resources.stack_bytes:
        return f"keeps {resources.stack_bytes} bytes of stack"
    return f"draws the warning {resources.warnings[0]!r}" if resources.warnings else ""


def _check(status: Any, call: str) -> None:
    if int(status):
        raise CompileError(f"{call} failed: {status}")


def _bytes(nvrtc: Any, program: Any, what: str) -> bytes:
    """Fetch one of the compiler's results (`CUBIN`, `PTX`, `ProgramLog`)."""
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(status, f"nvrtcGet{what}Size")
    buffer = b" " * int(size)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)[0], f"nvrtcGet{what}")
    return buffer


def _text(nvrtc: Any, program: Any, what: str) -> str:
    return _bytes(nvrtc, program, what).decode(errors="replace").strip("\0 \n")
