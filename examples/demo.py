"""What `make demo` runs: two programs optimized for this CPU beside NumPy, then the Hopper kernels for them, made without a GPU.

Files go to `demo_out/`. Run it again and it starts from what it measured before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eqsat.search.beside import misled

OUT = Path("demo_out")
BUDGET = "40s"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Run the demo on one thread; start again in a clean environment if this one would slow NumPy down."""
    if misled() or any(os.environ.get(v) != "1" for v in ONE_THREAD):
        if slowed := misled():
            print(
                f"{', '.join(slowed)} is set here, which pins NumPy's BLAS to slower kernels: taken out for a fair comparison.\n"
            )
        clean = {k: v for k, v in os.environ.items() if k not in misled()}
        sys.exit(subprocess.run([sys.executable, __file__], env=clean | dict.fromkeys(ONE_THREAD, "1")).returncode)
    began = time.monotonic()
    gelu_mul_add()
    rmsnorm_matmul()
    print(f"\nDone in {time.monotonic() - began:.0f} s. Sources, binaries and receipts are in {OUT}/; look around with")
    print(f"  .venv/bin/eqsat explain {OUT}/rmsnorm_matmul --all\n  .venv/bin/eqsat verify {OUT}/rmsnorm_matmul")


def gelu_mul_add() -> None:
    """Optimize gelu(x)·y + r, which NumPy computes in a dozen passes over memory."""
    from eqsat import tensor
    from eqsat.numpy_like import gelu

    x, y, r = (tensor(name, (1024, 1024), "f32") for name in "xyr")

    def numpy(x: Any, y: Any, r: Any) -> Any:
        import numpy as np

        return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x))) * y + r

    show("gelu_mul_add", "gelu(x)·y + r of 1024×1024 float32", gelu(x, approximate="tanh") * y + r, numpy)


def rmsnorm_matmul() -> None:
    """Optimize a linear layer behind an RMSNorm: the rules move the norm's scale out of the matrix product."""
    from eqsat import tensor
    from eqsat.numpy_like import rms_norm

    x, g, w = tensor("x", (128, 512), "f32"), tensor("g", (512,), "f32"), tensor("w", (512, 1024), "f32")

    def numpy(x: Any, g: Any, w: Any) -> Any:
        import numpy as np

        return (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6)) * g) @ w

    show("rmsnorm_matmul", "(rms_norm(x)·g) @ w, x of 128×512, w of 512×1024, float32", rms_norm(x, g, eps=1e-6) @ w, numpy)


def show(name: str, what: str, expression: Any, numpy: Callable[..., Any]) -> None:
    """Optimize an expression for this CPU beside `numpy`, say what was found, and emit it for sm_90."""
    from eqsat import optimize
    from eqsat.search.explain import explain

    head = f"=== {what}"
    print(f"{head}\n\nSearching on this CPU, one thread, at most {BUDGET} ...", flush=True)
    OUT.mkdir(exist_ok=True)
    store = OUT / "store.sqlite"
    began = time.monotonic()
    best = optimize(expression, target="cpu", budget=BUDGET, baseline=numpy, store=store)
    counts = best.receipt.counts
    print(
        f"{time.monotonic() - began:.1f} s: {counts['kernels']} kernels in the graph, {counts['enumerated']} schedules looked at\n"
    )
    print("\n".join(str(best.leaderboard).splitlines()[:8]), "\n")
    print(explain(best.receipt.record), "\n")
    best.save(OUT / name)
    hopper = optimize(expression, target="sm_90", measure=False, store=store)
    hopper.save(OUT / f"{name}_sm90")
    resources = [s.binary.resources for s in hopper.executable.steps]
    print(f"The same program for sm_90, chosen by model and compiled without a GPU, in {OUT / name}_sm90:")
    for kernel, used in zip(hopper.receipt.plan["kernels"], resources, strict=True):
        for written, shown in zip(kernel["writes"], kernel["shown"], strict=True):
            print(f"  {written} = {shown}")
        print(f"    {kernel['schedule']}; {used.registers} registers, {used.spill_bytes} bytes spilled")
    print(f"  files: {', '.join(sorted(p.name for p in (OUT / f'{name}_sm90').iterdir()))}\n", flush=True)


if __name__ == "__main__":
    main()
