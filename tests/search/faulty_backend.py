"""A backend for the worker process that behaves as each binary's image says; it needs no GPU."""

import os
import signal
import time

from eqsat.errors import EnvironmentMissingError, KernelFaultError, UsageError
from eqsat.search.device import Check, Measurement, Trial, Verdict
from eqsat.search.supervised import Begin
from eqsat.search.watched import Finished, Verified


class StickyError(KernelFaultError):
    sticky = True


GOOD = Verdict((Check("exact", True, 0.0, 0),))


class FaultyBackend:
    def __init__(self, mood="well"):
        if mood == "missing":
            raise EnvironmentMissingError("expected a GPU; there is none.")
        self.verified = 0

    def describe(self):
        return os.getpid()

    def variables(self):
        """Return the names of the environment's variables."""
        yield from ()
        return sorted(os.environ)

    def sweep(self, job):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        times = {}
        for index, binary in job.binaries:
            yield Begin(index, job.limit_s, f"kernel {index}")
            behaviour = binary.image.decode().split(":")[0]
            if index not in job.verdicts:
                self.verified += 1
                yield Verified(index, GOOD)
            if behaviour == "fault":
                raise StickyError("the CUDA driver answered CUDA_ERROR_ILLEGAL_ADDRESS")
            if behaviour == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if behaviour == "exit":
                os.write(1, b"last words of the worker")
                os._exit(7)
            if behaviour == "hang":
                time.sleep(60)
            if behaviour == "wrong":
                yield Finished(index, Trial("wrong", GOOD, note="off by one"))
                continue
            times[index] = float(len(binary.image))
        yield Begin(None, 5.0, "timing interleaved")
        for index, binary in job.binaries:
            if binary.image.startswith(b"late") and index in times:
                if job.isolate:
                    yield Begin(index, 5.0, "timing alone")
                raise StickyError("a fault while timing")
        for index, ns in times.items():
            yield Finished(
                index, Trial("ok", GOOD, Measurement(ns, ns, ns, (ns,)), note=f"verified by this worker: {self.verified}")
            )

    def echo(self, value):
        yield Begin(None, 5.0, "echo")
        return value

    def refuse(self):
        yield Begin(None, 5.0, "refuse")
        raise UsageError("expected something else")

    def slow(self):
        yield Begin(None, 0.2, "thinking")
        time.sleep(30)
