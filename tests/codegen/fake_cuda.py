"""Run a script against a libcuda.so.1 that writes down what it is asked: `fake_cuda.c` beside this file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def build(folder):
    """Compile the stand-in into `folder`."""
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run([*compiler, "-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(source), "-ldl"], check=True)


def run(folder, script):
    """Run `script` in a fresh interpreter; return (its output, the lines of the log)."""
    log = folder / "log"
    log.write_text("")
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), log.read_text().splitlines()
